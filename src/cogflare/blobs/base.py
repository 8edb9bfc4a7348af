"""The `BlobStore` seam: bytes under a key, streamed in and out, never whole in memory.

Nothing outside this package knows what is behind the seam.

    BlobError
    ├── BlobMissing       nothing is stored under the key
    ├── BlobTooLarge      the bytes exceed the limit; nothing was kept of them
    ├── BlobFull          the disk or a quota is full; nothing was kept
    ├── BlobOffset        an upload goes on at another place than the caller thinks
    ├── BlobMismatch      the parts of an upload are not the ones that were sent
    ├── BlobRefused       the store takes nothing from us as it is set up: credentials, a bucket, a right
    └── BlobUnavailable   the store does not answer, or what it holds cannot be read
"""

import re
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import Final, Protocol

import msgspec

_KEY: Final = re.compile(r"[0-9a-z]{40}", re.ASCII)


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


class BlobOffset(BlobError):
    """An upload goes on at another place than the caller thinks: at `size`; nothing was kept."""

    def __init__(self, size: int) -> None:
        super().__init__(f"the upload goes on at byte {size}")
        self.size = size


class BlobMismatch(BlobError):
    """The parts of an upload are not the ones that were sent; it is not complete."""


class BlobRefused(BlobError):
    """The store takes nothing from us as it is set up; the text says what the operator has to do."""


class BlobUnavailable(BlobError):
    """The store does not answer, or what it holds cannot be read."""


class Stored(msgspec.Struct, frozen=True):
    """What a put has stored: bytes, and their digests in hex."""

    size: int
    sha256: str
    md5: str


class Label(msgspec.Struct, frozen=True):
    """What is told of a blob to whoever downloads it from the store itself: values of the headers of that name."""

    content_type: str
    content_disposition: str = ""


class UploadTarget(msgspec.Struct, frozen=True):
    """Where a worker sends the bytes of a file itself; `headers` are part of what was signed, and so is their number.

    With `parts`, each of these URLs takes the next `part_bytes` of the file (the last one the rest), again and again
    until it is answered; the answers' ETags and `upload` then complete the blob.
    """

    url: str = ""
    method: str = "PUT"
    headers: dict[str, str] = {}
    parts: tuple[str, ...] = ()
    part_bytes: int = 0
    upload: str = ""


class BlobReader(Protocol):
    """An open blob, or a range of one; to be closed by whoever opened it."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterate over the bytes, in pieces; raises `BlobUnavailable` where they end too early."""
        ...

    async def aclose(self) -> None:
        """Give the blob back; twice is harmless."""
        ...


class BlobStore(Protocol):
    """Durable storage of bytes. A key is the id of a file: 40 characters of 0-9 and a-z; others are a `ValueError`.

    Methods that have no other word about it raise `BlobUnavailable` where the store does not answer, and `BlobRefused`.
    """

    async def check(self) -> None:
        """See to it that blobs can be written, read and removed; raises a `BlobError` that says what is to be done.

        `BlobRefused` stays until somebody does it; others may pass.
        """
        ...

    async def put(self, key: str, body: AsyncIterable[bytes], limit: int, label: Label) -> Stored:
        """Store all of `body`, in place of what was there; durable when it returns.

        Readers see the old bytes or the new, never a part. Raises `BlobTooLarge` beyond `limit` bytes, `BlobFull` or
        `BlobUnavailable`; an error of `body` passes through. Whatever is raised, nothing was changed.
        """
        ...

    async def append(self, key: str, offset: int, body: AsyncIterable[bytes], limit: int) -> int:
        """Add to an upload that goes on after breaks: what comes of `body` is kept, even if `body` raises.

        Returns how much there is now. Raises `BlobOffset` unless `offset` is what there was, `BlobTooLarge` beyond
        `limit` bytes in all, or `BlobFull`.
        """
        ...

    async def appended(self, key: str) -> int:
        """Return how many bytes there are of an upload that goes on; 0 for none."""
        ...

    async def seal(self, key: str, label: Label) -> Stored:
        """Make a blob of what was appended, as by `put`; raises `BlobMissing` where there is nothing."""
        ...

    async def open(self, key: str, start: int = 0, end: int | None = None) -> BlobReader:
        """Open the bytes from `start` up to, but not with, `end`; raises `BlobMissing` or `BlobUnavailable`."""
        ...

    async def head(self, key: str) -> int:
        """Return the size in bytes; raises `BlobMissing` or `BlobUnavailable`."""
        ...

    async def delete(self, key: str) -> None:
        """Remove what is stored under the key, if anything is, and what was appended; durable when it returns."""
        ...

    async def upload_target(self, key: str, label: Label, size: int | None) -> UploadTarget | None:
        """Return where a worker may put the bytes past this server; None if they come through it.

        Who answers with a target has the upload confirmed by `head` afterwards, and one of parts by `complete` before.
        """
        ...

    async def complete(self, key: str, upload: str, tags: Sequence[str]) -> None:
        """Join the parts of an upload; safe to repeat. Raises `BlobMismatch` where they are not what the store has."""
        ...

    async def link(self, key: str, label: Label, expires_s: float) -> str | None:
        """Return a URL of the store itself from which the blob can be downloaded; None if it is served through us."""
        ...

    async def sweep(self, older_than_s: float) -> int:
        """Remove what uploads that never came to an end have left, if it lies there for so long; returns how much.

        Whole blobs are left alone, whatever their keys are.
        """
        ...

    async def aclose(self) -> None:
        """Close connections; twice is harmless."""
        ...


def require_key(key: str) -> None:
    """See to it that this can be the key of a blob; raises `ValueError`."""
    if not _KEY.fullmatch(key):
        raise ValueError("the key of a blob is 40 characters of 0-9 and a-z")
