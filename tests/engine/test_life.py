"""The life of a prediction through the engine, over both databases."""

import asyncio

import pytest

from cogflare.domain.errors import NotFound
from cogflare.protocol.codec import encode
from cogflare.protocol.messages import Finish
from cogflare.store import fleet
from cogflare.store.base import Database
from cogflare.store.listing import Query
from engine.rig import Rig

pytestmark = pytest.mark.anyio


async def test_a_prediction_runs_on_a_worker(store: Database) -> None:
    rig = Rig(store)
    worker, client = await rig.worker(), await rig.caller("ada")
    created = await rig.create(client)
    assert created.status == "starting"
    work = await worker.next()
    assert (work.prediction, work.attempt) == (created.id, 1)
    key = await worker.start(work)
    assert (await rig.predictions.get(client.account, created.id)).status == "starting", "not before it is committed"
    await rig.checkpoints.tick()
    assert (await rig.predictions.get(client.account, created.id)).status == "processing"
    worker.end.log(key, "half way\n")
    await worker.pump()
    assert (await rig.predictions.get(client.account, created.id)).logs == "half way\n"
    assert await worker.finish(key, run_ms=12.0) == "committed"
    ended = await rig.predictions.get(client.account, created.id)
    assert (ended.status, ended.output, ended.logs) == ("succeeded", b'"done"', "half way\n")
    assert ended.metrics is not None
    assert '"predict_time":0.012' in ended.metrics
    await rig.settle()
    assert await store.read("occupied_slots") == []


async def test_a_hold_answers_with_the_end(store: Database) -> None:
    rig = Rig(store)
    worker, client = await rig.worker(), await rig.caller("ada")
    hold = asyncio.create_task(rig.create(client, hold_s=5))
    await worker.finish(await worker.start(await worker.next()))
    held = await hold
    assert (held.status, held.output) == ("succeeded", b'"done"')
    short = await rig.create(client, hold_s=0.05)
    assert short.status == "starting"


async def test_waiting_predictions_follow_each_finish(store: Database) -> None:
    rig = Rig(store)
    client = await rig.caller("ada")
    with pytest.raises(NotFound):
        await rig.create(client)
    worker = await rig.worker(slots=2)
    ids = [(await rig.create(client)).id for _ in range(6)]
    done = []
    for _ in range(6):
        work = await worker.next()
        done.append(work.prediction)
        await worker.finish(await worker.start(work))
    assert sorted(done) == sorted(ids)
    page = (await rig.predictions.page(Query(client.account))).views
    assert [view.id for view in page] == sorted(ids, reverse=True)
    assert {view.status for view in page} == {"succeeded"}


async def test_cancel_waiting_and_running(store: Database) -> None:
    rig = Rig(store)
    worker, client = await rig.worker(), await rig.caller("ada")
    running, waiting = await rig.create(client), await rig.create(client)
    key = await worker.start(await worker.next())
    assert (await rig.predictions.cancel(client.account, waiting.id)).status == "canceled"
    canceled = await rig.predictions.cancel(client.account, running.id)
    assert (canceled.status, canceled.error) == ("canceled", None)
    assert canceled.completed_at is not None
    await rig.settle()
    assert worker.canceled == {key}
    assert len(await store.read("occupied_slots")) == 1, "the slot is taken until the worker frees it"
    assert await worker.finish(key, status="canceled") == "committed"
    await rig.settle()
    assert await store.read("occupied_slots") == []
    again = await rig.predictions.cancel(client.account, running.id)
    assert again == canceled
    following = await rig.create(client)
    assert (await worker.next()).prediction == following.id


async def test_a_worker_that_does_not_come_back_loses_its_work(store: Database) -> None:
    rig = Rig(store)
    first, client = await rig.worker(), await rig.caller("ada")
    created = await rig.create(client)
    await first.start(await first.next())
    await rig.checkpoints.tick()
    await first.disconnect()
    second = await rig.worker()
    await asyncio.sleep(0.25)
    await rig.leases.tick()
    work = await second.next()
    assert (work.prediction, work.attempt) == (created.id, 2)
    shown = await rig.predictions.get(client.account, created.id)
    assert (shown.status, shown.attempt) == ("processing", 2), "a status never moves back"
    await second.finish(await second.start(work))
    await first.connect()
    assert first.canceled == {(created.id, 1)}
    assert await first.finish((created.id, 1)) == "unwanted"
    attempts = await fleet.list_attempts(store, created.id)
    assert [(row.attempt, row.outcome) for row in attempts] == [(1, "lost"), (2, "succeeded")]


async def test_a_worker_that_comes_back_goes_on(store: Database) -> None:
    rig = Rig(store)
    worker, client = await rig.worker(), await rig.caller("ada")
    created = await rig.create(client)
    key = await worker.start(await worker.next())
    worker.end.log(key, "one ")
    await worker.pump()
    await worker.disconnect()
    worker.end.log(key, "two")
    later = Rig(store, node="other")
    await worker.connect(later)
    shown = await later.predictions.get(client.account, created.id)
    assert shown.logs == "one two"
    assert await worker.finish(key) == "committed"
    await later.settle()
    assert (await later.predictions.get(client.account, created.id)).logs == "one two"
    assert await store.read("occupied_slots") == []


