"""`cogflare webhooks` against a real server whose webhooks come to `listen`, a process of its own."""

import json
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx2
import pytest
from click.testing import CliRunner

from cli.conftest import Shell
from cogflare.cli.main import cogflare
from support.processes import Server, Stage, until


@pytest.fixture(scope="module")
def server(stage: Stage) -> Server:
    """A server that may reach this machine."""
    server = stage.server(outgoing_networks="127.0.0.0/8")
    stage.scripted(server, "single", slots=4).connected()
    return server


@contextmanager
def listening(shell: Shell, *options: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """Run `cogflare webhooks listen` and give its URL."""
    process = shell.start("webhooks", "listen", "--port", "0", *options)
    assert process.stderr is not None
    try:
        introduction = process.stderr.readline()
        assert "Listening on http://127.0.0.1:" in introduction, introduction + process.stderr.read()
        yield introduction.split()[2], process
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)


def run(server: Server, webhook: str, **script: object) -> str:
    """Run a prediction whose end is told to this address, and return its id."""
    order = {"version": "me/single", "input": script, "webhook": webhook, "webhook_events_filter": ["completed"]}
    created = server.call("POST", "/v1/predictions", json=order)
    assert created.status_code == 201, created.text
    server.ended(created.json()["id"])
    return str(created.json()["id"])


def state(shell: Shell, prediction: str) -> str:
    return str(json.loads(shell.ok("webhooks", "show", f"msg_{prediction}", "--json"))["state"])


def test_listen_shows_what_comes_and_the_log_what_became_of_it(shell: Shell, server: Server) -> None:
    with listening(shell, "--json") as (url, process):
        assert process.stdout is not None
        prediction = run(server, f"{url}?x=1", output="a result")
        told = json.loads(process.stdout.readline())
        assert (told["id"], told["verified"], told["answered"]) == (f"msg_{prediction}", True, 200)
        assert told["body"]["output"] == "a result"
        until(lambda: state(shell, prediction) == "delivered", "delivery")
        listed = [json.loads(line) for line in shell.ok("webhooks", "list", "--json").splitlines()]
        assert listed[0]["id"] == f"msg_{prediction}"
        [row] = shell.ok("webhooks", "list", "--prediction", prediction, "--state", "delivered").splitlines()
        assert row.split("\t")[:4] == [f"msg_{prediction}", "completed", "delivered", "1"]
        shown = shell.ok("webhooks", "show", f"msg_{prediction}")
        for part in (f"{url}?x=1", "webhook-signature", "a result", "answered 200"):
            assert part in shown
        again = shell.run("webhooks", "replay", f"msg_{prediction}")
        assert again.exit_code == 0
        assert json.loads(process.stdout.readline())["id"] == f"msg_{prediction}"


def test_listen_refuses_what_the_server_has_not_sent_and_lives_on(shell: Shell, server: Server) -> None:
    with listening(shell) as (url, process):
        assert process.stdout is not None
        assert httpx2.post(url, content=b"{}").status_code == 401
        forged = {"webhook-id": "msg_1", "webhook-timestamp": "1", "webhook-signature": "v1,AAAA"}
        assert "too long ago" in httpx2.post(url, content=b"{}", headers=forged).text
        assert httpx2.get(url).status_code == 200
        with socket.create_connection(("127.0.0.1", int(url.rstrip("/").rpartition(":")[2]))) as broken:
            broken.sendall(b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
        prediction = run(server, url, fail="no luck \x1b[31m")
        line = process.stdout.readline()
        assert line.split()[1:4] == ["failed", "me/single", prediction]
        assert "no luck" in line
        assert "\x1b" not in line


def test_a_rotated_secret_is_learned(shell: Shell, server: Server) -> None:
    old = shell.ok("webhooks", "secret").strip()
    with listening(shell, "--json") as (url, process):
        assert process.stdout is not None
        rotated = json.loads(shell.ok("webhooks", "secret", "--rotate", "--json"))
        assert rotated["key"] == shell.ok("webhooks", "secret").strip() != old
        run(server, url)
        assert json.loads(process.stdout.readline())["verified"]
    assert "one before it too" in shell.run("webhooks", "secret", "--rotate").stderr


class _App(BaseHTTPRequestHandler):
    """An application that a developer runs."""

    got: list[tuple[str, dict[str, str], bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.got.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(503)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"busy")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_listen_passes_on_and_answers_what_it_is_answered(shell: Shell, server: Server) -> None:
    _App.got = []
    with HTTPServer(("127.0.0.1", 0), _App) as app:
        thread = threading.Thread(target=app.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        forward = f"http://127.0.0.1:{app.server_port}/hook?a=1"
        with listening(shell, "--json", "--forward", forward) as (url, process):
            assert process.stdout is not None
            prediction = run(server, f"{url}?x=1")
            assert json.loads(process.stdout.readline())["answered"] == 503
        app.shutdown()
        thread.join()
    path, headers, body = _App.got[0]
    assert path == "/hook?a=1&x=1"
    assert headers["webhook-id"] == f"msg_{prediction}"
    assert json.loads(body)["id"] == prediction
    until(lambda: "answered 503" in shell.ok("webhooks", "show", f"msg_{prediction}"), "try")


def test_what_cannot_be_done_is_said(shell: Shell) -> None:
    missing = shell.run("webhooks", "show", "msg_nothing")
    assert missing.exit_code == 2
    assert "no message msg_nothing: `cogflare webhooks list`" in missing.stderr
    assert shell.run("webhooks", "replay", "msg_nothing").exit_code == 2
    assert shell.run("webhooks", "listen", "--forward", "127.0.0.1:3000").exit_code == 2
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused = shell.run("webhooks", "listen", "--port", str(taken.getsockname()[1]))
    assert refused.exit_code == 1
    assert "choose another --port" in refused.stderr
    assert "choose another --host" in shell.run("webhooks", "listen", "--host", "256.1.1.1").stderr
    assert shell.ok("webhooks", "list", "--state", "failed") == ""
    missing = shell.run("webhooks", "list", "--prediction", "nothing")
    assert missing.exit_code == 2
    assert "no prediction nothing: `cogflare predictions list`" in missing.stderr


def test_a_lost_key_is_said_at_the_start_and_reset_begins_anew(stage: Stage) -> None:
    server = stage.server()
    before = server.call("GET", "/v1/webhooks/default/secret").json()
    data = Path(server.database_url.removeprefix("sqlite:///")).parent
    assert server.stop() == 0
    key = data / "secret.key"
    assert before["key"] not in (data / "cogflare.db").read_bytes().decode("latin-1")
    kept = key.read_bytes()
    key.unlink()
    refused = stage.spawn("keyless", ["-m", "cogflare.cli", "serve", "--data", str(data), "--port", "0"], {})
    assert refused.join() == 1
    assert "the key for them is not here" in refused.log()
    assert "cogflare webhooks reset" in refused.log()
    assert not key.exists()
    reset = CliRunner().invoke(cogflare, ["webhooks", "reset", "--data", str(data), "--yes"])
    assert (reset.exit_code, "forgotten, 1 in all" in reset.stderr) == (0, True)
    server.start()
    assert server.call("GET", "/v1/webhooks/default/secret").json() != before
    assert key.read_bytes() != kept
