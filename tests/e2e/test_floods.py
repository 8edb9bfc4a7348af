"""Models and workers that say far too much: what they flood is theirs, and the server serves everybody else."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import Event
from websockets.uri import parse_uri

from support.processes import Server, Stage, until
from support.scripted_worker import FLOOD

FLOOD_BYTES = 100_000_000
MAX_LOG, MAX_OUTPUT = 1 << 20, 16 << 20
LOG_MARK = f"[log cut off at {MAX_LOG} bytes]\n"
OUTPUT_MARK = f"[output cut off at {MAX_OUTPUT} bytes]"
PATIENCE_S = 2.0
GROWTH_BYTES = 300_000_000


def memory(server: Server) -> int:
    """Return the resident memory of the server's process."""
    assert server.process is not None
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * 4096


class Bystander:
    """Someone else who uses the server meanwhile: how long their predictions take, and how large the server grows."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._token = server.token("api", "other")
        self.times: list[float] = []
        self.memory = 0
        self.failure: BaseException | None = None

    def __enter__(self) -> "Bystander":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        try:
            while not self._over.is_set():
                self._one()
                self.memory = max(self.memory, memory(self._server))
                self._over.wait(0.05)
        except BaseException as error:
            self.failure = error

    def _one(self) -> None:
        began = time.monotonic()
        path, order = "/v1/models/other/single/predictions", {"input": {"output": "mine"}}
        headers = {"Prefer": "wait=20"}
        made = self._server.ask("POST", path, token=self._token, json=order, headers=headers)
        assert (made["status"], made["output"]) == ("succeeded", "mine"), made
        self.times.append(time.monotonic() - began)

    def check(self, before: int) -> None:
        """Check that nobody was starved, and that the server stayed small."""
        assert self.failure is None, self.failure
        assert self.times
        assert max(self.times) < PATIENCE_S, f"{max(self.times):.2f} s of {len(self.times)}"
        assert self.memory - before < GROWTH_BYTES, f"{(self.memory - before) / 1e6:.0f} MB more"


@contextmanager
def served(server: Server) -> Iterator[None]:
    """Have a bystander on the server, and check how they fared."""
    before = memory(server)
    with Bystander(server) as bystander:
        yield
    bystander.check(before)


@pytest.fixture(scope="module")
def server(shared_stage: Stage) -> Server:
    server = shared_stage.server(max_file_bytes="1000000", silence_s="5")
    shared_stage.scripted(server, account="other", slots=4).connected()
    for kind in ("single", "iterator", "text"):
        shared_stage.scripted(server, kind, name=f"flooding-{kind}").connected()
    return server


# --- models -----------------------------------------------------------------------------------------------------------


def test_a_log_of_100_mb(server: Server) -> None:
    with served(server):
        ended = server.ended(server.create(log_bytes=FLOOD_BYTES), 60)
    assert ended["status"] == "succeeded"
    assert ended["logs"].endswith(LOG_MARK)
    assert ended["logs"].startswith(FLOOD * 100)
    assert MAX_LOG < len(ended["logs"]) < MAX_LOG + 100


def test_a_text_of_100_mb(server: Server) -> None:
    with served(server):
        ended = server.ended(server.create("me/text", output_bytes=FLOOD_BYTES), 60)
    assert ended["status"] == "succeeded"
    assert set(ended["output"][:-1]) == {FLOOD}
    assert ended["output"][-1] == OUTPUT_MARK
    assert MAX_OUTPUT * 0.99 < sum(map(len, ended["output"])) < MAX_OUTPUT


def test_a_list_that_cannot_be_cut_fails_and_its_model_is_stopped(server: Server) -> None:
    with served(server):
        prediction = server.create("me/iterator", output_bytes=10 * FLOOD_BYTES, objects=True)
        ended = server.ended(prediction, 60)
    assert (ended["status"], ended["error"]) == ("failed", f"Output is larger than {MAX_OUTPUT} bytes")
    assert ended["output"][:10] == [{"line": FLOOD}] * 10
    assert server.ended(server.create("me/iterator", items=2))["output"] == ["w0 ", "w1 "], "the slot is free"


@pytest.mark.parametrize("script", [{"output": "x" * 20_000_000}, {"file": "x" * 1_000_001}], ids=["value", "file"])
def test_what_is_too_large_fails_at_once_and_is_not_run_again(stage: Stage, script: dict[str, str]) -> None:
    server = stage.server(max_file_bytes="1000000", max_result_bytes="10000000", max_body="30000000")
    stage.scripted(server).connected()
    prediction = server.create(**script)
    ended = server.ended(prediction)
    assert ended["status"] == "failed"
    said = "Output is larger than 10000000 bytes" if "output" in script else "Files must be less than 1MB in size"
    assert ended["error"] == said
    assert stage.runs() == {prediction: 1}


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_cut_outlives_the_death_of_the_server(stage: Stage, new_url: Callable[[str], str], kind: str) -> None:
    server = stage.server(database_url=new_url(kind), max_log_bytes="200000", max_output_bytes="200000")
    stage.scripted(server, "text").connected()
    prediction = server.create("me/text", log_bytes=1_000_000, output_bytes=1_000_000, seconds=600)

    def is_cut() -> bool:
        shown = server.get(prediction)
        return all("cut off" in str(shown[part]) for part in ("logs", "output"))

    for _ in range(2):
        until(is_cut, "cut")
        server.restart()
    until(is_cut, "worker that came back")
    server.ask("POST", f"/v1/predictions/{prediction}/cancel")
    ended = server.ended(prediction)
    assert ended["logs"].count("[log cut off at 200000 bytes]") == 1
    assert ended["logs"].endswith("[log cut off at 200000 bytes]\n")
    assert [item for item in ended["output"] if "cut off" in item] == ["[output cut off at 200000 bytes]"]
    assert ended["output"][-1] == "[output cut off at 200000 bytes]"
    assert stage.runs() == {prediction: 1}
    assert "broke the protocol" not in server.log()


# --- workers ----------------------------------------------------------------------------------------------------------


class Rogue:
    """A worker of its own making, on a bare socket: nothing is read of it but what a test asks for."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.worker = f"rogue-{time.monotonic_ns()}"
        uri = parse_uri(server.url.replace("http", "ws", 1) + "/worker/v1/link")
        self._protocol = ClientProtocol(uri)
        self._waiting: list[Event] = []
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        self.socket.settimeout(20)
        self.socket.connect((uri.host, uri.port))
        request = self._protocol.connect()
        request.headers["Authorization"] = f"Bearer {server.token('worker')}"
        self._protocol.send_request(request)
        self._flush()
        while not isinstance(self._event(), Response):
            pass

    def __enter__(self) -> "Rogue":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, text: str) -> None:
        """Send a text frame."""
        self._protocol.send_text(text.encode())
        self._flush()

    def say(self, *messages: dict[str, Any]) -> None:
        """Send messages in one frame."""
        self.send(json.dumps(messages))

    def hear(self, kind: str) -> dict[str, Any]:
        """Read up to a message of this kind."""
        while True:
            event = self._event()
            if isinstance(event, Frame) and event.opcode is Opcode.TEXT and event.data != b"pong":
                for message in json.loads(bytes(event.data)):
                    if message["type"] == kind:
                        found: dict[str, Any] = message
                        return found

    def hello(self, slots: int = 1) -> "Rogue":
        """Open the link."""
        offer = {"owner": "me", "name": "rogue", "version": "9" * 64, "slots": slots}
        about = {"protocol": 1, "worker": self.worker, "instance": "i", "name": "rogue", "offers": [offer]}
        self.say({"type": "hello", **about})
        self.hear("welcome")
        return self

    def run(self) -> dict[str, Any]:
        """Be given a prediction, and begin it."""
        prediction = self._server.create("me/rogue")
        key = {"prediction": prediction, "attempt": self.hear("assign")["attempt"]}
        self.say({"type": "started", **key})
        return key

    def end(self) -> None:
        """Read until the server ends the connection."""
        with suppress(OSError):
            while self.socket.recv(65_536):
                pass

    def _event(self) -> Event:
        while not (events := self._waiting or self._protocol.events_received()):
            data = self.socket.recv(65_536)
            if not data:
                raise ConnectionError("the server has ended the connection")
            self._protocol.receive_data(data)
        self._waiting = events[1:]
        return events[0]

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            self.socket.sendall(data)


