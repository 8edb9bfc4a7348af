"""Requests to the server, and to where it sends us, tried again for as long as the attempt is wanted.

It owns the HTTP client. A worker outlives a server that is away: pauses grow, and nothing is given up but by a verdict.

    TransferError
    ├── Superseded      the server wants nothing more of this attempt
    ├── Misplaced       the file goes on at another byte than was sent
    ├── Denied          a store of files refuses what the server had allowed
    └── TooLarge        the server will never take this much
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import httpx2
import msgspec

from cogflare.agent.address import DIRECT, ServerAddress
from cogflare.agent.depot import Order
from cogflare.agent.runners.base import OutputRefused

_TIMEOUT = httpx2.Timeout(60.0, connect=10.0)
OFFSET = "Upload-Offset"


class TransferError(Exception):
    """The server did not take, or did not give, what belongs to an attempt."""


class Superseded(TransferError):
    """The server wants nothing more of this attempt."""


class Misplaced(TransferError):
    """The file goes on at another byte than was sent."""


class Denied(TransferError):
    """A store of files refuses what the server had allowed: the time for it has passed, or the upload is gone."""


class TooLarge(TransferError, OutputRefused):
    """The server will never take this much: the prediction's own failure."""


@dataclass(slots=True)
class Ticket:
    """An attempt under way: `dropped` is set once it is no longer wanted; `files` counts what was stored for it.

    `left` are the files of it that an earlier agent had begun to send.
    """

    prediction: str
    attempt: int
    dropped: asyncio.Event = field(default_factory=asyncio.Event)
    files: int = 0
    left: list[Order] = field(default_factory=list)


class Courier:
    """Sends requests; `token` is asked before every one."""

    def __init__(
        self,
        server: ServerAddress,
        token: Callable[[], str],
        worker: str,
        *,
        first_pause_s: float = 0.2,
        cap_s: float = 10.0,
    ) -> None:
        self.server = server
        self._token = token
        self._worker = worker
        self._pauses = (first_pause_s, cap_s)
        self._http: httpx2.AsyncClient | None = None
        self._stale: list[httpx2.AsyncClient] = []

    async def aclose(self) -> None:
        """Close the connections."""
        for http in (self._http, *self._stale):
            if http is not None:
                await http.aclose()

    async def request(
        self, method: str, url: str, content: bytes | AsyncIterator[bytes] | None, headers: Mapping[str, str]
    ) -> httpx2.Response:
        """Send a request once; raises `httpx2.HTTPError`."""
        sent = dict(headers)
        if self.server.is_own(url):  # the token is nobody else's business
            sent |= {"Authorization": f"Bearer {self._token()}", "Cogflare-Worker": self._worker}
        if self._http is None:
            self._http = httpx2.AsyncClient(timeout=_TIMEOUT, follow_redirects=False, mounts=DIRECT)
        http = self._http
        try:
            return await http.request(method, url, content=content, headers=sent)
        except AttributeError as error:
            # So the sockets below tell of a kept connection that has just gone; this pool could do so again.
            self._stale.append(http)
            self._http = None if self._http is http else self._http
            raise httpx2.ReadError(f"the connection broke: {error}") from error

    async def again(self, ticket: Ticket, send: Callable[[], Awaitable[httpx2.Response]]) -> httpx2.Response:
        """Send until the server answers for good; raises `Superseded` once the attempt is not wanted."""
        first_s, cap_s = self._pauses
        pause_s, loop = first_s, asyncio.get_running_loop()
        while not ticket.dropped.is_set():
            began = loop.time()
            try:
                response = await send()
            except httpx2.TransportError:
                pass
            else:
                if response.status_code < 300:
                    return response
                if not _passes(response.status_code):
                    raise self._verdict(response)
            if loop.time() - began > cap_s:
                pause_s = first_s  # it went well for a while
            try:
                await asyncio.wait_for(ticket.dropped.wait(), random.uniform(pause_s / 2, pause_s))  # noqa: S311
            except TimeoutError:
                pause_s = min(cap_s, pause_s * 2)
        raise Superseded("the attempt is no longer wanted")

    def _verdict(self, response: httpx2.Response) -> TransferError:
        status, is_own = response.status_code, self.server.is_own(str(response.request.url))
        if is_own and status == 409 and OFFSET in response.headers:
            return Misplaced(_detail(response))
        if is_own and status in (404, 409) and "/worker/v1/" in response.request.url.path:
            return Superseded("the attempt is no longer wanted")
        if status == 413:
            return TooLarge(_detail(response) or "Output is too large")
        where = response.request.url.copy_with(query=None)  # a query may be a signature
        kind = Denied if not is_own and status in (403, 404) else TransferError
        return kind(f"{response.request.method} {where} was answered {status}: {_detail(response)}")


def _passes(status: int) -> bool:
    """Say whether such an answer may be another one later."""
    return status >= 500 or status in (408, 425, 429)


def _detail(response: httpx2.Response) -> str:
    try:
        problem = msgspec.json.decode(response.content, type=dict[str, object])
    except msgspec.DecodeError:
        return response.text[:200]
    return str(problem.get("detail") or problem.get("title") or "")[:200]
