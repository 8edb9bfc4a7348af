"""Fetched input files on loopback: the model reads each from a URL that nobody else can guess.

It owns the HTTP server, which listens from the first file on, and no file: whoever puts one up takes it down again.
A file that an earlier agent had put up can be put back under its URL, since the model may not have read it yet.
"""

import asyncio
import mimetypes
import secrets
import socket
from pathlib import Path
from urllib.parse import quote, urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from cogflare.agent.loopback import LoopbackServer


class Shelf:
    """Serves files; `advertised` is the host under which the model reaches it, when that is not `host`."""

    def __init__(self, host: str = "127.0.0.1", advertised: str | None = None) -> None:
        self._host = host
        self._advertised = advertised or host
        self._files: dict[str, Path] = {}
        self._server: LoopbackServer | None = None
        self._serving: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._port = 0

    def reach(self, host: str, advertised: str) -> None:
        """Listen there from the first file on, for a model that does not share this machine's loopback."""
        self._host, self._advertised = host, advertised

    async def put_up(self, file: Path, filename: str) -> str:
        """Serve the file and return its URL, which ends in `filename`."""
        async with self._starting:
            if self._server is None:
                await self._start()
        key = secrets.token_urlsafe(24)
        self._files[key] = file
        return f"http://{self._advertised}:{self._port}/{key}/{quote(filename, safe='')}"

    async def put_back(self, file: Path, url: str) -> None:
        """Serve the file under that URL again; raises `OSError` when its port is taken."""
        parts = urlsplit(url)
        async with self._starting:
            if self._server is None:
                await self._start(parts.port or 0)
        self._files[parts.path.split("/")[1]] = file

    def take_down(self, url: str) -> None:
        """Stop serving the file."""
        self._files.pop(url.split("/")[3], None)

    async def aclose(self) -> None:
        """Stop listening."""
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await self._serving

    async def _start(self, port: int = 0) -> None:
        listener = socket.create_server((self._host, port))
        self._port = listener.getsockname()[1]
        app = Starlette(routes=[Route("/{key}/{filename}", self._file)])
        self._server = LoopbackServer(
            uvicorn.Config(
                app, lifespan="off", ws="none", log_config=None, access_log=False, timeout_graceful_shutdown=1
            )
        )
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        await self._server.up.wait()

    async def _file(self, request: Request) -> Response:
        file = self._files.get(request.path_params["key"])
        if file is None:
            return Response(status_code=404)
        kind = mimetypes.guess_type(request.path_params["filename"])[0] or "application/octet-stream"
        return FileResponse(file, media_type=kind)
