"""The worker as a whole, with a scripted model, against a fake server on a real socket."""

import asyncio
import io
import json
import re
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import UNSET, Raw

from cogflare.agent.address import ServerAddress
from cogflare.agent.agent import DRAINED, MODEL_LOST, REFUSED, STOPPED, Agent, Patience
from cogflare.agent.console import Console
from cogflare.agent.courier import Superseded, Ticket, TransferError
from cogflare.agent.inputs import Fetched, InputError
from cogflare.agent.journal import Journal
from cogflare.agent.ledger import HeldRun, Ledger
from cogflare.agent.link import Link, Timing
from cogflare.agent.main import agent_end
from cogflare.agent.runners.base import Metric, Started
from cogflare.protocol import messages
from cogflare.protocol.messages import (
    Answer,
    Assign,
    AttemptKey,
    Cancel,
    Capacity,
    Drain,
    Goodbye,
    Health,
    Held,
    Metrics,
    Probe,
    Reject,
)
from support.until import names, until
from support.worker_fakes import TOKEN, FakeServer, ScriptedRunner, fake_server
from support.worker_fakes import Held as Known

pytestmark = pytest.mark.anyio

TIMING = Timing(first_s=0.01, cap_s=0.02, restarting_s=0.02, close_s=1)
PATIENCE = Patience(cancel_grace_s=0.05, restart_first_s=0.001, restart_cap_s=0.002)


class FakeCarrier:
    """Large things, in memory."""

    def __init__(self) -> None:
        self.results: dict[AttemptKey, Any] = {}
        self.inputs: dict[str, Any] = {}
        self.failure: Exception | None = None
        self.is_open: set[AttemptKey] = set()

    def open(self, key: AttemptKey) -> Ticket:
        self.is_open.add(key)
        return Ticket(*key)

    def close(self, ticket: Ticket) -> None:
        self.is_open.discard((ticket.prediction, ticket.attempt))

    async def fetch_input(self, ticket: Ticket) -> Raw:
        if self.failure:
            raise self.failure
        return Raw(msgspec.json.encode(self.inputs[ticket.prediction]))

    async def put_result(self, ticket: Ticket, output: Raw) -> None:
        if self.failure:
            raise self.failure
        self.results[ticket.prediction, ticket.attempt] = msgspec.json.decode(output)


class FakeInputs:
    """Inputs pass, but for those that name a bad file or one that never comes."""

    def __init__(self) -> None:
        self.waiting = asyncio.Event()
        self.dropped = 0
        self.restored = Raw(b"{}")

    def learn(self, openapi_schema: Raw | None) -> None: ...

    async def fetch(self, given: Raw) -> Fetched:
        if b"bad-file" in bytes(given):
            raise InputError("input.image: cannot fetch it")
        if b"slow-file" in bytes(given):
            self.waiting.set()
            await asyncio.Event().wait()
        return Fetched(given, urls=["x"])

    async def restore(self, urls: list[str], folder: str) -> Fetched:
        return Fetched(self.restored, urls)

    def sweep(self, kept: Collection[str]) -> None: ...

    def drop(self, fetched: Fetched) -> None:
        self.dropped += 1


class Worker:
    """An agent under test with its neighbours."""

    def __init__(
        self,
        address: ServerAddress,
        folder: Path,
        runner: ScriptedRunner,
        as_json: bool = False,
        left: Sequence[HeldRun] | None = None,
    ) -> None:
        self.runner, self.out = runner, io.StringIO()
        self.carrier, self.inputs = FakeCarrier(), FakeInputs()
        console = Console(as_json, self.out)
        self.end = agent_end(runner.offer, "w1", "i1", "test", console)
        self.link = Link(self.end, address, lambda: TOKEN, console, timing=TIMING)
        self.journal = Journal(folder, lambda text: console.say("journal", text), delay_s=0.001)
        self.ledger = None if left is None else Ledger(folder, lambda text: console.say("journal", text))
        self.agent = Agent(
            runner, self.end, self.link, self.journal, self.carrier, self.inputs, console=console, patience=PATIENCE,
            ledger=self.ledger, left=left or (),
        )  # fmt: skip
        self.task = asyncio.create_task(self.agent.run())

    async def code(self) -> int:
        async with asyncio.timeout(10):
            return await self.task


