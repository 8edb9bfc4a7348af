"""The public base URL: the origin that every URL in an answer begins with.

Order: what the operator configured; then what a *trusted* proxy forwarded; then the Host header. Whatever comes from
a request is checked character by character, since it is written into JSON, HTML and webhook payloads.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from cogflare.api.problems import Problem, bad_request

_HOST: Final = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,252}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?", re.ASCII)
_PATH: Final = re.compile(r"(?:/[A-Za-z0-9._~-]+)*", re.ASCII)
_FORWARDED_PAIR: Final = re.compile(
    r'(?:^|;)\s*(host|proto)\s*=\s*(?:"([^"\\]*)"|([^;,"\s]*))', re.ASCII | re.IGNORECASE
)
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}
_SECURE: Final = {"http": "http", "https": "https", "ws": "http", "wss": "https"}

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class TrustedProxies:
    """Peers whose forwarding headers are believed: addresses, networks, "unix" (a local socket), or "*" for all."""

    def __init__(self, entries: Iterable[str] = ()) -> None:
        """Raise ValueError for an entry that is none of these."""
        names = [entry.strip() for entry in entries]
        self._everyone = "*" in names
        self._local_socket = self._everyone or "unix" in names
        self._networks: list[Network] = [
            ipaddress.ip_network(name, strict=False) for name in names if name not in ("*", "unix")
        ]

    def __contains__(self, peer: str | None) -> bool:
        """Say whether `peer`, the address at the other end of the socket (None: no address), is believed."""
        if self._everyone or not peer:
            return self._local_socket
        if not self._networks:
            return False
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._networks)


def check_public_url(url: str) -> str:
    """Return a configured public URL without its trailing slash; raise ValueError unless it is plain http(s)."""
    parts = urlsplit(url)
    path = parts.path.rstrip("/")
    plain = not (parts.query or parts.fragment or parts.username or parts.password)
    if (
        parts.scheme not in _DEFAULT_PORTS
        or not plain
        or not _HOST.fullmatch(parts.netloc)
        or not _PATH.fullmatch(path)
    ):
        raise ValueError(f"not a public URL such as https://example.net: {url!r}")
    return f"{parts.scheme}://{parts.netloc}{path}"


def public_base(scope: Mapping[str, Any], public_url: str | None, trusted: TrustedProxies) -> str:
    """Return the base URL for answers to this ASGI request, without a trailing slash.

    `public_url` has passed `check_public_url`. Raise `Problem` 400 for a Host or forwarding header that is no host.
    """
    if public_url is not None:
        return public_url
    found: dict[bytes, str] = {}
    for name, value in scope["headers"]:
        if name in _READ:
            if name == b"host" and name in found:
                raise _bad_host("is given twice")
            found[name] = value.decode("latin-1")
    scheme, host = _SECURE.get(scope.get("scheme", "http"), "http"), found.get(b"host", "")
    client = scope.get("client")
    if len(found) > 1 and (client[0] if client else None) in trusted:
        scheme, host = _forwarded(found, scheme, host)
    if not _HOST.fullmatch(host):
        raise _bad_host("is missing" if not host else "is not a host name")
    return f"{scheme}://{host.removesuffix(_DEFAULT_PORTS[scheme])}"


_READ: Final = frozenset({b"host", b"forwarded", b"x-forwarded-host", b"x-forwarded-proto"})


def _forwarded(found: Mapping[bytes, str], scheme: str, host: str) -> tuple[str, str]:
    """Apply forwarding headers of a trusted proxy; the last element is the one that this proxy wrote itself.

    `Forwarded` counts only when no `X-Forwarded-*` is there: proxies that set the latter pass a client's `Forwarded`
    through untouched.
    """
    given_host, given_proto = found.get(b"x-forwarded-host"), found.get(b"x-forwarded-proto")
    if given_host is None and given_proto is None:
        pairs = _FORWARDED_PAIR.findall(found.get(b"forwarded", "").rpartition(",")[2])
        values = {key.lower(): quoted or plain for key, quoted, plain in pairs}
        given_host, given_proto = values.get("host"), values.get("proto")
    if given_proto is not None:
        proto = given_proto.rpartition(",")[2].strip().lower()
        if proto not in _SECURE:
            raise bad_request("The forwarded protocol is neither http nor https", title="Invalid forwarding header")
        scheme = _SECURE[proto]
    if given_host is not None:
        host = given_host.rpartition(",")[2].strip()
    return scheme, host


def _bad_host(what: str) -> Problem:
    return bad_request(f"The Host header {what}", title="Invalid host")