def for_seconds(seconds: float, act: Callable[[], object]) -> bool:
    """Do it again and again; return whether the server ended the link before the time was over."""
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            act()
    except OSError:
        return True
    return False


def test_a_worker_that_knows_no_limits(server: Server) -> None:
    with Rogue(server) as rogue:
        key = rogue.hello().run()
        text = "z" * 900_000
        with served(server):
            for number in range(60):
                rogue.say({"type": "log", **key, "offset": number * len(text), "text": text})
        rogue.say({"type": "finish", **key, "status": "succeeded", "output": 1, "slot_free": True})
        ended = server.ended(key["prediction"])
    assert (ended["status"], ended["logs"][-len(LOG_MARK) :]) == ("succeeded", LOG_MARK)


FLOODS: dict[str, list[dict[str, Any]]] = {
    "finishes": [{"type": "finish", "prediction": "p", "attempt": 1, "status": "succeeded", "slot_free": True}] * 2000,
    "slots": [{"type": "slot_free", "prediction": "p", "attempt": 1}] * 10_000,
    "capacity": [{"type": "capacity", "offer": 0, "slots": slots} for slots in (0, 1)] * 5_000,
    "heartbeats": [{"type": "heartbeat", "held": [["p", 1]] * 50}] * 1_000,
    "metrics": [{"type": "metrics", "prediction": "p", "attempt": 1, "values": {"x": 1}}] * 5_000,
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_worker_that_floods_the_server_with_messages(server: Server, flood: str) -> None:
    frame = json.dumps(FLOODS[flood])
    with Rogue(server) as rogue, served(server):
        rogue.hello()
        for_seconds(4, lambda: rogue.send(frame))


@pytest.mark.parametrize("opcode", [Opcode.PING, Opcode.PONG, Opcode.CONT], ids=lambda opcode: opcode.name)
def test_a_worker_that_floods_the_server_with_what_no_application_sees(server: Server, opcode: Opcode) -> None:
    flood = Frame(opcode, b"", fin=opcode is not Opcode.CONT).serialize(mask=True) * 10_000
    with Rogue(server) as rogue, served(server):
        rogue.hello()
        if opcode is Opcode.CONT:
            rogue.socket.sendall(Frame(Opcode.TEXT, b"[", fin=False).serialize(mask=True))
        for_seconds(3, lambda: rogue.socket.sendall(flood))
        rogue.end()


def test_a_worker_that_says_hello_again_and_again(server: Server) -> None:
    def hello() -> None:
        with Rogue(server) as rogue:
            rogue.hello()

    with served(server):
        for_seconds(4, hello)
