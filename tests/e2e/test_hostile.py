"""What strangers, fools and broken workers send: every answer is a refusal in order, nothing changes, all goes on."""

import json
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any, Self
from urllib.parse import quote

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from support.processes import Server, Stage, Worker, until, version_of

MAX_BODY = 100_000
REFUSALS = range(400, 500)
CREATE = "/v1/models/me/single/predictions"


@dataclass
class Scene:
    """A server where `other`, a tenant of its own, has a prediction that runs and one that waits."""

    stage: Stage
    server: Server
    worker: Worker
    running: str
    waiting: str

    def ask_other(self, path: str) -> Any:
        """Return what the other tenant sees."""
        return self.server.ask("GET", path, token=self.server.token("api", "other"))

    def picture(self) -> dict[str, Any]:
        """Return all that nobody here may change."""
        tokens = self.server.ask("GET", "/v1/tokens", token=self.server.admin_token)
        others = ("/v1/predictions", "/v1/models", f"/v1/predictions/{self.running}/attempts")
        own = self.server.ask("GET", "/v1/predictions")["results"]
        busy = self.server.workers()[self.worker.name]["busy"]
        return {"tokens": tokens, "own": [shown["id"] for shown in own], "busy": busy} | {
            path: self.ask_other(path) for path in others
        }


@pytest.fixture(scope="module")
def scene(shared_stage: Stage) -> Scene:
    server = shared_stage.server(max_body=str(MAX_BODY))
    shared_stage.scripted(server, slots=10)
    worker = shared_stage.scripted(server, account="other", name="victim")
    # All tokens are made now, since no test may be seen to change their list.
    server.token()
    server.token("worker")
    other = server.token("api", "other")
    until(lambda: len(server.workers()) == 2, "workers")
    path, script = "/v1/models/other/single/predictions", {"input": {"seconds": 600}}
    running = server.ask("POST", path, token=other, json=script)["id"]
    waiting = server.ask("POST", path, token=other, json=script)["id"]
    scene = Scene(shared_stage, server, worker, running, waiting)
    until(lambda: scene.ask_other(f"/v1/predictions/{running}")["status"] == "processing", "prediction that runs")
    return scene


@pytest.fixture
def server(scene: Scene) -> Iterator[Server]:
    """The server; afterwards it is well and has neither stumbled nor told a secret."""
    yield scene.server
    assert scene.server.call("GET", "/health").json()["status"] == "ok"
    said = scene.server.log()
    assert "Traceback" not in said
    assert "request failed" not in said
    for kind in ("api", "worker"):
        for account in ("me", "other"):
            assert scene.server.token(kind, account) not in said
    assert scene.server.admin_token not in said


@pytest.fixture
def unchanged(scene: Scene, server: Server) -> Iterator[None]:
    """Everything looks the same afterwards."""
    before = scene.picture()
    yield
    assert scene.picture() == before


def check_problem(status: int, kind: str | None, body: bytes) -> dict[str, Any]:
    """Check that an answer is a refusal in the words of problem+json; return it."""
    assert status in REFUSALS, (status, body)
    assert kind == "application/problem+json"
    problem: dict[str, Any] = json.loads(body)
    assert isinstance(problem, dict)
    assert problem["status"] == status or problem["detail"] == "File not found"
    assert isinstance(problem["detail"], str)
    assert problem["detail"]
    return problem


def refused(answer: httpx2.Response) -> dict[str, Any]:
    """Check that an answer is a refusal."""
    return check_problem(answer.status_code, answer.headers.get("content-type"), answer.content)


def raw(server: Server, request: bytes) -> tuple[int, str | None, bytes]:
    """Send these very bytes; return the status, the media type and the body of the answer."""
    address = httpx2.URL(server.url)
    with socket.create_connection((address.host, address.port or 80), timeout=10) as connection:
        connection.sendall(request)
        answer = HTTPResponse(connection)
        try:
            answer.begin()
            return answer.status, answer.getheader("content-type"), answer.read()
        finally:
            answer.close()


def head(server: Server, method: str, target: str | bytes, *fields: bytes, host: bytes = b"localhost") -> bytes:
    """Return a request without a body, as `me`, written by hand."""
    path = target if isinstance(target, bytes) else target.encode()
    lines = [b"%b %b HTTP/1.1" % (method.encode(), path), b"Host: " + host, b"Connection: close"]
    return b"\r\n".join([*lines, b"Authorization: Bearer " + server.token().encode(), *fields, b"", b""])


