"""A reverse proxy before a Cogflare that stands for a provider: it fails as told, and may hide what it is.

It runs in threads, so tests of any kind may use it, and a hook may take as long as it likes. What is `hidden` looks
like Replicate: no ids of one's own, no idempotency keys, no /health, no headers of ours.
"""

import contextlib
import http.client
import json
import random
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

Kind = Literal["create", "poll", "list", "cancel", "stream", "upload", "file", "model", "other"]
What = Literal["busy", "error", "late_error", "hang", "cut", "lose", "stale", "tear"]
Step = Literal["arrived", "answered", "passed"]
"""Of a create: it has arrived here; the server has answered it; whoever sent it has the answer."""

_KINDS: tuple[tuple[Kind, str, str], ...] = (
    ("create", "POST", r"/predictions|/models/[^/]+/[^/]+/predictions"),
    ("create", "PUT", r"/predictions/[^/]+|/models/[^/]+/[^/]+/predictions/[^/]+"),
    ("list", "GET", r"/predictions"),
    ("poll", "GET", r"/predictions/[^/]+"),
    ("cancel", "POST", r"/predictions/[^/]+/cancel"),
    ("stream", "GET", r"/streams/[^/]+|/files/[0-9a-z]{67}"),
    ("upload", "POST", r"/files"),
    ("file", "GET", r"/f/.+"),
    ("model", "GET", r"/models/.+"),
)
_NOT_FORWARDED = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "upgrade"})
_OURS = ("cogflare-", "idempot")
_TIMEOUT_S = 60.0


@dataclass
class Fault:
    """What happens to calls of a kind (None: of any), how many times (None: until healed), and to which share of them.

    busy: 429. error: 500, not passed on. late_error: 500, but done. hang: nothing, until healed. cut: the connection
    breaks before it is passed on. lose: it breaks after it is done. stale: the first state that was seen of the run.
    tear: the connection breaks in the middle of the answer.
    """

    what: What
    on: Kind | None = None
    times: int | None = None
    share: float = 1.0
    retry_after_s: int | None = 1


@dataclass
class Create:
    """A create that has arrived; `remote_id` and `status` are there once it was answered."""

    number: int
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    status: int | None = None
    remote_id: str | None = None

    @property
    def webhook(self) -> str | None:
        """Where the end is to be told."""
        return self.body.get("webhook")


@dataclass
class _Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""
    rest: http.client.HTTPResponse | None = None
    source: http.client.HTTPConnection | None = None

    def close(self) -> None:
        """Let go of the server."""
        for end in (self.rest, self.source):
            if end is not None:
                end.close()


class Upstream:
    """The proxy. A context; `target` may be changed, and be gone."""

    def __init__(self, target: str, *, hidden: bool = False, seed: int = 5) -> None:
        self.target = target
        self.hidden = hidden
        self.calls: Counter[str] = Counter()
        self.authorizations: set[str | None] = set()
        self.creates: list[Create] = []
        self.hooks: dict[Step, Callable[[Create], None]] = {}
        self._faults: list[Fault] = []
        self._first: dict[str, bytes] = {}
        self._healed = threading.Event()
        self._lock = threading.Lock()
        self._chance = random.Random(seed)
        self._sockets: set[socket.socket] = set()
        self._server = _Server(self)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="upstream", daemon=True
        )
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.heal()
        self.cut()

    @property
    def accepted(self) -> list[Create]:
        """The creates that the server has taken."""
        return [create for create in self.creates if create.status is not None and create.status < 300]

    def fail(
        self,
        what: What,
        on: Kind | None = None,
        *,
        times: int | None = None,
        share: float = 1.0,
        retry_after_s: int | None = 1,
    ) -> None:
        """Let calls fail, from now on."""
        with self._lock:
            self._healed.clear()
            self._faults.append(Fault(what, on, times, share, retry_after_s))

    def heal(self) -> None:
        """End all faults; what hangs breaks."""
        with self._lock:
            self._faults.clear()
            self._healed.set()

    def cut(self) -> None:
        """Break all connections that there are."""
        with self._lock:
            sockets = list(self._sockets)
        for taken in sockets:
            with contextlib.suppress(OSError):
                taken.shutdown(socket.SHUT_RDWR)

    # --- one call -----------------------------------------------------------------------------------------------------

    def arrived(self, path: str, headers: dict[str, str], body: bytes) -> Create:
        """Note a create."""
        with self._lock:
            create = Create(len(self.creates), path, headers, json.loads(body))
            self.creates.append(create)
        return create

    def at(self, step: Step, create: Create | None) -> None:
        """Call the hook of a step."""
        hook = self.hooks.get(step)
        if create is not None and hook is not None:
            hook(create)

    def fault(self, kind: Kind) -> Fault | None:
        """Return what happens to a call of this kind, and count that."""
        with self._lock:
            self.calls[kind] += 1
            for fault in self._faults:
                if fault.on in (None, kind) and fault.times != 0 and self._chance.random() < fault.share:
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault
        return None

    def hang(self) -> None:
        """Wait until all is healed."""
        self._healed.wait(_TIMEOUT_S)

    def seen(self, id: str, body: bytes) -> bytes:
        """Return the first state that was seen of a run, which may be this one."""
        with self._lock:
            return self._first.setdefault(id, body)

    def forward(self, method: str, path: str, headers: dict[str, str], body: bytes) -> _Answer:
        """Pass a call on; 502 where nobody is there."""
        if self.hidden:
            if kind_of("GET", path) == "other" and path.rstrip("/").endswith("/health"):
                return _problem(404, "The requested resource could not be found.")
            if method == "PUT":
                return _problem(405, "Method not allowed.")
            headers = {name: value for name, value in headers.items() if not name.lower().startswith(_OURS)}
        place = urlsplit(self.target)
        connection = http.client.HTTPConnection(place.hostname or "", place.port or 80, timeout=_TIMEOUT_S)
        try:
            connection.request(method, path, body or None, headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException):
            connection.close()
            return _problem(502, "Bad gateway")
        kept = [(name, value) for name, value in response.getheaders() if name.lower() not in _NOT_FORWARDED]
        if self.hidden:
            kept = [(name, value) for name, value in kept if not name.lower().startswith(_OURS)]
        if response.getheader("content-length") is None:
            return _Answer(response.status, kept, rest=response, source=connection)
        with contextlib.closing(connection):
            return _Answer(response.status, kept, response.read())

    def opened(self, taken: socket.socket) -> None:
        """Keep a connection in view."""
        with self._lock:
            self._sockets.add(taken)

    def closed(self, taken: socket.socket) -> None:
        """Forget a connection."""
        with self._lock:
            self._sockets.discard(taken)


