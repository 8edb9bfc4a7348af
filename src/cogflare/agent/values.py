"""From what a runner tells to what travels: every value that leaves here can be read by the other end."""

import json
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Raw

from cogflare.protocol.codec import checked
from cogflare.protocol.messages import MAX_VALUE

_MAX_METRICS = 64_000  # bytes, all of an attempt together
_MAX_ERROR = 16_000  # characters


class BadValue(ValueError):
    """The model gave something that is not a JSON value others can read."""


def to_raw(value: Any) -> Raw:
    """Encode a value (or take one that is encoded); raises `BadValue`. Lone surrogates become question marks."""
    try:
        if isinstance(value, Raw):
            return checked(value)
        return checked(Raw(_encode(value)))
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise BadValue(f"the model's output cannot be sent: {error}") from error


def fits(value: Raw) -> bool:
    """Say whether the value may travel in a message."""
    return len(bytes(value)) <= MAX_VALUE


def metrics_of(values: Mapping[str, Any]) -> dict[str, Raw]:
    """Encode metrics, without those that cannot be sent or are too much."""
    kept: dict[str, Raw] = {}
    room = _MAX_METRICS
    for name, value in values.items():
        try:
            raw = to_raw(value)
        except BadValue:
            continue
        room -= len(bytes(raw)) + len(name) * 6 + 4
        if room < 0:
            break
        kept[text_of(name)] = raw
    return kept


def error_of(text: str | None) -> str | None:
    """Return the error as text that can be sent: cut in the middle when it is long, since both ends tell something."""
    if text is None:
        return None
    text = text_of(text)
    if len(text) <= _MAX_ERROR:
        return text
    half = _MAX_ERROR // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"


def text_of(text: str) -> str:
    """Return the text without lone surrogates, which no encoding of the link has."""
    return text.encode(errors="replace").decode()


def _encode(value: Any) -> bytes:
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
