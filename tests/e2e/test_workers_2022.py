"""Workers of 2022 at a real server: they block their loops, lose their sockets, and say things twice."""

import contextlib
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from support.processes import Process, Server, Stage, until

MODEL = "old/model"
SHORT = {"WEBSOCKETS_BACKOFF_INITIAL_DELAY": "0.2", "WEBSOCKETS_BACKOFF_MIN_DELAY": "0.2"}


@pytest.fixture(params=["sqlite", "postgres"])
def server(request: pytest.FixtureRequest, stage: Stage, new_url: Callable[[str], str]) -> Server:
    """A server on each database."""
    return stage.server(database_url=new_url(str(request.param)))


def start(stage: Stage, server: Server, *, account: str = "me", model: str = MODEL, path: str = "websocket") -> Process:
    """Start a worker and wait until it is connected."""
    secret = stage.plant(server.token("worker", account))
    known = len(server.workers())
    url = f"{server.url.replace('http', 'ws')}/v1/models/{model}/{path}/{secret}"
    arguments = ["-m", "support.worker2022", url, f"{server.url}/v1/models/{model}/files", model, str(stage.diary)]
    process = stage.spawn(f"worker2022-{known}", arguments, SHORT)
    until(lambda: len(online(server)) > known, "worker of 2022 that is connected")
    return process


def online(server: Server) -> list[dict[str, Any]]:
    return [worker for worker in server.workers().values() if worker["state"] == "online"]


def create(server: Server, **script: Any) -> str:
    return server.create(MODEL, **script)


def said(stage: Stage, name: str, text: str) -> bool:
    """Say whether a process has said this."""
    return text in (stage.folder / f"{name}.log").read_text()


def runs(stage: Stage, prediction: str) -> int:
    """Return how often the model began to run a prediction."""
    if not stage.diary.exists():
        return 0
    entries = [json.loads(line) for line in stage.diary.read_text().splitlines()]
    return sum(entry["event"] == "begin" and entry["prediction"] == prediction for entry in entries)


def test_what_it_says(stage: Stage) -> None:
    server = stage.server()
    start(stage, server, path="websockets")
    one = server.ended(create(server, output={"a": [1, None]}, log=2))
    assert (one["status"], one["output"], one["logs"]) == ("succeeded", {"a": [1, None]}, "line 0\nline 1\n")
    many = server.ended(create(server, items=3, seconds=0.3))
    assert (many["status"], many["output"]) == ("succeeded", ["w0 ", "w1 ", "w2 "])
    assert many["metrics"]["predict_time"] == pytest.approx(0.3, abs=0.2)
    failed = server.ended(create(server, fail="no such word"))
    assert (failed["status"], failed["error"]) == ("failed", "no such word")
    assert [attempt["outcome"] for attempt in server.attempts(failed["id"])] == ["failed"]
    until(lambda: all(worker["busy"] == 0 for worker in server.workers().values()), "free slot")


def test_what_it_had_begun_when_its_socket_broke_runs_again(stage: Stage, server: Server) -> None:
    """The server is killed while the worker is blocked: what that has to say is lost, and it comes back idle."""
    start(stage, server)
    prediction = create(server, seconds=3, output="again", log=1)
    server.processing(prediction)
    server.restart()
    ended = server.ended(prediction, deadline_s=60)
    assert (ended["status"], ended["output"], ended["logs"]) == ("succeeded", "again", "line 0\n")
    assert [attempt["outcome"] for attempt in server.attempts(prediction)] == ["lost", "succeeded"]
    assert runs(stage, prediction) == 2
    assert len(server.workers()) == 1, "a worker that comes back is the same one"


def test_a_fork_that_goes_on_over_the_next_connection_loses_nothing(stage: Stage, server: Server) -> None:
    start(stage, server)
    prediction = create(server, seconds=3, items=3, stay=True)
    until(lambda: server.get(prediction)["output"], "output on the way")
    server.restart()
    ended = server.ended(prediction, deadline_s=60)
    assert (ended["status"], ended["output"]) == ("succeeded", ["w0 ", "w1 ", "w2 "])
    assert [attempt["outcome"] for attempt in server.attempts(prediction)] == ["succeeded"]
    assert runs(stage, prediction) == 1


def test_a_fault_before_the_last_frame_takes_nobody_elses_time(stage: Stage) -> None:
    """The worker comes back at once and is idle; what it held is lost as often as it may be, then fails."""
    server = stage.server(max_strikes="2", quarantine_after="10")
    start(stage, server)
    broken = create(server, **{"break": True})
    ended = server.ended(broken, deadline_s=60)
    assert ended["status"] == "failed"
    assert "came back without it" in ended["error"]
    well = server.ended(create(server, output="well"))
    assert (well["status"], well["output"]) == ("succeeded", "well")


