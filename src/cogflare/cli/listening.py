"""A receiver of webhooks for a developer's machine: it checks each message, shows it, and may pass it on."""

import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import click
import httpx2
import msgspec

from cogflare.agent.address import DIRECT
from cogflare.agent.unreached import why_unreached
from cogflare.domain.signatures import BadSignature, parse_secret, verify

_MAX_BYTES: Final = 64 << 20
_PATIENCE_S: Final = 8.0  # less than the server has
_PASSED_ON: Final[tuple[str, ...]] = (
    "content-type",
    "user-agent",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
)
_SECRET_REST_S: Final = 5.0


class Received(msgspec.Struct, frozen=True):
    """A message that came: `problem` says why it is not trusted, `answered` what the sender was told."""

    id: str
    problem: str | None
    body: bytes
    answered: int
    forward_error: str | None = None


class Keys:
    """The account's secret; it is asked for again when a message does not fit it, since it may have been rotated."""

    def __init__(self, fetch: Callable[[], str]) -> None:
        self._fetch = fetch
        self._lock = threading.Lock()
        self._key = parse_secret(fetch())
        self._fetched_at = time.monotonic()

    def check(self, headers: dict[str, str], body: bytes) -> str | None:
        """Return what is wrong with a message, None for one that the server has sent."""
        try:
            verify(self._key, headers, body, time.time())
        except BadSignature as error:
            if not self._renew():
                return str(error)
            try:
                verify(self._key, headers, body, time.time())
            except BadSignature as still:
                return str(still)
        return None

    def _renew(self) -> bool:
        """Ask for the secret again, now and then; say whether it is another one."""
        with self._lock:
            if time.monotonic() - self._fetched_at < _SECRET_REST_S:
                return False
            self._fetched_at = time.monotonic()
            known = self._key
            with suppress(click.ClickException):
                self._key = parse_secret(self._fetch())
            return self._key != known


class Listener(ThreadingHTTPServer):
    """Takes webhooks on an address of this machine and tells each to `tell`, one after the other."""

    daemon_threads = True

    def __init__(
        self, host: str, port: int, keys: Keys, tell: Callable[[Received], None], forward: str | None = None
    ) -> None:
        """Listen; raises `OSError`."""
        self._http = httpx2.Client(timeout=_PATIENCE_S, mounts=DIRECT)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)
        self.keys = keys
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}/"
        self._forward = forward
        self._tell = tell
        self._lock = threading.Lock()

    def tell(self, received: Received) -> None:
        """Show a message; where nobody reads any more, `serve_forever` ends."""
        with self._lock:
            try:
                self._tell(received)
            except BrokenPipeError:
                threading.Thread(target=self.shutdown, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a connection that broke."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def pass_on(self, target: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes, str | None]:
        """Send a message on; return what the sender is told (status, body), and the error if there is no answer."""
        if self._forward is None:
            return 200, b"", None
        query = target.partition("?")[2]
        url = f"{self._forward}{'&' if '?' in self._forward else '?'}{query}" if query else self._forward
        passed = {name: headers[name] for name in _PASSED_ON if name in headers}
        try:
            answer = self._http.post(url, headers=passed, content=body)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            problem = f"{self._forward} does not answer: {why_unreached(error)}"
            return 502, problem.encode(), problem
        return answer.status_code, answer.content, None

    def server_close(self) -> None:
        """Close the socket."""
        super().server_close()
        self._http.close()


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Listener
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_POST(self) -> None:
        length = self.headers.get("content-length", "")
        if not length.isascii() or not length.isdigit() or int(length) > _MAX_BYTES:
            self.close_connection = True
            self._answer(411, b"a webhook says how long it is")
            return
        body = self.rfile.read(int(length))
        headers = {name.lower(): value for name, value in self.headers.items()}
        id, problem = headers.get("webhook-id", ""), self.server.keys.check(headers, body)
        if problem is not None:
            self.server.tell(Received(id, problem, body, 401))
            self._answer(401, problem.encode())
            return
        status, answer, error = self.server.pass_on(self.path, headers, body)
        self.server.tell(Received(id, None, body, status, error))
        self._answer(status, answer)

    def do_GET(self) -> None:
        self._answer(200, b"cogflare webhooks listen: webhooks are POSTed here\n")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing: what comes is told."""
