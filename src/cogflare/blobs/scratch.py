"""Uploads that go on after breaks, as files that grow: what has come is on the disk, whatever happens to its sender.

Two senders of one upload may meet: a connection that is dead and does not know it, and the one that goes on instead.
Every write looks whether the file still ends where its sender thinks, so that no byte is taken twice.
"""

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from cogflare.blobs.base import BlobOffset, BlobTooLarge, Stored
from cogflare.blobs.disk import PIECE, run, sync_folder

_PIECE: Final = 256 << 10  # what a crash of this process may cost a slow sender
_SUFFIX: Final = ".upload"


class Scratch:
    """The uploads under one folder, which is made when it is needed. Keys were checked by the caller."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def lock(self, key: str) -> asyncio.Lock:
        """Return what is held while the file of an upload grows, or leaves."""
        return self._locks.setdefault(key, asyncio.Lock())

    def path(self, key: str) -> Path:
        """Return the file of an upload."""
        return self._folder / f"{key}{_SUFFIX}"

    async def append(self, key: str, offset: int, body: AsyncIterable[bytes], limit: int) -> int:
        """Add to an upload, see `BlobStore`."""
        growing = _Growing(self.path(key), offset)
        lock = self.lock(key)
        waiting = bytearray()
        await _held(lock, growing.begin)
        try:
            async for chunk in body:
                if growing.size + len(waiting) + len(chunk) > limit:
                    raise BlobTooLarge(limit)
                waiting += chunk
                if len(waiting) >= _PIECE:
                    # Taken out first: a part of it may be written when this is refused.
                    piece, waiting = bytes(waiting), bytearray()
                    await _held(lock, growing.write, piece)
        finally:
            try:
                await _held(lock, growing.write, bytes(waiting))
                await run(growing.sync)
            finally:
                growing.close()
        return growing.size

    async def size(self, key: str) -> int:
        """Return how many bytes there are of an upload."""
        return await run(_size, self.path(key))

    async def read(self, key: str) -> AsyncIterator[bytes]:
        """Iterate over what there is of an upload, under its lock; raises `BlobMissing`."""
        file = await run(FileIO, self.path(key), "rb")
        try:
            while piece := await run(file.read, PIECE):
                yield piece
        finally:
            file.close()

    async def digest(self, key: str) -> Stored:
        """Return what there is of an upload, under its lock; raises `BlobMissing`."""
        sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0

        def add(piece: bytes) -> None:
            sha256.update(piece)
            md5.update(piece)

        async for piece in self.read(key):
            await run(add, piece)
            size += len(piece)
        return Stored(size, sha256.hexdigest(), md5.hexdigest())

    async def sync(self, key: str) -> None:
        """Make what there is of an upload durable, that of a sender who is still there included."""
        await run(_sync_file, self.path(key))

    async def drop(self, key: str) -> None:
        """Remove an upload, if there is one."""
        async with self.lock(key):
            await self.drop_held(key)

    async def drop_held(self, key: str) -> None:
        """Remove an upload, under its lock."""
        await run(_remove, self.path(key))

    async def sweep(self, older_than_s: float) -> int:
        """Remove uploads that have not grown for so long."""
        return await run(sweep, self._folder, older_than_s)


class _Growing:
    """An upload that one sender adds to; its methods run in threads, one after the other."""

    def __init__(self, path: Path, offset: int) -> None:
        self.size = offset
        self._path = path
        self._file: FileIO | None = None

    def begin(self) -> None:
        found = _size(self._path)
        if found != self.size:
            raise BlobOffset(found)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self._path.exists()
        self._file = FileIO(self._path, "ab")
        if is_new:
            sync_folder(self._path.parent)

    def write(self, piece: bytes) -> None:
        assert self._file is not None
        found = _size(self._path)
        if found != self.size:
            # Another sender was here, or the upload is whole or gone.
            raise BlobOffset(found)
        left = memoryview(piece)
        while left:
            written = self._file.write(left)
            self.size += written
            left = left[written:]

    def sync(self) -> None:
        assert self._file is not None
        os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def sweep(folder: Path, older_than_s: float) -> int:
    """Remove the files of a folder that nobody has written to for so long; returns how many."""
    oldest, swept = time.time() - older_than_s, 0
    for path in folder.glob("*"):
        # Another process may be sweeping too.
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < oldest:
                path.unlink()
                swept += 1
    return swept


async def _held(lock: asyncio.Lock, work: Callable[..., None], *args: object) -> None:
    async with lock:
        await run(work, *args)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        path.unlink()
        sync_folder(path.parent)
