"""A copy of a SQLite database while a server uses it: one snapshot, checked, and in its place only when it is whole.

The copy is written beside its place under another name, checked, synced and renamed. It is readable by its owner only.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

import apsw

from cogflare.store.base import BackupReport, Progress, StoreError
from cogflare.store.sqlite.connection import connect_reader, options_of, translate

_STEP: Final = 2_048  # pages


def backup(url: str, target: Path, progress: Progress) -> BackupReport:
    """Copy the database of a URL into `target`, in place of what is there; raises `StoreError`.

    `progress` is told what is done ("copying", "checking") and how much of it, of how much.
    """
    source = Path(options_of(url).path)
    if not source.exists():
        raise StoreError(f"there is no database at {source}")
    if target.exists() and target.samefile(source):
        raise StoreError(f"{target} is the database itself")
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with _translated():
            os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            _copy(url, partial, progress)
            report = _check(partial, progress)
            _sync(partial)
            partial.replace(target)
            _sync(target.parent)
    finally:
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(f"{partial}{suffix}").unlink(missing_ok=True)
    return report


def _copy(url: str, partial: Path, progress: Progress) -> None:
    with closing(connect_reader(options_of(url))) as source, closing(apsw.Connection(str(partial))) as copy:
        # It is synced as a whole at the end.
        copy.pragma("synchronous", "off")
        source.execute("BEGIN")
        # From here on this connection sees one state, whatever others write, so the copy never has to start again.
        source.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        with copy.backup("main", source, "main") as steps:
            while not steps.done:
                steps.step(_STEP)
                progress("copying", steps.page_count - steps.remaining, steps.page_count)
        source.execute("COMMIT")


def _check(partial: Path, progress: Progress) -> BackupReport:
    progress("checking", 0, 1)
    # Immutable: nothing is written beside it, and its log is empty.
    uri = f"file:{quote(str(partial.absolute()))}?immutable=1"
    with closing(apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)) as copy:
        found = [str(row[0]) for row in copy.execute("PRAGMA integrity_check(10)")]
        if found != ["ok"]:
            raise StoreError(f"the copy is not sound: {'; '.join(found)}")
        ((version,),) = copy.execute("SELECT coalesce(max(version), 0) FROM schema_version")
        ((predictions,),) = copy.execute("SELECT count(*) FROM predictions")
    progress("checking", 1, 1)
    assert isinstance(version, int)
    assert isinstance(predictions, int)
    return BackupReport(partial.stat().st_size, version, predictions)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except apsw.Error as error:
        raise translate(error) from error
    except OSError as error:
        raise StoreError(f"{error.filename or 'the copy'}: {error.strerror}") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