@asynccontextmanager
async def working(folder: Path, **options: Any) -> AsyncIterator[tuple[FakeServer, Worker]]:
    async with fake_server() as server:
        worker = Worker(server.address, folder, ScriptedRunner(**options))
        try:
            await server.until(lambda: server.hellos)
            await server.until(lambda: server.end.free(0) or not worker.runner.offer.slots)
            yield server, worker
        finally:
            worker.agent.stop()
            await asyncio.gather(worker.task, return_exceptions=True)


async def test_a_prediction_is_run_and_answered(tmp_path: Path) -> None:
    async with working(tmp_path) as (server, worker):
        key = await server.assign("p", {"output": {"a": [1]}, "log": "hello\n"})
        finish = await server.finished(key)
        assert (finish.status, finish.output, finish.error) == ("succeeded", Raw(b'{"a":[1]}'), None)
        assert (finish.run_ms, finish.metrics, finish.log_bytes) == (500, {"n": Raw(b"1")}, 6)
        assert finish.slot_free
        assert server.attempts[key].log == b"hello\n"
        assert worker.runner.started == [("p", 1)]
        assert worker.inputs.dropped == 1
        assert worker.carrier.is_open == set()
        assert "p succeeded after" in worker.out.getvalue()


async def test_items_of_an_iterator_stream_and_are_counted(tmp_path: Path) -> None:
    async with working(tmp_path) as (server, _):
        key = await server.assign("p", {"items": ["a", {"b": 1}, None]})
        finish = await server.finished(key)
        assert (finish.items, finish.output) == (3, UNSET)
        assert server.attempts[key].items == ["a", {"b": 1}, None]


@pytest.mark.parametrize(
    ("script", "status", "error"),
    [
        ({"die": 1}, "lost", "the model died"),
        ({"bug": 1}, "lost", "the worker failed: KeyError('bug')"),
        ({"image": "bad-file"}, "failed", "input.image: cannot fetch it"),
    ],
)
async def test_what_goes_wrong_is_told(tmp_path: Path, script: object, status: str, error: str) -> None:
    async with working(tmp_path) as (server, _):
        finish = await server.finished(await server.assign("p", script))
        assert (finish.status, finish.error, finish.slot_free) == (status, error, True)
        await server.finished(await server.assign("q", {"output": 1}))


@pytest.mark.parametrize("items", [[], ["small", "x" * 800_000, "small"]])
async def test_what_does_not_fit_goes_by_http(tmp_path: Path, items: list[str]) -> None:
    async with working(tmp_path) as (server, worker):
        worker.carrier.inputs["p"] = {"items": items} if items else {"output": "y" * 800_000}
        key = await server.assign_as(Assign("p", 1, 0))
        finish = await server.finished(key)
        assert (finish.status, finish.uploaded, finish.output, finish.items) == ("succeeded", True, UNSET, None)
        assert worker.carrier.results[key] == (items or "y" * 800_000)


@pytest.mark.parametrize(
    ("failure", "status"), [(Superseded("gone"), "canceled"), (TransferError("413: too large"), "failed")]
)
async def test_a_result_that_is_not_taken(tmp_path: Path, failure: Exception, status: str) -> None:
    async with working(tmp_path) as (server, worker):
        worker.carrier.failure = failure
        finish = await server.finished(await server.assign("p", {"items": ["x" * 800_000]}))
        assert finish.status == status


