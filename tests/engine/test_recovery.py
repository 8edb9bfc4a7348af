"""What becomes of lost attempts: pauses, releases, those that struck out, and their second life."""

import asyncio
import json
from collections.abc import Callable

import msgspec
import pytest
from msgspec import Raw

from cogflare.domain.errors import InvalidInput, NotFound
from cogflare.engine.backoff import Backoff
from cogflare.engine.losses import INTERRUPTED
from cogflare.engine.predictions import Order
from cogflare.engine.requeues import NotRequeued, requeue
from cogflare.store import fleet, retention
from cogflare.store import predictions as store_predictions
from cogflare.store.base import Database
from cogflare.store.catalog import Caller
from cogflare.store.listing import Query
from cogflare.store.open import open_database
from engine.rig import MovableClock, Rig, RigWorker
from engine.test_races import Slow
from engine.test_races_links import _TEXT
from store.test_nodes import uncommitted

pytestmark = pytest.mark.anyio

PAUSE = Backoff(100.0, 100.0)
MOMENT = Backoff(0.05, 0.05)


async def phase_of(rig: Rig, prediction: str) -> str:
    [row] = await rig.db.read("get_prediction", id=prediction)
    return str(row[7])


async def outcomes(rig: Rig, prediction: str) -> list[tuple[int, str | None]]:
    return [(row.attempt, row.outcome) for row in await fleet.list_attempts(rig.db, prediction)]


async def lose(worker: RigWorker, reason: str = "the model crashed") -> tuple[str, int]:
    """Let a worker lose the next run that it is given, after it has started."""
    key = await worker.start(await worker.next())
    assert await worker.finish(key, status="lost", error=reason) == "committed"
    return key


async def parked(rig: Rig, client: Caller) -> tuple[RigWorker, tuple[str, int]]:
    """Return a worker that was away for too long, and what it still runs, which is parked."""
    worker = await rig.worker()
    await rig.create(client)
    key = await worker.start(await worker.next())
    await rig.checkpoints.tick()
    await worker.disconnect()
    await rig.losses.rescue(key, "it was silent", slot_free=True)
    assert await phase_of(rig, key[0]) == "parked"
    return worker, key


async def struck_out(rig: Rig, client: Caller, worker: RigWorker) -> str:
    """Return a prediction that three attempts have lost."""
    created = await rig.create(client)
    for _ in range(3):
        assert (await lose(worker))[0] == created.id
    return created.id


# --- pauses ----------------------------------------------------------------------------------------------------------