# --- bodies ----------------------------------------------------------------------------------------------------------

BODIES = {
    "empty": b"",
    "torn": b'{"input": {',
    "a word": b"input",
    "a list": b"[]",
    "a string": b'"input"',
    "a number": b"1",
    "null": b"null",
    "a form": b"input=1",
    "two values": b'{"input":{}} {"input":{}}',
    "a comment": b'{"input":{} /* yes */}',
    "NaN": b'{"input":{"output":NaN}}',
    "infinity": b'{"input":{"output":-Infinity}}',
    "a float beyond floats": b'{"input":{"seconds":1e999}}',
    "an integer beyond the schema": b'{"input":{"items":' + b"9" * 400 + b"}}",
    "a lone surrogate": b'{"input":{"output":"\\ud800"}}',
    "a lone surrogate as a key": b'{"input":{"\\udfff":1}}',
    "no UTF-8": b'{"input":{"output":"\xff\xfe"}}',
    "UTF-16": '{"input":{}}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"input":{}}',
    "a control character": b'{"input":{"output":"\x00"}}',
    "deep lists": b'{"input":{"output":' + b"[" * 40_000 + b"]" * 40_000 + b"}}",
    "deep objects": b'{"input":{"output":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"}}",
    "open brackets": b"[" * 90_000,
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.usefixtures("unchanged")
def test_bodies_that_are_no_order(server: Server, body: bytes) -> None:
    version = b'{"version":"' + version_of("single").encode() + b'",'
    for path, content in ((CREATE, body), ("/v1/predictions", body.replace(b"{", version, 1)), ("/v1/tokens", body)):
        token = server.admin_token if path == "/v1/tokens" else None
        refused(server.call("POST", path, token=token, content=content, headers={"Content-Type": "application/json"}))


FIELDS: dict[str, list[Any]] = {
    "version": [
        None,
        1,
        True,
        [],
        {},
        "",
        "x",
        "a/b:c",
        "me/single:",
        ":",
        "f" * 64,
        "me/single:" + "f" * 64,
        "other/single",
        "é",
        "\0",
        "x" * 10_000,
        "../../single",
        "me/single:latest",
    ],
    "input": [None, [], "x", 1, False, [{}]],
    "webhook": [
        1,
        [],
        {},
        True,
        "word",
        "ftp://a.b/",
        "http://",
        "http://a b/",
        "javascript:alert(1)",
        "//a.b/",
        "https://" + "x" * 5000,
        "http://a.b:99999/",
        "http://[::1",
        "http://a.b/\n",
        "\0",
    ],
    "webhook_events_filter": ["start", 1, {}, ["nope"], [1], [None], [[]], ["completed", "Completed"]],
    "webhook_completed": [1, [], "word"],
    "stream": ["yes", 1, []],
    "foo": [None, 1],
    "": [1],
}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.usefixtures("unchanged")
def test_fields_of_the_wrong_kind(server: Server, field: str) -> None:
    for value in FIELDS[field]:
        order = {"version": version_of("single"), "input": {}, field: value}
        problem = refused(server.call("POST", "/v1/predictions", json=order))
        assert problem["status"] in (404, 422), (value, problem)


@pytest.mark.usefixtures("unchanged")
def test_fields_that_are_missing(server: Server) -> None:
    for path, order, missing in (
        ("/v1/predictions", {}, {"version is required", "input is required"}),
        (CREATE, {}, {"input is required"}),
        (CREATE, {"input": {}, "version": "1" * 64}, {"Additional property version is not allowed"}),
    ):
        problem = refused(server.call("POST", path, json=order))
        assert {one["description"] for one in problem["invalid_fields"]} == missing


@pytest.mark.usefixtures("unchanged")
def test_bodies_over_the_limit(server: Server) -> None:
    order = json.dumps({"input": {"output": "x" * MAX_BODY}}).encode()
    assert refused(server.call("POST", CREATE, content=order))["status"] == 413
    assert refused(server.call("POST", CREATE, content=iter([order[:50_000], order[50_000:]])))["status"] == 413
    promised = raw(server, head(server, "POST", CREATE, b"Content-Length: 99999999999999999999999"))
    assert promised[0] in REFUSALS
    assert check_problem(*raw(server, head(server, "POST", CREATE, b"Content-Length: 100001")))["status"] == 413


def test_odd_values_that_are_right_come_back_as_they_were(server: Server) -> None:
    for value in (
        "\0",
        "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
        2**63,
        -(2**64),
        1e-320,
        "'",
    ):
        prediction = server.create(output=value)
        assert server.ended(prediction)["output"] == value


# --- ids and paths ---------------------------------------------------------------------------------------------------

IDS = [
    "0" * 26,
    "x",
    "z" * 26,
    "a" * 3000,
    "%00",
    "%2e%2e",
    "%2F..%2F",
    "%ff",
    "%F0%9F%98%80",
    "'%20OR%201=1--",
    "*",
    "-1",
]


@pytest.mark.usefixtures("unchanged")
def test_unknown_and_foreign_ids(scene: Scene, server: Server) -> None:
    for prediction in (*IDS, scene.running, scene.waiting, scene.running.upper(), scene.running + "x"):
        for method, leaf in (("GET", ""), ("POST", "/cancel"), ("GET", "/attempts")):
            answer = server.call(method, f"/v1/predictions/{prediction}{leaf}")
            assert refused(answer)["status"] == 404, prediction
    for path in ("/v1/models/other/single", "/v1/models/other/single/versions"):
        assert refused(server.call("GET", path))["status"] == 404
    assert refused(server.call("POST", "/v1/models/other/single/predictions", json={"input": {}}))["status"] == 404
    assert refused(server.call("POST", f"/v1/workers/{scene.worker.id}/drain"))["status"] == 404
    for id in IDS:
        assert refused(server.call("GET", f"/v1/models/me/single/versions/{id}"))["status"] == 404
        assert refused(server.call("GET", f"/f/{id}/{id}"))["status"] == 404
        assert refused(server.call("DELETE", f"/v1/tokens/{id}", token=server.admin_token))["status"] == 404
        assert refused(server.call("POST", f"/v1/workers/{id}/drain"))["status"] == 404


PATHS = [
    b"/",
    b"/v1",
    b"/%00",
    b"/v1/%00",
    b"/v1/../../etc/passwd",
    b"/v1/%2e%2e/%2e%2e/etc/passwd",
    b"/v1//predictions//",
    b"//predictions",
    b"/v1/v1/v1/predictions",
    b"/v1/predictions/" + b"a" * 20_000,
    b"/v1/models/a/b/c/d",
    b"/v1/models/%F0%9F%98%80/%F0%9F%98%80",
    b"/v1/models/%ff/%fe/versions",
    b"/v1/models/../tokens/x",
    b"/f/",
    b"/f/../../cogflare.db",
    b"/f/..%2f..%2fcogflare.db/x",
    b"/f/x/%2e%2e%2f%2e%2e%2fcogflare.db",
    b"/f/%00/%00",
    b"/;",
    b"/v1/predictions;a=b",
    b"/v1/predictions%3Fcursor=1",
    b"/v1/predictions%0d%0aSet-Cookie:%20a=b",
    b"/V1/PREDICTIONS",
    b"http://example.com/v1/nothing",
    b"*",
]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path[:40].decode())
@pytest.mark.usefixtures("unchanged")
def test_odd_paths(server: Server, path: bytes) -> None:
    for method in ("GET", "POST", "DELETE"):
        assert check_problem(*raw(server, head(server, method, path, b"Content-Length: 0")))["status"] in (404, 405)


