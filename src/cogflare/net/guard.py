"""Which addresses an input may be fetched from, and connections that obey.

A prediction's input is a stranger's text. Its URLs must not reach into the worker's own network, so a name is resolved
once, each address is judged, and the connection goes to the very address that was judged.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Iterable

import httpcore2

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class Forbidden(OSError):
    """The address is inside some network; nothing was sent to it."""


def is_public(address: str) -> bool:
    """Say whether the IP address is one of the open internet, looking through every way to wrap an IPv4 address."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = _wrapped(ip)
        if inner is not None:
            return is_public(str(inner))
        if ip.is_site_local or ip.is_reserved:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_unspecified


def _wrapped(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that traffic to this one ends at (mapped, 6to4, Teredo, NAT64)."""
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    if ip.teredo is not None:
        return ip.teredo[1]
    return ip.ipv4_mapped or ip.sixtofour


class GuardedNetwork(httpcore2.AsyncNetworkBackend):
    """Opens connections to public addresses only; TLS still speaks of the host's name."""

    def __init__(self, inner: httpcore2.AsyncNetworkBackend) -> None:
        self._inner = inner

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Resolve the host, then connect to the first of its addresses that answers; raises `Forbidden`."""
        try:
            async with asyncio.timeout(timeout):
                found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout(f"{host} was not resolved in time") from error
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError(f"{host} cannot be resolved") from error
        addresses = [str(entry[4][0]) for entry in found]
        public = [address for address in addresses if is_public(address)]
        if not public:
            raise Forbidden(f"{host} is an address of an internal network")
        for number, address in enumerate(public, 1):
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if number == len(public):
                    raise
        raise AssertionError("unreachable")

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None
    ) -> httpcore2.AsyncNetworkStream:
        """Refuse: inputs do not come from sockets of this machine."""
        raise Forbidden("a socket of this machine is not an input")

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await self._inner.sleep(seconds)
