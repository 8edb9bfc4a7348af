"""Opens the database that a URL names; the only place that knows which drivers there are."""

from importlib import import_module
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import cast

from cogflare.store.base import BackupReport, Database, Progress

_DRIVERS = {
    "sqlite": "cogflare.store.sqlite:SQLiteDatabase",
    "postgresql": "cogflare.store.postgres:PostgresDatabase",
    "postgres": "cogflare.store.postgres:PostgresDatabase",
}

_BACKUPS = {"sqlite": "cogflare.store.sqlite.backup:backup"}


def open_database(url: str, *, sql: Traversable | None = None) -> Database:
    """Return the database of a URL, not yet connected: `sqlite:///relative`, `sqlite:////absolute`, `postgresql://…`.

    `sql` is another folder of named SQL than the package's. Raises `ValueError` that says what is wrong with the URL.
    """
    scheme, separator, _ = url.partition("://")
    driver = _DRIVERS.get(scheme)
    if driver is None or not separator:
        # The URL itself may hold a password.
        raise ValueError(f"a database URL starts with sqlite:/// or postgresql://, not {scheme[:20]!r}")
    module, _, name = driver.partition(":")
    return cast(Database, getattr(import_module(module), name).from_url(url, sql=sql))


def has_backup(url: str) -> bool:
    """Say whether the database of a URL is backed up by us; others bring tools of their own."""
    return url.partition("://")[0] in _BACKUPS


def backup_database(url: str, target: Path, progress: Progress) -> BackupReport:
    """Copy the database of a URL into the file `target` while it is used; raises `StoreError`.

    The copy is one snapshot; it has been checked and is durable when it is there.
    """
    module, _, name = _BACKUPS[url.partition("://")[0]].partition(":")
    return cast(BackupReport, getattr(import_module(module), name)(url, target, progress))
