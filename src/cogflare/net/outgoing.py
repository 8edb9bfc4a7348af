"""Requests to addresses that clients name: one try, no redirect, bounded in time and size, never to an inside one.

Every failure is an `OutgoingError` in words for the client who gave the address; they name its host, never its path or
query, which may be secrets.
"""

import asyncio
import ssl
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

import httpcore2
import httpx2

from cogflare import __version__
from cogflare.net.addresses import PUBLIC, Reach, inside
from cogflare.net.base import Answered, OutgoingError
from cogflare.net.guard import Forbidden, GuardedNetwork
from cogflare.net.resolver import Resolve
from cogflare.net.sockets import Sockets
from cogflare.net.words import parsed, reason_of, retry_after_s, unconnected

_MAX_ANSWER_BYTES: Final = 64 << 10
_MAX_IDLE: Final = 64
_IDLE_S: Final = 15.0
_CONNECT_SHARE: Final = 0.4  # for the connection, and once more for TLS
_MARGIN_S: Final = 0.02
_ALWAYS: Final = {"User-Agent": f"cogflare/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"}


class Outgoing:
    """Sends requests to addresses within `reach`; connections are kept for the next request to the same host."""

    def __init__(
        self,
        reach: Reach = PUBLIC,
        timeout_s: float = 10.0,
        *,
        verify: ssl.SSLContext | None = None,
        resolve: Resolve | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        # A handshake that the limit of the whole cancels would leave its socket to the garbage collector.
        self._timeouts = {"timeout": {"connect": timeout_s * _CONNECT_SHARE}}
        # Nothing of the environment applies: a proxy would connect to what the guard has not judged.
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=verify or httpx2.create_ssl_context(),
            max_connections=None,
            max_keepalive_connections=_MAX_IDLE,
            keepalive_expiry=_IDLE_S,
            network_backend=GuardedNetwork(Sockets(), reach, resolve),
        )

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answered:
        """Send the body and return the answer; raises `OutgoingError`."""
        target, host = parsed(url)
        sent = {"Host": host, **_ALWAYS, **headers, "Content-Length": str(len(body))}
        lines = [(name.encode(), value.encode()) for name, value in sent.items()]
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                async with self._pool.stream(
                    "POST", target, headers=lines, content=body, extensions=self._timeouts
                ) as response:
                    return await _answered(response, limit.when() or 0.0)
        except (TimeoutError, httpcore2.TimeoutException) as error:
            raise OutgoingError(f"{host} did not answer within {self._timeout_s:g} s") from error
        except Forbidden as error:
            raise OutgoingError(inside(host)) from error
        except httpcore2.ConnectError as error:
            raise OutgoingError(unconnected(host, error)) from error
        except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            raise OutgoingError(f"{host} broke the connection off: {reason_of(error)}") from error

    async def aclose(self) -> None:
        """Close the connections."""
        await self._pool.aclose()


async def _answered(response: httpcore2.Response, until: float) -> Answered:
    """Return an answer; its status counts, whether or not its body comes to an end."""
    body = bytearray()
    with suppress(TimeoutError, httpcore2.NetworkError, httpcore2.ProtocolError):
        async with asyncio.timeout_at(until - _MARGIN_S):
            async for chunk in response.aiter_stream():
                body += chunk[: _MAX_ANSWER_BYTES - len(body)]
                if len(body) >= _MAX_ANSWER_BYTES:
                    break
    headers = {name.lower(): value.decode("latin-1") for name, value in response.headers}
    return Answered(response.status, bytes(body), headers.get(b"location"), retry_after_s(headers))
