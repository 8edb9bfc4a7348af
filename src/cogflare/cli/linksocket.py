"""uvicorn's WebSocket, with bounds on what a peer can send without the application hearing of it.

A worker of 2022 says all of a log and an output in each frame, and no ping shows whether it is still there: on its
socket a frame may be larger, and the kernel finds out whether its machine is.
"""

import re
import socket
from asyncio import TimerHandle
from typing import Any

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame
from websockets.http11 import Request

_LINGER_S = 5.0  # for what is left to be sent when the application is done
_PINGS = 100  # pings and pongs in a second; nobody who means well comes near
_PIECES = 1_000  # fragments of one message
_LEGACY = re.compile(r"(?:/v1){0,2}/models/[^/?]+/[^/?]+/websockets?/")
_LEGACY_BYTES = 64 << 20  # of one message of a worker of 2022
_PROBES = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # seconds, seconds, times; where there are such


class LinkSocket(WebSocketsSansIOProtocol):
    """A WebSocket that is cut off when its peer floods it with control frames or fragments, or never reads the end."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._second = 0.0
        self._pings = 0
        self._cutting: TimerHandle | None = None

    async def run_asgi(self) -> None:
        """Serve the socket; afterwards a peer that does not even take what is left for it is cut off."""
        await super().run_asgi()
        if not self.disconnected:
            self._cutting = self.loop.call_later(_LINGER_S, self.transport.abort)

    def handle_connect(self, event: Request) -> None:
        """Begin a handshake."""
        if _LEGACY.match(event.path):
            self.conn.max_message_size = _LEGACY_BYTES
            own: socket.socket = self.transport.get_extra_info("socket")
            own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _PROBES.items():
                if hasattr(socket, name):
                    own.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        super().handle_connect(event)

    async def send(self, message: ASGISendEvent) -> None:
        """Send what the application says; a refusal completes the handshake too."""
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end of the connection."""
        if self._cutting is not None:
            self._cutting.cancel()
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
