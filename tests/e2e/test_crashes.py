"""Processes killed, stopped and stalled: what was accepted ends right, and runs once where its worker lived."""

import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from support.processes import Server, Stage, Worker, until
from support.runners import MODELS, family
from support.scripted_worker import item, line

PREDICTIONS = 50


def joined(items: int, make: Callable[[int], str]) -> list[str]:
    """Return what a script has yielded or logged in all."""
    return [make(index) for index in range(items)]


def create_all(server: Server, seconds: float, steps: int = 20) -> list[str]:
    """Create predictions of all kinds, all of which log and half of which yield."""
    kinds = ["me/iterator", "me/single"] * (PREDICTIONS // 2)
    return [server.create(kind, seconds=seconds, log=steps, items=steps, output=kind) for kind in kinds]


def start_workers(stage: Stage, server: Server) -> None:
    """Start one worker of each kind of model, with room for all predictions."""
    workers = [stage.scripted(server, kind, slots=PREDICTIONS) for kind in ("single", "iterator")]
    for worker in workers:
        worker.connected()


def wait_until_shown(server: Server, predictions: Sequence[str]) -> None:
    """Wait until all predictions run, and one has shown something."""
    for prediction in predictions:
        server.processing(prediction)
    until(lambda: server.get(predictions[-1])["logs"], "log line")


def check_complete(stage: Stage, server: Server, predictions: Sequence[str], steps: int = 20) -> None:
    """Check that each prediction ended as its script says, after one run of its model, without gaps or doubles."""
    for prediction in predictions:
        shown = server.ended(prediction)
        assert (shown["status"], shown["error"]) == ("succeeded", None)
        assert shown["logs"].splitlines(keepends=True) == joined(steps, line)
        expected = "me/single" if shown["model"] == "me/single" else joined(steps, item)
        assert shown["output"] == expected
    assert stage.runs() == dict.fromkeys(predictions, 1)
    check_quiet(server)


def seconds_between(first: str, second: str) -> float:
    """Return the seconds from one time of the API to another."""
    return (datetime.fromisoformat(second) - datetime.fromisoformat(first)).total_seconds()


def check_quiet(server: Server) -> None:
    """Check that no worker holds a slot any more."""
    until(lambda: all(worker["busy"] == 0 for worker in server.workers().values()), "free slots")


@pytest.fixture(params=["sqlite", "postgres"])
def server(request: pytest.FixtureRequest, stage: Stage, new_url: Callable[[str], str]) -> Server:
    """A server on each database."""
    return stage.server(database_url=new_url(str(request.param)))


class Patient:
    """Clients that create with `Prefer: wait` and, whatever happens to their connection, ask again for the result."""

    def __init__(self, server: Server) -> None:
        self._server = server
        server.token()  # made here, since no thread could while the server is away

    def run(self, seconds: float, output: str) -> Any:
        """Return the output of a prediction whose create may have been cut off."""
        script = {"input": {"seconds": seconds, "output": output}}
        shown = self._send("POST", "/v1/models/me/single/predictions", json=script, headers={"Prefer": "wait=30"})
        prediction = shown["id"] if shown is not None else self._found(output)
        end = until(lambda: self._ended(prediction), f"end of {prediction}")
        return None if end is None else end["output"]

    def _found(self, output: str) -> str:
        """Find the prediction by its input, since its id was lost with the connection."""

        def look() -> str | None:
            page = self._send("GET", "/v1/predictions") or {"results": []}
            return next((one["id"] for one in page["results"] if one["input"]["output"] == output), None)

        return str(until(look, "prediction of a create that was cut off"))

    def _ended(self, prediction: str) -> dict[str, Any] | None:
        shown = self._send("GET", f"/v1/predictions/{prediction}")
        return shown if shown is not None and shown["status"] == "succeeded" else None

    def _send(self, method: str, path: str, **options: Any) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._server.ask(method, path, **options)
        except httpx2.TransportError:
            return None
        return found


# --- the server ------------------------------------------------------------------------------------------------------


def test_a_killed_server_loses_nothing(stage: Stage, server: Server) -> None:
    start_workers(stage, server)
    predictions = create_all(server, seconds=3)
    wait_until_shown(server, predictions)
    server.restart()
    check_complete(stage, server, predictions)
    for prediction in predictions:
        assert [attempt["outcome"] for attempt in server.attempts(prediction)] == ["succeeded"]


def test_a_server_that_is_killed_over_and_over_loses_nothing(stage: Stage) -> None:
    """Some runs end while no server is there, some queue while no worker has come back yet."""
    server = stage.server()
    workers = [stage.scripted(server, kind, slots=10) for kind in ("single", "iterator")]
    for worker in workers:
        worker.connected()
    predictions = create_all(server, seconds=0.5)
    for _ in range(2):
        done = sum(stage.runs().values())
        until(lambda seen=done: sum(stage.runs().values()) > seen, "model that runs")  # type: ignore[misc]
        server.kill9()
        server.start()
    check_complete(stage, server, predictions)


def test_clients_that_wait_get_their_results_after_a_kill(stage: Stage) -> None:
    server = stage.server()
    stage.scripted(server, slots=20).connected()
    client = Patient(server)
    names = [f"answer {number}" for number in range(20)]
    with ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(client.run, 2.0, name) for name in names]
        until(lambda: len(stage.runs()) == 20, "start of all predictions")
        server.restart()
        assert [answer.result(60) for answer in answers] == names
    assert set(stage.runs().values()) == {1}