def test_pauses_double_up_to_a_bound_and_are_never_short() -> None:
    backoff = Backoff(1.0, 60.0)
    for strikes, bound_s in ((1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (10_000, 60)):
        pauses = {backoff.pause_us(strikes) for _ in range(200)}
        assert min(pauses) >= bound_s * 500_000
        assert max(pauses) <= bound_s * 1_000_000
        assert len(pauses) > 100, "drawn anew each time"


async def test_a_started_run_that_was_lost_pauses_before_the_next_try(store: Database) -> None:
    rig = Rig(store, backoff=MOMENT)
    first, client = await rig.worker(), await rig.caller("ada")
    created = await rig.create(client)
    second = await rig.worker()
    await rig.settle()
    await lose(first)
    shown = await rig.predictions.get(client.account, created.id)
    assert (await phase_of(rig, created.id), shown.status) == ("parked", "processing")
    await rig.dispatcher.tick()
    await rig.settle()
    assert first.assigned.empty()
    assert second.assigned.empty()
    while await rig.releases.tick() < 0.5 and await phase_of(rig, created.id) == "parked":
        await asyncio.sleep(0.01)
    work = await second.next()
    assert (work.prediction, work.attempt) == (created.id, 2)
    assert await second.finish(await second.start(work)) == "committed"
    assert await outcomes(rig, created.id) == [(1, "lost"), (2, "succeeded")]


async def test_what_had_not_started_waits_for_nothing(store: Database) -> None:
    rig = Rig(store, backoff=PAUSE)
    first, client = await rig.worker(), await rig.caller("ada")
    created = await rig.create(client)
    work = await first.next()
    second = await rig.worker()
    await rig.settle()
    await first.finish((work.prediction, work.attempt), status="lost", error="no room")
    assert ((await second.next()).prediction, await phase_of(rig, created.id)) == (created.id, "assigned")


async def test_the_next_look_is_when_the_next_pause_is_over(store: Database) -> None:
    clock = MovableClock()
    rig = Rig(store, backoff=PAUSE, clock=clock)
    assert await rig.releases.tick() == 0.5
    _, (prediction, _) = await parked(rig, await rig.caller("ada"))
    assert await rig.releases.tick() == 0.5
    [(not_before, _)] = await store.read("next_release")
    clock.wall_ahead_s = (not_before - clock.wall()) / 1e6 - 0.2
    assert 0 < await rig.releases.tick() <= 0.2
    assert await phase_of(rig, prediction) == "parked"


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
async def test_a_jump_of_the_wall_clock_leaves_nothing_parked(store: Database, jump_s: float) -> None:
    clock = MovableClock()
    rig = Rig(store, backoff=PAUSE, clock=clock)
    client = await rig.caller("ada")
    _, (prediction, _) = await parked(rig, client)
    await rig.releases.tick()
    assert await phase_of(rig, prediction) == "parked"
    clock.wall_ahead_s = jump_s
    await rig.releases.tick()
    assert await phase_of(rig, prediction) == "queued"
    assert (await (await rig.worker()).next()).prediction == prediction


async def test_two_nodes_release_at_once(store: Database) -> None:
    clock = MovableClock()
    rigs = [Rig(store, node=f"node{number}", backoff=PAUSE, clock=clock) for number in range(2)]
    client = await rigs[0].caller("ada")
    keys = [(await parked(rigs[0], client))[1] for _ in range(3)]
    clock.wall_ahead_s = 200
    await asyncio.gather(*(rig.releases.tick() for rig in rigs for _ in range(3)))
    assert {await phase_of(rigs[0], key[0]) for key in keys} == {"queued"}
    workers = [await rig.worker(slots=3) for rig in rigs]
    for rig in rigs:
        await rig.settle()
    given = [worker.assigned.get_nowait() for worker in workers for _ in range(worker.assigned.qsize())]
    assert sorted((work.prediction, work.attempt) for work in given) == sorted((id, 2) for id, _ in keys)


# --- races of a release ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cancel", "return", "finish"])
async def test_what_overtakes_a_release_wins(store: Database, how: str) -> None:
    slow, clock = Slow(store), MovableClock()
    rig = Rig(slow, backoff=PAUSE, clock=clock)
    client = await rig.caller("ada")
    worker, key = await parked(rig, client)
    clock.wall_ahead_s = 200
    reached, go_on = slow.hold("before release_predictions")
    releasing = asyncio.create_task(rig.releases.tick())
    await asyncio.wait_for(reached.wait(), 5)
    if how == "cancel":
        assert (await rig.predictions.cancel(client.account, key[0])).status == "canceled"
    else:
        await worker.connect()
        if how == "finish":
            assert await worker.finish(key) == "committed"
    go_on.set()
    await releasing
    other = await rig.worker()
    await rig.settle()
    assert other.assigned.empty()
    status = {"cancel": "canceled", "return": "processing", "finish": "succeeded"}[how]
    assert (await rig.predictions.get(client.account, key[0])).status == status
    assert await store.read("next_release") == [(None, None)]
    assert await store.read("ready_queues") == []
    if how == "return":
        assert await worker.finish(key) == "committed"
    assert len(await fleet.list_attempts(store, key[0])) == 1


@pytest.mark.parametrize("is_claimed", [False, True])
async def test_a_worker_that_comes_back_after_the_release(store: Database, is_claimed: bool) -> None:
    clock = MovableClock()
    rig = Rig(store, backoff=PAUSE, clock=clock)
    client = await rig.caller("ada")
    worker, key = await parked(rig, client)
    clock.wall_ahead_s = 200
    await rig.releases.tick()
    other = await rig.worker() if is_claimed else None
    if other is not None:
        await other.next()
    await worker.connect()
    if other is not None:
        assert worker.canceled == {key}
        assert await other.finish((key[0], 2)) == "committed"
    else:
        assert await worker.finish(key) == "committed"
        assert (await rig.db.read("get_prediction", id=key[0]))[0][10] == 0, "the strike is taken back"
    assert (await rig.predictions.get(client.account, key[0])).status == "succeeded"


async def test_a_cancel_that_a_release_overtakes_wins_too(store: Database) -> None:
    slow, clock = Slow(store), MovableClock()
    rig = Rig(slow, backoff=PAUSE, clock=clock)
    client = await rig.caller("ada")
    _, key = await parked(rig, client)
    clock.wall_ahead_s = 200
    reached, go_on = slow.hold("before end_prediction")
    canceling = asyncio.create_task(rig.predictions.cancel(client.account, key[0]))
    await asyncio.wait_for(reached.wait(), 5)
    await rig.releases.tick()
    go_on.set()
    assert (await canceling).status == "canceled"
    assert await store.read("ready_queues") == []


async def test_what_another_node_holds_is_released_at_the_next_look(new_url: Callable[[str], str]) -> None:
    url = new_url("postgres")
    store = open_database(url)
    await store.migrate()
    clock = MovableClock()
    rig = Rig(store, clock=clock, backoff=MOMENT)
    _, key = await parked(rig, await rig.caller("ada"))
    clock.wall_ahead_s += 10
    async with uncommitted(url, store_predictions.end_attempt(*key, "lost", now=clock.wall())):
        assert await asyncio.wait_for(rig.releases.tick(), 5) > 0
        assert await phase_of(rig, key[0]) == "parked"
    await rig.releases.tick()
    assert await phase_of(rig, key[0]) == "queued"
    await store.aclose()


# --- struck out ------------------------------------------------------------------------------------------------------


async def test_what_was_lost_too_often_fails_and_stays_in_a_list(store: Database) -> None:
    rig = Rig(store)
    worker, client = await rig.worker(), await rig.caller("ada")
    lost = await struck_out(rig, client, worker)
    shown = await rig.predictions.get(client.account, lost)
    assert (shown.status, shown.error) == (
        "failed", "Prediction was lost 3 times; the last time because the model crashed",
    )  # fmt: skip
    failed = await rig.create(client)
    await worker.finish(await worker.start(await worker.next()), status="failed", error="a bug")
    listed = (await rig.predictions.page(Query(client.account, struck_out=True))).views
    assert [view.id for view in listed] == [lost]
    assert failed.id not in {view.id for view in listed}


async def test_an_interrupted_text_is_struck_out(store: Database) -> None:
    rig = Rig(store)
    worker, client = await rig.worker(schema=_TEXT), await rig.caller("ada")
    created = await rig.create(client)
    key = await worker.start(await worker.next())
    worker.end.output(key, [Raw(b'"Once"')])
    await worker.pump()
    await worker.finish(key, status="lost", items=1)
    assert (await rig.predictions.get(client.account, created.id)).error == INTERRUPTED
    assert [view.id for view in (await rig.predictions.page(Query(client.account, struck_out=True))).views] == [
        created.id
    ]


async def test_a_second_life(store: Database) -> None:
    rig = Rig(store)
    worker, client = await rig.worker(), await rig.caller("ada")
    lost = await struck_out(rig, client, worker)
    before = await rig.predictions.get(client.account, lost)
    made, is_new = await requeue(rig.predictions, client, lost)
    assert (is_new, made.status, made.id != lost, made.input) == (True, "starting", True, before.input)
    assert await rig.predictions.get(client.account, lost) == before, "an end is never left"
    assert (await rig.predictions.page(Query(client.account, struck_out=True))).views == []
    work = await worker.next()
    assert (work.prediction, work.attempt) == (made.id, 1)
    await worker.finish(await worker.start(work))
    same, is_new = await requeue(rig.predictions, client, lost)
    assert (is_new, same.id, same.status) == (False, made.id, "succeeded")


async def test_two_who_requeue_at_once_get_the_same(store: Database) -> None:
    rig, other = Rig(store), Rig(store, node="other")
    worker, client = await rig.worker(), await rig.caller("ada")
    lost = await struck_out(rig, client, worker)
    made = await asyncio.gather(*(requeue(node.predictions, client, lost) for node in (rig, other) for _ in range(3)))
    assert len({view.id for view, _ in made}) == 1
    assert [is_new for _, is_new in made].count(True) == 1
    assert len((await rig.predictions.page(Query(client.account))).views) == 2


async def test_what_has_no_second_life(store: Database) -> None:
    rig = Rig(store)
    worker, client = await rig.worker(), await rig.caller("ada")
    created = await rig.create(client)
    key = await worker.start(await worker.next())
    with pytest.raises(NotRequeued, match="not ended"):
        await requeue(rig.predictions, client, created.id)
    await worker.finish(key)
    with pytest.raises(NotRequeued, match="succeeded"):
        await requeue(rig.predictions, client, created.id)
    with pytest.raises(NotFound):
        await requeue(rig.predictions, await rig.caller("eve"), created.id)


async def test_any_that_failed_or_was_canceled_may_be_named(store: Database) -> None:
    rig = Rig(store)
    worker, client = await rig.worker(slots=0), await rig.caller("ada")
    created = await rig.create(client)
    await rig.predictions.cancel(client.account, created.id)
    made, is_new = await requeue(rig.predictions, client, created.id)
    assert (is_new, made.status) == (True, "starting")
    worker.end.resize(0, 1)
    await worker.pump()
    assert (await worker.next()).prediction == made.id


async def test_an_input_that_goes_part_by_part_makes_nothing_new(store: Database) -> None:
    slow = Slow(store)
    rig, text = Rig(slow), json.dumps({"x": "y" * 1_000_000}).encode()
    await rig.worker(slots=0)
    client = await rig.caller("ada")
    old = (await rig.predictions.create(client, Order(text, json.loads(text), "ada/noop"))).id
    await rig.predictions.cancel(client.account, old)
    read, go_on = slow.hold("get_prediction")
    making = asyncio.create_task(requeue(rig.predictions, client, old))
    await read.wait()
    assert await retention.hide_data(store, old)
    assert await retention.drop_parts(store, old, 2)
    go_on.set()
    with pytest.raises(NotRequeued):
        await making
    assert len((await rig.predictions.page(Query(client.account))).views) == 1


async def test_an_input_that_the_model_takes_no_longer(store: Database) -> None:
    rig = Rig(store)
    worker, client = await rig.worker(), await rig.caller("ada")
    lost = await struck_out(rig, client, worker)
    strict = (
        b'{"components":{"schemas":{"Input":{"type":"object","required":["x"],"properties":{"x":{"type":"string"}}},'
        b'"Output":{"type":"string"}}}}'
    )
    changed = RigWorker(rig, await rig.caller("ada", "worker"), 0, strict)
    changed.end.offers[0] = msgspec.structs.replace(changed.end.offers[0], version="b" * 64)
    await changed.connect()
    with pytest.raises(InvalidInput):
        await requeue(rig.predictions, client, lost)
    assert [view.id for view in (await rig.predictions.page(Query(client.account, struck_out=True))).views] == [lost]