@pytest.mark.usefixtures("unchanged")
def test_what_is_not_even_http(server: Server) -> None:
    for request in (
        b"GET /caf\xc3\xa9 sp ace HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"FOO / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ):
        assert raw(server, request)[0] in REFUSALS


@pytest.mark.usefixtures("unchanged")
def test_wrong_methods(scene: Scene, server: Server) -> None:
    prediction = f"/v1/predictions/{scene.running}"
    for path, methods in (
        ("/v1/predictions", ["PUT", "DELETE", "PATCH", "OPTIONS"]),
        (prediction, ["POST", "DELETE"]),
        (f"{prediction}/cancel", ["GET", "DELETE"]),
        (CREATE, ["GET", "PUT"]),
        ("/v1/account", ["POST", "DELETE"]),
        ("/v1/tokens", ["PUT", "DELETE"]),
        ("/health", ["POST", "DELETE"]),
    ):
        for method in methods:
            answer = server.call(method, path)
            assert refused(answer)["status"] == 405
            assert method not in answer.headers["allow"]


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"GET /", b"a" * 60_000),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nX: ", b"a" * 60_000),
        (b"GET /health HTTP/1.1\r\nHost: a\r\n", b"X: a\r\n" * 10_000),
        (
            b"POST /health HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n",
            b"X: a\r\n" * 10_000,
        ),
    ],
)
def test_a_head_that_does_not_end_is_not_kept(scene: Scene, begin: bytes, more: bytes) -> None:
    sent = 0
    address = httpx2.URL(scene.server.url)
    with (
        socket.create_connection((address.host, address.port or 80), timeout=10) as connection,
        suppress(OSError),
    ):
        connection.sendall(begin)
        for _ in range(500):
            connection.sendall(more)
            sent += len(more)
    # What the system buffers on the way is counted in.
    assert sent < 20_000_000
    assert scene.server.call("GET", "/health", headers={"X": "a" * 50_000}).status_code == 200


