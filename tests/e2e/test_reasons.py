"""Why something waits, asked over HTTP of a real server with real workers that come, set up and go."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from support.processes import Server, Stage, until


class _Starting(BaseHTTPRequestHandler):
    """A Cog server whose model takes its time."""

    def do_GET(self) -> None:
        body = b'{"status": "STARTING", "setup": {"logs": "loading the weights"}}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def starting() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Starting)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def reason(server: Server, prediction: str) -> str:
    """Return the code of the reason."""
    return str(server.ask("GET", f"/v1/predictions/{prediction}?explain=1")["explanation"]["code"])


def test_a_worker_that_sets_up_is_waited_for(stage: Stage, starting: str) -> None:
    server = stage.server()
    stage.scripted(server, name="first").connected().end()
    waiting = server.create()
    until(lambda: reason(server, waiting) == "no_worker_has_model", "worker that is known to be gone")
    arguments = ["-m", "cogflare.cli", "worker", "--url", starting, "--server", server.url, "--model", "me/single"]
    arguments += ["--name", "second", "--state", str(stage.folder / "state" / "second")]
    second = stage.spawn("second", arguments, {"COGFLARE_WORKER_TOKEN": server.token("worker")})
    until(lambda: reason(server, waiting) == "model_starting", "setup that the server knows of")
    found = server.ask("GET", f"/v1/predictions/{waiting}?explain=1")["explanation"]
    assert [worker["name"] for worker in found["queue"]["starting"]] == ["second"]
    second.signal(2)  # type: ignore[arg-type]
    second.join()
    until(lambda: reason(server, waiting) == "no_worker_has_model", "word that it comes no more")
    stage.scripted(server, name="third").connected()
    assert server.ended(waiting)["status"] == "succeeded"
    assert reason(server, waiting) == "ended"
    receipt = server.ask("GET", f"/v1/predictions/{waiting}/receipt")
    assert [(trial["place"], trial["name"]) for trial in receipt["attempts"]] == [("worker", "third")]
    assert receipt["cost"] == 0
