"""Conditional and range requests (RFC 9110) as the files need them: entity tags, and one range of bytes."""

import re
from typing import Final

import msgspec

_RANGE: Final = re.compile(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*", re.ASCII | re.IGNORECASE)


class Span(msgspec.Struct, frozen=True):
    """Bytes from `start` up to, but not with, `end`."""

    start: int
    end: int


class Unsatisfiable(Exception):
    """The range lies outside of what there is."""


def parse_range(header: str | None, size: int) -> Span | None:
    """Return the span that a `Range` header asks for; None for the whole (no range, several, or none we know).

    Raises `Unsatisfiable`.
    """
    found = _RANGE.fullmatch(header) if header else None
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        span = Span(max(0, size - int(found[2])), size)
    else:
        end = int(found[2]) + 1 if found[2] else size
        if end <= int(found[1]) and found[2]:
            return None
        span = Span(int(found[1]), min(end, size))
    if span.start >= span.end:
        raise Unsatisfiable
    return span


def names_tag(header: str | None, tag: str) -> bool:
    """Say whether an `If-None-Match` list names the tag (weak comparison)."""
    if header is None:
        return False
    return any(item.strip().removeprefix("W/") in (tag, "*") for item in header.split(","))