async def test_an_input_that_cannot_be_had_is_not_the_predictions_fault(tmp_path: Path) -> None:
    async with working(tmp_path) as (server, worker):
        worker.carrier.failure = TransferError("403: no")
        assert (await server.finished(await server.assign_as(Assign("p", 1, 0)))).status == "lost"


async def test_a_slot_comes_back_only_when_the_model_lets_go(tmp_path: Path) -> None:
    async with working(tmp_path, slots=1) as (server, worker):
        finish = await server.finished(await server.assign("p", {"linger": 1}))
        assert not finish.slot_free
        assert server.end.free(0) == 0
        worker.runner.release.set()
        await server.until(lambda: server.end.free(0) == 1)


async def test_a_cancel_is_passed_to_the_model(tmp_path: Path) -> None:
    async with working(tmp_path) as (server, worker):
        key = await server.assign("p", {"hold": 1})
        await server.until(lambda: "Started" in server.kinds())
        await server.cancel(key)
        assert (await server.finished(key)).status == "canceled"
        assert worker.runner.canceled == ["p"]
        await server.until(lambda: server.end.free(0) == 2)
        assert worker.runner.restarts == 0


async def test_a_renewal_that_does_not_want_a_run_is_a_cancel(tmp_path: Path) -> None:
    async with fake_server() as server:
        server.heartbeat_s = 0.02
        worker = Worker(server.address, tmp_path, ScriptedRunner())
        await server.until(lambda: server.hellos and server.end.free(0))
        key = await server.assign("p", {"hold": 1})
        server.attempts[key].wanted = False
        assert (await server.finished(key)).status == "canceled"
        worker.agent.stop()
        assert await worker.code() == STOPPED


async def test_a_cancel_stops_the_fetching_of_files(tmp_path: Path) -> None:
    async with working(tmp_path) as (server, worker):
        key = await server.assign("p", {"image": "slow-file"})
        await worker.inputs.waiting.wait()
        await server.cancel(key)
        finish = await server.finished(key)
        assert (finish.status, finish.slot_free) == ("canceled", True)
        assert worker.runner.started == []


async def test_a_cancel_in_the_same_frame_as_its_assignment(tmp_path: Path) -> None:
    async with working(tmp_path) as (server, worker):
        assign = Assign("p", 1, 0, Raw(b"{}"))
        server.end.take(assign)
        await server.send(assign, Cancel("p", 1))
        finish = await server.finished(("p", 1))
        assert (finish.status, finish.slot_free) == ("canceled", True)
        assert worker.runner.started == []
        assert worker.carrier.is_open == set()


async def test_a_model_that_ignores_its_cancel_is_restarted_once_nothing_else_runs(tmp_path: Path) -> None:
    async with working(tmp_path) as (server, worker):
        stuck = await server.assign("stuck", {"hold": "stubborn"})
        other = await server.assign("other", {"hold": 1})
        await server.until(lambda: server.kinds().count("Started") == 2)
        await server.cancel(stuck)
        await until(lambda: "stuck" in worker.runner.canceled)
        await asyncio.sleep(PATIENCE.cancel_grace_s * 2)
        assert worker.runner.restarts == 0
        await server.cancel(other)
        assert (await server.finished(other)).status == "canceled"
        assert (await server.finished(stuck)).status == "canceled"
        await server.until(lambda: server.end.free(0) == 2)
        assert worker.runner.restarts == 1
        assert [message.slots for message in server.seen if isinstance(message, Capacity)] == [0, 2]


async def test_a_model_that_is_not_ours_to_restart_is_waited_for(tmp_path: Path) -> None:
    async with working(tmp_path) as (server, worker):
        worker.runner.is_restartable = False
        key = await server.assign("p", {"hold": "stubborn"})
        await server.until(lambda: "Started" in server.kinds())
        await server.cancel(key)
        await server.until(lambda: server.kinds().count("Capacity") == 2)
        assert server.attempts[key].finish is None
        worker.runner.release.set()
        await server.finished(key)


