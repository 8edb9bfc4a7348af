"""Workers that lose run after run are set aside, and come back."""

import asyncio

import pytest

from cogflare.protocol.agent_end import AgentEnd
from cogflare.protocol.codec import encode
from cogflare.protocol.messages import Drain, Finish, Health, Probe
from cogflare.store import fleet, recovery
from cogflare.store.base import Database
from cogflare.store.catalog import Caller
from cogflare.store.recovery import Standing
from engine.rig import MovableClock, Rig, RigWorker
from engine.test_races import Slow

pytestmark = pytest.mark.anyio

DAY_S = 86_400.0


async def lose(rig: Rig, worker: RigWorker, client: Caller, times: int = 1) -> list[str]:
    """Let a worker lose so many runs, one after the other; return their predictions."""
    lost = []
    for _ in range(times):
        if worker.assigned.empty():
            await rig.create(client)
        key = await worker.start(await worker.next())
        assert await worker.finish(key, status="lost", error="the model crashed") == "committed"
        await rig.settle()
        lost.append(key[0])
    return lost


async def standing(rig: Rig, worker: RigWorker) -> Standing:
    found = await recovery.standing(rig.db, worker.end.worker)
    assert found is not None
    return found


async def reason_of(rig: Rig, worker: RigWorker) -> str | None:
    return (await standing(rig, worker)).quarantine


def probes(worker: RigWorker) -> int:
    return sum(isinstance(message, Probe) for message in worker.heard)


async def tell(rig: Rig, worker: RigWorker, ailment: str | None) -> None:
    """Say how the model is, as an agent does."""
    worker.end.report(ailment)
    await worker.pump()
    await rig.settle()


async def set_aside(rig: Rig, worker: RigWorker, client: Caller) -> None:
    await lose(rig, worker, client, 5)
    assert await reason_of(rig, worker) == "the model crashed"


# --- in and out ------------------------------------------------------------------------------------------------------


async def test_five_runs_lost_in_a_row_and_nothing_more_until_a_probe_is_passed(store: Database) -> None:
    clock = MovableClock()
    rig = Rig(store, clock=clock)
    worker, client = await rig.worker(), await rig.caller("ada")
    await lose(rig, worker, client, 4)
    assert await reason_of(rig, worker) is None
    await lose(rig, worker, client)
    assert await reason_of(rig, worker) == "the model crashed"
    await rig.create(client)
    await rig.dispatcher.tick()
    await rig.settle()
    assert worker.assigned.empty()
    await rig.health.tick()
    assert probes(worker) == 0, "not yet"
    clock.ahead_s += 11
    await rig.health.tick()
    await rig.settle()
    assert probes(worker) == 1
    assert worker.assigned.empty(), "nor before it has answered"
    await tell(rig, worker, None)
    assert await standing(rig, worker) == Standing(4, 1)
    await worker.finish(await worker.start(await worker.next()))
    await rig.settle()
    assert await standing(rig, worker) == Standing(), "the first success clears the record"


async def test_on_probation_one_more_loss_is_enough_and_lasts_twice_as_long(store: Database) -> None:
    clock = MovableClock()
    rig = Rig(store, clock=clock)
    worker, client = await rig.worker(), await rig.caller("ada")
    await set_aside(rig, worker, client)
    for pause_s in (10, 20, 40, 80, 160, 320, 600, 600):
        clock.ahead_s += pause_s - 1
        await rig.health.tick()
        await rig.settle()
        seen = probes(worker)
        clock.ahead_s += 2
        await rig.health.tick()
        await rig.settle()
        assert probes(worker) == seen + 1
        await tell(rig, worker, None)
        assert await reason_of(rig, worker) is None
        await lose(rig, worker, client)
        assert await reason_of(rig, worker) == "the model crashed"


async def test_a_failed_probe_is_asked_again_and_a_late_recovery_counts_at_once(store: Database) -> None:
    clock = MovableClock()
    rig = Rig(store, clock=clock)
    worker, client = await rig.worker(), await rig.caller("ada")
    await set_aside(rig, worker, client)
    for number in (1, 2):
        clock.ahead_s += 11
        await rig.health.tick()
        await rig.settle()
        assert probes(worker) == number
        await tell(rig, worker, "CUDA error")
        assert await reason_of(rig, worker) == "CUDA error"
    assert (await standing(rig, worker)).quarantines == 1
    await tell(rig, worker, None)
    assert await reason_of(rig, worker) is None


