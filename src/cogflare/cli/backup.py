"""`cogflare backup`: a copy of the database of a server that may be running, and of its files if wanted."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cogflare.blobs.copies import CopyReport, copy_blobs
from cogflare.cli.output import as_json, duration, note, print_json
from cogflare.settings import Settings, SettingsError, load
from cogflare.store.base import BackupReport, StoreError
from cogflare.store.open import backup_database, has_backup
from cogflare.vault import KEY_FILE

_DATABASE: Final = "cogflare.db"
_FILES: Final = "files"
_MB: Final = 1_000_000

Tell = Callable[[str, int, int], None]


@click.command()
@click.argument("dest", required=False, type=click.Path(path_type=Path))
@click.option("--data", help="Data folder of the server (default: ./cogflare-data).")
@click.option("--database-url", help="Where its database is, if not in the data folder.")
@click.option("--config", type=click.Path(dir_okay=False), help="The TOML file with the server's settings.")
@click.option("--with-files", is_flag=True, help="Copy stored files too, unless in a bucket; DEST is a folder then.")
@click.option("--force", is_flag=True, help="Replace what is at DEST; with --with-files, bring that copy up to date.")
@as_json
def backup(
    dest: Path | None,
    data: str | None,
    database_url: str | None,
    config: str | None,
    with_files: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Copy the SQLite database of a server into the file DEST, while the server runs.

    The copy is one moment of the database; it is checked and on the disk when this ends. With --with-files, DEST is a
    folder that a server can be started on: cogflare serve --data DEST. Without DEST, the copy is made in the current
    folder and named after the time.
    """
    try:
        settings = load(config, {"data": data, "database_url": database_url})
        if not has_backup(settings.database()):
            raise click.ClickException(_not_ours(settings))
        target = _target(dest, with_files, force)
        started = time.monotonic()
        with _shown() as tell:
            made = backup_database(settings.database(), target, tell)
            if with_files:
                _copy_key(settings, target.parent / KEY_FILE)
            files = _copy_files(settings, target.parent / _FILES, tell) if with_files and not settings.storage else None
    except (SettingsError, StoreError, OSError, ValueError) as error:
        raise click.ClickException(f"no backup was made: {error}") from error
    if as_json:
        took_s = round(time.monotonic() - started, 3)
        print_json({"database": str(target), "seconds": took_s, **_fields(made), "files": files})
        return
    click.echo(str(target))
    note(f"{made.predictions} predictions, {_size(made.bytes)}, checked, in {duration(time.monotonic() - started)}")
    _report(target, files, settings, with_files)


def _not_ours(settings: Settings) -> str:
    own = "the database is PostgreSQL: back it up with pg_dump (or the tools of whoever runs it)"
    if settings.storage:
        return f"{own}; the stored files are in {settings.storage}"
    return f"{own}, and then copy the folder {Path(settings.data) / _FILES}, which has the stored files"


def _target(dest: Path | None, with_files: bool, force: bool) -> Path:
    """Return the file for the copy of the database; raises `StoreError` for a place that is taken."""
    name = f"cogflare-backup-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    if with_files:
        target = (dest or Path(name)) / _DATABASE
        is_taken = target.parent.exists() and (not target.parent.is_dir() or any(target.parent.iterdir()))
    else:
        target = dest or Path(f"{name}.db")
        target = target / f"{name}.db" if target.is_dir() else target
        is_taken = target.exists()
    if is_taken and not force:
        raise StoreError(f"{target.parent if with_files else target} is there already; --force replaces it")
    if Path(f"{target}-wal").exists():
        raise StoreError(f"a server uses {target} (it has a log beside it)")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _key(settings: Settings) -> Path | None:
    """Return the file with the key that secrets are sealed with, if it is in one."""
    file = Path(settings.data) / KEY_FILE
    return file if settings.secret_key is None and file.exists() else None


def _copy_key(settings: Settings, target: Path) -> None:
    """Copy the key that secrets are sealed with, for this user only."""
    source = _key(settings)
    if source is None:
        return
    key = source.read_bytes()
    target.unlink(missing_ok=True)
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(key)
        out.flush()
        os.fsync(out.fileno())


def _copy_files(settings: Settings, target: Path, tell: Tell) -> CopyReport:
    return copy_blobs(Path(settings.data) / _FILES, target, lambda done, of: tell("copying files", done, of))


@contextmanager
def _shown() -> Iterator[Tell]:
    """Show on a terminal how far the work is; elsewhere say nothing."""
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield lambda what, done, of: None
        return
    percent = TextColumn("{task.percentage:>3.0f}%")
    columns = TextColumn("{task.description}"), BarColumn(), percent, TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def tell(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=of)
            progress.update(tasks[what], completed=done, total=of)

        yield tell


def _report(target: Path, files: CopyReport | None, settings: Settings, with_files: bool) -> None:
    """Say what else belongs to the copy."""
    if files is not None:
        note(f"{files.files} files, {_size(files.bytes)}, {files.new} of them new; start a server on it with:")
        note(f"    cogflare serve --data {target.parent}")
    elif settings.storage:
        note(
            f"The stored files are in {settings.storage}: a server on this copy needs the same settings of the storage."
        )
    elif any((Path(settings.data) / _FILES).glob("??/*")):
        note(f"The stored files in {Path(settings.data) / _FILES} are not in it: copy them too, or use --with-files.")
    if not with_files and (key := _key(settings)) is not None:
        note(f"The secrets in it are sealed with {key}: keep a copy of that too, or use --with-files.")


def _fields(made: BackupReport) -> dict[str, int]:
    return {"bytes": made.bytes, "predictions": made.predictions, "schema_version": made.schema_version}


def _size(size: int) -> str:
    return f"{size / _MB:.1f} MB"
