"""uvicorn's WebSocket, with bounds on what a peer can send without the application hearing of it.

A worker of 2022 says all of a log and an output in each frame, and no ping shows whether it is still there: on its
socket a frame may be larger, as long as there is room for it, and the kernel finds out whether its machine is.
"""

import re
import socket
from asyncio import TimerHandle, Transport
from collections.abc import Generator
from typing import Any, ClassVar
from urllib.parse import unquote

from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import DATA_OPCODES, Frame
from websockets.http11 import Request
from websockets.server import ServerProtocol

from cogflare.api.incoming import HEARD, Place, Room

_LINGER_S = 5.0  # for what is left to be sent when the application is done
_PINGS = 100  # pings and pongs in a second; nobody who means well comes near
_PIECES = 1_000  # fragments of one message
_LEGACY = re.compile(r"(?:/v1){0,2}/models/[^/?]+/[^/?]+/websockets?/(?P<secret>[^/?]*)")
_LEGACY_BYTES = 64 << 20  # of one message of a worker of 2022
_FIRST_PIECES = (0x01, 0x02)  # first bytes of a text message and of one of bytes that more frames belong to
_PROBES = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # seconds, seconds, times; where there are such


class LinkSocket(WebSocketsSansIOProtocol):
    """A WebSocket that is cut off when its peer floods it with control frames or fragments, or never reads the end."""

    room: ClassVar[Room] = Room()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._second = 0.0
        self._pings = 0
        self._cutting: TimerHandle | None = None
        self._place: Place | None = None

    async def run_asgi(self) -> None:
        """Serve the socket; afterwards a peer that does not even take what is left for it is cut off."""
        await super().run_asgi()
        if not self.disconnected:
            self._cutting = self.loop.call_later(_LINGER_S, self.transport.abort)

    def handle_connect(self, event: Request) -> None:
        """Begin a handshake."""
        super().handle_connect(event)
        if (legacy := _LEGACY.match(event.path)) is not None and not self.close_sent:
            own: socket.socket = self.transport.get_extra_info("socket")
            own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _PROBES.items():
                if hasattr(socket, name):
                    own.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
            place = Place(self.room, unquote(legacy["secret"]), self._resume, self.transport.abort, self._here)
            self._widen(place)

    def _widen(self, place: Place) -> None:
        """Let large messages come, each once there is room for it, and none before the handshake is over."""
        self._place = place
        self.scope["extensions"][HEARD] = {"heard": place.heard}
        self.conn.max_message_size = _LEGACY_BYTES
        _Meter(self.conn, place, self.transport)
        self.read_paused = True
        self.transport.pause_reading()

    def _here(self) -> int:
        # It cannot come while the application is busy with the one before.
        return _LEGACY_BYTES if self.read_paused else len(self.conn.reader.buffer) + sum(map(len, self.frames))

    def _resume(self) -> None:
        if not self.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    async def receive(self) -> ASGIReceiveEvent:
        """Return what comes next; what has no room yet is not read."""
        message = await super().receive()
        if self._place is not None:
            self._place.since = self.loop.time()
            if self._place.is_waiting and not self.transport.is_closing():
                self.transport.pause_reading()
        return message

    def send_receive_event_to_app(self) -> None:
        """Queue a message that is whole."""
        super().send_receive_event_to_app()
        if self._place is not None and self.close_sent:
            self._place.heard()

    async def send(self, message: ASGISendEvent) -> None:
        """Send what the application says; a refusal completes the handshake too."""
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True
        if self._place is not None and self._place.is_waiting and not self.transport.is_closing():
            self.transport.pause_reading()  # a close has it read from again

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end of the connection."""
        if self._cutting is not None:
            self._cutting.cancel()
        if self._place is not None:
            self._place.leave()
        super().connection_lost(exc)

    def handle_ping(self) -> None:
        """Answer a ping."""
        if self._is_calm():
            super().handle_ping()

    def handle_pong(self, event: Frame) -> None:
        """Take a pong."""
        if self._is_calm():
            super().handle_pong(event)

    def handle_cont(self, event: Frame) -> None:
        """Take a further fragment of a message."""
        if len(self.frames) < _PIECES:
            super().handle_cont(event)
        else:
            self.transport.abort()

    def _is_calm(self) -> bool:
        now = self.loop.time()
        if now - self._second >= 1:
            self._second, self._pings = now, 0
        self._pings += 1
        if self._pings > _PINGS:
            self.transport.abort()
        return self._pings <= _PINGS


class _Meter:
    """Takes room for messages where their heads are parsed: what is read at once may hold many frames.

    Of a message in pieces nobody knows how much comes, so the most that there is is taken with the head of its first.
    """

    def __init__(self, conn: ServerProtocol, place: Place, transport: Transport) -> None:
        self._conn = conn
        self._place = place
        self._transport = transport
        self._is_at_head = True
        self._is_counted = True
        self._read_exact, self._recv_frame = conn.reader.read_exact, conn.recv_frame
        conn.reader.read_exact = self._read  # type: ignore[method-assign, assignment]
        conn.recv_frame = self._take  # type: ignore[method-assign]
        if conn.current_size is not None:
            transport.abort()  # it began before the handshake was over

    def _read(self, size: int) -> Generator[None, None, bytearray]:
        if not self._is_at_head:
            # What is here already takes no more room.
            if not self._is_counted and size > len(self._conn.reader.buffer):
                self._expect(size)
            return (yield from self._read_exact(size))
        head = yield from self._read_exact(size)
        self._is_at_head = False
        self._is_counted = self._conn.current_size is not None
        if not self._is_counted and head[0] in _FIRST_PIECES:
            self._is_counted = True
            self._expect(_LEGACY_BYTES)
        return head

    def _expect(self, size: int) -> None:
        if not self._place.expect(size):
            self._transport.pause_reading()

    def _take(self, frame: Frame) -> None:
        self._is_at_head = True
        self._recv_frame(frame)
        if frame.opcode in DATA_OPCODES and frame.fin:
            self._place.come()
        elif frame.opcode in DATA_OPCODES and not self._place.is_expecting:
            self._transport.abort()  # its head came before the handshake was over