def test_a_server_that_stops_in_order_answers_those_who_wait_and_loses_nothing(stage: Stage) -> None:
    server = stage.server()
    start_workers(stage, server)
    predictions = create_all(server, seconds=3)
    wait_until_shown(server, predictions)
    script = {"input": {"seconds": 2, "log": 20, "items": 20, "output": "me/single"}}
    with ThreadPoolExecutor(1) as pool:
        create = partial(server.call, "POST", "/v1/models/me/single/predictions", headers={"Prefer": "wait"})
        waiting = pool.submit(create, json=script)
        until(lambda: len(stage.runs()) == PREDICTIONS + 1, "start of all predictions")
        assert server.stop() == 0
        answer = waiting.result(10)
    assert (answer.status_code, answer.json()["status"]) == (201, "starting")
    server.start()
    check_complete(stage, server, [*predictions, answer.json()["id"]])
    assert "Traceback" not in server.log()


# --- workers ---------------------------------------------------------------------------------------------------------


def start_pair(stage: Stage, server: Server, slots: int) -> dict[int, Worker]:
    """Start two workers of the same model; return them by process id, as the diary names them."""
    pair = [stage.scripted(server, slots=slots) for _ in range(2)]
    return {worker.pid: worker.connected() for worker in pair}


def test_what_a_killed_worker_held_runs_elsewhere(stage: Stage) -> None:
    server = stage.server(close_grace_s="0.5")
    pair = start_pair(stage, server, slots=10)
    predictions = [server.create(seconds=4, log=30, output=number) for number in range(10)]
    for prediction in predictions:
        server.processing(prediction)
    doomed = pair.pop(stage.pids(predictions[0])[0])
    [heir] = pair.values()
    doomed.kill9()
    for number, prediction in enumerate(predictions):
        shown = server.ended(prediction)
        assert (shown["status"], shown["output"]) == ("succeeded", number)
        assert shown["logs"].splitlines(keepends=True) == joined(30, line)
        *lost, ran = server.attempts(prediction)
        assert (ran["worker"], ran["outcome"], ran["reason"]) == (heir.id, "succeeded", None)
        for attempt in lost:
            assert (attempt["attempt"], attempt["worker"], attempt["outcome"]) == (1, doomed.id, "lost")
            assert attempt["reason"] == f"worker {doomed.id} closed its connection and did not come back"
            assert attempt["started_at"] <= attempt["ended_at"] == attempt["slot_freed_at"] <= ran["claimed_at"]
        assert stage.pids(prediction) == [doomed.pid, heir.pid][1 - len(lost) :]
    assert stage.runs()[predictions[0]] == 2
    check_quiet(server)


def test_text_that_was_shown_is_not_run_again(stage: Stage) -> None:
    server = stage.server(close_grace_s="0.5")
    doomed = stage.scripted(server, "text").connected()
    prediction = server.create("me/text", seconds=60, items=300)
    until(lambda: server.get(prediction)["output"], "output")
    doomed.kill9()
    shown = server.ended(prediction)
    assert (shown["status"], shown["error"]) == ("failed", "Prediction interrupted; please retry (code: PA)")
    assert shown["output"] == joined(len(shown["output"]), item)
    assert [attempt["outcome"] for attempt in server.attempts(prediction)] == ["lost"]


