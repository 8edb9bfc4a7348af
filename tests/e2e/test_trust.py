"""Workers that are not to be trusted, and such as are of another day, with real processes on both ends."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from cogflare import __version__
from cogflare.protocol.messages import LINK_PATH, SUBPROTOCOL
from support.processes import Process, Server, Stage, until, version_of

PATCHED = "support.other_protocol"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "cog.yaml").write_text("predict: predict.py:Predictor\n")
    return folder


def friends(server: Server, account: str = "me", **limits: Any) -> str:
    """Return a limited token of a worker."""
    order = {"kind": "worker", "name": "a friend's", "account": account, **limits}
    return str(server.ask("POST", "/v1/tokens", token=server.admin_token, json=order)["token"])


def start_worker(
    stage: Stage, url: str, token: str, model: Path, program: tuple[str, ...] = ("cogflare.cli",)
) -> Process:
    """Start `cogflare worker` for me/single, on a folder that it gets to only if the server would have it."""
    arguments = ["-m", *program, "worker", str(model), "--server", url, "--model", "me/single"]
    arguments += ["--state", str(stage.folder / "state" / token[-8:])]
    return stage.spawn("friend", arguments, {"COGFLARE_WORKER_TOKEN": token})


def scripted(stage: Stage, server: Server, token: str, name: str, program: tuple[str, ...] = ()) -> Process:
    """Start a worker of me/single that has this token."""
    settings = {
        "server": server.url,
        "token": token,
        "model": "me/single",
        "slots": 1,
        "state": str(stage.folder / "state" / name),
        "diary": str(stage.diary),
        "kind": "single",
        "name": name,
    }
    return stage.spawn(name, ["-m", *program, "support.scripted_worker", json.dumps(settings)], {})


def said(process: Process, words: str) -> None:
    until(lambda: words in process.log(), f"{words!r} said by {process.name}:\n{process.log()}")


# --- versions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("server", "worker", "words"),
    [
        (("2", "3"), ("1", "1"), "this worker ({0}, protocol 1) is too old for the server ({0}, protocol 2 to 3)"),
        (("1", "1"), ("2", "2"), "the server ({0}, protocol 1) is too old for this worker ({0}, protocol 2)"),
    ],
)
def test_ends_that_do_not_understand_each_other_say_who_is_too_old(
    stage: Stage, model: Path, server: tuple[str, str], worker: tuple[str, str], words: str
) -> None:
    words = words.format(f"cogflare {__version__}")
    there = stage.server(program=("-m", PATCHED, *server, "cogflare.cli"))
    token = there.token("worker")
    beforehand = start_worker(stage, there.url, token, model, (PATCHED, *worker, "cogflare.cli"))
    assert beforehand.join() == 2
    assert words in beforehand.log()
    assert "join line again" in beforehand.log()
    assert "setting up" not in beforehand.log()
    # One that does not ask beforehand is told the same when it says hello, and does not come back.
    greeting = scripted(stage, there, token, "greeting", (PATCHED, *worker))
    assert greeting.join() == 2
    assert words in greeting.log()
    assert "greeting" not in there.workers()


def test_ends_of_different_days_that_understand_each_other_work(stage: Stage) -> None:
    newer = stage.server(program=("-m", PATCHED, "1", "2", "cogflare.cli"))
    old = scripted(stage, newer, newer.token("worker"), "old")
    said(old, "connected, 1 slot")
    assert newer.ended(newer.create(output="of old"))["output"] == "of old"
    old.kill9()
    newest = scripted(stage, newer, newer.token("worker"), "newest", (PATCHED, "2", "7"))
    said(newest, "connected, 1 slot")
    assert newer.ended(newer.create(output="of new"))["output"] == "of new"


def test_a_protocol_by_another_name_is_refused_at_the_door(stage: Stage) -> None:
    server = stage.server()
    answer = server.call("GET", LINK_PATH, token=server.token("worker"))
    assert answer.status_code == 426
    headers = {"Authorization": f"Bearer {server.token('worker')}"}
    url = server.url.replace("http", "ws", 1) + LINK_PATH
    with (
        pytest.raises(Exception, match="426"),
        connect(url, additional_headers=headers, subprotocols=[Subprotocol("cogflare.v9")]),
    ):
        pass


class _Page(BaseHTTPRequestHandler):
    """A web site that is no Cogflare server."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def site() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_web_site_that_is_no_server_is_told_before_the_model_is_set_up(stage: Stage, site: str, model: Path) -> None:
    worker = start_worker(stage, site, "cfw_0", model)
    said(worker, "does not answer like a Cogflare server (HTTP 200)")
    worker.kill9()


# --- limits ----------------------------------------------------------------------------------------------------------


