"""A uvicorn server inside the agent: on a socket of its own, without uvicorn's signal handlers."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn


class LoopbackServer(uvicorn.Server):
    """Serves beside the agent's work; `up` is set once it takes requests. The signals belong to the agent."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve."""
        await super().startup(sockets)
        self.up.set()
