"""The verbs of retention: data goes, then the record; what somebody may still come back for stays."""

import json
from typing import Any

import pytest

from cogflare.domain.ids import new_key
from cogflare.domain.phases import Status
from cogflare.store import budgets, errands, files, predictions, retention, usage
from cogflare.store.base import Conflict
from cogflare.store.fleet import AttemptKey
from cogflare.store.predictions import Chunk
from store.errands import DAY, HOLDER, MONTH, provider, send, settling, share
from store.scene import OTHER_QUEUE, QUEUE, TURN, Scene

pytestmark = pytest.mark.anyio
LARGE = json.dumps("x" * 20_000)


async def ended(scene: Scene, **fields: Any) -> AttemptKey:
    """Return an attempt that has just ended, with an input and an output apart."""
    await scene.create(input=LARGE)
    key = await scene.claim_key()
    chunks = [Chunk(*key, "result", 0, LARGE), Chunk(*key, "log", 0, "log")]
    fields = {"output": None, "output_bytes": len(LARGE), "log_bytes": 3, "slot_free": True, **fields}
    await scene.finish(key, chunks=chunks, **fields)
    return key


async def file_of(scene: Scene, key: AttemptKey, *, stored: bool = True) -> str:
    """Announce a file of an attempt that runs, and store it."""
    id = new_key()
    assert await files.add_output(
        scene.db,
        id=id,
        prediction=key[0],
        attempt=key[1],
        worker="w1",
        name="x.png",
        content_type="image/png",
        now=scene.now,
    )
    if stored:
        assert await files.complete(scene.db, id, 3, "0" * 64, None)
    return id


async def state_of(scene: Scene, file: str) -> str | None:
    row = await files.get(scene.db, file)
    return None if row is None else row.state


async def counts(scene: Scene) -> dict[str, int]:
    tables = ("predictions", "attempts", "inputs", "chunks")
    return {table: (await scene.rows.fetch(f"SELECT count(*) FROM {table}"))[0][0] for table in tables}


# --- data -------------------------------------------------------------------------------------------------------------


async def test_only_what_ended_before_is_found_the_oldest_first(scene: Scene) -> None:
    keys = [await ended(scene) for _ in range(3)]
    await scene.create()
    await scene.claim_key()
    await scene.create()
    last = (await scene.row(keys[2][0])).completed_at
    assert last is not None
    found = await retention.prunable(scene.db, last, 10)
    assert [one.id for one in found] == [keys[0][0], keys[1][0]]
    assert [one.id for one in await retention.prunable(scene.db, last + 1, 1)] == [keys[0][0]]
    assert (found[0].rows, found[0].bytes) == (3, 2 * len(LARGE) + 3)


async def test_data_goes_and_the_record_stays(scene: Scene) -> None:
    await scene.create()
    key = await scene.claim_key()
    file = await file_of(scene, key)
    await scene.finish(key, has_files=True, logs="log", metrics='{"predict_time": 1}', slot_free=True)
    other = await ended(scene)
    assert await retention.remove_data(scene.db, [key[0]]) == 1
    row = await scene.row(key[0])
    assert row.data_removed
    assert (row.input, row.output, row.output_items, row.output_bytes, row.logs, row.log_bytes) == (*[None] * 5, 0)
    assert (row.status, row.metrics) == ("succeeded", '{"predict_time": 1}')
    assert row.completed_at is not None
    assert await state_of(scene, file) == "expired"
    assert [one.id for one in await retention.prunable(scene.db, scene.now + 1, 10)] == [other[0]]
    assert await retention.remove_data(scene.db, [key[0], other[0]]) == 1
    assert await counts(scene) == {"predictions": 2, "attempts": 2, "inputs": 0, "chunks": 0}


async def test_data_of_what_has_not_ended_is_never_removed(scene: Scene) -> None:
    prediction = await scene.create(input=LARGE)
    key = await scene.claim_key()
    file = await file_of(scene, key)
    await scene.checkpoint(key, log_bytes=3, chunks=[Chunk(*key, "log", 0, "log")])
    assert await retention.remove_data(scene.db, [prediction]) == 0
    await retention.hide_data(scene.db, prediction)
    assert await state_of(scene, file) == "pending"
    assert await counts(scene) == {"predictions": 1, "attempts": 1, "inputs": 1, "chunks": 1}


async def test_large_data_goes_part_by_part_and_is_hidden_first(scene: Scene) -> None:
    await scene.create(input=json.dumps("x" * 600_000))
    key = await scene.claim_key()
    chunks = [Chunk(*key, "log", position, "x") for position in range(5)]
    await scene.finish(key, chunks=chunks, output_items=0, log_bytes=5)
    await retention.hide_data(scene.db, key[0])
    assert (await scene.row(key[0])).data_removed
    assert await counts(scene) == {"predictions": 1, "attempts": 1, "inputs": 3, "chunks": 5}
    ((found),) = await retention.prunable(scene.db, scene.now + 1, 10)
    assert (found.data_removed, found.rows) == (retention.HIDDEN, 8)
    left = []
    while await retention.drop_parts(scene.db, key[0], 2):
        left.append(sum((await counts(scene)).values()) - 2)
    assert left == [4, 1, 0]
    assert await retention.remove_data(scene.db, [key[0]]) == 1
    assert await retention.prunable(scene.db, scene.now + 1, 10) == []


