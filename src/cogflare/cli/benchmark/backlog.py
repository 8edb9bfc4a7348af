"""What choosing the next job costs: whole claims through the store, behind few and behind very many waiting jobs."""

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path

import msgspec
import uvloop

from cogflare.cli.benchmark.load import at
from cogflare.cli.benchmark.measure import Measured, Say
from cogflare.domain.ids import model_queue, new_id, new_key, version_queue
from cogflare.store import fleet, predictions
from cogflare.store.base import Database, Statement, Value
from cogflare.store.open import open_database

QUEUED = (100, 1_000_000)
_FLOWS = 8
_BATCH = 1_000
_WARM = 100  # first claims, not counted
_ACCOUNT, _OWNER, _NAME, _VERSION = "bench", "bench", "backlog", "4" * 64
_QUEUE = model_queue(_ACCOUNT, _OWNER, _NAME)
_INPUT = '{"prompt":"an astronaut riding a horse","steps":25}'


def run(seconds: float, database_url: Callable[[], str | None], say: Say, queued: Sequence[int]) -> Iterator[Measured]:
    """Measure claims with so many predictions queued, in a fresh database each time."""
    for count in queued:
        say(f"claims with {count:,} queued")
        with tempfile.TemporaryDirectory() as folder:
            url = database_url() or f"sqlite:///{Path(folder) / 'cogflare.db'}"
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                latencies = sorted(runner.run(_measure(url, count, seconds)))
        name = f"claim, {count:,} queued by {_FLOWS} accounts"
        yield Measured(name, len(latencies) / sum(latencies), at(latencies, 0.5), at(latencies, 0.99), 0)


async def _measure(url: str, count: int, seconds: float) -> list[float]:
    """Return how long each claim took, in seconds; a create after each, not counted, keeps the number of jobs."""
    db = open_database(url)
    try:
        await db.migrate()
        await _fill(url, count)
        epoch = await _worker(db)
        latencies: list[float] = []
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            latencies.append(await _claim(db, epoch))
            await _create(db, len(latencies))
        return latencies[min(_WARM, len(latencies) // 2) :]
    finally:
        await db.aclose()


async def _fill(url: str, count: int) -> None:
    sql = files("cogflare.cli.benchmark").joinpath("sql")
    db = open_database(f"{url}?synchronous=off" if url.startswith("sqlite") else url, sql=sql)
    try:
        for start in range(0, count, _BATCH):
            now = _now()
            rows = [(new_id(now), _flow(number)) for number in range(start, min(start + _BATCH, count))]
            shared: dict[str, Value] = {"rows": msgspec.json.encode(rows).decode(), "now": now}
            await db.write(
                Statement(
                    "seed_predictions",
                    {**shared, "model": f"{_OWNER}/{_NAME}", "version": _VERSION, "input": _INPUT},
                ),
                Statement("seed_entries", {**shared, "queue": _QUEUE}),
            )
    finally:
        await db.aclose()


async def _worker(db: Database) -> int:
    """Connect the worker `w`; return the epoch of its link."""
    await db.write(
        Statement("insert_account", {"id": _ACCOUNT, "username": "bench", "name": "", "kind": "user", "now": _now()})
    )
    link = fleet.Link("w", _ACCOUNT, "bench", "w", "i", "bench", "[]", "{}", _now())
    opened = await fleet.open_link(db, link, [])
    if opened is None:
        raise RuntimeError("the worker of the benchmark belongs to another account")
    return opened[0]


async def _claim(db: Database, epoch: int) -> float:
    now = _now()
    wish = predictions.Claim(new_id(now), "w", epoch, _QUEUE, version_queue(_ACCOUNT, _VERSION), _VERSION)
    statements = predictions.claim(wish, now)
    begun = time.perf_counter()
    rows = await db.write(*statements)
    elapsed = time.perf_counter() - begun
    if predictions.claimed(rows) is None:
        raise RuntimeError("a claim found nothing in a full queue")
    return elapsed


async def _create(db: Database, number: int) -> None:
    now, flow = _now(), _flow(number)
    new = predictions.NewPrediction(
        id=new_id(now),
        account=flow,
        token="bench",  # noqa: S106 - an id
        catalog=_ACCOUNT,
        owner=_OWNER,
        name=_NAME,
        version=_VERSION,
        pinned=False,
        queues=(_QUEUE,),
        flow=flow,
        input=_INPUT,
        created_at=now,
        stream_key=new_key(),
    )
    await db.write(*predictions.insert(new))


def _flow(number: int) -> str:
    return f"account-{number % _FLOWS}"


def _now() -> int:
    return time.time_ns() // 1000