async def test_a_success_in_between_begins_the_count_anew(store: Database) -> None:
    rig = Rig(store)
    worker, client = await rig.worker(), await rig.caller("ada")
    for _ in range(3):
        await lose(rig, worker, client, 2)
        for _ in range(2):
            if worker.assigned.empty():
                await rig.create(client)
            await worker.finish(await worker.start(await worker.next()))
            await rig.settle()
        assert await standing(rig, worker) == Standing()


async def test_a_run_without_losses_before_it_writes_nothing_more(store: Database) -> None:
    slow = Slow(store)
    rig = Rig(slow)
    worker, client = await rig.worker(), await rig.caller("ada")
    written, go_on = slow.hold("before forget_losses")
    go_on.set()
    for is_written in (False, True):
        await rig.create(client)
        await worker.finish(await worker.start(await worker.next()))
        await rig.settle()
        assert written.is_set() == is_written
        await lose(rig, worker, client)
        await worker.finish(await worker.start(await worker.next()))
        await rig.settle()


async def test_a_poisonous_prediction_alone_sets_nobody_aside(store: Database) -> None:
    rig = Rig(store)
    worker, client = await rig.worker(), await rig.caller("ada")
    lost = await lose(rig, worker, client, 3)
    assert len(set(lost)) == 1
    assert (await rig.predictions.get(client.account, lost[0])).status == "failed"
    assert await standing(rig, worker) == Standing(3)
    await rig.create(client)
    await worker.finish(await worker.start(await worker.next()))
    await rig.settle()
    assert await standing(rig, worker) == Standing()


# --- what counts -----------------------------------------------------------------------------------------------------


async def test_what_one_crash_takes_with_it_counts_once(store: Database) -> None:
    rig = Rig(store)
    worker, client = await rig.worker(slots=8), await rig.caller("ada")
    for _ in range(8):
        await rig.create(client)
    keys = [await worker.start(await worker.next()) for _ in range(8)]
    for key in keys:
        await worker.finish(key, status="lost", error="the model crashed")
    await rig.settle()
    assert await standing(rig, worker) == Standing(1)


async def test_neither_a_goodbye_nor_what_never_started_counts(store: Database) -> None:
    rig = Rig(store, quarantine_after=1)
    worker, client = await rig.worker(), await rig.caller("ada")
    await rig.create(client)
    work = await worker.next()
    await worker.finish((work.prediction, work.attempt), status="lost", error="no room")
    await worker.start(await worker.next())
    worker.end.goodbye("Ctrl-C")
    await worker.pump()
    await rig.settle()
    assert await standing(rig, worker) == Standing()


async def test_an_agent_that_dies_again_and_again_is_set_aside(store: Database) -> None:
    rig = Rig(store)
    worker, client = await rig.worker(), await rig.caller("ada")
    for number in range(5):
        await rig.create(client)
        await worker.start(await worker.next())
        await rig.checkpoints.tick()
        await worker.disconnect()
        while not worker.assigned.empty():
            worker.assigned.get_nowait()
        worker.end = AgentEnd(worker.end.worker, f"process{number}", "rig", worker.end.offers, {})
        await worker.connect()
        await rig.settle()
    assert (await standing(rig, worker)).losses >= 4
    assert await reason_of(rig, worker) is not None
    assert worker.assigned.empty()


async def test_a_lease_that_runs_out_counts(store: Database) -> None:
    rig = Rig(store, quarantine_after=1)
    worker, client = await rig.worker(), await rig.caller("ada")
    await rig.create(client)
    await worker.start(await worker.next())
    await rig.checkpoints.tick()
    await worker.disconnect()
    await asyncio.sleep(0.25)
    await rig.leases.tick()
    assert "closed its connection" in (await reason_of(rig, worker) or "")