async def test_a_late_finish_brings_no_data_back(scene: Scene) -> None:
    await scene.create()
    key = await scene.claim_key()
    await scene.cancel(key)
    await retention.remove_data(scene.db, [key[0]])
    with pytest.raises(Conflict):
        await scene.finish(key, chunks=[Chunk(*key, "log", 0, "log")], log_bytes=3)
    with pytest.raises(Conflict):
        await predictions.put_result(scene.db, *key, "w1", '"x"')
    assert (await counts(scene))["chunks"] == 0


# --- records ----------------------------------------------------------------------------------------------------------


async def test_records_go_with_their_attempts_once_their_data_is_gone(scene: Scene) -> None:
    kept = await ended(scene)
    key = await ended(scene)
    await retention.remove_data(scene.db, [key[0]])
    later = scene.tick(1_000_000)
    assert await retention.prunable_records(scene.db, later, 10) == [key[0]]
    ended_at = (await scene.row(key[0])).completed_at
    assert ended_at is not None
    assert await retention.prunable_records(scene.db, ended_at, 10) == []
    await retention.delete_records(scene.db, [key[0]])
    assert await predictions.get(scene.db, key[0]) is None
    assert (await scene.row(kept[0])).status == "succeeded"
    assert (await counts(scene))["attempts"] == 1


async def test_a_record_stays_while_a_slot_of_it_is_taken(scene: Scene) -> None:
    key = await ended(scene, slot_free=False)
    await retention.remove_data(scene.db, [key[0]])
    assert await retention.prunable_records(scene.db, scene.tick(1_000_000), 10) == []


async def test_a_record_stays_while_its_errand_is_open_and_takes_it_along(scene: Scene) -> None:
    await provider(scene)
    row = await send(scene, await scene.create())
    await scene.finish(row.key, HOLDER, slot_free=True)
    await retention.remove_data(scene.db, [row.prediction])
    assert await retention.prunable_records(scene.db, scene.tick(1_000_000), 10) == []
    await scene.db.write(*settling(scene, row, 30))
    assert await retention.prunable_records(scene.db, scene.tick(1_000_000), 10) == [row.prediction]
    await retention.delete_records(scene.db, [row.prediction])
    assert await errands.for_prediction(scene.db, row.prediction) == []
    assert [cost.cost for cost in await errands.costs(scene.db, "acct", 0, scene.now)] == [30]


# --- ledgers ----------------------------------------------------------------------------------------------------------


async def test_old_pages_of_the_ledgers_go(scene: Scene) -> None:
    await provider(scene)
    shares = [share(1000, 10), share(1000, 10, since=MONTH)]
    await scene.db.write(*settling(scene, await send(scene, await scene.create(), shares=shares), 10))
    await usage.add(scene.db, [("acct", "o/m", DAY, 1, 5), ("acct", "o/n", DAY, 1, 5)], [], scene.now)
    day_us = 86_400_000_000
    assert not await retention.prune_ledgers(scene.db, scene.now, 10)
    assert await budgets.spent(scene.db, "acct", [DAY, MONTH]) == {("account", "", DAY): 10}
    assert len(await errands.costs(scene.db, "acct", 0, scene.now)) == 1
    assert await retention.prune_ledgers(scene.db, scene.now + day_us, 1)
    assert not await retention.prune_ledgers(scene.db, scene.now + day_us, 2)
    assert await budgets.spent(scene.db, "acct", [DAY, MONTH]) == {}
    assert await errands.costs(scene.db, "acct", 0, scene.now) == []
    assert await usage.used(scene.db, "acct", DAY, DAY) == []


async def test_run_times_go_when_nothing_was_added_for_long(scene: Scene) -> None:
    for model, now in (("o/m", 10), ("o/n", 20)):
        await usage.add(scene.db, [], [("shared", model, "v1", "", [1.0])], now)
    assert not await retention.prune_run_times(scene.db, 10, 10)
    assert await retention.prune_run_times(scene.db, 11, 1)
    assert not await retention.prune_run_times(scene.db, 11, 1)
    assert await usage.run_times(scene.db, "shared", "o/m") == []
    assert await usage.run_times(scene.db, "shared", "o/n") == [("v1", "", [1.0])]


# --- files ------------------------------------------------------------------------------------------------------------


