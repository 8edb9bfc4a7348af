"""What does not fit a frame goes by HTTP: output files, large results, large inputs.

It owns the HTTP client towards the server and a ticket per attempt under way. Everything is tried again, with growing
pauses and for as long as the attempt is wanted: a worker outlives a server that is away.

    TransferError
    ├── Superseded      the server wants nothing more of this attempt
    └── TooLarge        the server will never take this much
"""

import asyncio
import contextlib
import hashlib
import random
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import IO

import httpx2
import msgspec
from msgspec import Raw

from cogflare.agent.address import DIRECT, ServerAddress
from cogflare.agent.runners.base import OutputRefused
from cogflare.protocol.messages import MAX_REASON, AttemptKey

_CHUNK = 256 * 1024
_IN_MEMORY = 4 * 1024 * 1024  # bytes of a file that stay in memory; more goes to a temporary file
_TIMEOUT = httpx2.Timeout(60.0, connect=10.0)
_FAREWELL_S = 10.0
_JSON = {"Content-Type": "application/json"}


class TransferError(Exception):
    """The server did not take, or did not give, what belongs to an attempt."""


class Superseded(TransferError):
    """The server wants nothing more of this attempt."""


class TooLarge(TransferError, OutputRefused):
    """The server will never take this much: the prediction's own failure."""


@dataclass(slots=True)
class Ticket:
    """An attempt under way: `dropped` is set once it is no longer wanted; `files` counts what was stored for it."""

    prediction: str
    attempt: int
    dropped: asyncio.Event = field(default_factory=asyncio.Event)
    files: int = 0


class _Target(msgspec.Struct):
    url: str
    method: str = "PUT"
    headers: dict[str, str] = {}


class _Ordered(msgspec.Struct):
    """The server's answer to a new file."""

    reference: str
    upload: _Target
    complete: str | None = None


@dataclass(slots=True)
class _Body:
    """A file that can be sent more than once."""

    spool: IO[bytes]
    size: int
    sha256: str

    async def chunks(self) -> AsyncIterator[bytes]:
        self.spool.seek(0)
        while chunk := self.spool.read(_CHUNK):
            yield chunk


