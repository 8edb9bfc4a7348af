"""Signatures of webhooks (Standard Webhooks): how a message is signed, and how a receiver checks it."""

import base64
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from typing import Final

SECRET_BYTES: Final = 24
TOLERANCE_S: Final = 300.0
_PREFIX: Final = "whsec_"
_VERSION: Final = "v1"


class BadSignature(Exception):
    """The message is not from whom it says; the text says what is wrong."""


def format_secret(key: bytes) -> str:
    """Write a key as receivers know it: verifiers split at the only `_`, hence the alphabet with `+` and `/`."""
    return _PREFIX + base64.b64encode(key).decode()


def parse_secret(secret: str) -> bytes:
    """Read a secret of the form `whsec_…`; raises `ValueError`."""
    if not secret.startswith(_PREFIX):
        raise ValueError(f"a secret of webhooks begins with {_PREFIX}")
    return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)


def sign(key: bytes, id: str, timestamp_s: int, body: bytes) -> str:
    """Return the signature of a message."""
    content = b"%s.%d.%s" % (id.encode(), timestamp_s, body)
    return f"{_VERSION},{base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()}"


def signed_headers(keys: Iterable[bytes], id: str, timestamp_s: int, body: bytes) -> dict[str, str]:
    """Return the headers of a message that is signed with each of the keys."""
    return {
        "webhook-id": id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": " ".join(sign(key, id, timestamp_s, body) for key in keys),
    }


def verify(
    key: bytes, headers: Mapping[str, str], body: bytes, now_s: float, tolerance_s: float | None = TOLERANCE_S
) -> None:
    """Check a message that came with these headers (names in lower case); raises `BadSignature`.

    One signature of several has to be right. `tolerance_s` is how far its time may be from `now_s`; None: any.
    """
    id, stamp, signatures = (headers.get(f"webhook-{name}", "") for name in ("id", "timestamp", "signature"))
    if not id or not signatures:
        raise BadSignature("it is not signed")
    if not stamp.isascii() or not stamp.isdigit() or len(stamp) > 15:
        raise BadSignature("webhook-timestamp is not a time")
    if tolerance_s is not None and abs(now_s - int(stamp)) > tolerance_s:
        raise BadSignature("it was signed too long ago, or the clocks differ")
    expected = sign(key, id, int(stamp), body).encode()
    if not any(hmac.compare_digest(expected, given.encode(errors="replace")) for given in signatures.split()):
        raise BadSignature("the signature is another one: another secret, or another body")