def test_a_worker_that_is_started_again_delivers_what_its_predecessor_finished(stage: Stage) -> None:
    """The finish is on the worker's disk: the server is away when the run ends, and the worker is killed then."""
    server = stage.server()
    worker = stage.scripted(server, name="same").connected()
    prediction = server.create(seconds=3, log=3, output="kept")
    server.processing(prediction)
    server.kill9()
    until(lambda: [*stage.folder.rglob("finishes-*.json")], "finish on disk")
    worker.kill9()
    server.start()
    stage.scripted(server, name="same").connected()
    shown = server.ended(prediction)
    assert (shown["status"], shown["output"]) == ("succeeded", "kept")
    assert shown["logs"].splitlines(keepends=True) == joined(3, line)
    assert stage.runs() == {prediction: 1}


def test_a_worker_that_stalls_for_less_than_the_lease_keeps_its_predictions(stage: Stage) -> None:
    server = stage.server(lease_s="15")
    pair = start_pair(stage, server, slots=3)
    predictions = [server.create(seconds=4, log=5, output=number) for number in range(3)]
    for prediction in predictions:
        server.processing(prediction)
    before = [stage.pids(prediction) for prediction in predictions]
    stalled = pair[before[0][0]]
    stalled.signal(signal.SIGSTOP)
    until(lambda: "worker silent" in server.log(), "worker that is silent")
    later = server.create(output="by the other")
    assert server.ended(later)["output"] == "by the other"
    assert stage.pids(later) != [stalled.pid]
    stalled.signal(signal.SIGCONT)
    for number, prediction in enumerate(predictions):
        assert server.ended(prediction)["output"] == number
        assert [attempt["outcome"] for attempt in server.attempts(prediction)] == ["succeeded"]
    assert [stage.pids(prediction) for prediction in predictions] == before
    check_quiet(server)


def test_a_worker_that_stalls_for_longer_than_the_lease_is_given_up(stage: Stage) -> None:
    """Its late result changes nothing, and it serves again once it has learned of that."""
    server = stage.server(lease_s="2")
    pair = start_pair(stage, server, slots=1)
    prediction = server.create(hang=1, output="right")
    server.processing(prediction)
    [first] = stage.pids(prediction)
    pair[first].signal(signal.SIGSTOP)
    assert server.ended(prediction)["output"] == "right"
    assert sorted(stage.pids(prediction)) == sorted(pair)
    before = server.get(prediction)
    pair[first].signal(signal.SIGCONT)

    def both_serve() -> bool:
        two = [server.create(seconds=0.2) for _ in range(2)]
        for one in two:
            assert server.ended(one)["status"] == "succeeded"
        return {stage.pids(one)[0] for one in two} == {*pair}

    until(both_serve, "work for both workers")
    assert server.get(prediction) == before
    lost, _ = attempts = server.attempts(prediction)
    assert [attempt["outcome"] for attempt in attempts] == ["lost", "succeeded"]
    assert lost["reason"] == f"worker {pair[first].id} was silent for 2 s"
    check_quiet(server)


def test_a_model_that_dies_is_tried_again_until_it_is_struck_out(stage: Stage) -> None:
    server = stage.server(max_strikes="2")
    for worker in [stage.scripted(server), stage.scripted(server)]:
        worker.connected()
    survivor, victim = server.create(crash=1, output="at last"), server.create(crash=9)
    assert server.ended(survivor)["output"] == "at last"
    shown = server.ended(victim)
    assert shown["status"] == "failed"
    assert "lost 2 times" in shown["error"]
    for prediction, outcomes in ((survivor, ["lost", "succeeded"]), (victim, ["lost", "lost"])):
        attempts = server.attempts(prediction)
        assert [attempt["outcome"] for attempt in attempts] == outcomes
        assert all(attempt["started_at"] for attempt in attempts)
        assert attempts[0]["worker"] != attempts[1]["worker"]
    check_quiet(server)


