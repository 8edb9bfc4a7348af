"""Copies of the blobs of a folder, made while a server uses it.

A blob never changes once it is there, so a hard link is a copy where the file system has them. Blobs come and go
meanwhile: those of a database that was copied before are all there, except for what retention has removed since.
"""

import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

_BLOB: Final = re.compile(r"[0-9a-z]{40}", re.ASCII)


class CopyReport(msgspec.Struct, frozen=True):
    """How many blobs the copy has, and of how many bytes; `new` counts those it did not have before."""

    files: int
    bytes: int
    new: int


def copy_blobs(source: Path, target: Path, progress: Callable[[int, int], None]) -> CopyReport:
    """Copy what `target` does not have yet; durable when it returns. `progress` is told how many of how many are done.

    Raises `OSError`. What a copy that broke off has left is used by the next one.
    """
    blobs = [blob for folder in _folders(source) for blob in sorted(folder.iterdir()) if _BLOB.fullmatch(blob.name)]
    files = size = new = 0
    touched = {target}
    target.mkdir(parents=True, exist_ok=True)
    for number, blob in enumerate(blobs, 1):
        place = target / blob.parent.name
        if place not in touched:
            place.mkdir(exist_ok=True)
            touched.add(place)
        try:
            new += _copy(blob, place / blob.name)
        except FileNotFoundError:
            # Retention was faster.
            if blob.exists():
                raise
        else:
            files, size = files + 1, size + (place / blob.name).stat().st_size
        progress(number, len(blobs))
    for place in touched:
        _sync(place)
    return CopyReport(files, size, new)


def _folders(source: Path) -> Iterator[Path]:
    if source.is_dir():
        yield from sorted(path for path in source.iterdir() if len(path.name) == 2 and path.is_dir())


def _copy(blob: Path, place: Path) -> bool:
    """Put a blob into its place; False if it is there already."""
    if place.exists() and place.stat().st_size == blob.stat().st_size:
        return False
    beside = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    try:
        try:
            os.link(blob, beside)
        except FileNotFoundError:
            raise
        except OSError:
            # Another file system, or one without links.
            shutil.copyfile(blob, beside)
            _sync(beside)
        beside.replace(place)
    finally:
        beside.unlink(missing_ok=True)
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