def kind_of(method: str, path: str) -> Kind:
    """Say what a call is for."""
    bare = re.sub(r"^(/v1)*", "", path.partition("?")[0])
    return next((kind for kind, verb, form in _KINDS if verb == method and re.fullmatch(form, bare)), "other")


def _problem(status: int, detail: str, headers: list[tuple[str, str]] | None = None) -> _Answer:
    body = json.dumps({"detail": detail, "status": status}).encode()
    return _Answer(status, [("content-type", "application/problem+json"), *(headers or [])], body)


class _Cut(Exception):
    """The connection is to break."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of connections that break, which is what they are here for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.upstream.opened(self.connection)

    def finish(self) -> None:
        self.server.upstream.closed(self.connection)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Take a call of any method."""
        try:
            self._call()
        except (_Cut, OSError):
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_GET  # noqa: N815 - the same

    def _call(self) -> None:
        upstream, kind = self.server.upstream, kind_of(self.command, self.path)
        upstream.authorizations.add(self.headers.get("authorization"))
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _NOT_FORWARDED}
        create = upstream.arrived(self.path, headers, body) if kind == "create" else None
        upstream.at("arrived", create)
        fault = upstream.fault(kind)
        early = self._early(fault)
        if early is not None:
            self._send(early)
            return
        with contextlib.closing(upstream.forward(self.command, self.path, headers, body)) as answer:
            self._note(kind, create, answer)
            upstream.at("answered", create)
            self._send(self._late(fault, kind, answer), half=fault is not None and fault.what == "tear")
        upstream.at("passed", create)

    def _early(self, fault: Fault | None) -> _Answer | None:
        """Do what a fault does before a call is passed on."""
        match fault and fault.what:
            case "cut":
                raise _Cut
            case "hang":
                self.server.upstream.hang()
                raise _Cut
            case "error":
                return _problem(500, "Internal server error")
            case "busy":
                assert fault is not None
                wait_s = fault.retry_after_s
                extra = [] if wait_s is None else [("retry-after", str(wait_s))]
                return _problem(429, "Request was throttled.", extra)
        return None

    def _late(self, fault: Fault | None, kind: Kind, answer: _Answer) -> _Answer:
        """Do what a fault does to an answer."""
        match fault and fault.what:
            case "lose":
                raise _Cut
            case "late_error":
                return _problem(500, "Internal server error")
            case "stale" if kind == "poll" and answer.status == 200:
                body = self.server.upstream.seen(json.loads(answer.body)["id"], answer.body)
                kept = [(name, value) for name, value in answer.headers if name.lower() != "content-length"]
                return _Answer(200, kept, body)
        return answer

    def _note(self, kind: Kind, create: Create | None, answer: _Answer) -> None:
        if create is not None:
            create.status = answer.status
        if kind in ("create", "poll") and answer.status < 300:
            id = json.loads(answer.body)["id"]
            self.server.upstream.seen(id, answer.body)
            if create is not None:
                create.remote_id = id

    def _send(self, answer: _Answer, *, half: bool = False) -> None:
        self.send_response_only(answer.status)
        for name, value in answer.headers:
            if name.lower() != "content-length":
                self.send_header(name, value)
        if answer.rest is None:
            self.send_header("content-length", str(len(answer.body)))
        else:
            self.send_header("connection", "close")
        self.end_headers()
        if half:
            self.wfile.write(answer.body[: len(answer.body) // 2])
            self.wfile.flush()
            raise _Cut
        if answer.rest is None:
            self.wfile.write(b"" if self.command == "HEAD" else answer.body)
            return
        with contextlib.suppress(http.client.HTTPException):
            while piece := answer.rest.read1(65536):
                self.wfile.write(piece)
                self.wfile.flush()