def test_ctrl_c_drains_a_worker(stage: Stage) -> None:
    server = stage.server()
    leaving = stage.scripted(server, slots=2).connected()
    running = [server.create(seconds=4, output=number) for number in range(2)]
    for prediction in running:
        server.processing(prediction)
    waiting = server.create(output="later")
    leaving.signal(signal.SIGINT)
    assert leaving.join() == 0
    for number, prediction in enumerate(running):
        shown = server.get(prediction)
        assert (shown["status"], shown["output"]) == ("succeeded", number)
    assert leaving.state == "offline"
    assert server.get(waiting)["status"] == "starting"
    stage.scripted(server)
    assert server.ended(waiting)["output"] == "later"
    assert set(stage.runs().values()) == {1}


def test_ctrl_c_twice_hands_everything_over_at_once(stage: Stage) -> None:
    server = stage.server()
    leaving = stage.scripted(server, slots=2, name="leaving").connected()
    heir = stage.scripted(server, slots=2, name="heir")
    predictions = [server.create(hang=1, output=number) for number in range(2)]
    until(lambda: len(stage.runs()) == 2, "start of all predictions")
    heir.connected()
    leaving.signal(signal.SIGINT)
    until(lambda: "draining" in leaving.log(), "drain")
    leaving.signal(signal.SIGINT)
    assert leaving.join() == 130
    for number, prediction in enumerate(predictions):
        assert server.ended(prediction)["output"] == number
        lost = server.attempts(prediction)[0]
        assert (lost["outcome"], lost["reason"]) == ("lost", f"worker {leaving.id} left (stopped)")
        assert stage.pids(prediction) == [leaving.pid, heir.pid]
    check_quiet(server)


# --- models -----------------------------------------------------------------------------------------------------------


class Survivor:
    """A worker with a real model that writes a diary, killed and started again in the same state folder."""

    def __init__(self, stage: Stage, server: Server, cache: Path, keep_s: float = 30) -> None:
        self._stage, self._server, self._cache, self._keep_s = stage, server, cache, keep_s
        self.diary = stage.folder / "model-diary"
        self.worker = self.start()

    def start(self) -> Worker:
        """Start the worker, or the next one in its place."""
        settings = {"COGFLARE_KEEP_MODEL_S": str(self._keep_s)}
        self.worker = self._stage.cog(
            self._server, "me/diarist", MODELS / "diarist", self._cache, name="survivor", environment=settings
        )
        return self.worker.connected()

    def begin(self, seconds: float) -> str:
        """Create a prediction and wait until the model runs it."""
        prediction = self._server.create("me/diarist", diary=str(self.diary), seconds=seconds)
        until(lambda: "step 0" in self._server.get(prediction)["logs"], "model that runs")
        return prediction

    def events(self, event: str) -> list[int]:
        """Return the processes in which the model wrote that event."""
        lines = self.diary.read_text().splitlines()
        return [int(line.split()[1]) for line in lines if line.split()[0] == event]

    def state(self, name: str) -> Path:
        """Return the path of a file in the state folder."""
        [found] = (self._stage.folder / "state").rglob(name)
        return found


STEPS = "".join(f"step {step}\n" for step in range(10))


def is_living(pid: int) -> bool:
    """Say whether a process is there."""
    return Path(f"/proc/{pid}").exists()


def test_a_run_goes_on_under_the_next_worker(stage: Stage, cog_cache: Path) -> None:
    server = stage.server()
    survivor = Survivor(stage, server, cog_cache)
    prediction = survivor.begin(4)
    processes = family(survivor.worker.pid)
    survivor.worker.kill9()
    survivor.start()
    assert "took over the model" in survivor.worker.log()
    assert all(map(is_living, processes))
    shown = server.ended(prediction)
    assert (shown["status"], shown["output"], shown["logs"]) == ("succeeded", "rested", STEPS)
    assert [attempt["outcome"] for attempt in server.attempts(prediction)] == ["succeeded"]
    assert len(survivor.events("begin")) == 1
    # And it serves: the model that was taken over runs what comes next, and goes with its worker.
    assert server.ended(survivor.begin(0.1))["status"] == "succeeded"
    assert len({*survivor.events("begin")}) == 1
    survivor.worker.signal(signal.SIGINT)
    assert survivor.worker.join() == 0
    until(lambda: not any(map(is_living, processes)), "end of the model with its worker")
    check_quiet(server)


