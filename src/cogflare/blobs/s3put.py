"""Files on their way into a bucket: small ones by one request, others in parts, a few of them at a time.

A file is read while it is sent and is never whole in memory; nor is a part of it.
"""

import asyncio
import contextlib
from collections import deque
from pathlib import Path
from typing import Final

from cogflare.blobs.base import BlobError, BlobMismatch, BlobMissing, Label
from cogflare.blobs.s3calls import S3Calls, Slice, headers_of

PART: Final = 8 << 20
_SENDERS: Final = 16
_AT_ONCE: Final = 3
_MOST_PARTS: Final = 10_000
_ABORT_S: Final = 10.0


class Sender:
    """Sends files to a bucket, some at a time."""

    def __init__(self, calls: S3Calls) -> None:
        self._calls = calls
        self._turn = asyncio.Semaphore(_SENDERS)

    async def send(self, file: Path, size: int, path: str, label: Label) -> None:
        """Make an object of a file; it is there as a whole, or what was there before is."""
        async with self._turn:
            if size <= PART:
                await self._calls.call("PUT", path, headers=headers_of(label), body=Slice(file, 0, size))
                return
            upload = await self._calls.begin(path, label)
            try:
                await self._join(path, upload, await self._parts(file, size, path, upload), size)
            except BaseException:
                # What is left all the same is swept.
                with contextlib.suppress(BlobError, TimeoutError):
                    async with asyncio.timeout(_ABORT_S):
                        await self._calls.abort(path, upload)
                raise

    async def _join(self, path: str, upload: str, tags: list[str], size: int) -> None:
        try:
            await self._calls.complete(path, upload, tags)
        except BlobMismatch as error:
            # A try before, whose answer was lost, may have done it.
            try:
                is_there = await self._calls.size(path) == size
            except BlobMissing:
                is_there = False
            if not is_there:
                raise error from None

    async def _parts(self, file: Path, size: int, path: str, upload: str) -> list[str]:
        """Send all parts, of one size but the last; returns their tags."""
        part_bytes = max(PART, -(-size // _MOST_PARTS))
        tags: list[str] = []
        sending: deque[asyncio.Task[str]] = deque()
        try:
            for number, begin in enumerate(range(0, size, part_bytes), 1):
                if len(sending) == _AT_ONCE:
                    tags.append(await sending[0])
                    sending.popleft()
                part = Slice(file, begin, min(part_bytes, size - begin))
                sending.append(asyncio.create_task(self._calls.put_part(path, upload, number, part)))
            for last in sending:
                tags.append(await last)
        finally:
            for task in sending:
                task.cancel()
            await asyncio.gather(*sending, return_exceptions=True)
        return tags
