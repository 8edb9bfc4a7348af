"""The `BlobStore` seam: bytes under a key, streamed in and out, never whole in memory.

Nothing outside this package knows what is behind the seam.

    BlobError
    ├── BlobMissing       nothing is stored under the key
    ├── BlobTooLarge      the bytes exceed the limit; nothing was kept of them
    ├── BlobFull          the disk or a quota is full; nothing was kept
    └── BlobUnavailable   the store does not answer, or what it holds cannot be read
"""

from collections.abc import AsyncIterable, AsyncIterator
from typing import Protocol

import msgspec


class BlobError(Exception):
    """The blob store could not do what was asked."""


class BlobMissing(BlobError):
    """Nothing is stored under this key."""


class BlobTooLarge(BlobError):
    """The bytes exceed the limit; nothing was kept of them."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"more than {limit} bytes")
        self.limit = limit


class BlobFull(BlobError):
    """The store has no room left; nothing was kept."""


class BlobUnavailable(BlobError):
    """The store does not answer, or what it holds cannot be read."""


class Stored(msgspec.Struct, frozen=True):
    """What a put has stored: bytes, and their digests in hex."""

    size: int
    sha256: str
    md5: str


class UploadTarget(msgspec.Struct, frozen=True):
    """Where a worker sends the bytes of a file itself; `headers` are part of what was signed."""

    url: str
    method: str = "PUT"
    headers: dict[str, str] = {}


class BlobReader(Protocol):
    """An open blob, or a range of one; to be closed by whoever opened it."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterate over the bytes, in pieces; raises `BlobUnavailable` where they end too early."""
        ...

    async def aclose(self) -> None:
        """Give the blob back; twice is harmless."""
        ...


class BlobStore(Protocol):
    """Durable storage of bytes. A key is the id of a file: 40 characters of 0-9 and a-z; others are a `ValueError`."""

    async def put(self, key: str, body: AsyncIterable[bytes], limit: int) -> Stored:
        """Store all of `body`, in place of what was there; durable when it returns.

        Readers see the old bytes or the new, never a part. Raises `BlobTooLarge` beyond `limit` bytes, `BlobFull` or
        `BlobUnavailable`; an error of `body` passes through. Whatever is raised, nothing was changed.
        """
        ...

    async def open(self, key: str, start: int = 0, end: int | None = None) -> BlobReader:
        """Open the bytes from `start` up to, but not with, `end`; raises `BlobMissing` or `BlobUnavailable`."""
        ...

    async def head(self, key: str) -> int:
        """Return the size in bytes; raises `BlobMissing` or `BlobUnavailable`."""
        ...

    async def delete(self, key: str) -> None:
        """Remove what is stored under the key, if anything is; durable when it returns."""
        ...

    async def upload_target(self, key: str, content_type: str, size: int | None) -> UploadTarget | None:
        """Return where a worker may put the bytes past this server; None if they come through `put`.

        Who answers with a target has the upload confirmed by `head` afterwards.
        """
        ...

    async def sweep(self, older_than_s: float) -> int:
        """Remove what puts that never came to an end have left, if it lies there for so long; returns how much it was.

        Whole blobs are left alone, whatever their keys are.
        """
        ...