# --- headers and parameters ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchanged")
def test_credentials_that_are_none(scene: Scene, server: Server) -> None:
    own = server.token()
    for value in (
        "",
        "Bearer",
        f"Basic {own}",
        own,
        f"Bearer{own}",
        f"Bearer {own}x",
        f"Bearer {own[:-1]}",
        f"Bearer {own.upper()}",
        f"Bearer {own} {own}",
        "Bearer " + "x" * 20_000,
        "Bearer \xff\xfe\x80",
        "Bearer ' OR 1=1 --",
        "Token null",
        f"Digest {own}",
    ):
        for path in ("/v1/predictions", f"/v1/predictions/{scene.running}", "/nowhere", "/worker/v1/link"):
            answer = server.call("GET", path, headers={"Authorization": value.encode("latin-1")})
            assert refused(answer)["status"] == 401, value
            assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.usefixtures("unchanged")
def test_tokens_of_the_wrong_kind(scene: Scene, server: Server) -> None:
    worker, api = server.token("worker"), server.token()
    held = f"/worker/v1/attempts/{scene.running}/1"
    for method, path, token in (
        ("GET", "/v1/predictions", worker),
        ("POST", CREATE, worker),
        ("GET", "/v1/account", worker),
        ("GET", "/v1/tokens", worker),
        ("GET", "/v1/tokens", api),
        ("POST", "/v1/tokens", api),
        ("DELETE", f"/v1/tokens/{'0' * 26}", api),
        ("GET", f"{held}/input", api),
        ("PUT", f"{held}/result", api),
        ("POST", f"{held}/files", server.admin_token),
        ("PUT", "/worker/v1/files/x", api),
    ):
        assert refused(server.call(method, path, token=token, json={}))["status"] == 403, path


@pytest.mark.usefixtures("unchanged")
def test_what_workers_may_not_fetch_or_send(scene: Scene, server: Server) -> None:
    worker = server.token("worker")
    for prediction, attempt in ((scene.running, "1"), (scene.waiting, "0"), ("x", "1"), ("0" * 26, "9" * 30)):
        for method, leaf, body in (
            ("GET", "input", None),
            ("PUT", "result", b'"stolen"'),
            ("POST", "files", b'{"filename":"a.png"}'),
            ("POST", "files", b'{"filename":1}'),
            ("PUT", "result", b"nonsense"),
        ):
            for headers in ({}, {"Cogflare-Worker": scene.worker.id}, {"Cogflare-Worker": "../x"}):
                path = f"/worker/v1/attempts/{prediction}/{attempt}/{leaf}"
                refused(server.call(method, path, token=worker, content=body, headers=headers))
    for id in IDS:
        headers = {"Cogflare-Worker": scene.worker.id}
        refused(server.call("PUT", f"/worker/v1/files/{id}", token=worker, content=b"x", headers=headers))
        refused(server.call("POST", f"/worker/v1/files/{id}/complete", token=worker, content=b"{}", headers=headers))


@pytest.mark.usefixtures("unchanged")
def test_hosts_that_are_none(server: Server) -> None:
    fields = (b"Content-Type: application/json", b"Content-Length: 12")
    for host in (b"", b"a b", b"<script>", b'a"b', b"a" * 300, b"[::1", b"a:999999", b"a\xff", b"a/b", b"a@b", b"a,b"):
        request = head(server, "POST", CREATE, *fields, host=host) + b'{"input":{}}'
        assert check_problem(*raw(server, request))["status"] == 400
    twice = head(server, "POST", CREATE, *fields, b"Host: evil.example") + b'{"input":{}}'
    assert check_problem(*raw(server, twice))["status"] == 400


