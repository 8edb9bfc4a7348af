"""What does not fit a frame goes by HTTP: output files, large results, large inputs.

It owns a ticket per attempt under way, and what of its files was sent, so that a file of an earlier agent is gone on
with. Everything is tried again for as long as the attempt is wanted.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final
from urllib.parse import quote

import httpx2
import msgspec
from msgspec import Raw

from cogflare.agent.address import ServerAddress
from cogflare.agent.courier import Courier, Denied, Superseded, Ticket, TransferError
from cogflare.agent.depot import Depot, Notes, Order, Ordered
from cogflare.agent.runners.base import run_name
from cogflare.agent.uploads import Content, Upload, content_of
from cogflare.protocol.messages import MAX_REASON, AttemptKey

_FAREWELL_S: Final = 10.0
_OVER_S: Final = 2.0  # somebody waits for this worker to stop
_JSON: Final = {"Content-Type": "application/json"}


class Transfer:
    """Moves the large things of attempts; an `UploadSink` for the runner. `token` is asked before every request."""

    def __init__(
        self,
        server: ServerAddress,
        token: Callable[[], str],
        worker: str,
        *,
        depot: Depot | None = None,
        first_pause_s: float = 0.2,
        cap_s: float = 10.0,
    ) -> None:
        self._server = server
        self._courier = Courier(server, token, worker, first_pause_s=first_pause_s, cap_s=cap_s)
        self._depot = depot if depot is not None and depot.is_kept else None
        self._tickets: dict[str, Ticket] = {}

    def open(self, key: AttemptKey) -> Ticket:
        """Begin an attempt, or go on with an earlier agent's: files of its prediction are its own from now on."""
        ticket = self._tickets[key[0]] = Ticket(*key)
        left = self._depot.left(run_name(*key)) if self._depot is not None else None
        if left is not None:
            ticket.left = Notes(left).read()
        return ticket

    def close(self, ticket: Ticket) -> None:
        """End an attempt; what is still on the way for it is given up."""
        ticket.dropped.set()
        if self._tickets.get(ticket.prediction) is ticket:
            del self._tickets[ticket.prediction]
        if self._depot is not None:
            self._depot.drop(run_name(ticket.prediction, ticket.attempt))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._courier.aclose()

    async def inquire(self, model: str) -> httpx2.Response | None:
        """Ask the server whether it would have a worker with this model; None where it does not answer now."""
        url = f"{self._server.link.replace('ws', 'http', 1)}?model={quote(model)}"
        try:
            return await self._courier.request("GET", url, None, {})
        except httpx2.HTTPError:
            return None

    async def setup_failed(self, name: str, model: str, reason: str) -> None:
        """Tell the server, if it listens, why this worker does not come: the model was not set up."""
        told = reason if len(reason) <= MAX_REASON else f"{reason[:200]} … {reason[-(MAX_REASON - 203) :]}"
        body = msgspec.json.encode({"name": name, "model": model, "reason": told})
        url = self._server.resolve("worker/v1/setup-failures")
        with contextlib.suppress(httpx2.HTTPError, TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):
                await self._courier.request("POST", url, body, _JSON)

    async def setting_up(self, name: str, model: str, *, is_over: bool = False) -> None:
        """Tell the server, if it listens, that this worker sets its model up, or (`is_over`) does so no more."""
        body = msgspec.json.encode({"name": name, "model": model, "is_over": is_over})
        url = self._server.resolve("worker/v1/setups")
        with contextlib.suppress(httpx2.HTTPError, TimeoutError):
            async with asyncio.timeout(_OVER_S if is_over else _FAREWELL_S):
                await self._courier.request("POST", url, body, _JSON)

    async def put(
        self, prediction_id: str, filename: str, content_type: str, body: AsyncIterator[bytes] | Path, size: int | None
    ) -> str:
        """Store an output file and return the reference that stands for it; raises `TransferError`."""
        ticket = self._tickets.get(prediction_id)
        if ticket is None:
            raise Superseded(f"prediction {prediction_id} is not under way")
        async with content_of(body) as content:
            if size is not None and size != content.size:
                raise TransferError(f"{filename} has {content.size} bytes, not the {size} that were announced")
            notes = Notes(self._depot.folder(run_name(*_key(ticket)))) if self._depot is not None else None
            order = _taken(ticket, filename, content) or await self._order(
                ticket, filename, content_type, content, notes
            )
            if not order.is_stored:
                try:
                    await Upload(self._courier, ticket, order, content, notes).send()
                except Denied:
                    # What the server signed holds for some hours, which a break may outlast.
                    order = await self._order(ticket, filename, content_type, content, notes)
                    await Upload(self._courier, ticket, order, content, notes).send()
                if notes is not None:
                    notes.stored(order)
        ticket.files += 1
        return order.answer.reference

    async def put_result(self, ticket: Ticket, output: Raw) -> None:
        """Store an output that does not fit a frame; raises `TransferError`."""
        await self._call(ticket, "PUT", self._attempt(ticket, "result"), output)

    async def fetch_input(self, ticket: Ticket) -> Raw:
        """Return an input that did not fit a frame; raises `TransferError`."""
        answer = await self._call(ticket, "GET", self._attempt(ticket, "input"), None)
        return Raw(answer.content)

    async def _order(
        self, ticket: Ticket, filename: str, content_type: str, content: Content, notes: Notes | None
    ) -> Order:
        """Tell the server of a file; raises `TransferError`."""
        told = {"filename": filename, "content_type": content_type, "size": content.size}
        response = await self._call(ticket, "POST", self._attempt(ticket, "files"), told)
        try:
            answer = msgspec.json.decode(response.content, type=Ordered)
        except msgspec.DecodeError as error:
            raise TransferError(f"the server's answer to a new file is not understood: {error}") from error
        order = Order(filename, content.size, content.sha256, answer)
        if notes is not None:
            notes.ordered(order)
        return order

    def _attempt(self, ticket: Ticket, leaf: str) -> str:
        return self._server.attempt(ticket.prediction, ticket.attempt, leaf)

    async def _call(self, ticket: Ticket, method: str, url: str, body: object) -> httpx2.Response:
        content = None if body is None else msgspec.json.encode(body)
        headers = _JSON if content else {}
        return await self._courier.again(ticket, lambda: self._courier.request(method, url, content, headers))


def _key(ticket: Ticket) -> AttemptKey:
    return ticket.prediction, ticket.attempt


def _taken(ticket: Ticket, filename: str, content: Content) -> Order | None:
    """Return an earlier agent's order of this very file, which then is no longer there for another."""
    for order in ticket.left:
        if (order.filename, order.size, order.sha256) == (filename, content.size, content.sha256):
            ticket.left.remove(order)
            return order
    return None
