"""Webhooks of real servers to receivers that are processes of their own: killed, down, hanging, or all at once."""

import json
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from cogflare.domain.signatures import parse_secret, verify
from support.processes import Process, Server, Stage, until

INSIDE: dict[str, Any] = {"outgoing_networks": "127.0.0.0/8", "webhook_timeout_s": "1"}


class Receiver:
    """A receiver on a port that stays the same while it is down."""

    def __init__(self, stage: Stage, name: str = "receiver") -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port = listener.getsockname()[1]
        self._stage, self._name = stage, name
        self._diary = stage.folder / f"{name}.jsonl"
        self._process: Process | None = None

    def start(self) -> "Receiver":
        arguments = ["-m", "support.hooks", str(self._port), str(self._diary)]
        self._process = self._stage.spawn(self._name, arguments, {})
        until(self._is_up, "receiver that takes messages")
        return self

    def kill9(self) -> None:
        assert self._process is not None
        self._process.kill9()

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self._port}{path}"

    def got(self) -> list[dict[str, Any]]:
        """Return what came, in order."""
        text = self._diary.read_text() if self._diary.exists() else ""
        return [json.loads(line) for line in text.rpartition("\n")[0].splitlines()]

    def ids(self) -> Counter[str]:
        return Counter(entry["headers"]["webhook-id"] for entry in self.got())

    def _is_up(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0


@pytest.fixture(params=["sqlite", "postgres"])
def server(stage: Stage, request: pytest.FixtureRequest, new_url: Callable[[str], str]) -> Server:
    """A server that may reach receivers on this machine, with a worker."""
    where: dict[str, Any] = {} if request.param == "sqlite" else {"database_url": new_url("postgres")}
    server = stage.server(**INSIDE, **where)
    stage.scripted(server, "iterator", slots=60).connected()
    return server


def create(server: Server, url: str, events: list[str] | None = None, **script: Any) -> str:
    """Create a prediction with a webhook and return its id."""
    order: dict[str, Any] = {"input": script, "webhook": url}
    if events is not None:
        order["webhook_events_filter"] = events
    return str(server.ask("POST", "/v1/models/me/iterator/predictions", json=order)["id"])


def test_a_life_is_told_and_every_message_verifies(stage: Stage, server: Server) -> None:
    receiver = Receiver(stage).start()
    secret = server.ask("GET", "/v1/webhooks/default/secret")["key"]
    id = create(server, receiver.url("/hook?a=b"), ["start", "output", "logs", "completed"], seconds=2, items=4, log=4)
    until(lambda: f"msg_{id}" in receiver.ids(), "message about the end")
    got = receiver.got()
    for entry in got:
        verify(parse_secret(secret), entry["headers"], entry["text"].encode(), time.time())
        assert entry["path"] == "/hook?a=b"
        assert entry["body"]["urls"]["get"] == f"{server.url}/v1/predictions/{id}"
    bodies = [entry["body"] for entry in got]
    assert [body["status"] for body in bodies] == ["processing"] * (len(bodies) - 1) + ["succeeded"]
    outputs = [len(body["output"] or []) for body in bodies]
    assert outputs == sorted(outputs)
    assert outputs[-1] == 4
    assert 3 <= len(bodies) <= 7
    assert set(receiver.ids().values()) == {1}


def test_a_kill_between_an_end_and_its_delivery_loses_none(stage: Stage, server: Server) -> None:
    receiver = Receiver(stage)
    ids = [create(server, receiver.url(), ["completed"], output=number) for number in range(30)]
    for id in ids:
        assert server.ended(id)["status"] == "succeeded"
    server.kill9()
    receiver.start()
    server.start()
    expected = {f"msg_{id}": 1 for id in ids}
    until(lambda: receiver.ids() == expected, "message about every end, once")


def test_a_kill_while_messages_are_under_way_loses_none(stage: Stage, server: Server) -> None:
    receiver = Receiver(stage).start()
    hanging = [create(server, receiver.url("/hang"), ["completed"]) for _ in range(3)]
    until(lambda: len(receiver.got()) >= 3, "message that is not answered")
    server.kill9()
    server.start()
    expected = {f"msg_{id}" for id in hanging}
    until(lambda: all(count >= 2 for count in receiver.ids().values()), "messages once more")
    assert receiver.ids().keys() == expected


def test_a_storm_of_ends_and_kills_tells_each(stage: Stage, server: Server) -> None:
    receiver = Receiver(stage).start()
    dead = Receiver(stage, "dead")
    ids = []
    for _ in range(3):
        ids += [create(server, receiver.url(), ["start", "completed"], seconds=0.2) for _ in range(15)]
        for _ in range(5):
            create(server, dead.url(), ["completed"])
        server.restart()
        receiver.kill9()
        receiver.start()
    until(lambda: {f"msg_{id}" for id in ids} <= receiver.ids().keys(), "message about every end", 60)
    ends = Counter(entry["body"]["status"] for entry in receiver.got())
    assert ends["failed"] == ends["canceled"] == 0


def test_a_stop_does_not_wait_for_a_receiver_that_hangs(stage: Stage) -> None:
    receiver = Receiver(stage).start()
    server = stage.server(**{**INSIDE, "webhook_timeout_s": "60", "stop_s": "30"})
    stage.scripted(server, "iterator").connected()
    id = create(server, receiver.url("/hang"), ["completed"])
    until(receiver.got, "message that is not answered")
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 15
    server.start()
    until(lambda: receiver.ids()[f"msg_{id}"] == 2, "message once more", 10)