def test_preferences_that_are_none_are_passed_over(server: Server) -> None:
    for value in ("wait=abc", "wait=-1", "wait=" + "9" * 40, ";;;", "wait=NaN", "wait=1e9", "é", "x" * 20_000):
        headers = {"Prefer": value.encode("latin-1")}
        answer = server.call("POST", CREATE, json={"input": {"seconds": 5}}, headers=headers)
        assert (answer.status_code, answer.json()["status"]) == (201, "starting")
        assert "preference-applied" not in answer.headers
        assert server.ask("POST", f"/v1/predictions/{answer.json()['id']}/cancel")["status"] == "canceled"


@pytest.mark.usefixtures("unchanged")
def test_odd_parameters(server: Server) -> None:
    admin = server.admin_token
    cursors = ["x", "%00", "bjpcMA", "%F0%9F%92%A5", "a" * 20_000, "bjouLi8uLg", "====", "cDo", "bjrDqQ", "%ff", "null"]
    for path in ("/v1/predictions", "/v1/models", "/v1/models/me/single/versions", "/v1/tokens", "/v1/workers"):
        for cursor in cursors:
            answer = server.call("GET", f"{path}?cursor={cursor}", token=admin if path == "/v1/tokens" else None)
            # `bjouLi8uLg` is "n:../..", a place in a list of names; there is nothing behind it but what is listed.
            assert answer.status_code == 200 or refused(answer)["status"] in (400, 404)
    times = ["yesterday", "2026-13-01T00:00:00Z", "99999999999", "2026-01-01", "-", "%00", "0000-01-01T00:00:00Z"]
    for name in ("created_after", "created_before"):
        for time in times:
            assert refused(server.call("GET", f"/v1/predictions?{name}={time}"))["status"] == 400
    for status in ("", "nope", "%00", "SUCCEEDED"):
        assert refused(server.call("GET", f"/v1/predictions?status={status}"))["status"] == 400
    assert refused(server.call("GET", "/v1/predictions?model=%00"))["status"] == 400
    for query in ("model=" + "x" * 9000, "limit=-1", "limit=abc", "a[]=1", "&&&", "%ff=%fe", "cursor"):
        assert server.call("GET", f"/v1/predictions?{query}").status_code == 200, query


