"""The WebSocket end of worker links: authenticates the handshake, moves frames, and leaves all sense to the engine.

A link that sends more than its budget is read more slowly: its frames then wait in the worker, not here.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import structlog
from starlette.types import Message, Receive, Scope, Send

from cogflare import __version__
from cogflare.api.problems import upgrade_required
from cogflare.engine.link import Link
from cogflare.engine.links import Fleet
from cogflare.protocol.messages import SUBPROTOCOL
from cogflare.store.catalog import Caller

log = structlog.get_logger()

_MAX_WAITING = 8 << 20  # bytes queued for an agent that does not read
_MAX_WAITING_ALL = 256 << 20  # bytes queued for all agents of the node; over it,
_FAIR_WAITING = 64 << 10  # one that has so many is cut off when it is sent more
_FRAME = 256  # bytes of memory that a queued frame takes beside its text
_RATE = 8_000_000  # bytes a second that are read of one link,
_BURST = 8_000_000  # bytes that may come at once,
_MESSAGE = 400  # and as how many bytes a message counts beside its text
_HELLO_S = 30.0  # for the first message
_CLOSE_S = 5.0  # for the closing handshake; an end that does not answer is cut off


class Budget:
    """What may be read of one link: `rate` bytes a second, and `burst` at once. The clock is asked only beyond that."""

    def __init__(self, rate: float = _RATE, burst: float = _BURST) -> None:
        self._rate = rate
        self._burst = self._left = burst
        self._at = asyncio.get_running_loop().time()

    def spend(self, size: int) -> float:
        """Take down what was read; returns the seconds to wait before anything else is."""
        self._left -= size
        if self._left >= 0:
            return 0.0
        now = asyncio.get_running_loop().time()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        return max(0.0, -self._left / self._rate)


class Backlog:
    """The bytes that wait for all agents of a node."""

    def __init__(self) -> None:
        self.bytes = 0


class Socket:
    """The port of a link: frames wait here until the socket takes them; an agent that never reads is cut off."""

    def __init__(self, send: Send, cut: Callable[[], object], backlog: Backlog) -> None:
        self._send = send
        self._cut = cut
        self._backlog = backlog
        self._waiting: deque[Message] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()
        self._is_closing = False

    def send(self, frames: Sequence[str]) -> None:
        """Queue text frames."""
        if self._is_closing:
            return
        for frame in frames:
            self._count(len(frame) + _FRAME)
            self._waiting.append({"type": "websocket.send", "text": frame})
        is_crowded = self._backlog.bytes > _MAX_WAITING_ALL and self._bytes > _FAIR_WAITING
        if self._bytes > _MAX_WAITING or is_crowded:
            self.drop()
            self.close(1008, "the agent does not read")
        self._wake.set()

    def room(self) -> int:
        """Return how many bytes of inputs may be sent now; agents fetch the others by HTTP."""
        return 0 if self._backlog.bytes > _MAX_WAITING_ALL // 2 else _MAX_WAITING // 2 - self._bytes

    def drop(self) -> None:
        """Forget what is queued."""
        self._waiting.clear()
        self._count(-self._bytes)

    def _count(self, size: int) -> None:
        self._bytes += size
        self._backlog.bytes += size

    def close(self, code: int, reason: str) -> None:
        """Queue the close, after what is queued."""
        if not self._is_closing:
            self._is_closing = True
            asyncio.get_running_loop().call_later(_CLOSE_S, self._cut)
            self._waiting.append({"type": "websocket.close", "code": code, "reason": reason[:120]})
            self._wake.set()

    async def pump(self) -> None:
        """Send what is queued until the close is sent or the peer is gone."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                message = self._waiting.popleft()
                if message["type"] == "websocket.send":
                    self._count(-len(message["text"]) - _FRAME)
                try:
                    await self._send(message)
                except (OSError, RuntimeError):
                    return
                if message["type"] == "websocket.close":
                    return


class Gateway:
    """An ASGI application for the path of worker links."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._backlog = Backlog()

    @staticmethod
    def require_spoken(scope: Scope) -> None:
        """Refuse an agent that names protocols, and not this one; raises a 426 `Problem`."""
        offered = scope.get("subprotocols", ())
        if offered and SUBPROTOCOL not in offered:
            raise upgrade_required(f"This server (cogflare {__version__}) speaks {SUBPROTOCOL} with workers.")

    async def serve(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        """Accept the socket of an authenticated worker and serve it until it ends."""
        await receive()
        chosen = SUBPROTOCOL if SUBPROTOCOL in scope.get("subprotocols", ()) else None
        await send({"type": "websocket.accept", "subprotocol": chosen})
        # Ten thousand links stand idle: whatever one of them keeps is kept as small as it can be.
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        socket = Socket(send, partial(_end, over), self._backlog)
        link = self._fleet.open(caller, socket)
        pump = asyncio.create_task(socket.pump())
        reading = asyncio.create_task(_read(link, receive))
        greeting = asyncio.get_running_loop().call_later(_HELLO_S, _expect_hello, link)
        try:
            await asyncio.wait((reading, pump, over), return_when=asyncio.FIRST_COMPLETED)
            if pump.done() and not reading.done():
                # The close is sent; the peer may still answer it.
                await asyncio.wait((reading, over), return_when=asyncio.FIRST_COMPLETED)
        finally:
            greeting.cancel()
            for task in (reading, pump, over):
                task.cancel()
            failure, *_ = await asyncio.gather(reading, pump, return_exceptions=True)
            socket.drop()
            if isinstance(failure, Exception):
                log.error("link failed", worker=link.worker, exc_info=failure)
            await link.closed()


def _end(over: "asyncio.Future[None]") -> None:
    if not over.done():
        over.set_result(None)


def _expect_hello(link: Link) -> None:
    if not link.worker:
        link.close(4408, "no hello came")


async def _read(link: Link, receive: Receive) -> None:
    budget = Budget()
    while True:
        message: dict[str, Any] = dict(await receive())
        if message["type"] != "websocket.receive":
            return
        text = message.get("text")
        frame = text if text is not None else message.get("bytes") or b""
        count = await link.receive(frame)
        if (pause_s := budget.spend(len(frame) + _MESSAGE * count)) > 0:
            await asyncio.sleep(pause_s)