# --- what goes on meanwhile ------------------------------------------------------------------------------------------


async def test_what_runs_goes_on_and_what_waits_goes_elsewhere(store: Database) -> None:
    rig = Rig(store)
    worker, client = await rig.worker(slots=2), await rig.caller("ada")
    kept = await rig.create(client)
    key = await worker.start(await worker.next())
    await set_aside(rig, worker, client)
    waiting = await rig.create(client)
    await rig.settle()
    assert worker.assigned.empty()
    worker.end.log(key, "still here\n")
    await worker.pump()
    await worker.heartbeat()
    assert worker.canceled == set()
    assert await worker.finish(key) == "committed"
    shown = await rig.predictions.get(client.account, kept.id)
    assert (shown.status, shown.logs) == ("succeeded", "still here\n")
    await rig.settle()
    assert await reason_of(rig, worker) is not None, "an old run says nothing about the next"
    assert worker.assigned.empty()
    healthy = await rig.worker(slots=3)
    await rig.settle()
    taken = {healthy.assigned.get_nowait().prediction for _ in range(healthy.assigned.qsize())}
    assert waiting.id in taken


async def test_the_run_that_sets_a_worker_aside_is_not_followed_by_another(store: Database) -> None:
    slow = Slow(store)
    rig = Rig(slow, quarantine_after=1)
    worker, client = await rig.worker(), await rig.caller("ada")
    await rig.create(client)
    key = await worker.start(await worker.next())
    await rig.create(client)
    reached, go_on = slow.hold("before count_loss")
    losing = asyncio.create_task(worker.finish(key, status="lost", error="out of memory"))
    await asyncio.wait_for(reached.wait(), 5)
    await rig.dispatcher.tick()
    await asyncio.sleep(0.05)
    go_on.set()
    await losing
    await rig.settle()
    assert worker.assigned.empty()


async def test_a_claim_under_way_is_handed_back_without_a_strike(store: Database) -> None:
    slow = Slow(store)
    rig = Rig(slow)
    worker, client = await rig.worker(), await rig.caller("ada")
    claimed, go_on = slow.hold("claim_attempt")
    creating = asyncio.create_task(rig.create(client))
    await asyncio.wait_for(claimed.wait(), 5)
    worker.end.report("no GPU")
    await worker.pump()
    while not worker.link or not worker.link.is_aside:
        await asyncio.sleep(0.01)
    go_on.set()
    created = await creating
    await rig.settle()
    assert worker.assigned.empty()
    other = await rig.worker()
    assert (await other.next()).prediction == created.id
    [row] = await store.read("get_prediction", id=created.id)
    assert row[10] == 0


async def test_a_worker_that_is_set_aside_can_be_drained(store: Database) -> None:
    rig = Rig(store)
    worker, client = await rig.worker(slots=2), await rig.caller("ada")
    await rig.create(client)
    key = await worker.start(await worker.next())
    await set_aside(rig, worker, client)
    assert worker.link is not None
    worker.link.drain()
    await rig.settle()
    assert any(isinstance(message, Drain) for message in worker.heard)
    assert await worker.finish(key) == "committed"
    worker.end.goodbye("drained")
    await worker.pump()
    await worker.disconnect()
    [row] = await fleet.list_workers(store, None, "", 10)
    assert (row.state, row.quarantine, row.busy) == ("offline", "the model crashed", 0)


# --- its own word ----------------------------------------------------------------------------------------------------


async def test_a_worker_says_itself_that_its_model_does_not_come_up(store: Database) -> None:
    clock = MovableClock()
    rig = Rig(store, clock=clock)
    worker, client = await rig.worker(), await rig.caller("ada")
    await tell(rig, worker, "CUDA\0error")
    assert await reason_of(rig, worker) == "CUDA error"
    await rig.create(client)
    await rig.settle()
    assert worker.assigned.empty()
    await tell(rig, worker, None)
    assert await reason_of(rig, worker) == "CUDA error", "a while passes first"
    clock.ahead_s += 11
    await tell(rig, worker, None)
    await rig.settle()
    assert await reason_of(rig, worker) is None
    await worker.next()


