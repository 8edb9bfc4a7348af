"""What a request to an address that a client named comes to, whatever sends it."""

import msgspec


class OutgoingError(Exception):
    """There was no answer; the text says why, for people."""


class Answered(msgspec.Struct, frozen=True):
    """An answer of whatever status: the first 64 KB of its body, and what its headers say about where and when."""

    status: int
    body: bytes
    location: str | None = None
    retry_after_s: float | None = None
