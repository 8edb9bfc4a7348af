"""A provider's key: planted, used in every way, refused, echoed by its provider, and then looked for everywhere."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from support.pairs import Pair
from support.processes import Stage, until

READ = (
    *("/v1/providers", "/v1/providers/far", "/v1/providers/echo", "/v1/routes", "/v1/costs", "/v1/budgets"),
    *("/v1/predictions", "/v1/workers", "/v1/models", "/v1/account", "/v1/webhooks/deliveries"),
)
COMMANDS = (
    *(["providers", "list"], ["providers", "show", "far"], ["providers", "check", "echo"], ["routes", "list"]),
    *(["costs"], ["budgets", "list"], ["predictions", "list"], ["workers", "list"]),
)


class Echo(BaseHTTPRequestHandler):
    """Says in every answer what it was sent, the key above all."""

    status = 422

    def do_POST(self) -> None:
        """Answer."""
        said = f"Authorization: {self.headers.get('Authorization')}; I cannot take this"
        body = json.dumps({"detail": said, "title": said, "error": said, "status": self.status}).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/problem+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST  # noqa: N815 - the same

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing here."""


@pytest.fixture
def echo() -> Iterator[str]:
    """The address of a provider that echoes."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_planted_key_is_shown_nowhere(stage: Stage, echo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage itself looks through all files when it closes: logs, databases, backups."""
    pair = Pair(stage)
    near = pair.near
    stage.scripted(pair.far, name="far").connected()
    said = [json.dumps(pair.add("far", pair.far.url, "cogflare", price_per_run=0.01))]
    for kind in ("replicate", "cogflare"):
        said.append(json.dumps(pair.add("echo", echo, kind)))
    pair.route("far")
    made = [near.create(file="x"), near.create(fail="no")]
    pair.route([{"echo": {}}], "me/echoed")
    pair.route(["workers", {"echo": {}}, {"far": {"when": "wait > 1s"}}])
    for status in (422, 401, 500, 429):
        monkeypatch.setattr(Echo, "status", status)
        near.ask("PUT", "/v1/providers/echo", json={"kind": "replicate", "base_url": echo, "key": pair.key})
        made.append(near.create(output=status))
        said.append(near.call("POST", "/v1/models/me/echoed/predictions", json={"input": {}}).text)
        said.append(near.call("POST", "/v1/providers/echo/check").text)
    for prediction in made:
        near.ended(prediction)
        for path in ("?explain=1", "/receipt", "/attempts"):
            said.append(near.call("GET", f"/v1/predictions/{prediction}{path}").text)
    refused = {"kind": "cogflare", "base_url": f"{pair.far.url}/nowhere{pair.key}", "key": f"{pair.key}\n"}
    near.call("PUT", "/v1/providers/other", json=refused)
    said += [near.call("GET", path).text for path in READ]
    near.restart()
    until(lambda: near.ask("GET", "/v1/providers/far"), "server")
    environment = {"COGFLARE_SERVER": near.url, "COGFLARE_TOKEN": near.token(), "PATH": "/usr/bin:/bin"}
    database = near.database_url.removeprefix("sqlite:///")
    backup = ["backup", str(stage.folder / "copy.db"), "--data", database.rpartition("/")[0]]
    for command in (*COMMANDS, ["predictions", "why", made[-1]], ["predictions", "receipt", made[0]], backup):
        done = subprocess.run(
            [sys.executable, "-m", "cogflare.cli", *command], env=environment, capture_output=True, text=True
        )
        said.append(done.stdout + done.stderr)
    assert (stage.folder / "copy.db").exists(), said[-1]
    assert sum("far" in text for text in said) > 3
    assert not [text for text in said if pair.key in text]
