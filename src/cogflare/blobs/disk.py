"""Files on the disk of this machine: operations run in threads, and fail in the words of the seam."""

import asyncio
import errno
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable
from pathlib import Path
from typing import Final, TypeVar

from cogflare.blobs.base import BlobError, BlobFull, BlobMissing, BlobUnavailable

PIECE: Final = 1 << 20
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

T = TypeVar("T")


async def pieces(body: AsyncIterable[bytes], size: int = PIECE) -> AsyncIterator[bytes]:
    """Join small chunks to pieces of at least this size, so that each way into a thread is worth it."""
    waiting: list[bytes] = []
    length = 0
    async for chunk in body:
        waiting.append(chunk)
        length += len(chunk)
        if length >= size:
            yield b"".join(waiting)
            waiting, length = [], 0
    if length:
        yield b"".join(waiting)


async def run(work: Callable[..., T], *args: object) -> T:
    """Run file operations in a thread; raises a `BlobError` for what the system refuses.

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
        raise translate(error) from error


def translate(error: OSError) -> BlobError:
    """Return what an error of the system means for a blob."""
    if isinstance(error, FileNotFoundError):
        return BlobMissing("nothing is stored under this key")
    kind = BlobFull if error.errno in _FULL else BlobUnavailable
    return kind(error.strerror or type(error).__name__)


def sync_folder(folder: Path) -> None:
    """Make a rename in the folder durable, where the system can open folders."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
