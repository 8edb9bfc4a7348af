"""Blobs as files in a folder. Each is written beside its place, synced and renamed, so that it is whole or not there.

    <root>/ab/ab…    the blob of a key, under the first two characters of it
    <root>/parts/    what is being written; what a crash leaves there is swept

All file operations run in threads, a piece of about a megabyte at a time.
"""

import os
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path

from cogflare.blobs.base import (
    BlobMismatch,
    BlobMissing,
    BlobRefused,
    BlobUnavailable,
    Label,
    Stored,
    UploadTarget,
    require_key,
)
from cogflare.blobs.disk import PIECE, run, sync_folder
from cogflare.blobs.part import Part, receive
from cogflare.blobs.scratch import Scratch, sweep


class LocalBlobStore:
    """The blobs under one folder, which is made when it is needed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._parts = root / "parts"
        self._scratch = Scratch(self._parts)

    async def check(self) -> None:
        """See to it that the folder can be written to, see `BlobStore`."""
        part = Part(self._parts / f"check.{secrets.token_hex(8)}")
        try:
            await run(part.begin)
            await run(part.write, b"check")
        except (BlobMissing, BlobUnavailable) as error:
            what = f"files cannot be stored in {self._root} ({error}): let the server's user write there"
            raise BlobRefused(what) from error
        finally:
            await run(part.abandon)

    async def put(self, key: str, body: AsyncIterable[bytes], limit: int, label: Label) -> Stored:
        """Store all of `body`, see `BlobStore`."""
        target = self._path(key)
        part = Part(self._parts / f"{key}.{secrets.token_hex(8)}")
        try:
            await receive(part, body, limit)
            await run(part.end)
            await run(_place, part.path, target)
        except BaseException:
            await run(part.abandon)
            raise
        return part.stored()

    async def append(self, key: str, offset: int, body: AsyncIterable[bytes], limit: int) -> int:
        """Add to an upload, see `BlobStore`."""
        require_key(key)
        return await self._scratch.append(key, offset, body, limit)

    async def appended(self, key: str) -> int:
        """Return how much there is of an upload, see `BlobStore`."""
        require_key(key)
        return await self._scratch.size(key)

    async def seal(self, key: str, label: Label) -> Stored:
        """Make a blob of what was appended, see `BlobStore`."""
        target = self._path(key)
        async with self._scratch.lock(key):
            stored = await self._scratch.digest(key)
            await self._scratch.sync(key)
            await run(_place, self._scratch.path(key), target)
        return stored

    async def open(self, key: str, start: int = 0, end: int | None = None) -> "LocalBlobReader":
        """Open a blob or a range of it, see `BlobStore`."""
        reader = LocalBlobReader(self._path(key), start, end)
        try:
            await run(reader.begin)
        except BaseException:
            await reader.aclose()
            raise
        return reader

    async def head(self, key: str) -> int:
        """Return the size of a blob, see `BlobStore`."""
        return (await run(self._path(key).stat)).st_size

    async def delete(self, key: str) -> None:
        """Remove a blob, see `BlobStore`."""
        await run(_remove, self._path(key))
        await self._scratch.drop(key)

    async def upload_target(self, key: str, label: Label, size: int | None) -> UploadTarget | None:
        """Return None: all bytes come through this server."""
        return None

    async def complete(self, key: str, upload: str, tags: Sequence[str]) -> None:
        """Refuse: nobody was told to send parts."""
        raise BlobMismatch("files are sent through this server, not in parts")

    async def link(self, key: str, label: Label, expires_s: float) -> str | None:
        """Return None: all bytes are served by this server."""
        return None

    async def sweep(self, older_than_s: float) -> int:
        """Remove parts of blobs that nobody writes any more, see `BlobStore`."""
        return await run(sweep, self._parts, older_than_s)

    async def aclose(self) -> None:
        """Do nothing: every file is closed by whoever opened it."""

    def _path(self, key: str) -> Path:
        require_key(key)
        return self._root / key[:2] / key


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
            piece = await run(self._file.read, min(PIECE, self._left))
            if not piece:
                raise BlobUnavailable("a blob ends before its range does")
            self._left -= len(piece)
            yield piece

    async def aclose(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _place(part: Path, target: Path) -> None:
    """Make a durable part the blob."""
    folder = target.parent
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)
    part.replace(target)
    sync_folder(folder)


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        path.unlink()
        sync_folder(path.parent)
