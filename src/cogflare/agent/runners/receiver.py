"""The loopback receiver: webhooks and file uploads of a Cog server, under a secret path.

It owns the HTTP server and the received files until a sink has stored them. A Cog server's upload is answered as soon
as its bytes are here, with a receipt (a URL that nobody else has), and goes on to the sink beside the run.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from typing import IO, Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from cogflare.agent.loopback import LoopbackServer
from cogflare.agent.runners.base import UploadSink
from cogflare.agent.runners.inbox import Inbox

_CHUNK = 256 * 1024
_IN_MEMORY = 4 * 1024 * 1024


class Receiver:
    """The HTTP server. ``advertised`` is the host under which the Cog server reaches it, when that is not ``host``.

    A fixed ``port`` and ``secret`` let a later process receive what was meant for an earlier one; what comes for a run
    of ``expected`` before its inbox is open waits for that, because Cog would not send it again.
    """

    def __init__(
        self,
        sink: UploadSink,
        host: str = "127.0.0.1",
        advertised: str | None = None,
        port: int = 0,
        secret: str = "",
        expected: Iterable[str] = (),
    ) -> None:
        self._sink = sink
        self._host, self._advertised, self._port = host, advertised or host, port
        self._secret = secret or secrets.token_urlsafe(24)
        self._awaited = {run_id: asyncio.Event() for run_id in expected}
        self._inboxes: dict[str, Inbox] = {}
        self._server: LoopbackServer | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen; raises `OSError` when the port is taken."""
        listener = socket.create_server((self._host, self._port))
        self._port = listener.getsockname()[1]
        self._server = LoopbackServer(_config(self._hook, self._file))
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        await self._server.up.wait()

    async def close(self) -> None:
        """Stop listening and drop unfinished uploads; may be called twice."""
        for opened in self._awaited.values():
            opened.set()
        if self._server and self._serving:
            self._server.should_exit = True
            await self._serving
        for inbox in list(self._inboxes.values()):
            await inbox.close()
        self._inboxes.clear()

    @property
    def address(self) -> tuple[int, str]:
        """The port and the secret, for a later receiver that shall take this one's place."""
        return self._port, self._secret

    @property
    def receipts(self) -> str:
        """How every receipt begins."""
        return f"{self._base()}/receipts/"

    @property
    def upload_url(self) -> str:
        """What the Cog server takes as ``--upload-url``."""
        return f"{self._base()}/files"

    def hook_url(self, run_id: str) -> str:
        """Where the Cog server posts the snapshots of that run."""
        return f"{self._base()}/hooks/{run_id}"

    def _base(self) -> str:
        return f"http://{self._advertised}:{self._port}/{self._secret}"

    def open(self, run_id: str, inbox: Inbox) -> None:
        """Put what comes for ``run_id``, which is what the Cog server calls the run, into the inbox, until `forget`."""
        self._inboxes[run_id] = inbox
        if opened := self._awaited.pop(run_id, None):
            opened.set()

    async def forget(self, run_id: str) -> None:
        """Close that run's inbox."""
        if inbox := self._inboxes.pop(run_id, None):
            await inbox.close()

    def _is_secret(self, request: Request) -> bool:
        return secrets.compare_digest(request.path_params["secret"].encode(), self._secret.encode())

    async def _hook(self, request: Request) -> Response:
        inbox = await self._inbox(request, request.path_params["run"])
        if inbox is None:
            # Not 5xx: a snapshot that nobody waits for must not be retried for minutes.
            return Response(status_code=404)
        inbox.deliver(msgspec.json.decode(await request.body(), type=dict[str, Any]))
        return Response()

    async def _file(self, request: Request) -> Response:
        inbox = await self._inbox(request, request.headers.get("x-prediction-id"))
        if inbox is None:
            return Response(status_code=404)
        filename, receipt = request.path_params["filename"], f"{self.receipts}{secrets.token_hex(16)}"
        spool = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - it outlives this request
        try:
            async for chunk in request.stream():
                spool.write(chunk)
        except ClientDisconnect:
            spool.close()
            return Response(status_code=400)
        content_type = request.headers.get("content-type", "application/octet-stream")
        storing = asyncio.create_task(self._store(inbox.prediction_id, filename, content_type, spool))
        storing.add_done_callback(lambda _: spool.close())
        inbox.keep(receipt, storing)
        return Response(headers={"location": receipt})

    async def _inbox(self, request: Request, run_id: str | None) -> Inbox | None:
        """The inbox of that run, if the request knows the secret."""
        if not self._is_secret(request):
            return None
        if run_id is None and len(self._inboxes) == 1:
            return next(iter(self._inboxes.values()))  # the first Cog versions do not say whose file it is
        if opened := self._awaited.get(run_id or ""):
            await opened.wait()
        return self._inboxes.get(run_id or "")

    async def _store(self, prediction_id: str, filename: str, content_type: str, spool: IO[bytes]) -> str:
        size = spool.tell()
        spool.seek(0)
        return await self._sink.put(prediction_id, filename, content_type, _chunks(spool), size)


async def _chunks(spool: IO[bytes]) -> AsyncIterator[bytes]:
    while chunk := spool.read(_CHUNK):
        yield chunk


def _config(hook: Callable[..., Any], file: Callable[..., Any]) -> uvicorn.Config:
    routes = [
        Route("/{secret}/hooks/{run}", hook, methods=["POST"]),
        Route("/{secret}/files/{filename:path}", file, methods=["PUT"]),
    ]
    return uvicorn.Config(
        Starlette(routes=routes), lifespan="off", ws="none", log_config=None, access_log=False,
        timeout_keep_alive=60, timeout_graceful_shutdown=1,
    )  # fmt: skip
