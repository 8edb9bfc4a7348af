"""Run times and usage: learned from real runs over both databases."""

import asyncio
from typing import Any

import pytest
from msgspec import structs

from cogflare.domain.money import day_of
from cogflare.engine.learning import SAMPLES, Learning
from cogflare.engine.live import Live
from cogflare.protocol.messages import Finish
from cogflare.store import usage
from cogflare.store.base import Database, StoreError
from engine.asked import Asked
from engine.rig import VERSION, RigWorker, SystemClock

pytestmark = pytest.mark.anyio


async def run(rig: Asked, worker: RigWorker, seconds: float, **finish: Any) -> None:
    """Run what the worker gets next for so long."""
    key = await rig.begin(worker)
    rig.pass_by(seconds)
    assert await worker.finish(key, run_ms=seconds * 1000, **finish) == "committed"


async def used(rig: Asked, account: str) -> list[tuple[str, int, float]]:
    """Return what was run, by model: runs and seconds."""
    today = day_of(rig.clock.wall())
    found = await usage.used(rig.db, account, "2020-01-01", today)
    return [(model, runs, run_us / 1e6) for model, _, runs, run_us in found]


async def test_run_times_are_learned_by_version_and_gpu(store: Database) -> None:
    rig = Asked(store)
    ada = await rig.caller("ada")
    slow = await rig.offer(gpu="NVIDIA A40")
    for seconds in (10.0, 12.0):
        await rig.create(ada)
        await run(rig, slow, seconds)
    fast = await rig.offer(gpu="NVIDIA H100")
    await rig.leave(slow)
    await rig.create(ada)
    await run(rig, fast, 3.0)
    assert await usage.run_times(rig.db, ada.account, "ada/noop") == [], "nothing is written at a finish"
    await rig.learning.tick()
    found = await usage.run_times(rig.db, ada.account, "ada/noop")
    assert [(version, gpu) for version, gpu, _ in found] == [(VERSION, "NVIDIA A40"), (VERSION, "NVIDIA H100")]
    assert [round(sample) for sample in found[0][2]] == [10, 12]
    assert [round(sample) for sample in found[1][2]] == [3]
    assert await used(rig, ada.account) == [("ada/noop", 3, 25.0)]
    await rig.learning.tick()
    assert await used(rig, ada.account) == [("ada/noop", 3, 25.0)], "what is written is written once"


async def test_only_success_is_learned_and_all_of_it_is_counted(store: Database) -> None:
    rig = Asked(store)
    worker, ada = await rig.offer(), await rig.caller("ada")
    await rig.create(ada)
    await run(rig, worker, 4.0, status="failed", error="no")
    created = await rig.create(ada)
    key = await rig.begin(worker)
    rig.pass_by(2)
    await rig.predictions.cancel(ada.account, created.id)
    async with asyncio.timeout(5):
        while created.id in rig.predictions.lives:
            await asyncio.sleep(0.01)
    await worker.finish(key, status="canceled")
    await rig.learning.tick()
    assert await usage.run_times(rig.db, ada.account, "ada/noop") == []
    [(model, runs, seconds)] = await used(rig, ada.account)
    assert (model, runs, round(seconds)) == ("ada/noop", 2, 6)


async def test_runs_of_tenants_on_shared_workers(store: Database) -> None:
    rig = Asked(store)
    worker, ada, eve = await rig.offer(account="shared"), await rig.caller("ada"), await rig.caller("eve")
    for caller in (ada, eve, eve):
        await rig.create(caller)
        await run(rig, worker, 1.0)
    await rig.learning.tick()
    assert [runs for _, runs, _ in await used(rig, ada.account)] == [1]
    assert [runs for _, runs, _ in await used(rig, eve.account)] == [2]
    [(_, _, samples)] = await usage.run_times(rig.db, "shared", "ada/noop")
    assert len(samples) == 3


async def test_what_a_run_holds_its_slot_for_is_what_others_wait_for(store: Database) -> None:
    rig = Asked(store)
    worker, ada = await rig.offer(), await rig.caller("ada")
    await rig.create(ada)
    key = await rig.begin(worker)
    rig.pass_by(9)
    await worker.finish(key, run_ms=2_000.0)
    await rig.learning.tick()
    [(_, _, [sample])] = await usage.run_times(rig.db, ada.account, "ada/noop")
    assert sample == pytest.approx(9, abs=0.5), "its files took their time"
    assert await used(rig, ada.account) == [("ada/noop", 1, 2.0)]


class _Refusing:
    """A store that refuses, until it does not."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.refuses = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    async def write(self, *statements: Any, **options: Any) -> Any:
        if self.refuses:
            raise StoreError("the disk is full")
        return await self._db.write(*statements, **options)


async def test_what_the_store_refuses_is_kept(store: Database) -> None:
    rig = Asked(store)
    refusing = _Refusing(store)
    rig.learning._db = refusing
    worker, ada = await rig.offer(), await rig.caller("ada")
    await rig.create(ada)
    await run(rig, worker, 1.0)
    with pytest.raises(StoreError):
        await rig.learning.tick()
    await rig.create(ada)
    await run(rig, worker, 2.0)
    refusing.refuses = False
    await rig.learning.tick()
    assert await used(rig, ada.account) == [("ada/noop", 2, 3.0)]
    [(_, _, samples)] = await usage.run_times(rig.db, ada.account, "ada/noop")
    assert [round(sample) for sample in samples] == [1, 2]


class _Holder:
    worker = "w1"
    epoch = 1

    def cancel(self, key: tuple[str, int]) -> None:
        """There is nothing to cancel."""


async def test_memory_is_bounded_however_much_ends_between_two_writes(store: Database) -> None:
    learning = Learning(store, SystemClock())
    live = Live("p", 1, "ada", VERSION, 0, _Holder())
    finish = Finish("p", 1, "succeeded", slot_free=True, run_ms=12.0)
    for _ in range(10_000):
        learning.finished(live, finish)
    [tally] = learning._tallies.values()
    assert (tally.runs, len(tally.samples)) == (10_000, SAMPLES)
    for number in range(30_000):
        other = Live("p", 1, f"account {number}", VERSION, 0, _Holder())
        learning.finished(other, structs.replace(finish))
    assert len(learning._tallies) == 20_000
