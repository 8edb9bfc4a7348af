"""AWS Signature Version 4 for S3, as pure functions: signed headers for requests of ours, signed URLs for others.

A path is not normalized and is encoded once, as S3 wants it.
"""

import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote, urlsplit

import msgspec

ALGORITHM: Final = "AWS4-HMAC-SHA256"
UNSIGNED: Final = "UNSIGNED-PAYLOAD"
EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest()
LONGEST_S: Final = 7 * 86_400
"""How long a signed URL can be valid."""


class Signing(msgspec.Struct, frozen=True):
    """Who signs, and for which region."""

    access_key_id: str
    secret_access_key: str
    region: str

    def __repr__(self) -> str:
        """Return what may be read in a log."""
        return f"Signing({self.region})"


def sign(
    signing: Signing,
    method: str,
    url: str,
    query: Mapping[str, str],
    headers: Mapping[str, str],
    payload_sha256: str,
    at_s: float,
) -> dict[str, str]:
    """Return the headers of a request with its signature; `url` has an encoded path and no query."""
    at = _stamp(at_s)
    signed = {name.lower(): value for name, value in headers.items()}
    signed |= {"host": _host(url), "x-amz-content-sha256": payload_sha256, "x-amz-date": at}
    names, signature = _signature(signing, method, url, query, signed, payload_sha256, at)
    credential = f"{signing.access_key_id}/{_scope(signing, at)}"
    signed["authorization"] = f"{ALGORITHM} Credential={credential},SignedHeaders={names},Signature={signature}"
    del signed["host"]
    return signed


def presign(
    signing: Signing,
    method: str,
    url: str,
    query: Mapping[str, str],
    headers: Mapping[str, str],
    expires_s: int,
    at_s: float,
) -> str:
    """Return a URL under which anyone may send this request, with these headers, until it expires."""
    at = _stamp(at_s)
    signed = {name.lower(): value for name, value in headers.items()} | {"host": _host(url)}
    asked = {
        **query,
        "X-Amz-Algorithm": ALGORITHM,
        "X-Amz-Credential": f"{signing.access_key_id}/{_scope(signing, at)}",
        "X-Amz-Date": at,
        "X-Amz-Expires": str(max(1, min(expires_s, LONGEST_S))),
        "X-Amz-SignedHeaders": ";".join(sorted(signed)),
    }
    _, signature = _signature(signing, method, url, asked, signed, UNSIGNED, at)
    return f"{url}?{query_string(asked)}&X-Amz-Signature={signature}"


def query_string(query: Mapping[str, str]) -> str:
    """Return a query as it is signed, and has to be sent."""
    encoded = sorted((_encoded(name), _encoded(value)) for name, value in query.items())
    return "&".join(f"{name}={value}" for name, value in encoded)


def path_of(key: str) -> str:
    """Return the path of an object, encoded as it is signed."""
    return quote(key, safe="/-_.~")


def _signature(
    signing: Signing,
    method: str,
    url: str,
    query: Mapping[str, str],
    headers: Mapping[str, str],
    payload_sha256: str,
    at: str,
) -> tuple[str, str]:
    """Return the names of the signed headers, and the signature."""
    names = ";".join(sorted(headers))
    lines = [f"{name}:{' '.join(headers[name].split())}\n" for name in sorted(headers)]
    path = urlsplit(url).path or "/"
    request = "\n".join([method, path, query_string(query), "".join(lines), names, payload_sha256])
    digest = hashlib.sha256(request.encode()).hexdigest()
    text = "\n".join([ALGORITHM, at, _scope(signing, at), digest])
    key = f"AWS4{signing.secret_access_key}".encode()
    for part in (at[:8], signing.region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return names, hmac.new(key, text.encode(), "sha256").hexdigest()


def _scope(signing: Signing, at: str) -> str:
    return f"{at[:8]}/{signing.region}/s3/aws4_request"


def _stamp(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y%m%dT%H%M%SZ")


def _host(url: str) -> str:
    """Return the Host header that HTTP clients send: without the port that the scheme implies."""
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return host if parts.port in (None, default) else f"{host}:{parts.port}"


def _encoded(text: str) -> str:
    return quote(text, safe="-_.~")
