"""The WebSocket end of worker links: authenticates the handshake, moves frames, and leaves all sense to the engine."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from starlette.types import Message, Receive, Scope, Send

from cogflare.engine.link import Link
from cogflare.engine.links import Fleet
from cogflare.protocol.messages import SUBPROTOCOL
from cogflare.store.catalog import Caller

log = structlog.get_logger()

_MAX_WAITING = 64 * 1024 * 1024  # bytes queued for an agent that does not read
_HELLO_S = 30.0  # for the first message
_CLOSE_S = 5.0  # for the closing handshake; an end that does not answer is cut off


class Socket:
    """The port of a link: frames wait here until the socket takes them; an agent that never reads is cut off."""

    def __init__(self, send: Send, cut: Callable[[], object]) -> None:
        self._send = send
        self._cut = cut
        self._waiting: deque[Message] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()
        self._is_closing = False

    def send(self, frames: Sequence[str]) -> None:
        """Queue text frames."""
        if self._is_closing:
            return
        for frame in frames:
            self._bytes += len(frame)
            self._waiting.append({"type": "websocket.send", "text": frame})
        if self._bytes > _MAX_WAITING:
            self._waiting.clear()
            self.close(1008, "the agent does not read")
        self._wake.set()

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
                self._bytes -= len(message.get("text", ""))
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

    async def serve(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        """Accept the socket of an authenticated worker and serve it until it ends."""
        await receive()
        chosen = SUBPROTOCOL if SUBPROTOCOL in scope.get("subprotocols", ()) else None
        await send({"type": "websocket.accept", "subprotocol": chosen})
        over = asyncio.Event()
        socket = Socket(send, over.set)
        link = self._fleet.open(caller, socket)
        pump = asyncio.create_task(socket.pump())
        reading = asyncio.create_task(_read(link, receive))
        ended = asyncio.create_task(over.wait())
        greeting = asyncio.get_running_loop().call_later(_HELLO_S, _expect_hello, link)
        try:
            await asyncio.wait((reading, pump, ended), return_when=asyncio.FIRST_COMPLETED)
            if pump.done() and not reading.done():
                # The close is sent; the peer may still answer it.
                await asyncio.wait((reading, ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            greeting.cancel()
            for task in (reading, pump, ended):
                task.cancel()
            failure, *_ = await asyncio.gather(reading, pump, ended, return_exceptions=True)
            if isinstance(failure, Exception):
                log.error("link failed", worker=link.worker, exc_info=failure)
            await link.closed()


def _expect_hello(link: Link) -> None:
    if not link.worker:
        link.close(4408, "no hello came")


async def _read(link: Link, receive: Receive) -> None:
    while True:
        message: dict[str, Any] = dict(await receive())
        if message["type"] != "websocket.receive":
            return
        frame = message.get("text")
        await link.receive(frame if frame is not None else message.get("bytes") or b"")
