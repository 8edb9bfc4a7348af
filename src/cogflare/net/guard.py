"""Connections to addresses that a stranger chose.

The URLs of inputs and of webhooks are a stranger's text. They must not reach into the network that this process runs
in, so a name is resolved once, each address is judged, and the connection goes to the very address that was judged.
"""

import asyncio
from collections.abc import Iterable

import httpcore2

from cogflare.net.addresses import PUBLIC, Reach
from cogflare.net.resolver import Resolve, Resolver


class Forbidden(OSError):
    """The address is inside some network; nothing was sent to it."""


class GuardedNetwork(httpcore2.AsyncNetworkBackend):
    """Opens connections to addresses within `reach` only; TLS still speaks of the host's name."""

    def __init__(
        self, inner: httpcore2.AsyncNetworkBackend, reach: Reach = PUBLIC, resolve: Resolve | None = None
    ) -> None:
        self._inner = inner
        self._reach = reach
        self._resolve = resolve or Resolver()

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
                addresses = await self._resolve(host)
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout(f"{host} was not resolved in time") from error
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError(f"{host} cannot be resolved") from error
        allowed = [address for address in addresses if self._reach.includes(address)]
        if not allowed:
            raise Forbidden(f"{host} is an address of an internal network")
        for number, address in enumerate(allowed, 1):
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if number == len(allowed):
                    raise
        raise AssertionError("unreachable")

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None
    ) -> httpcore2.AsyncNetworkStream:
        """Refuse: what a stranger names is never a socket of this machine."""
        raise Forbidden("a socket of this machine is not on the internet")

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await self._inner.sleep(seconds)
