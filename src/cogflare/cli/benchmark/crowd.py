"""Idle workers by the thousand: each a link of its own that speaks the real protocol. Runs as a process of its own.

python -m cogflare.cli.benchmark.crowd SERVER_URL WORKER_TOKEN LINKS READY_FILE

The ready file appears once all links are open. The process ends, with an error, as soon as one of them is lost.
"""

import asyncio
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import uvloop
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from cogflare.agent.address import ServerAddress
from cogflare.agent.clock import SystemClock
from cogflare.cli.openfiles import raise_limit
from cogflare.domain.ids import new_id
from cogflare.protocol.agent_end import AgentEnd
from cogflare.protocol.messages import SUBPROTOCOL, Offer, Welcome

_AT_ONCE = 100  # handshakes under way
_OFFER = Offer("bench", "idle", "2" * 64, 1)


class _Worker(asyncio.Protocol):
    """One idle worker: handshake, hello, welcome, then a keep-alive at every heartbeat; welcomed, it is `opened`."""

    def __init__(self, crowd: "_Crowd") -> None:
        self._crowd = crowd
        self._wire = ClientProtocol(parse_uri(crowd.link), subprotocols=[Subprotocol(SUBPROTOCOL)])
        worker = new_id(crowd.clock.wall())
        self._end = AgentEnd(worker, worker, "idle", [_OFFER], {})
        self._transport: asyncio.Transport | None = None
        self.opened: asyncio.Future[None] = crowd.loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        request = self._wire.connect()
        request.headers["Authorization"] = f"Bearer {self._crowd.token}"
        self._wire.send_request(request)
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._wire.receive_data(data)
        for event in self._wire.events_received():
            if isinstance(event, Response):
                self._say(*self._end.connected())
            elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                for message in self._end.receive(bytes(event.data).decode(), self._crowd.clock.monotonic()):
                    if isinstance(message, Welcome):
                        self._welcomed(message)
        if self._wire.handshake_exc is not None:
            self._lost(self._wire.handshake_exc)
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(exc or ConnectionError("the server closed a link"))

    def _welcomed(self, welcome: Welcome) -> None:
        self.opened.set_result(None)
        # Workers that start at many times beat at many times.
        self._crowd.loop.call_later(random.uniform(0, welcome.heartbeat_s), self._beat, welcome.heartbeat_s)  # noqa: S311

    def _beat(self, heartbeat_s: float) -> None:
        self._crowd.loop.call_later(heartbeat_s, self._beat, heartbeat_s)
        self._say(self._end.heartbeat())

    def _say(self, *frames: str) -> None:
        for frame in frames:
            self._wire.send_text(frame.encode())
        self._flush()

    def _flush(self) -> None:
        assert self._transport is not None
        self._transport.writelines(self._wire.data_to_send())

    def _lost(self, error: Exception) -> None:
        if not self.opened.done():
            self.opened.set_exception(error)
        if not self._crowd.broken.done():
            self._crowd.broken.set_exception(error)


class _Crowd:
    """All workers of this process."""

    def __init__(self, server: str, token: str) -> None:
        parts = urlsplit(server)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._workers: list[_Worker] = []
        self.link = ServerAddress(server).link
        self.token = token
        self.clock = SystemClock()
        self.loop = asyncio.get_running_loop()
        self.broken: asyncio.Future[None] = self.loop.create_future()

    async def gather(self, links: int) -> None:
        """Open the links, so many at a time as a server may find in its backlog."""
        for start in range(0, links, _AT_ONCE):
            await asyncio.gather(*(self._open() for _ in range(min(_AT_ONCE, links - start))))

    async def _open(self) -> None:
        _, worker = await self.loop.create_connection(lambda: _Worker(self), self._host, self._port)
        self._workers.append(worker)
        await worker.opened


async def run(server: str, token: str, links: int, opened: Callable[[], object]) -> None:
    """Open the links, say so, and keep them until this process is killed or one breaks."""
    crowd = _Crowd(server, token)
    await crowd.gather(links)
    opened()
    await crowd.broken


if __name__ == "__main__":
    raise_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]).touch))
