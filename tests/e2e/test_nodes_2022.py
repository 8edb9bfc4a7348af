"""Workers and bots of 2022 at two nodes on one PostgreSQL: a worker's socket moves from one to the other in mid-run."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from socket import SHUT_RDWR
from typing import Any, NamedTuple

import pytest
from websockets.sync.client import ClientConnection, connect

from e2e.test_webhooks import INSIDE, Receiver
from support.processes import Server, Stage, until

MODEL = "me/old"


class Scene(NamedTuple):
    """Two nodes, what takes the bot's callbacks, and the tokens of its account."""

    first: Server
    second: Server
    receiver: Receiver
    worker: str
    bot: str

    def dial(self, server: Server) -> ClientConnection:
        """Connect the worker: its session is the same wherever it goes."""
        url = f"{server.url.replace('http', 'ws')}/v1/models/{MODEL}/websocket/{self.worker}?session_id=one"
        return connect(url, proxy=None, close_timeout=0.1)

    def post(self, server: Server) -> str:
        """Ask for a prediction as a bot does."""
        order = {"model": MODEL, "input": {}, "callbackUrl": self.receiver.url("/callback")}
        answer = server.http.post(f"{server.url}/v1/predictions", headers={"X-Cogflare-Token": self.bot}, json=order)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def heard(self, prediction: str) -> list[dict[str, Any]]:
        """Wait for the callback about the end; return all that came."""

        def bodies() -> list[dict[str, Any]]:
            return [entry["body"] for entry in self.receiver.got() if entry["body"]["id"] == prediction]

        until(lambda: any(body["status"] in ("succeeded", "failed") for body in bodies()), "callback about the end")
        return bodies()


@pytest.fixture
def scene(stage: Stage, new_url: Callable[[str], str]) -> Scene:
    shared = {"database_url": new_url("postgres"), "secret_key": "the key of servers in tests, no secret", **INSIDE}
    first, second = (stage.server(node=name, **shared) for name in ("first", "second"))
    return Scene(first, second, Receiver(stage).start(), first.token("worker"), first.token())


def say(socket: ClientConnection, prediction: str, status: str = "processing", **fields: Any) -> None:
    socket.send(json.dumps({"id": prediction, "status": status, "output": None, "logs": [], **fields}))


@contextmanager
def begun(scene: Scene) -> Iterator[tuple[ClientConnection, str]]:
    """Let the worker begin a prediction at the first node, which the bot has asked the other one for."""
    with scene.dial(scene.first) as socket:
        prediction = scene.post(scene.second)
        assert json.loads(socket.recv(timeout=30))["id"] == prediction
        say(socket, prediction, output=["a"], logs=["one"])
        until(lambda: shown(scene, prediction).get("output") == ["a"], "output that the other node has seen")
        yield socket, prediction


def shown(scene: Scene, prediction: str) -> dict[str, Any]:
    """Return a prediction as the second node shows it."""
    found: dict[str, Any] = scene.second.ask("GET", f"/v1/predictions/{prediction}", token=scene.bot)
    return found


def finish(scene: Scene, socket: ClientConnection, prediction: str) -> None:
    """Let the run go on and end over this socket; check that it ended once, and what the bot has heard."""
    say(socket, prediction, output=["a", "b"], logs=["one", "two"])
    until(lambda: shown(scene, prediction).get("output") == ["a", "b"], "output of the other socket")
    last = {"output": ["a", "b", "c"], "logs": ["one", "two", "three"]}
    say(socket, prediction, "succeeded", **last)
    say(socket, prediction, "succeeded", **last, metrics={"predict_time": 1.5})
    bodies = scene.heard(prediction)
    assert [status for status, _ in groupby(body["status"] for body in bodies)] == [
        "creating",
        "processing",
        "succeeded",
    ]
    assert len({json.dumps(body, sort_keys=True) for body in bodies}) == len(bodies), "each change is told once"
    assert (bodies[-1]["output"], bodies[-1]["logs"]) == (["a", "b", "c"], "one\ntwo\nthree\n")
    assert bodies[-1]["metrics"]["predict_time"] == 1.5
    found = scene.second.ask("GET", f"/v1/predictions/{prediction}/attempts", token=scene.bot)["results"]
    assert [attempt["outcome"] for attempt in found] == ["succeeded"]


def test_the_node_of_its_socket_is_killed(scene: Scene) -> None:
    with begun(scene) as (_, prediction):
        scene.first.kill9()
        with scene.dial(scene.second) as socket:
            finish(scene, socket, prediction)


def test_its_socket_breaks_and_the_node_lives(scene: Scene) -> None:
    with begun(scene) as (old, prediction):
        old.socket.shutdown(SHUT_RDWR)
        with scene.dial(scene.second) as socket:
            finish(scene, socket, prediction)


def test_the_node_does_not_hear_that_its_socket_is_gone(scene: Scene) -> None:
    """It still renews what it does not hold any more; what comes over its socket late changes nothing."""
    with begun(scene) as (old, prediction), scene.dial(scene.second) as socket:
        say(socket, prediction, output=["a"], logs=["one"])
        say(old, prediction, "failed", output=["late"], error="late", metrics={"predict_time": 9})
        finish(scene, socket, prediction)
        following = scene.post(scene.first)
        assert json.loads(socket.recv(timeout=30))["id"] == following
        say(socket, following, "succeeded", output="next", metrics={"predict_time": 1})
        assert scene.heard(following)[-1]["output"] == "next"


def test_what_the_worker_does_not_go_on_with_runs_again(scene: Scene) -> None:
    """As the known ones do: they come back idle."""
    with begun(scene) as (_, prediction):
        scene.first.kill9()
        with scene.dial(scene.second) as socket:
            assert json.loads(socket.recv(timeout=30))["id"] == prediction
            say(socket, prediction, "succeeded", output="again", metrics={"predict_time": 1})
            bodies = scene.heard(prediction)
    ends = [body for body in bodies if body["status"] == "succeeded"]
    assert [body["output"] for body in ends] == ["again"]
    found = scene.second.ask("GET", f"/v1/predictions/{prediction}/attempts", token=scene.bot)["results"]
    assert [attempt["outcome"] for attempt in found] == ["lost", "succeeded"]
