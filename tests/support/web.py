"""A real HTTP server on loopback for a test's Starlette app."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up, self.stop = asyncio.Event(), asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    async def main_loop(self) -> None:
        await self.on_tick(0)  # puts the default headers together
        await self.stop.wait()  # uvicorn itself looks ten times a second, which each test would wait for


@contextlib.asynccontextmanager
async def serving(app: ASGIApp, certificate: tuple[Path, Path] | None = None) -> AsyncIterator[str]:
    """Serve the app, with TLS where there is a certificate with its key, and give its URL."""
    config = uvicorn.Config(app, lifespan="off", ws="none", log_config=None, timeout_graceful_shutdown=1)
    if certificate is not None:
        config.ssl_certfile, config.ssl_keyfile = certificate
    server = _Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    await server.up.wait()
    try:
        scheme = "http" if certificate is None else "https"
        yield f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.stop.set()
        await task