async def test_a_broken_model_comes_back(tmp_path: Path) -> None:
    async with working(tmp_path) as (server, worker):
        worker.runner.failing_restarts = 2
        key = await server.assign("p", {"hold": 1})
        await server.until(lambda: "Started" in server.kinds())
        worker.runner.break_down()
        assert (await server.finished(key)).status == "lost"
        await server.until(
            lambda: [message for message in server.seen if isinstance(message, Capacity)][-1:] == [Capacity(0, 2)]
        )
        assert worker.runner.restarts == 3
        await server.until(lambda: Health(True) in server.seen)
        told = [message for message in server.seen if isinstance(message, Health)]
        assert told == [Health(False, "the model does not come back: no GPU")] * 2 + [Health(True)]
        assert "the model restarts: it crashed" in worker.out.getvalue()
        assert re.search(r"p lost after [\d.]+ s: the model was killed\n", worker.out.getvalue())
        await server.finished(await server.assign("q", {"output": 1}))


async def test_a_broken_model_that_is_not_ours_ends_the_worker(tmp_path: Path) -> None:
    async with working(tmp_path) as (server, worker):
        worker.runner.is_restartable = False
        worker.runner.break_down()
        assert await worker.code() == MODEL_LOST
        assert server.seen[-2:] == [Health(False, "the model is gone: not ours"), Goodbye("stopped")]


async def test_a_probe_is_answered_with_what_the_model_says(tmp_path: Path) -> None:
    async with working(tmp_path) as (server, worker):
        for ailment, answer in (
            (None, Health(True)),
            ("the Cog server is DEFUNCT", Health(False, "the Cog server is DEFUNCT")),
            (OSError("no route"), Health(False, "the model could not be asked: OSError('no route')")),
        ):
            worker.runner.ailment = ailment
            await server.send(Probe())
            await server.until(lambda answer=answer: answer in server.seen)  # type: ignore[misc]


async def test_a_probe_while_the_model_restarts_is_answered_when_it_is_back(tmp_path: Path) -> None:
    async with working(tmp_path) as (server, worker):
        restart, goes_on = worker.runner.restart, asyncio.Event()

        async def slow() -> None:
            await goes_on.wait()
            await restart()

        worker.runner.restart = slow  # type: ignore[method-assign]
        worker.runner.break_down()
        await server.until(lambda: Capacity(0, 0) in server.seen)
        await server.send(Probe(), Assign("p", 1, 0, Raw(b"{}")))
        await server.until(lambda: "Finish" in server.kinds())  # handed back, which shows that the probe was heard
        assert worker.runner.probes == 0
        assert not any(isinstance(message, Health) for message in server.seen)
        goes_on.set()
        await server.until(lambda: Health(True) in server.seen)


async def test_runs_go_on_while_the_link_is_away(tmp_path: Path) -> None:
    async with working(tmp_path) as (server, worker):
        key = await server.assign("p", {"hold": 1, "items": [1, 2], "log": "a"})
        await server.until(lambda: len(server.attempts[key].items) == 2)
        await server.stop()
        worker.runner.release.set()
        await until(lambda: "p succeeded" in worker.out.getvalue())
        await server.start()
        finish = await server.finished(key)
        assert (finish.status, finish.items) == ("succeeded", 2)
        assert worker.runner.started == [("p", 1)]
        assert server.hellos[-1].held == [Held("p", 1, ended=True)]


async def test_a_run_that_the_server_forgot_is_stopped(tmp_path: Path) -> None:
    async with working(tmp_path) as (server, worker):
        key = await server.assign("p", {"hold": 1})
        await server.until(lambda: "Started" in server.kinds())
        server.attempts[key].wanted = False
        server.drop()
        await server.until(lambda: len(server.hellos) == 2 and server.end.free(0) == 2)
        assert worker.runner.canceled == ["p"]
        assert server.attempts[key].finish is None