# --- any bodies and paths --------------------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
orders = st.dictionaries(st.sampled_from([*FIELDS, "input", "input"]), values, max_size=4)
texts = st.one_of(
    (values | orders).map(lambda value: json.dumps(value).encode()),
    (values | orders).map(lambda value: json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass")),
    st.binary(max_size=60),
)
names = ["predictions", "models", "single", "versions", "tokens", "workers", "worker", "cancel", "drain", "attempts"]
pieces = st.sampled_from([*names, "v1", "me", "f", ".."]) | st.text(max_size=8).map(
    lambda text: quote(text, safe="", errors="replace")
)
paths = st.lists(pieces, max_size=6)


@settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(body=texts, path=st.sampled_from([CREATE, "/v1/predictions", "/v1/tokens"]))
def test_any_body(server: Server, body: bytes, path: str) -> None:
    answer = server.call("POST", path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 201 or refused(answer)


@settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"]),
    path=paths,
    query=st.text(max_size=20).map(lambda text: quote(text, errors="replace")),
)
def test_any_path(server: Server, method: str, path: list[str], query: str) -> None:
    answer = server.call(method, f"/{'/'.join(path)}?cursor={query}&status={query}")
    assert answer.status_code in (200, *REFUSALS)
    assert answer.is_success or method == "HEAD" or refused(answer)


# --- worker links ----------------------------------------------------------------------------------------------------


class Rogue:
    """A worker's socket in the hands of somebody who does not keep to the protocol."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self._heard: list[dict[str, Any]] = []
        self.worker = f"rogue-{secrets.token_hex(8)}"

    def say(self, *messages: dict[str, Any]) -> Self:
        """Send messages in one frame."""
        self.socket.send(json.dumps(messages))
        return self

    def hello(self, **changes: Any) -> Self:
        """Say hello as a worker of `me/rogue`."""
        offer = {"owner": "me", "name": "rogue", "version": "9" * 64, "slots": 1}
        hello = {
            "type": "hello",
            "protocol": 1,
            "worker": self.worker,
            "instance": "i",
            "name": "rogue",
            "offers": [offer],
        }
        return self.say({**hello, **changes})

    def hear(self, kind: str) -> dict[str, Any]:
        """Return the next message of this kind."""
        while True:
            while self._heard:
                if (message := self._heard.pop(0))["type"] == kind:
                    return message
            frame = self.socket.recv(timeout=10)
            self._heard += [] if frame == "pong" else json.loads(frame)

    def alive(self) -> bool:
        """Say whether the server still answers on this link."""
        self.socket.send("ping")
        while self.socket.recv(timeout=10) != "pong":
            pass
        return True

    def closing(self) -> tuple[int, str]:
        """Return the code and the reason with which the server closes the link, soon."""
        with suppress(ConnectionClosed):
            while True:
                self.socket.recv(timeout=10)
        return self.socket.close_code or 0, self.socket.close_reason or ""


@contextmanager
def link(server: Server, token: str | None = None, path: str = "/worker/v1/link") -> Iterator[Rogue]:
    """Open a link as a worker of `me`, unless a token is given."""
    address = server.url.replace("http", "ws", 1) + path
    headers = {"Authorization": f"Bearer {token or server.token('worker')}"}
    with connect(address, additional_headers=headers, proxy=None, compression=None, max_size=None) as socket:
        yield Rogue(socket)


@pytest.mark.usefixtures("unchanged")
def test_handshakes_that_are_refused(scene: Scene, server: Server) -> None:
    for token, path, status in (
        ("nonsense", "/worker/v1/link", 401),
        ("", "/worker/v1/link", 401),
        (server.token(), "/worker/v1/link", 403),
        (server.admin_token, "/worker/v1/link", 403),
        (server.token("worker"), "/worker/v1/nowhere", 404),
        (server.token("worker"), "/", 404),
        (server.token("worker"), "/v1/predictions", 404),
        ("nonsense", "/v1/predictions", 401),
    ):
        with pytest.raises(InvalidStatus) as caught, link(server, token or " ", path):
            pass
        answer = caught.value.response
        kind, body = answer.headers.get("content-type"), bytes(answer.body or b"")
        assert check_problem(answer.status_code, kind, body)["status"] == status


MALFORMED = 1002, 1007
BREACHES: dict[str, tuple[str | bytes, tuple[int, ...]]] = {
    "binary": (b"[]", (1003,)),
    "oversized": ("[" + " " * 1_000_000 + "]", (1009,)),
    # Its last bytes meet a closed socket, which may take the word about the close along.
    "huge": ("x" * 4_100_000, (1009, 1006)),
    "garbage": ("garbage", MALFORMED),
    "torn": ('[{"type":"ping"', MALFORMED),
    "no array": ("{}", MALFORMED),
    "numbers": ("[1]", MALFORMED),
    "no type": ("[{}]", MALFORMED),
    "NaN": ("[NaN]", MALFORMED),
    "deep": ("[" * 100_000, MALFORMED),
    "deep value": ('[{"type":"output","items":[' + "[" * 50_000 + "]" * 50_000 + "]}]", MALFORMED),
    "a second hello": ("", MALFORMED),
    "absurd numbers": (
        json.dumps([{"type": "started", "prediction": "p", "attempt": 10**40, "ago_ms": -1}]),
        MALFORMED,
    ),
    "absurd capacity": ('[{"type":"capacity","offer":0,"slots":1000000000}]', MALFORMED),
    "an offer that was not made": ('[{"type":"capacity","offer":7,"slots":1}]', MALFORMED),
    "an id with a path": ('[{"type":"slot_free","prediction":"../x","attempt":1}]', MALFORMED),
    "a status of its own": ('[{"type":"finish","prediction":"p","attempt":1,"status":"great"}]', MALFORMED),
    "a message of the server": ('[{"type":"assign","prediction":"p","attempt":1,"offer":0},1]', MALFORMED),
}


@pytest.mark.parametrize("breach", BREACHES)
@pytest.mark.parametrize("greeted", [False, True], ids=["before hello", "after hello"])
@pytest.mark.usefixtures("unchanged")
def test_breaches_of_the_protocol_end_the_link(server: Server, breach: str, greeted: bool) -> None:
    frame, codes = BREACHES[breach]
    with link(server) as rogue:
        if greeted or breach == "a second hello":
            rogue.hello().hear("welcome")
        if breach == "a second hello":
            rogue.hello()
        else:
            # A frame that is far too large is not even read to its end.
            with suppress(ConnectionClosed):
                rogue.socket.send(frame)
        code, reason = rogue.closing()
        assert code in codes or (code == 1002 and not greeted)
        assert reason or breach == "huge"


@pytest.mark.usefixtures("unchanged")
def test_messages_before_the_hello_end_the_link(server: Server, scene: Scene) -> None:
    for message in (
        {"type": "heartbeat", "held": [[scene.running, 1]]},
        {"type": "finish", "prediction": scene.running, "attempt": 1, "status": "failed"},
        {"type": "goodbye"},
    ):
        with link(server) as rogue:
            assert rogue.say(message).closing()[0] == 1002


HELLOS: dict[str, dict[str, Any]] = {
    "another protocol": {"protocol": 99},
    "no protocol": {"protocol": "1"},
    "no offers": {"offers": []},
    "a worker id with a path": {"worker": "../../etc"},
    "an empty worker id": {"worker": ""},
    "a long name": {"name": "x" * 5000},
    "a version that is none": {"offers": [{"owner": "me", "name": "rogue", "version": "latest", "slots": 1}]},
    "absurd slots": {"offers": [{"owner": "me", "name": "rogue", "version": "9" * 64, "slots": 2**63}]},
    "negative slots": {"offers": [{"owner": "me", "name": "rogue", "version": "9" * 64, "slots": -1}]},
    "a name with a slash": {"offers": [{"owner": "me", "name": "a/b", "version": "9" * 64, "slots": 1}]},
    "many offers": {"offers": [{"owner": "me", "name": "rogue", "version": "9" * 64, "slots": 1}] * 1000},
    "a schema that is none": {
        "offers": [
            {
                "owner": "me",
                "name": "bad",
                "version": "8" * 64,
                "slots": 1,
                "schema": {"components": {"schemas": {"Input": {"type": 5}}}},
            }
        ]
    },
    "held on no offer": {"held": [{"prediction": "p", "attempt": 1, "offer": 9}]},
    "held numbers": {"held": [{"prediction": "p", "attempt": 2**70}]},
    "another protocol's agent": {"agent": {"version": 1}},
}


@pytest.mark.parametrize("changes", HELLOS.values(), ids=HELLOS)
@pytest.mark.usefixtures("unchanged")
def test_hellos_that_are_refused(server: Server, changes: dict[str, Any]) -> None:
    with link(server) as rogue:
        code, reason = rogue.hello(**changes).closing()
        assert code in (1002, 4400, 4426)
        assert reason
        assert rogue.worker not in {worker["id"] for worker in server.workers().values()}


def test_schemas_that_make_no_sense_hurt_nobody(server: Server) -> None:
    schemas: list[Any] = [1, "x", [], {}, None, {"components": 1}, {"components": {"schemas": {"Input": 1}}}]
    for number, schema in enumerate(schemas):
        offer = {"owner": "me", "name": f"odd{number}", "version": "7" * 64, "slots": 0, "schema": schema}
        with link(server) as rogue:
            rogue.hello(offers=[offer])
            rogue.socket.recv(timeout=10)
        answer = server.call("GET", f"/v1/models/me/odd{number}")
        assert answer.status_code == 200 or refused(answer)["status"] == 404
        made = server.call("POST", f"/v1/models/me/odd{number}/predictions", json={"input": {"a": 1}})
        assert made.status_code == 201 or refused(made)["status"] in (404, 422)
    assert server.call("GET", "/v1/models").status_code == 200


@pytest.mark.usefixtures("unchanged")
def test_a_worker_cannot_touch_what_it_was_not_given(scene: Scene, server: Server) -> None:
    """Not in the hello, not by any message; it only hears that nothing of it counts."""
    held = [{"prediction": scene.running, "attempt": 1}, {"prediction": scene.waiting, "attempt": 0}]
    with link(server) as rogue:
        welcome = rogue.hello(
            held=held, offers=[{"owner": "me", "name": "rogue", "version": "9" * 64, "slots": 9}]
        ).hear("welcome")
        assert not any(word["wanted"] for word in welcome["held"])
        for prediction, attempt in ((scene.running, 1), (scene.waiting, 0), (scene.waiting, 1), ("0" * 26, 1)):
            key = {"prediction": prediction, "attempt": attempt}
            rogue.say(
                {"type": "started", **key},
                {"type": "output", **key, "index": 0, "items": ["stolen"]},
                {"type": "output", **key, "index": 2**50, "items": ["stolen"]},
                {"type": "log", **key, "offset": 0, "text": "stolen"},
                {"type": "metrics", **key, "values": {"predict_time": 1}},
                {"type": "heartbeat", "held": [[prediction, attempt]]},
                {"type": "slot_free", **key},
                {"type": "finish", **key, "status": "succeeded", "output": "stolen", "slot_free": True},
                {"type": "finish", **key, "status": "lost", "slot_free": True, "items": 2**50, "uploaded": True},
            )
            assert rogue.hear("answer")["verdict"] == "unknown"
            assert rogue.hear("answer")["verdict"] == "unknown"
        assert rogue.alive()
        rogue.say({"type": "goodbye"})
    shown = scene.ask_other(f"/v1/predictions/{scene.running}")
    assert (shown["status"], shown["output"], shown["logs"]) == ("processing", None, "")


@pytest.mark.usefixtures("unchanged")
def test_a_worker_id_of_another_account_is_refused(scene: Scene, server: Server) -> None:
    before = server.workers()["victim"]
    with link(server) as rogue:
        code, reason = rogue.hello(worker=scene.worker.id, held=[{"prediction": scene.running, "attempt": 1}]).closing()
        assert (code, "belongs to another account" in reason) == (4403, True)
    assert server.workers()["victim"] == before


def test_a_gap_in_the_output_ends_the_link_and_the_prediction_stays(server: Server) -> None:
    with link(server) as rogue:
        rogue.hello().hear("welcome")
        prediction = server.create("me/rogue")
        key = {"prediction": prediction, "attempt": rogue.hear("assign")["attempt"]}
        rogue.say({"type": "started", **key}, {"type": "output", **key, "index": 0, "items": [1, 2]})
        until(lambda: server.get(prediction)["output"] == [1, 2], "output")
        code, reason = rogue.say({"type": "output", **key, "index": 3, "items": [4]}).closing()
        assert (code, "jumps from item 2 to 3" in reason) == (1002, True)
        assert server.get(prediction)["output"] == [1, 2]
    with link(server) as again:
        again.worker = rogue.worker
        welcome = again.hello(held=[key]).hear("welcome")
        assert welcome["held"] == [{**key, "wanted": True, "outputs": 2}]
        again.say(
            {"type": "output", **key, "index": 1, "items": ["known", 3]},
            {"type": "finish", **key, "status": "succeeded", "items": 3, "slot_free": True},
        )
        assert again.hear("answer")["verdict"] == "committed"
        assert server.get(prediction)["output"] == [1, 2, 3]
        again.say({"type": "goodbye"})


def test_ten_thousand_heartbeats_at_once(server: Server) -> None:
    with link(server) as rogue:
        rogue.hello().hear("welcome")
        prediction = server.create("me/rogue")
        key = {"prediction": prediction, "attempt": rogue.hear("assign")["attempt"]}
        rogue.say({"type": "started", **key})
        beat = {"type": "heartbeat", "held": [[prediction, key["attempt"]]]}
        for _ in range(100):
            rogue.say(*[beat] * 50)
            for _ in range(50):
                rogue.say(beat)
        assert server.http.get(f"{server.url}/health", timeout=5).status_code == 200
        assert rogue.alive()
        rogue.say({"type": "finish", **key, "status": "succeeded", "output": "alive", "slot_free": True})
        assert server.ended(prediction)["output"] == "alive"
        rogue.say({"type": "goodbye"})


def test_a_revoked_worker_token_ends_its_links(server: Server) -> None:
    made = server.new_token("worker")
    with link(server, made["token"]) as rogue:
        rogue.hello().hear("welcome")
        assert server.call("DELETE", f"/v1/tokens/{made['id']}", token=server.admin_token).status_code == 204
        assert "does not count any more" in rogue.hear("reject")["reason"]
        code, reason = rogue.closing()
        assert (code, "does not count any more" in reason) == (4401, True)
    with pytest.raises(InvalidStatus), link(server, made["token"]):
        pass
    assert made["token"] not in server.log()


def test_a_worker_whose_token_is_revoked_says_so_and_leaves(scene: Scene, server: Server) -> None:
    worker = scene.stage.scripted(server, account="revoked").connected()
    tokens = server.ask("GET", "/v1/tokens", token=server.admin_token)["results"]
    [own] = [token["id"] for token in tokens if (token["account"], token["kind"]) == ("revoked", "worker")]
    assert server.call("DELETE", f"/v1/tokens/{own}", token=server.admin_token).status_code == 204
    assert worker.join() == 2
    assert "the token of this worker does not count any more; start it with a new one" in worker.log()
    assert server.token("worker", "revoked") not in worker.log()


def test_a_revoked_api_token_opens_nothing(server: Server) -> None:
    made = server.new_token("api")
    assert server.call("GET", "/v1/account", token=made["token"]).status_code == 200
    assert server.call("DELETE", f"/v1/tokens/{made['id']}", token=server.admin_token).status_code == 204
    assert refused(server.call("GET", "/v1/account", token=made["token"]))["status"] == 401
