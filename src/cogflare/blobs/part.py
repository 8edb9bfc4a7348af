"""A blob while it comes: a file beside its place, with the digests of what is in it so far."""

import hashlib
import os
from collections.abc import AsyncIterable
from io import FileIO
from pathlib import Path
from typing import Final

from cogflare.blobs.base import BlobTooLarge, Stored
from cogflare.blobs.disk import pieces, run

_PIECE: Final = 256 << 10  # what each of many senders may hold in memory


class Part:
    """A file that is written once; its methods run in threads, one after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._file: FileIO | None = None
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)

    def begin(self) -> None:
        """Make the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = FileIO(self.path, "xb")

    def write(self, piece: bytes) -> None:
        """Add to the file."""
        assert self._file is not None
        left = memoryview(piece)
        while left:
            left = left[self._file.write(left) :]
        self._sha256.update(piece)
        self._md5.update(piece)
        self.size += len(piece)

    def end(self) -> None:
        """Make what was written durable."""
        assert self._file is not None
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        """Remove the file, if it was made and is still there."""
        if self._file is not None:
            self._file.close()
            self.path.unlink(missing_ok=True)

    def stored(self) -> Stored:
        """Return what was written."""
        return Stored(self.size, self._sha256.hexdigest(), self._md5.hexdigest())


async def receive(part: Part, body: AsyncIterable[bytes], limit: int) -> None:
    """Write all of `body` into a new part; raises `BlobTooLarge`, or another `BlobError`."""
    await run(part.begin)
    async for piece in pieces(body, _PIECE):
        if part.size + len(piece) > limit:
            raise BlobTooLarge(limit)
        await run(part.write, piece)
