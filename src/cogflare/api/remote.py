"""Who is at the other end of a request: an address that tells one sender from another, and nothing more.

What a proxy forwards counts where the proxy is trusted; behind one that is not, all senders are one.
"""

import ipaddress
import re
from collections.abc import Mapping
from typing import Any, Final

from cogflare.api.origin import TrustedProxies

_FOR: Final = re.compile(r'(?:^|;)\s*for\s*=\s*(?:"([^"\\]*)"|([^;,"\s]*))', re.ASCII | re.IGNORECASE)
_WITH_PORT: Final = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::[0-9]+)?|([0-9.]+):[0-9]+", re.ASCII)
_HOPS: Final = 20
_PREFIX: Final = 64  # bits of an address of IPv6 that one sender has to itself
_UNKNOWN: Final = "unknown"


def remote_address(scope: Mapping[str, Any], trusted: TrustedProxies) -> str:
    """Return the address behind an ASGI scope; of IPv6 the network, as its hosts take addresses as they like."""
    client = scope.get("client")
    peer = str(client[0]) if client else ""
    if peer not in trusted:
        return _network(peer)
    hops = _hops(scope)
    outside = (hop for hop in reversed(hops) if hop not in trusted)
    return _network(next(outside, hops[-1] if hops else peer))


def _hops(scope: Mapping[str, Any]) -> list[str]:
    """Return who the proxies say they had at their other ends; the last one stands last."""
    told = _header(scope, b"x-forwarded-for")
    if told:
        return [_bare(hop.strip()) for hop in told.split(",")[-_HOPS:]]
    found = [_FOR.search(hop) for hop in _header(scope, b"forwarded").split(",")[-_HOPS:]]
    return [_bare(hop[1] or hop[2]) for hop in found if hop is not None]


def _header(scope: Mapping[str, Any], wanted: bytes) -> str:
    return ",".join(value.decode("latin-1") for name, value in scope["headers"] if name == wanted)


def _bare(hop: str) -> str:
    found = _WITH_PORT.fullmatch(hop)
    return hop if found is None else found[1] or found[2]


def _network(text: str) -> str:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return _UNKNOWN
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, _PREFIX), strict=False))
