"""Blobs in memory: the seam at its shortest."""

import hashlib
from collections.abc import AsyncIterable, AsyncIterator, Sequence

from cogflare.blobs.base import (
    BlobMismatch,
    BlobMissing,
    BlobOffset,
    BlobTooLarge,
    BlobUnavailable,
    Label,
    Stored,
    UploadTarget,
    require_key,
)


class MemoryBlobStore:
    """Blobs that are gone with the process."""

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}
        self._growing: dict[str, bytearray] = {}

    async def check(self) -> None:
        """Do nothing."""

    async def put(self, key: str, body: AsyncIterable[bytes], limit: int, label: Label) -> Stored:
        """Store all of `body`."""
        require_key(key)
        content = bytearray()
        async for chunk in body:
            content += chunk
            if len(content) > limit:
                raise BlobTooLarge(limit)
        return self._place(key, bytes(content))

    async def append(self, key: str, offset: int, body: AsyncIterable[bytes], limit: int) -> int:
        """Add to an upload."""
        require_key(key)
        growing = self._growing.setdefault(key, bytearray())
        at = offset
        async for chunk in body:
            self._require_at(key, growing, at)
            if at + len(chunk) > limit:
                raise BlobTooLarge(limit)
            growing += chunk
            at = len(growing)
        self._require_at(key, growing, at)
        return at

    async def appended(self, key: str) -> int:
        """Return how much there is of an upload."""
        require_key(key)
        return len(self._growing.get(key, b""))

    async def seal(self, key: str, label: Label) -> Stored:
        """Make a blob of what was appended."""
        require_key(key)
        if key not in self._growing:
            raise BlobMissing
        return self._place(key, bytes(self._growing.pop(key)))

    async def open(self, key: str, start: int = 0, end: int | None = None) -> "MemoryBlobReader":
        """Open a blob or a range of it."""
        require_key(key)
        if key not in self._blobs:
            raise BlobMissing
        content = self._blobs[key]
        return MemoryBlobReader(content[start:end], end is not None and end > max(start, len(content)))

    async def head(self, key: str) -> int:
        """Return the size of a blob."""
        require_key(key)
        if key not in self._blobs:
            raise BlobMissing
        return len(self._blobs[key])

    async def delete(self, key: str) -> None:
        """Remove a blob."""
        require_key(key)
        self._blobs.pop(key, None)
        self._growing.pop(key, None)

    async def upload_target(self, key: str, label: Label, size: int | None) -> UploadTarget | None:
        """Return None."""
        return None

    async def complete(self, key: str, upload: str, tags: Sequence[str]) -> None:
        """Refuse."""
        raise BlobMismatch

    async def link(self, key: str, label: Label, expires_s: float) -> str | None:
        """Return None."""
        return None

    async def sweep(self, older_than_s: float) -> int:
        """Do nothing: memory is swept with the process."""
        return 0

    async def aclose(self) -> None:
        """Do nothing."""

    def _require_at(self, key: str, growing: bytearray, at: int) -> None:
        if self._growing.get(key) is not growing or len(growing) != at:
            raise BlobOffset(len(self._growing.get(key, b"")))

    def _place(self, key: str, content: bytes) -> Stored:
        self._blobs[key] = content
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        return Stored(len(content), hashlib.sha256(content).hexdigest(), md5)


class MemoryBlobReader:
    """A blob, or a range of one."""

    def __init__(self, content: bytes, is_short: bool) -> None:
        self._content = content
        self._is_short = is_short

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterate over the bytes, in one piece."""
        if self._content:
            yield self._content
        if self._is_short:
            raise BlobUnavailable("a blob ends before its range does")

    async def aclose(self) -> None:
        """Do nothing."""