def test_a_run_goes_on_under_one_worker_after_the_other(stage: Stage, cog_cache: Path) -> None:
    server = stage.server()
    survivor = Survivor(stage, server, cog_cache)
    prediction = survivor.begin(6)
    for _ in range(2):
        survivor.worker.kill9()
        survivor.start()
    shown = server.ended(prediction)
    assert (shown["status"], shown["logs"]) == ("succeeded", STEPS)
    assert [attempt["outcome"] for attempt in server.attempts(prediction)] == ["succeeded"]
    assert len(survivor.events("begin")) == 1


def test_what_ended_while_no_worker_was_there_is_delivered(stage: Stage, cog_cache: Path) -> None:
    server = stage.server()
    survivor = Survivor(stage, server, cog_cache)
    prediction = survivor.begin(1)
    survivor.worker.kill9()
    until(lambda: survivor.events("end"), "end of the run")
    survivor.start()
    shown = server.ended(prediction)
    assert (shown["status"], shown["output"], shown["logs"]) == ("succeeded", "rested", STEPS)
    assert [attempt["outcome"] for attempt in server.attempts(prediction)] == ["succeeded"]
    assert len(survivor.events("begin")) == 1


def test_a_run_that_was_canceled_without_its_worker_is_stopped_by_the_next(stage: Stage, cog_cache: Path) -> None:
    server = stage.server()
    survivor = Survivor(stage, server, cog_cache)
    prediction = survivor.begin(60)
    survivor.worker.kill9()
    assert server.ask("POST", f"/v1/predictions/{prediction}/cancel")["status"] == "canceled"
    survivor.start()
    assert server.ended(survivor.begin(0.1))["status"] == "succeeded"
    assert len(survivor.events("begin")) == 2
    assert len(survivor.events("end")) == 1
    check_quiet(server)


def test_a_model_that_no_worker_takes_over_is_ended(stage: Stage, cog_cache: Path) -> None:
    server = stage.server(close_grace_s="0.5")
    survivor = Survivor(stage, server, cog_cache, keep_s=1)
    survivor.begin(60)
    processes = family(survivor.worker.pid)
    assert len(processes) == 4
    survivor.worker.kill9()
    assert all(map(is_living, processes))
    until(lambda: not any(map(is_living, processes)), "end of the model without its worker")


@pytest.mark.parametrize("doomed", [0, 3], ids=["minder", "model"])
def test_a_run_whose_model_died_with_its_worker_runs_again(stage: Stage, cog_cache: Path, doomed: int) -> None:
    server = stage.server()
    survivor = Survivor(stage, server, cog_cache)
    prediction = survivor.begin(3)
    processes = family(survivor.worker.pid)
    survivor.worker.kill9()
    os.kill(processes[doomed], signal.SIGKILL)
    survivor.start()
    shown = server.ended(prediction)
    assert (shown["status"], shown["output"]) == ("succeeded", "rested")
    assert [attempt["outcome"] for attempt in server.attempts(prediction)] == ["lost", "succeeded"]
    assert len(survivor.events("begin")) == 2
    assert not any(map(is_living, processes))
    check_quiet(server)


@pytest.mark.parametrize("name", ["held.jsonl", "server.json"])
def test_a_worker_whose_state_is_damaged_starts_afresh(stage: Stage, cog_cache: Path, name: str) -> None:
    """Without knowing what runs in the old model nothing goes on in it; it is ended, by its minder at the latest."""
    server = stage.server()
    survivor = Survivor(stage, server, cog_cache, keep_s=3)
    prediction = survivor.begin(30)
    processes = family(survivor.worker.pid)
    survivor.worker.kill9()
    survivor.state(name).write_bytes(b"{")
    survivor.start()
    until(lambda: not any(map(is_living, processes)), "end of the model that is not known")
    assert server.ask("POST", f"/v1/predictions/{prediction}/cancel")["status"] == "canceled"
    assert next(attempt["outcome"] for attempt in server.attempts(prediction)) == "lost"
    assert server.ended(survivor.begin(0.1))["status"] == "succeeded"
    assert "set aside" in survivor.worker.log()