async def test_what_was_rescued_but_not_claimed_goes_on_where_it_runs(store: Database) -> None:
    rig = Rig(store)
    worker, client = await rig.worker(), await rig.caller("ada")
    created = await rig.create(client)
    key = await worker.start(await worker.next())
    await worker.disconnect()
    await asyncio.sleep(0.25)
    await rig.leases.tick()
    assert await store.read("ready_queues") != []
    await worker.connect()
    assert await store.read("ready_queues") == []
    assert await worker.finish(key) == "committed"
    assert (await rig.predictions.get(client.account, created.id)).status == "succeeded"
    assert worker.assigned.empty()


async def test_an_expired_lease_is_rescued_and_a_renewed_one_is_not(store: Database) -> None:
    rig = Rig(store)
    worker, client = await rig.worker(slots=2), await rig.caller("ada")
    kept, dropped = await rig.create(client), await rig.create(client)
    first = await worker.start(await worker.next())
    second = await worker.start(await worker.next())
    await rig.leases.tick()
    del worker.end.kept[second if first[0] == kept.id else first]
    for _ in range(5):
        await asyncio.sleep(0.2)
        await worker.heartbeat()
        await rig.leases.tick()
    rows = {row.id: row for row in (await rig.predictions.page(Query(client.account))).views}
    assert rows[kept.id].attempt == 1
    assert (await fleet.list_attempts(store, dropped.id))[0].outcome == "lost"


async def test_tenants_do_not_meet(store: Database) -> None:
    rig = Rig(store)
    await rig.worker("ada")
    ada, eve = await rig.caller("ada"), await rig.caller("eve")
    created = await rig.create(ada)
    with pytest.raises(NotFound):
        await rig.predictions.get(eve.account, created.id)
    with pytest.raises(NotFound):
        await rig.predictions.cancel(eve.account, created.id)
    with pytest.raises(NotFound):
        await rig.create(eve)
    assert (await rig.predictions.page(Query(eve.account))).views == []


async def test_a_shared_worker_serves_every_account(store: Database) -> None:
    rig = Rig(store)
    worker = await rig.worker("shared")
    eve = await rig.caller("eve")
    created = await rig.create(eve)
    work = await worker.next()
    assert work.prediction == created.id
    await worker.finish(await worker.start(work))
    assert (await rig.predictions.get(eve.account, created.id)).status == "succeeded"


async def test_a_finish_for_what_was_never_given_out_changes_nothing(store: Database) -> None:
    rig = Rig(store)
    worker, client = await rig.worker(slots=0), await rig.caller("ada")
    created = await rig.create(client)
    answers = []
    for key in ((created.id, 1), ("0" * 26, 1)):
        assert worker.link is not None
        future = worker.answers[key] = asyncio.get_running_loop().create_future()
        await worker.link.receive(encode([Finish(*key, "succeeded")]))
        answers.append(await asyncio.wait_for(future, 5))
    assert answers == ["unknown", "unknown"]
    assert (await rig.predictions.get(client.account, created.id)).status == "starting"


async def test_a_lost_run_goes_to_another_worker_if_there_is_one(store: Database) -> None:
    rig = Rig(store)
    first, client = await rig.worker(), await rig.caller("ada")
    created = await rig.create(client)
    key = await first.start(await first.next())
    second = await rig.worker()
    await rig.settle()
    assert await first.finish(key, status="lost", error="the model crashed") == "committed"
    assert (await second.next()).prediction == created.id
    await second.finish((created.id, 2))
    await second.disconnect()
    await rig.create(client)
    work = await first.next()
    assert await first.finish(await first.start(work), status="lost", error="again") == "committed"
    assert (await first.next()).attempt == 2, "nobody else is there, so it goes on here at once"


async def test_a_page_of_large_outputs_ends_early_and_goes_on_from_there(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(store)
    client, worker = await rig.caller("ada"), await rig.worker()
    ids: list[str] = []
    for _ in range(4):
        ids.insert(0, (await rig.create(client)).id)
        assert await worker.finish(await worker.start(await worker.next()), b'"' + b"x" * 40_000 + b'"') == "committed"
    monkeypatch.setattr("cogflare.engine.predictions.PAGE_BYTES", 90_000)
    first = await rig.predictions.page(Query(client.account))
    assert ([view.id for view in first.views], first.is_cut) == (ids[:2], True)
    second = await rig.predictions.page(Query(client.account, before=ids[1]))
    assert ([view.id for view in second.views], second.is_cut) == (ids[2:], False)
    back = await rig.predictions.page(Query(client.account, after=ids[3]))
    assert ([view.id for view in back.views], back.is_cut) == (ids[1:3], True)
