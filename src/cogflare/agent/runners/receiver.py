"""The loopback receiver: webhooks and file uploads of a Cog server, under a secret path.

It owns the HTTP server. A Cog server's upload is answered as soon as its bytes are here, with a receipt (a URL that
nobody else has), and goes on to the sink beside the run. What was answered is not sent again, so it lies in the depot
until the run is over: an agent that comes after a killed one finds its files there, and the end of a run with files.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import urllib.parse
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from cogflare.agent.depot import Depot
from cogflare.agent.loopback import LoopbackServer
from cogflare.agent.runners.base import UploadSink
from cogflare.agent.runners.cogserver import ENDED
from cogflare.agent.runners.inbox import Inbox

_CHUNK: Final = 1024 * 1024
_END: Final = "end.json"


class _Received(msgspec.Struct):
    """A file that lies beside this, whole."""

    filename: str
    content_type: str


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
        depot: Depot | None = None,
    ) -> None:
        self._sink = sink
        self._depot = depot or Depot()
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
        self._server = LoopbackServer(_config(self._hook, self._file, self._place))
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
        self._depot.close()

    @property
    def address(self) -> tuple[int, str]:
        """The port and the secret, for a later receiver that shall take this one's place."""
        return self._port, self._secret

    def hide(self, text: str) -> str:
        """The text without the secret, which is in the URLs of which a Cog server complains."""
        return text.replace(self._secret, "…")

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
            self._recover(run_id, inbox)
            opened.set()

    async def forget(self, run_id: str) -> None:
        """Close that run's inbox."""
        if inbox := self._inboxes.pop(run_id, None):
            await inbox.close()
            if not self._depot.is_kept:
                self._depot.drop(run_id)

    def _recover(self, run_id: str, inbox: Inbox) -> None:
        """Put into the inbox what an earlier agent has received for the run."""
        left = self._depot.left(run_id)
        for told in left.glob("*.file") if left is not None else ():
            with suppress(OSError, msgspec.DecodeError):
                self._keep(inbox, told.with_suffix(""), msgspec.json.decode(told.read_bytes(), type=_Received))
        if left is not None:
            with suppress(OSError, msgspec.DecodeError):
                inbox.deliver(msgspec.json.decode((left / _END).read_bytes(), type=dict[str, Any]))

    def _is_secret(self, request: Request) -> bool:
        return secrets.compare_digest(request.path_params["secret"].encode(), self._secret.encode())

    async def _hook(self, request: Request) -> Response:
        inbox = await self._inbox(request, request.path_params["run"])
        if inbox is None:
            # Not 5xx: a snapshot that nobody waits for must not be retried for minutes.
            return Response(status_code=404)
        body = await request.body()
        snapshot = msgspec.json.decode(body, type=dict[str, Any])
        if self._depot.is_kept and snapshot.get("status") in ENDED and self._has_files(body):
            await self._note_end(inbox, body)
        inbox.deliver(snapshot)
        return Response()

    async def _note_end(self, inbox: Inbox, snapshot: bytes) -> None:
        """Keep the last word of a run: Cog takes our answer as the end of it, and its files are still to be sent."""
        with suppress(OSError):
            await asyncio.to_thread(_write, self._depot.folder(inbox.run_id) / _END, snapshot)
        if self._inboxes.get(inbox.run_id) is not inbox:
            self._depot.drop(inbox.run_id)  # the event stream was faster, and the run is over

    def _has_files(self, snapshot: bytes) -> bool:
        return b'"data:' in snapshot or self.receipts.encode() in snapshot

    async def _file(self, request: Request) -> Response:
        run_id, filename = request.headers.get("x-prediction-id"), request.path_params["filename"]
        if run_id is None and self._is_secret(request):
            return await self._elsewhere(request, filename)
        return await self._take(request, run_id, secrets.token_hex(16), filename)

    async def _elsewhere(self, request: Request, filename: str) -> Response:
        """Send an upload on to a place of its own, whose URL is all that the first Cog versions take as its receipt."""
        with suppress(ClientDisconnect):
            async for _ in request.stream():
                pass
        place = f"{self.receipts}{uuid.uuid4()}?{urllib.parse.urlencode({'name': filename})}"
        return Response(status_code=307, headers={"location": place})

    async def _place(self, request: Request) -> Response:
        """Take an upload at the place to which it was sent on, maybe again: an answer can come too late."""
        token, filename = str(request.path_params["token"]), request.query_params.get("name", "output")
        return await self._take(request, request.headers.get("x-prediction-id"), token, filename)

    async def _take(self, request: Request, run_id: str | None, token: str, filename: str) -> Response:
        inbox = await self._inbox(request, run_id)
        if inbox is None:
            return Response(status_code=404)
        kind = request.headers.get("content-type", "application/octet-stream")
        received = _Received(filename, kind)
        file: Path | None = None
        try:
            folder = self._depot.folder(inbox.run_id)
            file = folder / secrets.token_hex(16)
            await _save(request, file)
            if not inbox.has(f"{self.receipts}{token}"):
                file = file.replace(folder / token)
                _write(file.with_suffix(".file"), msgspec.json.encode(received))
                self._keep(inbox, file, received)
                file = None
        except ClientDisconnect:
            inbox.torn.add(filename)
            return Response(status_code=400)
        except OSError as error:
            inbox.refused = str(error)
            return Response(inbox.refused, status_code=507)
        finally:
            if file is not None:
                file.unlink(missing_ok=True)
        inbox.torn.discard(filename)
        return Response(headers={"location": f"{self.receipts}{token}"})

    def _keep(self, inbox: Inbox, file: Path, received: _Received) -> None:
        """Have the sink store the file."""
        size = file.stat().st_size
        storing = self._sink.put(inbox.prediction_id, received.filename, received.content_type, file, size)
        inbox.keep(f"{self.receipts}{file.name}", asyncio.ensure_future(storing))

    async def _inbox(self, request: Request, run_id: str | None) -> Inbox | None:
        """The inbox of that run, if the request knows the secret."""
        if not self._is_secret(request):
            return None
        if run_id is None and len(self._inboxes) == 1:
            return next(iter(self._inboxes.values()))  # the first Cog versions do not say whose file it is
        if opened := self._awaited.get(run_id or ""):
            await opened.wait()
        return self._inboxes.get(run_id or "")


async def _save(request: Request, file: Path) -> None:
    """Write the body of the request to the file, some of it at a time."""
    waiting = bytearray()
    with file.open("xb") as out:
        async for chunk in request.stream():
            waiting += chunk
            if len(waiting) >= _CHUNK:
                await asyncio.to_thread(out.write, bytes(waiting))
                waiting.clear()
        out.write(waiting)


def _write(path: Path, content: bytes) -> None:
    """Write a file that is whole or not there."""
    draft = path.with_suffix(".new")
    draft.write_bytes(content)
    draft.replace(path)


def _config(hook: Callable[..., Any], file: Callable[..., Any], place: Callable[..., Any]) -> uvicorn.Config:
    routes = [
        Route("/{secret}/hooks/{run}", hook, methods=["POST"]),
        Route("/{secret}/files/{filename:path}", file, methods=["PUT"]),
        Route("/{secret}/receipts/{token:uuid}", place, methods=["PUT"]),
    ]
    return uvicorn.Config(
        Starlette(routes=routes), lifespan="off", ws="none", log_config=None, access_log=False,
        timeout_keep_alive=60, timeout_graceful_shutdown=1,
    )  # fmt: skip
