"""The stage and each fault once, on real processes; and nothing is left of them."""

import asyncio
import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cogflare.cli.verification import faults, model
from cogflare.cli.verification.history import Begun, Born, Died, Event, Fault, Over, Recorder, read
from cogflare.cli.verification.proxy import Direction
from cogflare.cli.verification.schedule import Strike, play
from cogflare.cli.verification.stage import Stage, is_alive
from support.postgres import PostgresServer

DEADLINE_S = 20.0
TERMINAL = {"succeeded", "failed", "canceled", "aborted"}

pytestmark = pytest.mark.anyio
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs prlimit or prctl")


@pytest.fixture(scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """A stage with a worker of `one/single` and one of `one/iterator`."""
    async with opened(tmp_path_factory.mktemp("stage"), workers=2, slots=2) as opened_stage:
        yield opened_stage
    assert opened_stage.surprises == []


def opened(folder: Path, **options: Any) -> Stage:
    history = folder / "history.jsonl"
    return Stage(folder, Recorder(history), history, **options)


def history(stage: Stage) -> list[Event]:
    return read([stage.history])


async def until(look: Callable[[], object], what: str) -> None:
    """Wait for what other processes do."""
    end = time.monotonic() + DEADLINE_S
    while not look():
        assert time.monotonic() < end, f"no {what}"
        await asyncio.sleep(0.02)


async def ask(stage: Stage, method: str, path: str, timeout_s: float = DEADLINE_S, **options: Any) -> httpx2.Response:
    """Send a request of the account `one` through the proxy of the first node."""
    headers = {"Authorization": f"Bearer {stage.tokens['one']}"}
    async with httpx2.AsyncClient(timeout=timeout_s, trust_env=False) as http:
        return await http.request(method, stage.urls[0] + path, headers=headers, **options)


async def create(stage: Stage, kind: str = "single", **script: Any) -> str:
    answer = await ask(stage, "POST", f"/v1/models/one/{kind}/predictions", json={"input": {"tag": "t", **script}})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def show(stage: Stage, prediction: str) -> dict[str, Any]:
    shown: dict[str, Any] = (await ask(stage, "GET", f"/v1/predictions/{prediction}")).json()
    return shown


async def ended(stage: Stage, prediction: str) -> dict[str, Any]:
    end = time.monotonic() + DEADLINE_S
    while (shown := await show(stage, prediction))["status"] not in TERMINAL:
        assert time.monotonic() < end, shown
        await asyncio.sleep(0.05)
    return shown


async def begun(stage: Stage, prediction: str) -> None:
    await until(lambda: runs(stage, prediction), "run")


def runs(stage: Stage, prediction: str) -> list[Begun]:
    return [event for event in history(stage) if isinstance(event, Begun) and event.prediction == prediction]


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# --- without faults ---------------------------------------------------------------------------------------------------


async def test_all_that_a_run_shows_carries_its_tag_and_attempt(stage: Stage) -> None:
    single = await ended(stage, await create(stage, log=2, pad=3, output="x"))
    assert single["output"] == model.answer("t", 1, "x") + "..."
    assert single["logs"] == model.line("t", 1, 0, 3) + model.line("t", 1, 1, 3)
    items = await ended(stage, await create(stage, "iterator", items=2))
    assert items["output"] == [model.item("t", 1, 0), model.item("t", 1, 1)]
    failed = await ended(stage, await create(stage, fail="no"))
    assert (failed["status"], failed["error"]) == ("failed", "t/1 no")
    filed = await ended(stage, await create(stage, file="text"))
    assert (await ask(stage, "GET", httpx2.URL(filed["output"]).path)).text == "t/1 text"


@pytest.mark.parametrize("size", [0, 100, 30_000])
async def test_a_model_answers_the_digest_of_its_input_file(stage: Stage, size: int) -> None:
    content = b"x" * size
    uploaded = await ask(stage, "POST", "/v1/files", files={"content": ("a.bin", content)})
    data = f"data:application/octet-stream;base64,{base64.b64encode(content).decode()}"
    for url in (data, uploaded.json()["urls"]["get"]):
        shown = await ended(stage, await create(stage, source=url))
        assert shown["output"] == f"t/1 {hashlib.sha256(content).hexdigest()}"


async def test_the_harness_asks_as_an_account_or_as_the_admin(stage: Stage) -> None:
    key = (await stage.call("GET", "/v1/webhooks/default/secret", "one")).json()["key"]
    assert key.startswith("whsec_")
    assert (await stage.call("GET", "/v1/webhooks/default/secret", "two")).json()["key"] != key
    assert (await stage.call("GET", "/v1/workers")).json()["results"]


async def test_a_cancel_ends_the_run_and_the_history_says_so(stage: Stage) -> None:
    prediction = await create(stage, seconds=60)
    await begun(stage, prediction)
    assert (await ask(stage, "POST", f"/v1/predictions/{prediction}/cancel")).is_success

    def how() -> list[str]:
        return [event.how for event in history(stage) if isinstance(event, Over) and event.prediction == prediction]

    await until(how, "end of the run")
    assert how() == ["canceled"]


# --- processes --------------------------------------------------------------------------------------------------------


async def test_a_killed_server_comes_back_and_the_run_goes_on(stage: Stage) -> None:
    node = stage.nodes[0]
    pid, rises = node.pid, node.rises
    prediction = await create(stage, seconds=1.0)
    await begun(stage, prediction)
    assert faults.Kill(node, rest_s=0.1).strike()
    await until(lambda: node.rises > rises, "second life of the server")
    assert (await ended(stage, prediction))["output"] == "t/1 "
    assert len(runs(stage, prediction)) == 1
    assert any(isinstance(event, Died) and event.pid == pid and "SIGKILL" in event.how for event in history(stage))
    await stage.settle()


async def test_a_server_restarts_in_order(stage: Stage) -> None:
    node = stage.nodes[0]
    pid, rises = node.pid, node.rises
    assert faults.Restart(node, rest_s=0.1).strike()
    await until(lambda: node.rises > rises, "second life of the server")
    assert any(isinstance(event, Died) and event.pid == pid and event.how == "exit 0" for event in history(stage))
    await stage.settle()


async def test_an_agent_that_restarts_ends_what_it_holds_first(stage: Stage) -> None:
    worker = stage.workers[0]
    rises = worker.rises
    prediction = await create(stage, seconds=0.5)
    await begun(stage, prediction)
    assert faults.Restart(worker, rest_s=0.1).strike()
    await until(lambda: worker.rises > rises, "second life of the agent")
    assert (await show(stage, prediction))["output"] == "t/1 "
    await stage.settle()


async def test_a_killed_agent_takes_its_model_along(stage: Stage) -> None:
    worker = stage.workers[0]
    pid, old, rises = worker.pid, worker.model_pid, worker.rises
    assert pid is not None
    assert old is not None
    prediction = await create(stage, seconds=60)
    await begun(stage, prediction)
    assert faults.Kill(worker, rest_s=0.1).strike()
    await until(lambda: worker.rises > rises, "second life of the agent")
    assert not is_alive(pid)
    assert not is_alive(old)
    assert {event.pid for event in history(stage) if isinstance(event, Died)} >= {pid, old}
    await until(lambda: len(runs(stage, prediction)) == 2, "second run")
    await ask(stage, "POST", f"/v1/predictions/{prediction}/cancel")
    await stage.settle()


async def test_a_killed_model_is_started_again_by_its_agent(stage: Stage) -> None:
    worker = stage.workers[0]
    agent, old = worker.pid, worker.model_pid
    prediction = await create(stage, seconds=0.5)
    await begun(stage, prediction)
    assert faults.KillModel(worker).strike()
    assert (await ended(stage, prediction))["output"] == "t/2 "
    assert worker.pid == agent
    assert [run.model_pid for run in runs(stage, prediction)] == [old, worker.model_pid]
    births = [event.pid for event in history(stage) if isinstance(event, Born) and event.what == "model"]
    assert worker.model_pid in births


@linux_only
@pytest.mark.parametrize("whom", ["server", "agent", "model"])
async def test_a_suspended_process_stands_still_and_goes_on(stage: Stage, whom: str) -> None:
    def pid() -> int | None:
        return {"server": stage.nodes[0].pid, "agent": stage.workers[0].pid, "model": stage.workers[0].model_pid}[whom]

    suspended = pid()
    assert suspended is not None
    blow = faults.Suspend(pid)
    assert blow.strike()
    await until(lambda: state_of(suspended) == "T", "stop")
    blow.lift()
    prediction = await create(stage)
    assert (await ended(stage, prediction))["status"] == "succeeded"
    assert pid() == suspended


# --- links ------------------------------------------------------------------------------------------------------------


async def worker_states(stage: Stage) -> dict[str, str]:
    found = (await stage.call("GET", "/v1/workers")).json()["results"]
    return {worker["name"]: worker["state"] for worker in found}


async def until_state(stage: Stage, name: str, state: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while (await worker_states(stage))[name] != state:
        assert time.monotonic() < end, f"{name} is not {state}"
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("forgets", [False, True])
async def test_a_cut_link_heals_and_the_run_is_still_the_first(stage: Stage, forgets: bool) -> None:
    prediction = await create(stage, seconds=2.5, log=10)
    await begun(stage, prediction)
    blow = faults.Cut(stage.links[0], forgets)
    assert blow.strike()
    await until_state(stage, "worker-1", "away")
    assert (await worker_states(stage))["worker-2"] == "online"
    blow.lift()
    shown = await ended(stage, prediction)
    assert shown["logs"] == "".join(model.line("t", 1, index) for index in range(10))
    assert len(runs(stage, prediction)) == 1
    await stage.settle()


@pytest.mark.parametrize(("name", "direction"), [("worker-1", "up"), ("worker-2", "down")])
async def test_a_half_open_link_is_found_out(stage: Stage, name: str, direction: Direction) -> None:
    blow = faults.HalfOpen(stage.links[int(name[-1]) - 1], direction)
    assert blow.strike()
    # The server sees that the worker is silent, or that the worker, who hears nothing, has given the link up.
    await until_state(stage, name, "away")
    blow.lift()
    await until_state(stage, name, "online")


async def test_a_reset_link_is_dialled_again(stage: Stage) -> None:
    prediction = await create(stage, seconds=1.0, log=5)
    await begun(stage, prediction)
    assert faults.Reset(stage.links[0]).strike()
    assert (await ended(stage, prediction))["logs"] == "".join(model.line("t", 1, index) for index in range(5))
    assert len(runs(stage, prediction)) == 1


async def test_a_slow_link_delays_and_loses_nothing(stage: Stage) -> None:
    blow = faults.Slow(stage.links[1], bytes_per_s=20_000, delay_s=0.02)
    assert blow.strike()
    shown = await ended(stage, await create(stage, "iterator", items=10, pad=1000))
    assert shown["output"] == [model.item("t", 1, index, 1000) for index in range(10)]
    blow.lift()


# --- the machine ------------------------------------------------------------------------------------------------------


@linux_only
async def test_a_server_that_can_write_nothing_says_so_and_recovers(stage: Stage) -> None:
    pid = stage.nodes[0].pid
    blow = faults.DiskFull(stage.nodes[0])
    assert blow.strike()
    answer = await ask(stage, "POST", "/v1/models/one/single/predictions", json={"input": {"tag": "t"}})
    assert answer.status_code in (503, 507)
    assert answer.headers["content-type"] == "application/problem+json"
    blow.lift()
    assert (await ended(stage, await create(stage)))["status"] == "succeeded"
    assert stage.nodes[0].pid == pid


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a disk")
async def test_a_full_disk_is_told_and_the_server_recovers(tmp_path: Path) -> None:
    disk = tmp_path / "data"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine mounts nothing")
    try:
        async with opened(tmp_path, workers=1) as stage:
            blow = faults.Ballast(disk)
            assert blow.strike()
            codes = [await try_to_create(stage) for _ in range(100)]
            assert set(codes) & {503, 507}, "the disk is not full"
            assert set(codes) <= {201, 503, 507}
            blow.lift()
            assert (await ended(stage, await create(stage)))["status"] == "succeeded"
        assert stage.surprises == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


async def try_to_create(stage: Stage) -> int:
    script = {"tag": "t", "output": "." * 50_000}
    return (await ask(stage, "POST", "/v1/models/one/single/predictions", json={"input": script})).status_code


async def test_the_wall_clock_of_a_node_jumps_and_comes_back(stage: Stage) -> None:
    async def created() -> float:
        shown = await ended(stage, await create(stage))
        return datetime.fromisoformat(shown["created_at"]).timestamp() - time.time()

    blow = faults.ClockJump(stage.nodes[0], -3600)
    assert blow.strike()
    assert abs(await created() + 3600) < 60
    blow.lift()
    assert abs(await created()) < 60


async def test_two_nodes_survive_their_database_and_one_another(tmp_path: Path) -> None:
    database = PostgresServer(durable=True).start()
    try:
        url = database.create_database()
        async with opened(
            tmp_path, database_url=url, nodes=2, workers=2, slots=2, restart_database=database.restart
        ) as stage:
            prediction = await create(stage, seconds=1.0)
            await begun(stage, prediction)
            assert faults.RestartDatabase(database.restart).strike()
            assert (await ended(stage, prediction))["output"] == "t/1 "
            # The first worker's node is away: its link leads to the other one.
            assert faults.Kill(stage.nodes[0], rest_s=0.1).strike()
            await until(lambda: stage.links[0].target == stage.nodes[1].port, "other way")
            await stage.settle()
            assert stage.links[0].target == stage.nodes[0].port
        assert stage.surprises == []
    finally:
        database.close()


# --- the schedule -----------------------------------------------------------------------------------------------------


async def test_a_plan_is_played_noted_and_lifted_early_when_the_clients_are_done(stage: Stage) -> None:
    strikes = [
        Strike(0.1, "cut", "link-1", 60.0, 1.0),
        Strike(0.2, "clock_jump", "server-1", 0.3, 100),
        Strike(0.3, "kill", "model-2", 0.0, 0.0),
        Strike(60.0, "kill", "server-1", 0.1, 0.0),
    ]
    until_set = asyncio.Event()
    asyncio.get_running_loop().call_later(1.0, until_set.set)
    noted = {event for event in history(stage) if isinstance(event, Fault)}
    assert await play(stage, strikes, until_set) == []
    fresh = [event for event in history(stage) if isinstance(event, Fault) and event not in noted]
    assert [(fault.kind, fault.target) for fault in fresh] == [
        ("cut", "link-1"),
        ("clock_jump", "server-1"),
        ("kill", "model-2"),
    ]
    cut, jump, kill = fresh
    assert 0.5e6 < cut.until - cut.at < 5e6
    assert 0.3e6 <= jump.until - jump.at < 1e6
    assert kill.until == kill.at
    await stage.settle()


# --- the end ----------------------------------------------------------------------------------------------------------

SCRIPT = """
import asyncio, json, signal, sys
from pathlib import Path
from cogflare.cli.verification.history import Recorder
from cogflare.cli.verification.stage import Stage

# The tests may run with SIGINT ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

async def main(folder):
    history = folder / "history.jsonl"
    async with Stage(folder, Recorder(history), history, workers=1) as stage:
        pids = [stage.nodes[0].pid, stage.workers[0].pid, stage.workers[0].model_pid]
        print(json.dumps(pids), flush=True)
        await asyncio.Event().wait()

asyncio.run(main(Path(sys.argv[1])))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=linux_only)])
async def test_nothing_is_left_of_an_interrupted_harness(tmp_path: Path, number: signal.Signals) -> None:
    harness = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SCRIPT, str(tmp_path), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    assert harness.stdout is not None
    pids = json.loads(await asyncio.wait_for(harness.stdout.readline(), DEADLINE_S))
    assert all(is_alive(pid) for pid in pids)
    # The kernel has to end even what does not run.
    if number == signal.SIGKILL:
        os.kill(pids[0], signal.SIGSTOP)
    harness.send_signal(number)
    await asyncio.wait_for(harness.wait(), DEADLINE_S)
    await until(lambda: not any(is_alive(pid) for pid in pids), "end of all processes")