async def test_good_news_from_a_healthy_worker_changes_nothing(store: Database) -> None:
    rig = Rig(store)
    worker = await rig.worker()
    await tell(rig, worker, None)
    assert await standing(rig, worker) == Standing()


async def test_a_flood_of_news_does_not_pile_up(store: Database) -> None:
    rig = Rig(store)
    worker = await rig.worker()
    assert worker.link is not None
    before = len(asyncio.all_tasks())
    for number in range(500):
        await worker.link.receive(encode([Health(False, f"reason {number}")]))
    assert len(asyncio.all_tasks()) - before < 10
    await rig.settle()
    assert await reason_of(rig, worker) == "reason 499", "the last word counts"


# --- nodes, links and clocks -----------------------------------------------------------------------------------------


async def test_a_quarantine_outlives_the_server(store: Database) -> None:
    rig = Rig(store)
    worker, client = await rig.worker(), await rig.caller("ada")
    await set_aside(rig, worker, client)
    clock = MovableClock()
    later = Rig(store, node="later", clock=clock)
    await worker.connect(later)
    await later.create(client)
    await later.settle()
    assert worker.assigned.empty()
    clock.ahead_s += 11
    await later.health.tick()
    await later.settle()
    assert probes(worker) == 1
    await tell(later, worker, None)
    await worker.next()


async def test_a_new_process_comes_back_on_probation(store: Database) -> None:
    rig = Rig(store)
    worker, client = await rig.worker(), await rig.caller("ada")
    await set_aside(rig, worker, client)
    await worker.disconnect()
    worker.end = AgentEnd(worker.end.worker, "another-process", "rig", worker.end.offers, {})
    await worker.connect()
    assert await standing(rig, worker) == Standing(4, 1)
    await lose(rig, worker, client)
    again = await standing(rig, worker)
    assert (again.quarantines, again.quarantine) == (2, "the model crashed")


@pytest.mark.parametrize("is_heard", [True, False])
async def test_what_another_node_finds_out_is_seen_here(store: Database, is_heard: bool) -> None:
    slow = Slow(store)
    here, there = Rig(store, node="here"), Rig(slow, node="there", quarantine_after=1)
    worker, client = await here.worker(), await here.caller("ada")
    created = await here.create(client)
    await worker.start(await worker.next())
    await here.checkpoints.tick()
    slow.is_mute = not is_heard
    await there.losses.rescue((created.id, 1), "it was silent", slot_free=True)
    for rig in (here, there):
        await rig.settle()
    assert worker.link is not None
    if is_heard:
        async with asyncio.timeout(5):
            while not worker.link.is_aside:
                await asyncio.sleep(0.01)
    else:
        assert not worker.link.is_aside
        await here.health.tick()
    assert worker.link.is_aside
    await recovery.lift(store, worker.end.worker, worker.link.epoch, 0)
    await here.health.tick()
    assert not worker.link.is_aside


async def test_no_jump_of_the_wall_clock_ends_a_quarantine(store: Database) -> None:
    clock = MovableClock()
    rig = Rig(store, clock=clock)
    worker, client = await rig.worker(), await rig.caller("ada")
    await set_aside(rig, worker, client)
    for jump_s in (DAY_S, -DAY_S):
        clock.wall_ahead_s = jump_s
        await rig.health.tick()
        await rig.settle()
        assert probes(worker) == 0
        await tell(rig, worker, None)
        assert await reason_of(rig, worker) is not None
    clock.ahead_s += 11
    await rig.health.tick()
    await rig.settle()
    assert probes(worker) == 1


async def test_a_store_that_fails_while_a_loss_is_counted_loses_no_prediction(store: Database) -> None:
    slow = Slow(store)
    rig = Rig(slow)
    worker, client = await rig.worker(), await rig.caller("ada")
    created = await rig.create(client)
    key = await worker.start(await worker.next())
    slow.refused.add("count_loss")
    finish = Finish(*key, "lost", error="the model crashed", slot_free=True)
    worker.end.finish(finish, rig.clock.monotonic())
    await worker.pump()
    await rig.settle()
    assert worker.closed is None
    assert (await worker.next()).prediction == created.id
