"""Interleavings around the end of a run and of a node, found by the harness of `cogflare verify`."""

import asyncio

import pytest

from cogflare.engine.service import Engine
from cogflare.engine.waiters import Waiters
from cogflare.protocol.messages import Finish
from cogflare.store.base import Database
from engine.rig import Rig
from engine.test_races import Slow

pytestmark = pytest.mark.anyio


async def test_a_checkpoint_under_way_while_the_node_stops_doubles_no_log(store: Database) -> None:
    """The node saves what is live, a checkpoint was due as well, and the run ends before both have answered."""
    slow = Slow(store)
    rig = Rig(slow)
    engine = Engine(slow, "node", rig.fleet, rig.predictions, Waiters(), rig.tasks, {})
    worker, client = await rig.worker(), await rig.caller("ada")
    created = await rig.create(client)
    key = await worker.start(await worker.next())
    worker.end.log(key, "one\n")
    await worker.pump()
    saved, save_on = slow.hold("checkpoint_attempts")
    stopping = asyncio.create_task(engine.stop(5))
    await saved.wait()
    worker.end.log(key, "two\n")
    await worker.pump()
    checked, check_on = slow.hold("checkpoint_attempts")
    tick = asyncio.create_task(rig.checkpoints.tick())
    # As far as it gets while the node's own save is not answered.
    await asyncio.wait([asyncio.create_task(checked.wait())], timeout=0.2)
    save_on.set()
    await checked.wait()
    worker.end.log(key, "three\n")
    worker.answers[key] = asyncio.get_running_loop().create_future()
    worker.end.finish(Finish(*key, "succeeded", slot_free=True), rig.clock.monotonic())
    await worker.pump()
    assert await asyncio.wait_for(worker.answers[key], 5) == "committed"
    check_on.set()
    await asyncio.gather(stopping, tick)
    assert (await rig.predictions.get(client.account, created.id)).logs == "one\ntwo\nthree\n"


async def test_a_worker_that_gave_up_a_lost_run_cancels_nothing(store: Database) -> None:
    """It was told that the attempt is not its own any more; whether the prediction goes on is not its to say."""
    rig = Rig(store)
    worker, client = await rig.worker(), await rig.caller("ada")
    created = await rig.create(client)
    key = await worker.start(await worker.next())
    await rig.checkpoints.tick()
    rig.dispatcher.stop()
    await rig.losses.rescue(key, "a test", slot_free=False)
    assert await worker.finish(key, status="canceled") == "committed"
    await rig.settle()
    shown = await rig.predictions.get(client.account, created.id)
    assert shown.status == "processing"
    [attempt] = await rig.predictions.attempts(client.account, created.id)
    assert (attempt.outcome, attempt.slot_freed_at is not None) == ("lost", True)


async def test_a_run_that_its_worker_gave_up_by_itself_runs_again(store: Database) -> None:
    rig = Rig(store)
    worker, client = await rig.worker(), await rig.caller("ada")
    created = await rig.create(client)
    key = await worker.start(await worker.next())
    await rig.checkpoints.tick()
    await worker.finish(key, status="canceled")
    again = await worker.start(await worker.next())
    assert again == (key[0], 2)
    await worker.finish(again)
    assert (await rig.predictions.get(client.account, created.id)).status == "succeeded"
