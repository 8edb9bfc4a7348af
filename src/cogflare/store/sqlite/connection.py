"""How a SQLite connection is opened, brought to the schema of this version, and how its errors are told."""

import errno
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import apsw
import msgspec

from cogflare.store.base import Constraint, Full, SchemaTooNew, StoreError, Unavailable
from cogflare.store.sql import Migration

Synchronous = Literal["full", "normal", "off"]

Connect = Callable[[], apsw.Connection]

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_UNAVAILABLE = (
    apsw.BusyError,
    apsw.LockedError,
    apsw.IOError,
    apsw.CantOpenError,
    apsw.NoMemError,
    apsw.ReadOnlyError,
    apsw.CorruptError,
    apsw.NotADBError,
    apsw.ProtocolError,
    apsw.PermissionsError,
)


class Options(msgspec.Struct, frozen=True):
    """Where the database file is and how it is opened.

    `synchronous`: "full" has every commit on the disk when it is answered; "normal" may lose the last commits when
    the machine (not only the process) dies; "off" may lose the database then. `busy_timeout_s` is how long to wait
    for another process that holds the write lock. `vfs` names a registered SQLite file system layer.
    """

    path: str
    synchronous: Synchronous = "full"
    busy_timeout_s: float = 5.0
    vfs: str | None = None


def options_of(url: str) -> Options:
    """Read `sqlite:///relative/path` or `sqlite:////absolute/path`, `?synchronous=` included; raises `ValueError`."""
    parts = urlsplit(url)
    path = unquote(parts.path[1:])
    if parts.netloc or not path or path == ":memory:":
        raise ValueError("write sqlite:///relative/path or sqlite:////absolute/path of a file")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    match query.pop("synchronous", "full"):
        case ("full" | "normal" | "off") as synchronous:
            pass
        case other:
            raise ValueError(f"synchronous is full, normal or off, not {other!r}")
    if query:
        raise ValueError(f"no such option: {', '.join(query)}")
    return Options(path, synchronous)


def connect_writer(options: Options) -> apsw.Connection:
    """Open the file for writing, and make it if there is none; then only its owner can read it, and its log."""
    if options.vfs is None:
        # It may be there; and what else is wrong with the place SQLite says itself.
        with suppress(OSError):
            os.close(os.open(options.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    connection = _open(options, apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE)
    try:
        if connection.pragma("journal_mode", "wal") != "wal":
            raise Unavailable(f"{options.path}: this file system cannot hold a write-ahead log")
        connection.pragma("synchronous", options.synchronous)
        connection.pragma("foreign_keys", True)
    except BaseException:
        connection.close()
        raise
    return connection


def connect_reader(options: Options) -> apsw.Connection:
    """Open the file for queries only."""
    return _open(options, apsw.SQLITE_OPEN_READONLY)


def _open(options: Options, flags: int) -> apsw.Connection:
    connection = apsw.Connection(options.path, flags=flags, vfs=options.vfs, statementcachesize=512)
    # SQLite would take a misspelt "column" for a string.
    connection.config(apsw.SQLITE_DBCONFIG_DQS_DML, 0)
    connection.config(apsw.SQLITE_DBCONFIG_DQS_DDL, 0)
    # Otherwise a statement with a partial index is planned anew for every value: it costs more than running it.
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
    connection.set_busy_timeout(math.ceil(options.busy_timeout_s * 1000))
    connection.pragma("cache_size", -32_000)
    return connection


def translate(error: Exception, connection: apsw.Connection | None = None) -> Exception:
    """Return the store's word for an error of SQLite; others (a value of a wrong type) stay what they are.

    The `connection` that failed knows more: SQLite itself calls only one of the ways to be full "full".
    """
    if not isinstance(error, apsw.Error):
        return error
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, apsw.ConstraintError):
        return Constraint(text)
    if isinstance(error, apsw.FullError):
        return Full(text)
    if isinstance(error, apsw.IOError | apsw.CantOpenError) and connection and connection.system_errno in _FULL:
        return Full(f"{text} ({os.strerror(connection.system_errno)})")
    if isinstance(error, _UNAVAILABLE):
        return Unavailable(text)
    return StoreError(text)


@contextmanager
def transaction(connection: apsw.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # After some errors SQLite has rolled back by itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def migrate(connection: apsw.Connection, migrations: Sequence[Migration]) -> None:
    """Apply what is missing, each migration in one transaction; another process may be doing the same."""
    with transaction(connection):
        connection.execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL PRIMARY KEY)")
        version = _version(connection)
    if version > len(migrations):
        raise SchemaTooNew(f"the schema is at version {version}, and this program knows {len(migrations)}")
    for migration in migrations[version:]:
        with transaction(connection):
            if _version(connection) < migration.number:
                connection.execute(migration.script)
                connection.execute("INSERT INTO schema_version (version) VALUES (?1)", (migration.number,))


def _version(connection: apsw.Connection) -> int:
    ((version,),) = connection.execute("SELECT coalesce(max(version), 0) FROM schema_version")
    assert isinstance(version, int)
    return version
