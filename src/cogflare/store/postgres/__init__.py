"""PostgreSQL behind the `Database` seam: many nodes share one server."""

from cogflare.store.postgres.database import PostgresDatabase

__all__ = ["PostgresDatabase"]
