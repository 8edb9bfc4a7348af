"""The measurements: what is pressed, for how long, and the row that comes out."""

import asyncio
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import uvloop

from cogflare.cli.benchmark.load import STAMP, Figures, press_all, request
from cogflare.cli.benchmark.noop import NAME, OWNER, QUEUE
from cogflare.cli.benchmark.stage import Stage

PATH = f"/v1/models/{OWNER}/{NAME}/predictions"
QUEUE_PATH = f"/v1/models/{OWNER}/{QUEUE}/predictions"
BODY = b'{"input":{"prompt":"an astronaut riding a horse","steps":25,"sent_at":%b}}' % STAMP
_WARM_S = 1.0
_IDLE_PAUSE_S = 0.02
_CONNECTIONS = 64

Say = Callable[[str], None]


class Measured(msgspec.Struct, frozen=True):
    """One row of the table. `per_s` counts answers, latencies are those of a client on the same machine."""

    name: str
    per_s: float
    p50_ms: float
    p99_ms: float
    errors: int


def run(seconds: float, database_url: Callable[[], str | None], say: Say) -> Iterator[Measured]:
    """Measure a fresh server each time; `database_url` gives a fresh database (None: SQLite in a throw-away folder)."""
    yield _creates(seconds, database_url(), say)
    for slots in (1, 16, 64):
        yield _full(seconds, slots, database_url(), say)
    yield from _idle(seconds, database_url(), say)


def _creates(seconds: float, database_url: str | None, say: Say) -> Measured:
    say("durable creates, no worker")
    with tempfile.TemporaryDirectory() as folder, Stage(Path(folder), database_url) as stage:
        # A model exists once a worker has offered it; then it leaves, and everything queues.
        stage.stop(stage.worker(1, model=QUEUE))
        figures = press_stage(stage, _CONNECTIONS, seconds, None, path=QUEUE_PATH)
    return row(f"create, {_CONNECTIONS} clients, nobody works", figures)


def _full(seconds: float, slots: int, database_url: str | None, say: Say) -> Measured:
    say(f"full no-op predictions, {slots} slots")
    with tempfile.TemporaryDirectory() as folder, Stage(Path(folder), database_url) as stage:
        stage.worker(slots)
        figures = press_stage(stage, slots, seconds, "wait")
    return row(f"full no-op prediction, {slots} slots and clients", figures)


def _idle(seconds: float, database_url: str | None, say: Say) -> Iterator[Measured]:
    say("one client, idle worker")
    with tempfile.TemporaryDirectory() as folder, Stage(Path(folder), database_url) as stage:
        stage.worker(1)
        figures = press_stage(stage, 1, seconds, "wait", _IDLE_PAUSE_S)
    yield Measured(
        "request to an idle worker's model",
        figures.per_s,
        figures.arrival_p50_ms,
        figures.arrival_p99_ms,
        figures.errors,
    )
    yield row("full no-op prediction, idle server and worker", figures)


def press_stage(
    stage: Stage, clients: int, seconds: float, prefer: str | None, pause_s: float = 0.0, path: str = PATH
) -> Figures:
    """Let so many clients of each server of the stage send requests for some seconds, after a second to get warm."""
    targets = [(url, request(url, stage.token, path, BODY, prefer)) for url in stage.urls]

    async def both() -> Figures:
        await press_all(targets, clients, _WARM_S, pause_s)
        return await press_all(targets, clients, seconds, pause_s)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(both())


def row(name: str, figures: Figures) -> Measured:
    """Return the row of what was measured."""
    return Measured(name, figures.per_s, figures.p50_ms, figures.p99_ms, figures.errors)


def machine() -> str:
    """Describe the machine in a line."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{os.cpu_count()} x {model}, {platform.system()} {platform.release()}, Python {platform.python_version()}"


def fsync_ms(folder: Path, rounds: int = 200) -> float:
    """Return the mean time of a 4 KB append with fdatasync, in milliseconds: what durability costs on this disk."""
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        begun = time.perf_counter()
        for _ in range(rounds):
            file.write(b"x" * 4096)
            os.fdatasync(file.fileno())
        return (time.perf_counter() - begun) / rounds * 1000
