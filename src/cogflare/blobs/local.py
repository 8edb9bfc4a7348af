"""Blobs as files in a folder. Each is written beside its place, synced and renamed, so that it is whole or not there.

    <root>/ab/ab…    the blob of a key, under the first two characters of it
    <root>/parts/    what is being written; what a crash leaves there is swept

All file operations run in threads, a piece of about a megabyte at a time.
"""

import asyncio
import errno
import hashlib
import os
import re
import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Final, TypeVar

from cogflare.blobs.base import BlobError, BlobFull, BlobMissing, BlobTooLarge, BlobUnavailable, Stored, UploadTarget

PIECE: Final = 1 << 20
_KEY: Final = re.compile(r"[0-9a-z]{40}", re.ASCII)
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

T = TypeVar("T")


class LocalBlobStore:
    """The blobs under one folder, which is made when it is needed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._parts = root / "parts"

    async def put(self, key: str, body: AsyncIterable[bytes], limit: int) -> Stored:
        """Store all of `body`, see `BlobStore`."""
        target = self._path(key)
        part = _Part(self._parts / f"{key}.{secrets.token_hex(8)}")
        try:
            await _run(part.begin)
            async for piece in _pieces(body):
                if part.size + len(piece) > limit:
                    raise BlobTooLarge(limit)
                await _run(part.write, piece)
            await _run(part.commit, target)
        except BaseException:
            await _run(part.abandon)
            raise
        return part.stored()

    async def open(self, key: str, start: int = 0, end: int | None = None) -> "LocalBlobReader":
        """Open a blob or a range of it, see `BlobStore`."""
        reader = LocalBlobReader(self._path(key), start, end)
        try:
            await _run(reader.begin)
        except BaseException:
            await reader.aclose()
            raise
        return reader

    async def head(self, key: str) -> int:
        """Return the size of a blob, see `BlobStore`."""
        return (await _run(self._path(key).stat)).st_size

    async def delete(self, key: str) -> None:
        """Remove a blob, see `BlobStore`."""
        await _run(_remove, self._path(key))

    async def upload_target(self, key: str, content_type: str, size: int | None) -> UploadTarget | None:
        """Return None: all bytes come through `put`."""
        return None

    async def sweep(self, older_than_s: float) -> int:
        """Remove parts of blobs that nobody writes any more, see `BlobStore`."""
        return await _run(self._sweep, older_than_s)

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError("the key of a blob is 40 characters of 0-9 and a-z")
        return self._root / key[:2] / key

    def _sweep(self, older_than_s: float) -> int:
        oldest, swept = time.time() - older_than_s, 0
        for part in self._parts.glob("*"):
            # Another process may be sweeping too.
            with suppress(FileNotFoundError):
                if part.stat().st_mtime < oldest:
                    part.unlink()
                    swept += 1
        return swept


class _Part:
    """A blob while it is written; its methods run in threads, one after the other."""

    def __init__(self, path: Path) -> None:
        self.size = 0
        self._path = path
        self._file: FileIO | None = None
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)

    def begin(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = FileIO(self._path, "xb")

    def write(self, piece: bytes) -> None:
        assert self._file is not None
        left = memoryview(piece)
        while left:
            left = left[self._file.write(left) :]
        self._sha256.update(piece)
        self._md5.update(piece)
        self.size += len(piece)

    def commit(self, target: Path) -> None:
        assert self._file is not None
        os.fsync(self._file.fileno())
        self._file.close()
        folder = target.parent
        if not folder.is_dir():
            folder.mkdir(exist_ok=True)
            _sync(folder.parent)
        self._path.replace(target)
        _sync(folder)

    def abandon(self) -> None:
        if self._file is not None:
            self._file.close()
            self._path.unlink(missing_ok=True)

    def stored(self) -> Stored:
        return Stored(self.size, self._sha256.hexdigest(), self._md5.hexdigest())


class LocalBlobReader:
    """A file, or a range of one, that is open for reading."""

    def __init__(self, path: Path, start: int, end: int | None) -> None:
        self._path = path
        self._start = start
        self._end = end
        self._file: FileIO | None = None
        self._left = 0

    def begin(self) -> None:
        """Open the file; in a thread."""
        self._file = FileIO(self._path, "rb")
        end = os.fstat(self._file.fileno()).st_size if self._end is None else self._end
        self._left = max(0, end - self._start)
        self._file.seek(self._start)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterate over the bytes, in pieces."""
        while self._left and self._file is not None:
            piece = await _run(self._file.read, min(PIECE, self._left))
            if not piece:
                raise BlobUnavailable("a blob ends before its range does")
            self._left -= len(piece)
            yield piece

    async def aclose(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


async def _pieces(body: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Join small chunks, so that each way into a thread is worth it."""
    waiting: list[bytes] = []
    size = 0
    async for chunk in body:
        waiting.append(chunk)
        size += len(chunk)
        if size >= PIECE:
            yield b"".join(waiting)
            waiting, size = [], 0
    if size:
        yield b"".join(waiting)


async def _run(work: Callable[..., T], *args: object) -> T:
    """Run file operations in a thread, and say what went wrong in the words of the seam.

    A caller that is cancelled leaves only after the thread has: it is about to close the file that is worked on.
    """
    task = asyncio.ensure_future(asyncio.to_thread(work, *args))
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        task.exception()
        raise cancelled
    try:
        return task.result()
    except OSError as error:
        raise _translate(error) from error


def _translate(error: OSError) -> BlobError:
    if isinstance(error, FileNotFoundError):
        return BlobMissing("nothing is stored under this key")
    kind = BlobFull if error.errno in _FULL else BlobUnavailable
    return kind(error.strerror or type(error).__name__)


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        path.unlink()
        _sync(path.parent)


def _sync(folder: Path) -> None:
    """Make a rename in the folder durable, where the system can open folders."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