def test_a_cancel_is_not_heard_and_the_slot_stays_taken(stage: Stage) -> None:
    server = stage.server()
    start(stage, server)
    prediction = create(server, seconds=3, output="too late")
    server.processing(prediction)
    assert server.ask("POST", f"/v1/predictions/{prediction}/cancel")["status"] == "canceled"
    following = create(server, output="next")
    assert [worker["busy"] for worker in online(server)] == [1]
    ended = server.ended(following)
    assert (ended["status"], ended["output"]) == ("succeeded", "next")
    last = [json.loads(line) for line in stage.diary.read_text().splitlines()]
    assert [entry["event"] for entry in last[:2]] == ["begin", "end"], "the second began when the first was over"
    shown = server.get(prediction)
    assert (shown["status"], shown["output"]) == ("canceled", None)


def test_files_come_by_the_old_address_and_are_ours_afterwards(stage: Stage) -> None:
    server = stage.server()
    start(stage, server)
    one = server.ended(create(server, file="some text"))
    assert one["status"] == "succeeded", one
    assert one["output"].startswith(f"{server.url}/f/")
    assert httpx2.get(one["output"]).text == "some text"
    old = f"{server.url}/v1/models/{MODEL}/files/{one['output'].partition('/f/')[2]}"
    assert httpx2.get(old).text == "some text"
    many = server.ended(create(server, files=["a", "b"], seconds=0.5))
    assert [httpx2.get(url).text for url in many["output"]] == ["a", "b"]


def test_an_input_larger_than_its_frames_is_fetched(stage: Stage) -> None:
    """A data URL of 2 MB cannot be sent to such a worker; a URL of this server can."""
    server = stage.server()
    start(stage, server)
    prediction = create(server, fetch=f"data:text/plain,{'x' * 2_000_000}")
    ended = server.ended(prediction)
    assert (ended["status"], ended["output"]) == ("succeeded", "x" * 2_000_000)
    refused = server.ended(create(server, text="x" * 2_000_000))
    assert (refused["status"], "a worker of 2022 takes" in refused["error"]) == ("failed", True)


def test_an_output_larger_than_ordinary_frames(stage: Stage) -> None:
    server = stage.server()
    start(stage, server)
    ended = server.ended(create(server, large=6_000_000))
    assert (ended["status"], len(ended["output"])) == ("succeeded", 6_000_000)
    refused = server.ended(create(server, large=20_000_000))
    assert (refused["status"], refused["error"]) == ("failed", "Output is larger than 16777216 bytes")


FLOODS: dict[str, list[str | bytes]] = {
    "garbage": ["garbage", b"\xff\xfe", "[" * 100_000, "{}", "null", '{"id": 1}', b""],
    "strays": [json.dumps({"id": "unknown", "status": "succeeded", "output": "x" * 1_000})] * 5_000,
    "large": [json.dumps({"id": "unknown", "status": "processing", "logs": ["x" * 8_000_000]})] * 3,
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_worker_that_talks_nonsense_is_passed_over(stage: Stage, flood: str) -> None:
    server = stage.server()
    url = f"{server.url.replace('http', 'ws')}/v1/models/{MODEL}/websocket/{server.token('worker')}?session_id=s"
    with connect(url, proxy=None, max_size=None) as socket:
        for frame in FLOODS[flood]:
            socket.send(frame)
        prediction = create(server, text="hello")
        job = json.loads(socket.recv(timeout=20))
        assert (job["id"], job["input"]) == (prediction, {"text": "hello"})
        socket.send(json.dumps({"id": prediction, "status": "succeeded", "output": "well", "logs": None}))
        assert server.ended(prediction)["output"] == "well"


def test_a_frame_beyond_all_bounds_ends_the_socket(stage: Stage) -> None:
    server = stage.server()
    url = f"{server.url.replace('http', 'ws')}/v1/models/{MODEL}/websockets/{server.token('worker')}"
    with connect(url, proxy=None) as socket:
        # Its last bytes meet a closed socket, which may take the word about the close along.
        with contextlib.suppress(ConnectionClosed):
            socket.send("x" * (65 << 20))
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=20)
    until(lambda: not online(server), "worker that is gone")


def test_a_stranger_gets_nothing_and_is_not_told_of(stage: Stage) -> None:
    server = stage.server()
    url = f"{server.url.replace('http', 'ws')}/v1/models/{MODEL}/websocket/"
    wrong = stage.plant("no-token-of-this-server")
    stage.spawn("stranger", ["-m", "support.worker2022", url + wrong, "http://127.0.0.1:9/", MODEL], SHORT)
    api = stage.plant(server.token("api"))
    stage.spawn("client", ["-m", "support.worker2022", url + api, "http://127.0.0.1:9/", MODEL], SHORT)
    for name in ("stranger", "client"):
        until(partial(said, stage, name, "rejected"), "refusal")
    answer = httpx2.get(f"{server.url}/v1/models/{MODEL}/websocket/{wrong}")
    assert answer.status_code == 401
    assert wrong not in answer.text
    assert not server.workers()


def test_a_server_that_stops_in_order_does_not_wait_for_a_blocked_worker(stage: Stage) -> None:
    server = stage.server()
    start(stage, server)
    prediction = create(server, seconds=4, output="again")
    server.processing(prediction)
    assert server.stop() == 0
    server.start()
    ended = server.ended(prediction, deadline_s=60)
    assert (ended["status"], ended["output"]) == ("succeeded", "again")
