"""How connections of clients end when the server stops: with an answer that says so, not under the next request.

A client that keeps its connection and polls may send the next request in the very moment in which the server closes;
it would see a broken connection. So for a moment the answers say `Connection: close`, and the client itself comes back
over a new connection: to a server that was started meanwhile on the same socket, or to another node.
"""

import asyncio
from collections.abc import Awaitable

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LINGER_S = 1.0  # twice as long as Replicate's clients pause between two looks
_LOOK_S = 0.05
_CLOSE = (b"connection", b"close")


class Farewell:
    """An ASGI application around another; from `begin` on each answer is the last of its connection."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._until = 0.0

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one request or socket."""
        if scope["type"] != "http":
            return self._app(scope, receive, send)

        async def answer(message: Message) -> None:
            if self._until and message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), _CLOSE]}
            await send(message)

        return self._app(scope, receive, answer)

    def begin(self) -> None:
        """Let every answer be the last of its connection from now on."""
        self._until = asyncio.get_running_loop().time() + _LINGER_S

    async def linger(self, server: uvicorn.Server) -> None:
        """Wait until all clients have had such an answer, or those that have not are hardly about to ask."""
        kind = server.config.http_protocol_class
        while asyncio.get_running_loop().time() < self._until:
            if not any(isinstance(connection, kind) for connection in server.server_state.connections):
                return
            await asyncio.sleep(_LOOK_S)