async def test_files_that_no_finish_bound_expire(scene: Scene) -> None:
    await scene.create()
    lost = await scene.claim_key()
    of_lost = await file_of(scene, lost)
    # Lost, and not yet claimed again: its worker may come back and finish it.
    await scene.requeue(lost)
    assert await files.expire_unbound(scene.db, scene.tick(), 10) == 0
    again = await scene.claim_key("w1")
    assert again == (lost[0], 2)
    running = await file_of(scene, again)
    half = await file_of(scene, again, stored=False)
    assert await files.expire_unbound(scene.db, scene.tick(), 10) == 1
    assert [await state_of(scene, file) for file in (of_lost, running, half)] == ["expired", "pending", "pending"]
    await scene.finish(again, has_files=True)
    assert await files.expire_unbound(scene.db, scene.tick(), 10) == 1
    assert [await state_of(scene, file) for file in (running, half)] == ["bound", "expired"]


async def test_young_files_do_not_expire(scene: Scene) -> None:
    await scene.create()
    key = await scene.claim_key()
    file = await file_of(scene, key)
    await scene.cancel(key)
    row = await files.get(scene.db, file)
    assert row is not None
    assert await files.expire_unbound(scene.db, row.created_at, 10) == 0
    assert await files.expire_unbound(scene.db, row.created_at + 1, 10) == 1


async def test_an_expired_file_is_never_bound_again(scene: Scene) -> None:
    await scene.create()
    key = await scene.claim_key()
    file = await file_of(scene, key)
    await scene.rows.run("UPDATE files SET state = 'expired'")
    await scene.finish(key, has_files=True)
    assert await state_of(scene, file) == "expired"


async def test_rows_of_expired_files_go_by_id(scene: Scene) -> None:
    await scene.create()
    key = await scene.claim_key()
    ids = sorted([await file_of(scene, key) for _ in range(3)])
    await scene.cancel(key)
    assert await files.expired(scene.db, "", 10) == []
    await files.expire_unbound(scene.db, scene.tick(), 10)
    assert await files.expired(scene.db, "", 2) == ids[:2]
    assert await files.expired(scene.db, ids[1], 2) == ids[2:]
    await files.delete_expired(scene.db, ids[:2])
    assert await files.expired(scene.db, "", 10) == ids[2:]


# --- workers ----------------------------------------------------------------------------------------------------------


async def test_workers_long_gone_are_forgotten_and_their_slots_with_them(scene: Scene) -> None:
    before = scene.tick()
    key = await ended(scene, slot_free=False)
    for worker in ("w2", "w3"):
        await scene.link(worker)
    await scene.create()
    await scene.claim_key("w2")
    await scene.rows.run("UPDATE workers SET state = 'away' WHERE id IN ('w1', 'w2')")
    assert await retention.forget_gone_workers(scene.db, before, scene.now, 10) == 0
    assert await scene.occupied() >= {key}
    assert await retention.forget_gone_workers(scene.db, scene.tick(), scene.now, 10) == 1
    assert await scene.rows.fetch("SELECT id FROM workers ORDER BY id") == [("w2",), ("w3",)]
    assert key not in await scene.occupied()


# --- flows ------------------------------------------------------------------------------------------------------------


async def served(scene: Scene, flow: str, times: int) -> None:
    for _ in range(times):
        await scene.create(flow=flow)
        await scene.claim_key()


async def times_of(scene: Scene) -> dict[str, int]:
    return dict(await scene.rows.fetch("SELECT flow, virtual_time FROM flows ORDER BY flow"))


async def prune_all_flows(scene: Scene, limit: int) -> None:
    last: retention.FlowKey | None = ("", "")
    while last is not None:
        last = await retention.prune_flows(scene.db, last, limit)


@pytest.mark.parametrize("limit", [1, 100])
async def test_flows_of_an_idle_queue_are_forgotten(scene: Scene, limit: int) -> None:
    await served(scene, "a", 3)
    await served(scene, "b", 1)
    await prune_all_flows(scene, limit)
    assert await times_of(scene) == {}
    # Both begin level, as they would have.
    await scene.create(flow="b", queues=(QUEUE, OTHER_QUEUE))
    await scene.create(flow="a", queues=(QUEUE, OTHER_QUEUE))
    assert set((await times_of(scene)).values()) == {0}


@pytest.mark.parametrize("limit", [1, 100])
async def test_a_flow_that_is_ahead_of_those_who_wait_keeps_its_place(scene: Scene, limit: int) -> None:
    await scene.create(flow="behind")
    await scene.create(flow="waits")
    await scene.create(flow="ahead")
    await scene.rows.run(f"UPDATE flows SET virtual_time = {5 * TURN} WHERE flow = 'ahead'")
    await scene.rows.run(f"UPDATE flows SET virtual_time = {2 * TURN} WHERE flow = 'waits'")
    gone = [row[0] for row in await scene.rows.fetch("SELECT id FROM predictions WHERE flow <> 'waits'")]
    for prediction in gone:
        await scene.db.write(*predictions.end(prediction, 0, Status.CANCELED, now=scene.tick()))
    await prune_all_flows(scene, limit)
    assert await times_of(scene) == {"ahead": 5 * TURN, "waits": 2 * TURN}
    await scene.create(flow="behind")
    assert (await times_of(scene))["behind"] == 2 * TURN
