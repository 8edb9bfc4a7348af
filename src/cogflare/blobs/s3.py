"""Blobs as objects of a bucket: Amazon S3, Cloudflare R2, MinIO and whatever else speaks their language.

obstore reads; writes and signed URLs are our own, because workers and clients use them themselves. What comes through
this node lies on its disk first, and goes to the bucket once it is whole: a slow sender, or many of them, hold neither
memory nor a connection to the bucket.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from pathlib import Path
from typing import Final

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
from cogflare.blobs.bucket import Bucket, NotOffered, S3Options
from cogflare.blobs.disk import run
from cogflare.blobs.objects import Objects
from cogflare.blobs.part import Part, receive
from cogflare.blobs.s3calls import S3Calls, headers_of
from cogflare.blobs.s3put import Sender
from cogflare.blobs.scratch import Scratch
from cogflare.domain.clock import Clock

SINGLE: Final = 64 << 20
"""Largest file that a worker sends by one request."""
WORKER_PART: Final = 16 << 20
_WORKER_PARTS: Final = 1_000
_UPLOAD_S: Final = 12 * 3600
_WINDOW: Final = 1 << 20


class S3BlobStore:
    """The blobs in a bucket. `scratch` is a folder for what is on its way there."""

    def __init__(self, bucket: Bucket, options: S3Options, scratch: Path, clock: Clock) -> None:
        self._bucket = bucket
        self._options = options
        self._calls = S3Calls(bucket, clock)
        self._folder = scratch
        self._scratch = Scratch(scratch)
        self._objects = Objects(bucket)
        self._sender = Sender(self._calls)

    async def check(self) -> None:
        """See to it that the bucket can be used, see `BlobStore`."""
        probe, body = f"{self._bucket.prefix}check-{secrets.token_hex(8)}", b"cogflare"
        try:
            await self._calls.call("PUT", probe, headers={"content-type": "text/plain"}, body=body)
        except BlobMissing:
            raise BlobRefused(f"what answers at {self._bucket.where()} is no S3 service: check s3_endpoint") from None
        try:
            if (await self._calls.call("GET", probe)).content != body:
                raise BlobRefused(f"the bucket {self._bucket.name!r} does not give back what was written to it")
            # What is missing is called forbidden to whoever may not list.
            with contextlib.suppress(BlobMissing):
                await self._calls.call("GET", f"{probe}-missing")
        finally:
            await self._calls.call("DELETE", probe)

    async def put(self, key: str, body: AsyncIterable[bytes], limit: int, label: Label) -> Stored:
        """Store all of `body`, see `BlobStore`."""
        require_key(key)
        part = Part(self._folder / f"{key}.{secrets.token_hex(8)}")
        try:
            await receive(part, body, limit)
            await self._sender.send(part.path, part.size, self._bucket.object(key), label)
        finally:
            await run(part.abandon)
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
        require_key(key)
        async with self._scratch.lock(key):
            stored = await self._scratch.digest(key)
            await self._sender.send(self._scratch.path(key), stored.size, self._bucket.object(key), label)
            await self._scratch.drop_held(key)
        return stored

    async def open(self, key: str, start: int = 0, end: int | None = None) -> "S3BlobReader":
        """Open a blob or a range of it, see `BlobStore`."""
        require_key(key)
        path = self._bucket.object(key)
        return S3BlobReader(self._objects, path, await self._objects.head(path), start, end)

    async def head(self, key: str) -> int:
        """Return the size of a blob, see `BlobStore`."""
        require_key(key)
        size, _ = await self._objects.head(self._bucket.object(key))
        return size

    async def delete(self, key: str) -> None:
        """Remove a blob, see `BlobStore`."""
        require_key(key)
        with contextlib.suppress(BlobMissing):
            await self._objects.delete(self._bucket.object(key))
        await self._scratch.drop(key)

    async def upload_target(self, key: str, label: Label, size: int | None) -> UploadTarget | None:
        """Return signed URLs of the bucket, see `BlobStore`; None for a file whose size is not known."""
        require_key(key)
        if size is None or not self._options.direct_uploads:
            return None
        path = self._bucket.object(key)
        if size <= SINGLE:
            headers = headers_of(label)
            signed = headers | {"content-length": str(size)}
            return UploadTarget(self._calls.link("PUT", path, {}, signed, _UPLOAD_S), headers=headers)
        part_bytes = max(WORKER_PART, -(-size // _WORKER_PARTS))
        upload = await self._calls.begin(path, label)
        urls = [
            self._calls.link(
                *("PUT", path, {"partNumber": str(number), "uploadId": upload}),
                {"content-length": str(min(part_bytes, size - begin))},
                _UPLOAD_S,
            )
            for number, begin in enumerate(range(0, size, part_bytes), 1)
        ]
        return UploadTarget(parts=tuple(urls), part_bytes=part_bytes, upload=upload)

    async def complete(self, key: str, upload: str, tags: Sequence[str]) -> None:
        """Join the parts of an upload, see `BlobStore`."""
        require_key(key)
        try:
            await self._calls.complete(self._bucket.object(key), upload, tags)
        except (BlobMismatch, BlobMissing, BlobUnavailable) as error:
            # It may have been done before, and the answer was not heard.
            try:
                await self.head(key)
            except BlobMissing:
                if isinstance(error, BlobUnavailable):
                    raise error from None
                raise BlobMismatch("the parts of this upload are not complete") from None

    async def link(self, key: str, label: Label, expires_s: float) -> str | None:
        """Return a URL of the bucket, see `BlobStore`."""
        require_key(key)
        path = self._bucket.object(key)
        if not self._options.direct_downloads:
            return None
        if self._options.public_url:
            return f"{self._options.public_url.rstrip('/')}/{path}"
        told = {f"response-{name}": value for name, value in headers_of(label).items()}
        return self._calls.link("GET", path, told, {}, int(expires_s))

    async def sweep(self, older_than_s: float) -> int:
        """Give up uploads that nobody completes any more, see `BlobStore`."""
        swept = await self._scratch.sweep(older_than_s)
        oldest_s = self._calls.now_s() - older_than_s
        try:
            uploads = await self._calls.uploads()
        except NotOffered:
            # Such a service has to be told when it is set up to give them up by itself.
            uploads = []
        for partial in uploads:
            if partial.began_s < oldest_s and self._bucket.key(partial.object) is not None:
                await self._calls.abort(partial.object, partial.upload)
                swept += 1
        return swept

    async def aclose(self) -> None:
        """Close connections, see `BlobStore`."""
        await self._calls.aclose()


class S3BlobReader:
    """An object, or a range of one, that is read window by window: a slow reader holds no connection."""

    def __init__(self, objects: Objects, path: str, found: tuple[int, str | None], start: int, end: int | None) -> None:
        self._objects = objects
        self._path = path
        size, self._tag = found
        self._at = start
        self._wanted = size if end is None else end
        self._end = min(size, self._wanted)
        self._coming: asyncio.Task[bytes] | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterate over the bytes, in pieces."""
        self._fetch()
        while self._coming is not None:
            piece = await self._coming
            self._fetch()
            yield piece
        if self._at < self._wanted and self._end < self._wanted:
            raise BlobUnavailable("a blob ends before its range does")

    async def aclose(self) -> None:
        """Give up what is on its way."""
        coming, self._coming, self._at = self._coming, None, self._end
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)

    def _fetch(self) -> None:
        """Begin with the next window, while the one before is used."""
        begin, end = self._at, min(self._at + _WINDOW, self._end)
        self._coming = asyncio.create_task(self._window(begin, end)) if begin < end else None
        self._at = max(begin, end)

    async def _window(self, begin: int, end: int) -> bytes:
        piece = await self._objects.read(self._path, self._tag, begin, end)
        if len(piece) != end - begin:
            raise BlobUnavailable("a blob ends before its range does")
        return piece