async def test_two_attempts_at_one_prediction_do_not_meet_in_the_model(tmp_path: Path) -> None:
    async with working(tmp_path) as (server, worker):
        await server.assign("p", {"hold": "stubborn"}, attempt=1)
        await server.until(lambda: "Started" in server.kinds())
        second = await server.assign("p", {"output": 2}, attempt=2)
        await server.cancel(("p", 1))
        assert (await server.finished(second)).output == Raw(b"2")
        assert worker.runner.started == [("p", 1), ("p", 2)]
        assert worker.runner.restarts == 1


async def test_draining_ends_what_is_held_and_takes_nothing_more(tmp_path: Path) -> None:
    async with working(tmp_path) as (server, worker):
        key = await server.assign("p", {"hold": 1})
        await server.until(lambda: "Started" in server.kinds())
        worker.agent.interrupt()
        await server.until(lambda: Capacity(0, 0) in server.seen)
        await server.send(Assign("late", 1, 0, Raw(b"{}")))
        await server.until(lambda: ("late", 1) in server.attempts)
        assert server.attempts["late", 1].finish is not None
        assert server.attempts["late", 1].finish.status == "lost"
        worker.runner.release.set()
        assert await worker.code() == DRAINED
        assert server.attempts[key].finish is not None
        await server.until(lambda: Goodbye("drained") in server.seen)
        assert names(tmp_path) == []


async def test_draining_waits_for_the_answers(tmp_path: Path) -> None:
    async with working(tmp_path) as (server, worker):
        server.answers = False
        key = await server.assign("p", {"output": 1})
        await server.finished(key)
        await server.send(Drain())
        await server.until(lambda: Capacity(0, 0) in server.seen)
        assert not worker.task.done()
        await server.send(Answer(*key, "committed"))
        assert await worker.code() == DRAINED


async def test_a_worker_that_drains_before_it_runs_does_not_wait_for_a_server(tmp_path: Path) -> None:
    worker = Worker(ServerAddress("http://127.0.0.1:9"), tmp_path, ScriptedRunner())
    worker.agent.interrupt()
    assert await worker.code() == DRAINED


async def test_an_idle_worker_drains_at_once(tmp_path: Path) -> None:
    async with working(tmp_path) as (_, worker):
        worker.agent.drain()
        assert await worker.code() == DRAINED


async def test_the_second_signal_stops_now(tmp_path: Path) -> None:
    async with working(tmp_path) as (server, worker):
        await server.assign("p", {"hold": 1})
        await server.until(lambda: "Started" in server.kinds())
        worker.agent.interrupt()
        worker.agent.interrupt()
        assert await worker.code() == STOPPED
        await server.until(lambda: Goodbye("stopped") in server.seen)


async def test_a_refused_worker_says_why(tmp_path: Path) -> None:
    async with fake_server() as server:
        server.greeting = lambda hello: [Reject("this worker was removed")]
        worker = Worker(server.address, tmp_path, ScriptedRunner())
        assert await worker.code() == REFUSED
        assert "this worker was removed" in worker.out.getvalue()


async def test_an_unanswered_finish_outlives_the_process(tmp_path: Path) -> None:
    async with fake_server() as server:
        worker = Worker(server.address, tmp_path, ScriptedRunner())
        await server.until(lambda: server.hellos and server.end.free(0))
        key = await server.assign("p", {"items": [1, 2], "hold": 1, "log": "x"})
        await server.until(lambda: "Started" in server.kinds())
        await server.stop()
        worker.runner.release.set()
        await until(lambda: names(tmp_path))
        worker.task.cancel()  # the end of a process, as far as one process can show it
        await asyncio.gather(worker.task, return_exceptions=True)
        server.attempts[key].items.clear()
        server.attempts[key].log = b""
        await server.start()
        heir = Worker(server.address, tmp_path, ScriptedRunner())
        finish = await server.finished(key)
        assert (finish.status, finish.items, finish.slot_free) == ("succeeded", 2, True)
        assert server.attempts[key].items == [1, 2]
        assert server.attempts[key].log == b"x"
        await until(lambda: not names(tmp_path))
        heir.agent.drain()
        assert await heir.code() == DRAINED


