"""uvicorn's WebSocket, with bounds on what a peer can send without the application hearing of it."""

from asyncio import TimerHandle
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

_LINGER_S = 5.0  # for what is left to be sent when the application is done
_PINGS = 100  # pings and pongs in a second; nobody who means well comes near
_PIECES = 1_000  # fragments of one message


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