class Transfer:
    """Moves the large things of attempts; an `UploadSink` for the runner. `token` is asked before every request."""

    def __init__(
        self,
        server: ServerAddress,
        token: Callable[[], str],
        worker: str,
        *,
        first_pause_s: float = 0.2,
        cap_s: float = 10.0,
    ) -> None:
        self._server = server
        self._token = token
        self._worker = worker
        self._pauses = (first_pause_s, cap_s)
        self._tickets: dict[str, Ticket] = {}
        self._http: httpx2.AsyncClient | None = None
        self._stale: list[httpx2.AsyncClient] = []

    def open(self, key: AttemptKey) -> Ticket:
        """Begin an attempt: files of its prediction are its own from now on."""
        ticket = self._tickets[key[0]] = Ticket(*key)
        return ticket

    def close(self, ticket: Ticket) -> None:
        """End an attempt; what is still on the way for it is given up."""
        ticket.dropped.set()
        if self._tickets.get(ticket.prediction) is ticket:
            del self._tickets[ticket.prediction]

    async def aclose(self) -> None:
        """Close the connections."""
        for http in (self._http, *self._stale):
            if http is not None:
                await http.aclose()

    async def token_status(self) -> int | None:
        """Ask the server what it thinks of the token: 401, 403, or anything else; None where it does not answer now."""
        try:
            answer = await self._request("GET", self._server.link.replace("ws", "http", 1), None, {})
        except httpx2.HTTPError:
            return None
        return answer.status_code

    async def setup_failed(self, name: str, model: str, reason: str) -> None:
        """Tell the server, if it listens, why this worker does not come: the model was not set up."""
        told = reason if len(reason) <= MAX_REASON else f"{reason[:200]} … {reason[-(MAX_REASON - 203) :]}"
        body = msgspec.json.encode({"name": name, "model": model, "reason": told})
        url = self._server.resolve("worker/v1/setup-failures")
        with contextlib.suppress(httpx2.HTTPError, TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):
                await self._request("POST", url, body, _JSON)

    async def put(
        self, prediction_id: str, filename: str, content_type: str, body: AsyncIterator[bytes], size: int | None
    ) -> str:
        """Store an output file and return the reference that stands for it; raises `TransferError`."""
        ticket = self._tickets.get(prediction_id)
        if ticket is None:
            raise Superseded(f"prediction {prediction_id} is not under way")
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as spool:
            whole = await _spooled(body, spool)
            if size is not None and size != whole.size:
                raise TransferError(f"{filename} has {whole.size} bytes, not the {size} that were announced")
            order = {"filename": filename, "content_type": content_type, "size": whole.size}
            answer = await self._call(ticket, "POST", self._attempt(ticket, "files"), order)
            try:
                ordered = msgspec.json.decode(answer.content, type=_Ordered)
            except msgspec.DecodeError as error:
                raise TransferError(f"the server's answer to a new file is not understood: {error}") from error
            await self._again(ticket, lambda: self._upload(ordered.upload, whole))
            if ordered.complete is not None:
                proof = {"size": whole.size, "sha256": whole.sha256}
                await self._call(ticket, "POST", self._server.resolve(ordered.complete), proof)
        ticket.files += 1
        return ordered.reference

    async def put_result(self, ticket: Ticket, output: Raw) -> None:
        """Store an output that does not fit a frame; raises `TransferError`."""
        await self._call(ticket, "PUT", self._attempt(ticket, "result"), output)

    async def fetch_input(self, ticket: Ticket) -> Raw:
        """Return an input that did not fit a frame; raises `TransferError`."""
        answer = await self._call(ticket, "GET", self._attempt(ticket, "input"), None)
        return Raw(answer.content)

    def _attempt(self, ticket: Ticket, leaf: str) -> str:
        return self._server.attempt(ticket.prediction, ticket.attempt, leaf)

    async def _call(self, ticket: Ticket, method: str, url: str, body: object) -> httpx2.Response:
        content = None if body is None else msgspec.json.encode(body)
        return await self._again(ticket, lambda: self._request(method, url, content, _JSON if content else {}))

    async def _upload(self, target: _Target, body: _Body) -> httpx2.Response:
        """Send the file itself; the given headers are part of what a store signed, so there are no others of ours."""
        headers = {**target.headers, "Content-Length": str(body.size)}
        return await self._request(target.method, self._server.resolve(target.url), body.chunks(), headers)

    async def _request(
        self, method: str, url: str, content: bytes | AsyncIterator[bytes] | None, headers: Mapping[str, str]
    ) -> httpx2.Response:
        sent = dict(headers)
        if self._server.is_own(url):  # the token is nobody else's business
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

    async def _again(self, ticket: Ticket, send: Callable[[], Awaitable[httpx2.Response]]) -> httpx2.Response:
        """Send until the server answers for good; raises `Superseded` once the attempt is not wanted."""
        pause_s, cap_s = self._pauses
        while not ticket.dropped.is_set():
            try:
                response = await send()
            except httpx2.TransportError:
                pass
            else:
                if response.status_code < 300:
                    return response
                if not _passes(response.status_code):
                    raise _verdict(response)
            try:
                await asyncio.wait_for(ticket.dropped.wait(), random.uniform(pause_s / 2, pause_s))  # noqa: S311
            except TimeoutError:
                pause_s = min(cap_s, pause_s * 2)
        raise Superseded("the attempt is no longer wanted")


def _passes(status: int) -> bool:
    """Say whether such an answer may be another one later."""
    return status >= 500 or status in (408, 425, 429)


def _verdict(response: httpx2.Response) -> TransferError:
    if response.status_code in (404, 409) and "/worker/v1/" in response.request.url.path:
        return Superseded("the attempt is no longer wanted")
    if response.status_code == 413:
        return TooLarge(_detail(response) or "Output is too large")
    where = response.request.url.copy_with(query=None)  # a query may be a signature
    return TransferError(f"{response.request.method} {where} was answered {response.status_code}: {_detail(response)}")


def _detail(response: httpx2.Response) -> str:
    try:
        problem = msgspec.json.decode(response.content, type=dict[str, object])
    except msgspec.DecodeError:
        return response.text[:200]
    return str(problem.get("detail") or problem.get("title") or "")[:200]


async def _spooled(body: AsyncIterator[bytes], spool: IO[bytes]) -> _Body:
    digest, size = hashlib.sha256(), 0
    async for chunk in body:
        spool.write(chunk)
        digest.update(chunk)
        size += len(chunk)
    return _Body(spool, size, digest.hexdigest())