async def test_what_an_earlier_process_gave_to_the_model_goes_on(tmp_path: Path) -> None:
    """It is in the hello, takes its slot, has started when it did, and ends as the same attempt."""
    began = time.time_ns() // 1000 - 5_000_000
    async with fake_server() as server:
        server.attempts["p", 3] = Known()
        worker = Worker(
            server.address, tmp_path, ScriptedRunner(), left=[HeldRun("p", 3, 0, began, ["http://127.0.0.1:9/x/a"])]
        )
        worker.inputs.restored = Raw(b'{"hold":1}')
        await server.until(lambda: server.hellos)
        assert server.hellos[0].held == [Held("p", 3)]
        worker.runner.release.set()
        finish = await server.finished(("p", 3))
        assert (finish.status, finish.slot_free) == ("succeeded", True)
        assert worker.runner.started == [("p", 3)]
        started = next(message for message in server.seen if isinstance(message, messages.Started))
        assert 4_900 < started.ago_ms < 15_000
        assert worker.inputs.dropped == 1
        await until(lambda: not worker.end.busy())
        worker.agent.stop()
        await worker.code()
        assert names(tmp_path) == []


async def test_of_two_attempts_that_were_left_the_model_has_the_earlier(tmp_path: Path) -> None:
    """The later was waiting for it. Stopping the one, which the server does not want, must not stop the other."""
    began = time.time_ns() // 1000
    async with fake_server() as server:
        server.attempts["p", 1] = Known(wanted=False)
        server.attempts["p", 2] = Known()
        left = [HeldRun("p", 1, 0, began), HeldRun("p", 2, 0, began)]
        worker = Worker(server.address, tmp_path, ScriptedRunner(), left=left)
        worker.inputs.restored = Raw(b'{"hold":1}')
        await server.until(lambda: server.hellos)
        assert server.hellos[0].held == [Held("p", 1)]
        await until(lambda: worker.runner.canceled == ["p"] and not worker.end.busy())
        assert worker.runner.started == [("p", 1)]
        assert server.attempts["p", 2].finish is None
        worker.agent.stop()
        await worker.code()


