"""The front: Cog's HTTP API over one model in a process of its own, on loopback.

Everything that a Cog server of today answers to the worker is answered in its words. Of webhooks only the end of a run
is sent: logs and outputs come by the event stream, which every model has here.
"""

import argparse
import json
import math
import os
import secrets
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from .checking import problems
from .frames import encode
from .front import Front
from .runs import Run

_MAX_BODY = 512 << 20
_NOT_FOUND = {"detail": "Not Found"}


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: "Server"
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    timeout = 600

    def do_GET(self) -> None:
        """Answer health, schema, and what there is."""
        front = self.server.front
        if self.path == "/health-check":
            self._answer(200, front.health())
        elif self.path == "/openapi.json":
            self._answer(200 if front.document else 503, front.document or {"detail": "not set up yet"})
        elif self.path == "/":
            self._answer(200, {"openapi_url": "/openapi.json", "predictions_url": "/predictions"})
        else:
            self._answer(404, _NOT_FOUND)

    def do_PUT(self) -> None:
        """Start a run under a name, or look at it."""
        body, parts = self._body(), self.path.split("/")
        if body is None:
            return
        if len(parts) == 3 and parts[1] == "predictions" and parts[2]:
            self._predict(unquote(parts[2]), body)
        else:
            self._answer(404, _NOT_FOUND)

    def do_POST(self) -> None:
        """Start a run, or cancel one."""
        body, parts = self._body(), self.path.split("/")
        if body is None:
            return
        if self.path == "/predictions":
            self._predict(f"run-{secrets.token_hex(8)}", body)
        elif len(parts) == 4 and parts[1] == "predictions" and parts[3] == "cancel":
            self._answer(200 if self.server.front.runs.cancel(unquote(parts[2])) else 404, {})
        else:
            self._answer(404, _NOT_FOUND)

    def _predict(self, run_id: str, body: dict[str, Any]) -> None:
        runs = self.server.front.runs
        run = runs.find(run_id) or self._start(run_id, body)
        if run is None:
            return
        if "text/event-stream" in self.headers.get("accept", ""):
            self._stream(run)
        elif "respond-async" in self.headers.get("prefer", ""):
            self._answer(202, run.snapshot())
        else:
            self._answer(200, run.wait())

    def _start(self, run_id: str, body: dict[str, Any]) -> Run | None:
        """Start a run that the body describes; None when it was answered that there will be none."""
        front = self.server.front
        if front.document is None or front.status != "READY":
            status = 409 if front.status == "DEFUNCT" else 503
            self._answer(status, {"error": f"The model is {front.status}", "status": "failed"})
            return None
        given, hook = body.get("input", {}), body.get("webhook")
        try:
            if wrong := problems(front.document, given):
                self._answer(422, {"detail": wrong})
                return None
            run = front.runs.start(run_id, given, hook if isinstance(hook, str) else None)
        except RecursionError:
            self._answer(422, {"detail": "the input is nested too deeply"})
            return None
        if run is None:
            self._answer(409, {"error": "At capacity - all prediction slots busy", "status": "failed"})
        return run

    def _body(self) -> dict[str, Any] | None:
        """Read the request's body, a JSON object; None when it was answered that it is none."""
        try:
            length = int(self.headers.get("content-length") or 0)
        except ValueError:
            length = -1
        if not 0 <= length <= _MAX_BODY or "transfer-encoding" in self.headers:
            self.close_connection = True
            self._answer(413, {"detail": f"a body has a length, of {_MAX_BODY} bytes at most"})
            return None
        content = self.rfile.read(length)
        if "origin" in self.headers:  # a page in somebody's browser has no business here
            self._answer(403, {"detail": "Forbidden"})
            return None
        try:
            body = json.loads(content or b"{}", parse_float=_finite, parse_constant=_finite)
        except (ValueError, RecursionError) as error:
            self._answer(400, {"detail": f"Failed to parse the request body as JSON: {error}"})
            return None
        if not isinstance(body, dict):
            self._answer(400, {"detail": "Failed to parse the request body as JSON: it is no object"})
            return None
        return body

    def _stream(self, run: Run) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("cache-control", "no-cache")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for chunk in _event_chunks(run):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def _answer(self, status: int, content: object) -> None:
        body = encode(content)
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a worker asks every second."""

    def handle(self) -> None:
        """Serve the connection; that the other side leaves is no error."""
        with suppress(OSError):
            super().handle()


def _finite(text: str) -> float:
    """Read a number; there are JSON texts whose numbers Python takes for infinite."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is not a number that JSON has")
    return number


def _event_chunks(run: Run) -> Iterator[bytes]:
    for events in run.follow():
        yield b"".join(b"event: %b\ndata: %b\n\n" % (name.encode(), encode(data)) for name, data in events)


class Server(ThreadingHTTPServer):
    """The HTTP server of one front."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, front: Front) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.front = front

    def server_bind(self) -> None:
        """Bind, without asking a name server who we are."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "127.0.0.1", self.socket.getsockname()[1]


def serve(boot: str, options: argparse.Namespace) -> None:
    """Serve the model until this process is told to end."""
    signal.signal(signal.SIGTERM, _end)
    front = Front(
        [boot, options.mode, options.target, "--upload-url", options.upload_url, "--slots", str(options.slots)]
    )
    try:
        server = Server(options.port, front)
        threading.Thread(target=_attend, args=(front,), daemon=True).start()
        server.serve_forever(poll_interval=3600)
    finally:
        front.stop()


def _end(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one is not to interrupt the end
    sys.exit(0)


def _attend(front: Front) -> None:
    """Attend to the model; a front that no longer can is of no use."""
    try:
        front.attend()
    except BaseException:
        traceback.print_exc()
        os._exit(os.EX_SOFTWARE)