def test_a_worker_that_starts_sweeps_the_folders_of_the_dead(stage: Stage, cog_cache: Path) -> None:
    """Those of a model that lives stay, with its worker or without."""
    server = stage.server(close_grace_s="0.5")
    (temp := stage.folder / "temp").mkdir()
    settings = {"TMPDIR": str(temp), "COGFLARE_KEEP_MODEL_S": "30"}

    def start(name: str) -> tuple[Worker, set[Path]]:
        before = set(temp.glob("cogflare-*"))
        worker = stage.cog(
            server, f"me/{name}", MODELS / "noop", cog_cache, name=name, environment=settings
        ).connected()
        return worker, set(temp.glob("cogflare-*")) - before

    (dead, left), (abandoned, kept), (_, used) = start("dead"), start("abandoned"), start("living")
    assert [len(folders) for folders in (left, kept, used)] == [1, 1, 1]
    processes = family(dead.pid)
    abandoned.kill9()
    dead.kill9()
    os.kill(processes[0], signal.SIGKILL)
    until(lambda: not any(map(is_living, processes)), "end of the model with its minder")
    _, latest = start("next")
    until(lambda: set(temp.glob("cogflare-*")) == kept | used | latest, "end of what the dead have left")
    heir, _ = start("abandoned")
    assert "took over the model" in heir.log()


def test_real_workers_and_their_models_are_killed(stage: Stage, cog_cache: Path) -> None:
    """First the model under its agent, then an agent above its model: each time the other worker takes over."""
    server = stage.server(close_grace_s="0.5")
    alone = {"COGFLARE_KEEP_MODEL_S": "0"}
    pair = [stage.cog(server, "me/sleeper", MODELS / "sleeper", cog_cache, environment=alone) for _ in range(2)]
    by_id = {worker.connected().id: worker for worker in pair}
    prediction = server.create("me/sleeper", seconds=2)
    until(lambda: "asleep" in server.get(prediction)["logs"], "model that runs")
    first = by_id[server.attempts(prediction)[0]["worker"]]
    for pid in family(first.pid):
        os.kill(pid, signal.SIGKILL)
    until(lambda: len(server.attempts(prediction)) == 2, "second attempt")
    second = by_id[server.attempts(prediction)[1]["worker"]]
    assert second is not first
    until(lambda: "asleep" in server.get(prediction)["logs"], "model that runs again")
    orphans = family(second.pid)
    assert orphans
    second.kill9()
    shown = server.ended(prediction)
    assert (shown["status"], shown["output"]) == ("succeeded", "rested")
    attempts = server.attempts(prediction)
    assert [by_id[attempt["worker"]] for attempt in attempts] == [first, second, first]
    assert [attempt["outcome"] for attempt in attempts] == ["lost", "lost", "succeeded"]
    assert all(attempt["started_at"] for attempt in attempts)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in orphans), "end of the model without its agent")
    check_quiet(server)


# --- cancel ----------------------------------------------------------------------------------------------------------


def test_a_cancel_frees_the_slot_once_the_model_lets_go(stage: Stage) -> None:
    server = stage.server()
    worker = stage.scripted(server).connected()
    running, waiting = server.create(seconds=60, log=600, stubborn=1), server.create(output="next")
    until(lambda: server.get(running)["logs"], "log line")
    shown = server.ask("POST", f"/v1/predictions/{running}/cancel")
    assert shown["status"] == "canceled"
    assert server.workers()[worker.name]["busy"] == 1
    assert server.get(waiting)["status"] == "starting"
    assert server.ended(waiting)["output"] == "next"
    assert server.get(running) == shown
    canceled, served = server.attempts(running)[0], server.attempts(waiting)[0]
    assert canceled["outcome"] == "canceled"
    # The model goes on for a second; only then the next one begins.
    assert seconds_between(canceled["ended_at"], canceled["slot_freed_at"]) > 0.9
    assert seconds_between(canceled["ended_at"], served["claimed_at"]) > 0.9
    check_quiet(server)


def test_a_cancel_while_the_server_restarts_reaches_the_worker(stage: Stage) -> None:
    """The worker hears of it when it comes back, wherever the cancel was written meanwhile."""
    server = stage.server()
    worker = stage.scripted(server).connected()
    prediction = server.create(seconds=60)
    server.processing(prediction)
    worker.signal(signal.SIGSTOP)
    server.restart()
    assert server.ask("POST", f"/v1/predictions/{prediction}/cancel")["status"] == "canceled"
    worker.signal(signal.SIGCONT)
    assert server.ended(server.create(output="free again"))["output"] == "free again"
    assert [attempt["outcome"] for attempt in server.attempts(prediction)] == ["canceled"]
    check_quiet(server)
