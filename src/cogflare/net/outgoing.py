"""Requests to addresses that clients name: one try, no redirect, bounded in time and size, never to an inside one.

Every failure is an `OutgoingError` in words for the client who gave the address; they name its host, never its path or
query, which may be secrets.
"""

import asyncio
import ssl
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Final

import httpcore2
import httpx2

from cogflare import __version__
from cogflare.net.addresses import PUBLIC, Reach, inside
from cogflare.net.base import Answered, OutgoingError
from cogflare.net.guard import Forbidden, GuardedNetwork
from cogflare.net.resolver import Resolve

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
            network_backend=GuardedNetwork(httpcore2.AnyIOBackend(), reach, resolve),
        )

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answered:
        """Send the body and return the answer; raises `OutgoingError`."""
        target, host = _parsed(url)
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
            raise OutgoingError(_unconnected(host, error)) from error
        except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            raise OutgoingError(f"{host} broke the connection off: {_reason(error)}") from error

    async def aclose(self) -> None:
        """Close the connections."""
        await self._pool.aclose()


def _parsed(url: str) -> tuple[httpcore2.URL, str]:
    """Return the URL to ask, and its host (with its port, if it names one)."""
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, UnicodeError) as error:
        raise OutgoingError(f"the address is not a URL: {error}") from error
    if parsed.scheme not in ("http", "https"):
        raise OutgoingError(f"the address is not an http(s) URL, it begins with {parsed.scheme[:20]!r}")
    if not parsed.host:
        raise OutgoingError("the address names no host")
    if parsed.userinfo:
        raise OutgoingError("the address has a user name in it, which is not supported: use its query for a secret")
    if parsed.port is not None and not 0 < parsed.port < 65536:
        raise OutgoingError(f"the address names the port {parsed.port}, which there is not")
    target = httpcore2.URL(scheme=parsed.raw_scheme, host=parsed.raw_host, port=parsed.port, target=parsed.raw_path)
    return target, parsed.netloc.decode("ascii")


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
    return Answered(response.status, bytes(body), headers.get(b"location"), _retry_after_s(headers))


def _retry_after_s(headers: Mapping[bytes, str]) -> float | None:
    """Return how long the host wants to be left alone; a date counts from the host's own."""
    wanted = headers.get(b"retry-after", "").strip()
    if wanted.isascii() and wanted.isdigit():
        return float(wanted[:9])
    try:
        pause = parsedate_to_datetime(wanted) - parsedate_to_datetime(headers.get(b"date", ""))
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, pause.total_seconds())


def _unconnected(host: str, error: Exception) -> str:
    """Say why there is no connection: the name, TLS, or nobody who listens."""
    text = str(error)
    if "cannot be resolved" in text:
        return f"the name of {host} cannot be resolved"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        reason = text.partition("verify failed: ")[2].partition(" (_ssl")[0] or "not trusted"
        return f"the certificate of {host} is not trusted ({reason})"
    if "_ssl.c" in text or "SSL" in text:
        return f"{host} does not speak TLS as it should: {_reason(error)}"
    return f"no connection to {host}: refused, or nobody there"


def _reason(error: Exception) -> str:
    return str(error).strip()[:200] or type(error).__name__
