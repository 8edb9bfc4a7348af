"""SQLite behind the `Database` seam: one file, one process that writes much, no server."""

from cogflare.store.sqlite.database import SQLiteDatabase

__all__ = ["SQLiteDatabase"]