def test_a_token_for_another_model_is_told_before_the_model_is_set_up(stage: Stage, model: Path) -> None:
    server = stage.server()
    worker = start_worker(stage, server.url, friends(server, models=["me/other"]), model)
    assert worker.join() == 2
    assert "This worker token is for me/other, not for me/single" in worker.log()
    assert "setting up" not in worker.log()
    assert server.workers() == {}


def test_one_worker_too_many_waits_for_its_place(stage: Stage) -> None:
    server = stage.server()
    token = friends(server, models=["me/single"], max_connections=1)
    first = scripted(stage, server, token, "first")
    said(first, "connected, 1 slot")
    second = scripted(stage, server, token, "second")
    said(second, "as many workers are connected with this token as it allows")
    pause_s = float(second.log().rpartition("next try in ")[2].split()[0])
    assert pause_s >= 30
    assert second.is_running
    # The first may come and go, also without a goodbye; it is the same one.
    server.restart()
    until(lambda: first.log().count("connected, 1 slot") >= 2, "first, connected again")
    assert list(server.workers()) == ["first"]


def test_a_link_ends_with_its_token_and_what_it_ran_ends_elsewhere(stage: Stage) -> None:
    server = stage.server(close_grace_s="0.3")
    friend = scripted(stage, server, friends(server, expires_in_s=4), "friend")
    said(friend, "connected, 1 slot")
    prediction = server.create(seconds=60, hang=1)
    server.processing(prediction)
    other = stage.scripted(server, name="other").connected()
    assert friend.join() == 2
    assert "has expired" in friend.log()
    until(lambda: len(server.attempts(prediction)) == 2, "a second attempt")
    assert server.attempts(prediction)[1]["worker"] == other.id
    server.ask("POST", f"/v1/predictions/{prediction}/cancel")


# --- a hostile worker ------------------------------------------------------------------------------------------------


def hello(worker: str, offers: list[tuple[str, str, str]], held: list[str]) -> str:
    told = [{"owner": owner, "name": name, "version": version, "slots": 50} for owner, name, version in offers]
    listed = [{"prediction": id, "attempt": 1} for id in held]
    common = {"type": "hello", "protocol": 1, "worker": worker, "instance": "i1", "name": "", "offers": told}
    return json.dumps([{**common, "held": listed}])


def heard(socket: ClientConnection, seconds: float) -> list[str]:
    """Return the frames that come within so many seconds."""
    frames, end = [], time.monotonic() + seconds
    try:
        while (left_s := end - time.monotonic()) > 0:
            frames.append(str(socket.recv(timeout=left_s)))
    except (TimeoutError, ConnectionClosed):
        pass
    return frames


def test_a_hostile_worker_hears_nothing_of_other_tenants_and_reads_nothing(stage: Stage) -> None:
    """Mallory offers what the others have, claims what they run, and asks for it by HTTP: nothing of it comes."""
    server = stage.server()
    stage.scripted(server, name="mine").connected()
    shared = stage.scripted(server, account="shared", name="pool").connected()
    mine = server.create(seconds=60, log=3, output="of mine")
    pooled = server.create("shared/single", seconds=60, output="of the pool")
    server.processing(mine)
    server.processing(pooled)
    secret = "nobody else is to read this"
    waiting = [server.create(output=secret), server.create("shared/single", output=secret)]
    token = server.token("worker", "mallory")
    url = server.url.replace("http", "ws", 1) + LINK_PATH
    offers = [("me", "single", version_of("single")), ("shared", "single", version_of("single"))]
    frames = []
    for worker in ("mallory-1", server.workers()["mine"]["id"], shared.id):
        with connect(
            url,
            additional_headers={"Authorization": f"Bearer {token}"},
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            compression=None,
        ) as socket:
            socket.send(hello(worker, offers, [mine, pooled, *waiting]))
            frames += heard(socket, 2.5)
        headers = {"Cogflare-Worker": worker}
        for id in (mine, pooled, *waiting):
            for method, path, body in (
                ("GET", f"/worker/v1/attempts/{id}/1/input", None),
                ("PUT", f"/worker/v1/attempts/{id}/1/result", b"1"),
                ("POST", f"/worker/v1/attempts/{id}/1/files", b'{"filename": "x"}'),
            ):
                assert server.call(method, path, token=token, headers=headers, content=body).status_code == 404
            assert server.call("GET", f"/v1/predictions/{id}", token=token).status_code == 403
    text = "".join(frames)
    assert text.count('"welcome"') == 1
    assert text.count("belongs to another account") == 2
    for unwanted in (secret, '"assign"', '"wanted":true', "of mine", "of the pool"):
        assert unwanted not in text
    states = [server.get(id)["status"] for id in (mine, pooled, *waiting)]
    assert states == ["processing", "processing", "starting", "starting"]
    for id in (mine, pooled, *waiting):
        server.ask("POST", f"/v1/predictions/{id}/cancel")
