"""Sockets of outgoing connections."""

import ssl
from collections.abc import Iterable
from typing import Any

import httpcore2


class Sockets(httpcore2.AnyIOBackend):
    """Sockets that can be asked whether they are still good after they have gone, too."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect."""
        return _Socket(await super().connect_tcp(host, port, timeout, local_address, socket_options))


class _Socket(httpcore2.AsyncNetworkStream):
    """A connection. The one below it falls over itself when it is asked about a socket that a failed write closed."""

    def __init__(self, inner: httpcore2.AsyncNetworkStream) -> None:
        self._inner = inner

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self._inner.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        return _Socket(await self._inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        try:
            return self._inner.get_extra_info(info)
        except AttributeError:
            return True if info == "is_readable" else None