async def test_an_error_about_a_file_that_nobody_served_is_no_failure_of_the_model(tmp_path: Path) -> None:
    left = [HeldRun("p", 1, 0, time.time_ns() // 1000, ["http://127.0.0.1:9/key/a.png"])]
    async with fake_server() as server:
        server.attempts["p", 1] = Known()
        worker = Worker(server.address, tmp_path, ScriptedRunner(), left=left)
        worker.inputs.restored = Raw(b'{"error":"Max retries exceeded with url: /key/a.png","status":"failed"}')
        finish = await server.finished(("p", 1))
        assert (finish.status, finish.error) == ("lost", "the model asked for an input file while no worker was there")
        worker.agent.stop()
        await worker.code()


async def test_a_run_is_in_the_ledger_as_long_as_it_runs(tmp_path: Path) -> None:
    async with fake_server() as server:
        worker = Worker(server.address, tmp_path, ScriptedRunner(), left=[])
        await server.until(lambda: server.hellos and server.end.free(0))
        key = await server.assign("p", {"hold": 1})
        await until(lambda: worker.runner.started)
        assert worker.ledger is not None
        assert [held.key for held in worker.ledger.read() or []] == [key]
        worker.runner.release.set()
        await server.finished(key)
        await until(lambda: worker.ledger is not None and worker.ledger.read() == [])
        worker.agent.stop()
        await worker.code()
        assert names(tmp_path) == []


async def test_a_run_begins_once_its_files_are_here(tmp_path: Path) -> None:
    """The next worker takes this for its start, and the run limit counts from there."""
    async with fake_server() as server:
        worker = Worker(server.address, tmp_path, ScriptedRunner(), left=[])
        await server.until(lambda: server.hellos and server.end.free(0))
        fetched: list[int] = []

        async def fetch(given: Raw) -> Fetched:
            await asyncio.sleep(0.05)
            fetched.append(time.time_ns() // 1000)
            return Fetched(given, ["http://127.0.0.1:9/x/a"], tmp_path / "inputs")

        worker.inputs.fetch = fetch  # type: ignore[method-assign]
        await server.assign("p", {"hold": 1})
        await until(lambda: worker.runner.started)
        assert worker.ledger is not None
        [held] = worker.ledger.read() or []
        assert (held.urls, held.began >= fetched[0]) == (["http://127.0.0.1:9/x/a"], True)
        worker.agent.stop()
        await worker.code()


async def test_a_finish_that_is_answered_at_once_never_touches_the_disk(tmp_path: Path) -> None:
    async with fake_server() as server:
        worker = Worker(server.address, tmp_path, ScriptedRunner(slots=8))
        worker.journal._delay_s = 60
        await server.until(lambda: server.hellos and server.end.free(0))
        for number in range(40):
            await server.finished(await server.assign(f"p{number}", {"output": number}))
        worker.agent.drain()
        assert await worker.code() == DRAINED
        assert names(tmp_path) == []


async def test_garbage_from_a_model_harms_nobody(tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    async with working(tmp_path) as (server, worker):
        run = worker.runner.run
        outputs = {"deep": deep, "set": object(), "surrogate": "a\ud800", "raw": Raw(b'{"a":'), "huge": 10**30}

        async def spoiled(job: Any) -> AsyncIterator[Any]:
            async for event in run(job):
                changed = hasattr(event, "output")
                odd: dict[str, Any] = (
                    {"output": outputs[job.id], "error": "e\ud800" * 9000, "metrics": {"\ud800": deep, "ok": 1}}
                    if changed
                    else {}
                )
                yield msgspec.structs.replace(event, **odd)

        worker.runner.run = spoiled  # type: ignore[method-assign,assignment]
        got = {name: await server.finished(await server.assign(name)) for name in outputs}
        assert {name: finish.status for name, finish in got.items()} == {
            "deep": "failed", "set": "failed", "surrogate": "succeeded", "raw": "failed", "huge": "succeeded",
        }  # fmt: skip
        assert got["surrogate"].output == Raw(b'"a?"')
        assert got["huge"].metrics == {"ok": Raw(b"1")}
        assert "characters left out" in (got["huge"].error or "")
        assert "nested more than" in (got["deep"].error or "")
        assert len(server.hellos) == 1


async def test_metrics_travel_while_the_model_runs(tmp_path: Path) -> None:
    async with working(tmp_path) as (server, worker):
        run = worker.runner.run

        async def measured(job: Any) -> AsyncIterator[Any]:
            async for event in run(job):
                yield event
                if isinstance(event, Started):
                    yield Metric(name="tokens", value=7)

        worker.runner.run = measured  # type: ignore[method-assign,assignment]
        await server.finished(await server.assign("p"))
        assert Metrics("p", 1, {"tokens": Raw(b"7")}) in server.seen


async def test_json_lines(tmp_path: Path) -> None:
    async with fake_server() as server:
        worker = Worker(server.address, tmp_path, ScriptedRunner(), as_json=True)
        await server.until(lambda: server.hellos and server.end.free(0))
        await server.finished(await server.assign("p", {"output": 1}))
        worker.agent.drain()
        await worker.code()
        lines = [json.loads(line) for line in worker.out.getvalue().splitlines()]
        assert [line["event"] for line in lines][:3] == ["connected", "started", "ended"]
        assert lines[2]["prediction"] == "p"
        assert TOKEN not in worker.out.getvalue()
