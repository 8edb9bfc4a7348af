"""What every verb of the life of a prediction promises, over both dialects with the SQL that ships."""

import asyncio

import pytest

from cogflare.store import fleet, predictions
from cogflare.store.base import Conflict, Constraint, Statement, Value
from cogflare.store.listing import Query, list_page
from cogflare.store.predictions import PART_BYTES, Checkpoint, Chunk
from store.scene import OTHER_QUEUE, QUEUE, TURN, Scene

pytestmark = pytest.mark.anyio


# --- create and claim ------------------------------------------------------------------------------------------------


async def test_a_created_prediction_is_claimed_once(scene: Scene) -> None:
    id = await scene.create(pinned=True, deadline=5, webhook="https://x.test", webhook_events="[]", priority=2)
    row = await scene.row(id)
    assert (row.phase, row.status, row.attempt, row.strikes) == ("queued", "starting", 0, 0)
    assert (row.model, row.version, row.pinned, row.data_removed) == ("o/m", "v1", True, False)
    assert type(row.pinned) is bool
    assert (row.deadline, row.webhook, row.webhook_events, row.input) == (5, "https://x.test", "[]", '{"prompt": "x"}')
    assert await scene.entries() == [(id, QUEUE)]
    claimed = await scene.claim()
    about = '{"prompt": "x"}', row.created_at, None, "https://x.test", "[]", None
    assert claimed == predictions.Claimed(id, 1, "acct", "v1", *about)
    assert await scene.claim() is None
    row = await scene.row(id)
    assert (row.phase, row.status, row.attempt) == ("assigned", "starting", 1)
    assert await scene.entries() == []
    assert await scene.waiting() == {(QUEUE, "acct"): 0}
    assert await scene.occupied() == {(id, 1)}


async def test_the_claim_writes_the_version_of_an_unpinned_prediction(scene: Scene) -> None:
    id = await scene.create()
    claimed = await scene.claim("w2")
    assert claimed is not None
    assert claimed.version == "of w2" == (await scene.row(id)).version


async def test_a_create_and_a_claim_may_be_one_unit(scene: Scene) -> None:
    await scene.link("w1")
    older = await scene.create()
    new = predictions.NewPrediction(
        "01aaaaaaaaaaaaaaaaaaaaaaaa", "b", "t", "shared", "o", "m", "v1", False, (QUEUE,), "b", "{}", scene.tick(), "k"
    )
    statements = predictions.insert(new)
    rows = await scene.db.write(*statements, *predictions.claim(scene.wish(), scene.tick()))
    claimed = predictions.claimed(rows[len(statements) :])
    assert claimed is not None
    assert claimed.prediction == older
    assert await scene.entries() == [(new.id, QUEUE)]


async def test_order_within_a_flow_is_priority_then_age(scene: Scene) -> None:
    late, first, urgent = [await scene.create(priority=priority) for priority in (1, 0, -1)]
    second = await scene.create(priority=0)
    assert [(await scene.claim_key())[0] for _ in range(4)] == [urgent, first, second, late]


async def test_flows_take_turns(scene: Scene) -> None:
    for flow, count in (("a", 6), ("b", 3), ("c", 1)):
        for _ in range(count):
            await scene.create(flow)
    order = []
    while claimed := await scene.claim():
        order.append(claimed.account)
    assert sorted(order[:3]) == ["a", "b", "c"]
    assert sorted(order[3:5]) == sorted(order[5:7]) == ["a", "b"]
    assert order[7:] == ["a"] * 3


async def test_a_flow_that_comes_back_saves_up_nothing(scene: Scene) -> None:
    for _ in range(5):
        await scene.create("busy")
        await scene.claim_key()
    assert await scene.rows.fetch("SELECT flow, virtual_time FROM flows") == [("busy", 5 * TURN)]
    # Nobody waits: a new flow starts at the greatest virtual time that was reached.
    await scene.create("new")
    assert (await scene.rows.fetch("SELECT virtual_time FROM flows WHERE flow = 'new'")) == [(5 * TURN,)]
    for _ in range(3):
        await scene.create("busy")
    await scene.claim_key()
    await scene.claim_key()
    # "new" has waited for nothing since; where "busy" waits at 6 turns, it comes back at 6 too.
    await scene.rows.run("UPDATE flows SET virtual_time = 0 WHERE flow = 'new'")
    await scene.create("new")
    assert (await scene.rows.fetch("SELECT virtual_time FROM flows WHERE flow = 'new'")) == [(6 * TURN,)]
    # One that is ahead stays ahead.
    await scene.rows.run(f"UPDATE flows SET virtual_time = {50 * TURN} WHERE flow = 'busy'")
    await scene.create("busy")
    assert (await scene.rows.fetch("SELECT virtual_time FROM flows WHERE flow = 'busy'")) == [(50 * TURN,)]


async def test_a_worker_serves_two_queues_and_no_third(scene: Scene) -> None:
    both = await scene.create(queues=[QUEUE, "acct/o/m"])
    pinned = await scene.create("other", queues=[OTHER_QUEUE])
    await scene.create(queues=["shared:v2"])
    assert await scene.waiting() == {
        (QUEUE, "acct"): 1,
        ("acct/o/m", "acct"): 1,
        (OTHER_QUEUE, "other"): 1,
        ("shared:v2", "acct"): 1,
    }
    assert {(await scene.claim_key())[0] for _ in range(2)} == {both, pinned}
    assert await scene.claim() is None
    assert await scene.waiting() == {
        (QUEUE, "acct"): 0,
        ("acct/o/m", "acct"): 0,
        (OTHER_QUEUE, "other"): 0,
        ("shared:v2", "acct"): 1,
    }


async def test_an_entry_avoids_the_worker_that_lost_it_for_a_while(scene: Scene) -> None:
    await scene.create("a")
    key = await scene.claim_key("w1")
    await scene.requeue(key, avoid="w1", avoid_us=1_000_000)
    assert await scene.claim("w1") is None
    behind = await scene.create("a")
    assert (await scene.claim_key("w1"))[0] == behind
    # Nor does the best flow, with nothing for this worker, keep the others from it.
    other = await scene.create("b")
    await scene.rows.run("UPDATE flows SET virtual_time = 0 WHERE flow = 'a'")
    assert (await scene.claim_key("w1"))[0] == other
    scene.tick(1_000_000)
    assert await scene.claim_key("w1") == (key[0], 2)


async def test_another_worker_takes_what_one_must_avoid(scene: Scene) -> None:
    await scene.create()
    key = await scene.claim_key("w1")
    await scene.requeue(key, avoid="w1", avoid_us=1_000_000)
    assert await scene.claim_key("w2") == (key[0], 2)


async def test_an_old_link_claims_nothing(scene: Scene) -> None:
    await scene.link("w1")
    await scene.link("w1")
    await scene.create()
    assert await scene.claim(epoch=1) is None
    assert await scene.claim(epoch=3) is None
    assert predictions.claimed(await scene.db.write(*predictions.claim(scene.wish("gone", 1), scene.now))) is None
    assert await scene.claim(epoch=2) is not None


async def test_held_entries_wait_outside(scene: Scene) -> None:
    id = await scene.create()
    await scene.rows.run("UPDATE queue_entries SET not_before = 9")
    assert await scene.waiting() == {(QUEUE, "acct"): 0}
    assert await scene.claim() is None
    await scene.rows.run("UPDATE queue_entries SET not_before = 10")
    assert await scene.waiting() == {(QUEUE, "acct"): 0}
    await scene.rows.run("UPDATE queue_entries SET not_before = NULL")
    assert await scene.waiting() == {(QUEUE, "acct"): 1}
    await scene.rows.run("UPDATE queue_entries SET not_before = 9")
    await scene.cancel((id, 0))
    assert await scene.waiting() == {(QUEUE, "acct"): 0}


async def test_the_queues_that_wait_are_known(scene: Scene) -> None:
    await scene.create("a")
    await scene.create("b")
    await scene.create(queues=[OTHER_QUEUE])
    assert sorted(await scene.db.read("ready_queues")) == [(QUEUE,), (OTHER_QUEUE,)]
    while await scene.claim():
        pass
    assert await scene.db.read("ready_queues") == []


async def test_enqueue_leaves_what_is_not_queued_alone(scene: Scene) -> None:
    id = await scene.create()
    await scene.cancel((id, 0))
    await scene.db.write(*predictions.enqueue(id, [QUEUE, OTHER_QUEUE]))
    assert await scene.entries() == []


# --- finish, cancel, requeue -----------------------------------------------------------------------------------------


async def test_a_finish_ends_everything(scene: Scene) -> None:
    await scene.create()
    key = await scene.claim_key()
    await scene.finish(key, started_at=7, logs="log", log_bytes=3, metrics="{}", slot_free=True)
    row = await scene.row(key[0])
    assert (row.phase, row.status, row.started_at, row.completed_at) == ("ended", "succeeded", 7, scene.now)
    assert (row.output, row.logs, row.log_bytes, row.metrics) == ('"done"', "log", 3, "{}")
    attempt = (await fleet.list_attempts(scene.db, key[0]))[0]
    assert attempt == fleet.AttemptRow(
        1, "w1", attempt.claimed_at, 7, scene.now, "succeeded", None, slot_freed_at=scene.now
    )
    assert await scene.occupied() == set()
    assert await fleet.live_attempts(scene.db) == []
    for again in (scene.finish(key, status="failed"), scene.cancel(key), scene.requeue(key)):
        with pytest.raises(Conflict):
            await again
    assert await scene.row(key[0]) == row


async def test_a_finish_may_keep_its_slot(scene: Scene) -> None:
    await scene.create()
    key = await scene.claim_key()
    await scene.finish(key)
    assert await scene.occupied() == {key}
    await scene.db.write(fleet.free_slots("w2", 1, [key], scene.tick()))
    assert await scene.occupied() == {key}
    await scene.db.write(fleet.free_slots("w1", 1, [key], scene.tick()))
    assert await scene.occupied() == set()


async def test_only_the_holder_of_the_current_attempt_finishes(scene: Scene) -> None:
    id = await scene.create()
    key = await scene.claim_key("w1")
    for attempt in (0, 2):
        with pytest.raises(Conflict):
            await scene.finish((id, attempt))
    with pytest.raises(Conflict):
        await scene.finish(key, worker="w2")
    await scene.requeue(key)
    with pytest.raises(Conflict):
        await scene.finish(key, worker="w2")
    assert await scene.claim_key("w2") == (id, 2)
    with pytest.raises(Conflict):
        await scene.finish(key, worker="w1")
    with pytest.raises(Conflict):
        await scene.finish((id, 2), worker="w1")
    assert (await scene.row(id)).phase == "assigned"
    await scene.finish((id, 2), worker="w2")


async def test_a_finish_counts_after_a_rescue_that_nobody_claimed(scene: Scene) -> None:
    await scene.create()
    key = await scene.claim_key()
    await scene.requeue(key)
    await scene.finish(key, status="failed", error="no", output=None)
    row, state = await scene.row(key[0]), await scene.attempt(key)
    assert (row.phase, row.status, row.error) == ("ended", "failed", "no")
    assert (state.outcome, state.current, state.phase) == ("failed", 1, "ended")
    assert (await fleet.list_attempts(scene.db, key[0]))[0].reason is None
    assert await scene.entries() == []
    assert await scene.waiting() == {(QUEUE, "acct"): 0}
    assert await scene.claim() is None


async def test_cancel_ends_every_phase_once(scene: Scene) -> None:
    queued, claimed, running, requeued, ended = [await scene.create() for _ in range(5)]
    await scene.cancel((queued, 0))
    keys = [await scene.claim_key() for _ in range(4)]
    assert [key[0] for key in keys] == [claimed, running, requeued, ended]
    await scene.checkpoint(keys[1])
    await scene.requeue(keys[2])
    await scene.finish(keys[3])
    for key in keys[:3]:
        await scene.cancel(key)
    with pytest.raises(Conflict):
        await scene.cancel(keys[3])
    with pytest.raises(Conflict):
        await scene.cancel((queued, 0))
    statuses = [(await scene.row(id)).status for id in (queued, claimed, running, requeued, ended)]
    assert statuses == ["canceled"] * 4 + ["succeeded"]
    assert [(await scene.attempt(key)).outcome for key in keys] == ["canceled", "canceled", "lost", "succeeded"]
    # The slot stays taken until the worker gives it back.
    assert await scene.occupied() == {keys[0], keys[1], keys[3]}
    assert await scene.entries() == []
    assert await scene.waiting() == {(QUEUE, "acct"): 0}


async def test_a_cancel_of_what_has_moved_is_a_conflict(scene: Scene) -> None:
    id = await scene.create()
    await scene.claim_key()
    with pytest.raises(Conflict):
        await scene.cancel((id, 0))
    assert (await scene.row(id)).phase == "assigned"


async def test_an_attempt_does_not_end_while_its_prediction_runs(scene: Scene) -> None:
    await scene.create()
    key = await scene.claim_key()
    lost = predictions.end_attempt(*key, "lost", now=scene.tick(), slot_free=True)
    await scene.db.write(lost)
    assert (await scene.attempt(key)).outcome is None
    await scene.requeue(key)
    await scene.db.write(predictions.end_attempt(*key, "canceled", now=scene.tick(), reason="late"))
    attempt = (await fleet.list_attempts(scene.db, key[0]))[0]
    assert (attempt.outcome, attempt.reason) == ("lost", "silent")


async def test_a_requeue_is_a_strike_only_after_the_start(scene: Scene) -> None:
    await scene.create()
    key = await scene.claim_key()
    await scene.requeue(key)
    row = await scene.row(key[0])
    assert (row.phase, row.status, row.strikes, row.started_at) == ("queued", "starting", 0, None)
    assert await scene.entries() == [(key[0], QUEUE)]
    key = await scene.claim_key()
    await scene.checkpoint(key, items=2, log_bytes=5)
    row = await scene.row(key[0])
    assert (row.phase, row.status, row.output_items, row.log_bytes) == ("running", "processing", 2, 5)
    started_at = row.started_at
    await scene.requeue(key)
    row = await scene.row(key[0])
    assert (row.phase, row.status, row.strikes, row.started_at) == ("queued", "processing", 1, started_at)
    assert (row.output_items, row.log_bytes) == (None, 0)
    with pytest.raises(Conflict):
        await scene.requeue(key)
    assert await scene.claim_key() == (key[0], 3)


# --- live data -------------------------------------------------------------------------------------------------------


async def test_checkpoints_may_be_repeated(scene: Scene) -> None:
    await scene.create()
    key = await scene.claim_key()
    escaped = '"a nul \\u0000, a quote \\" and \\ud83d\\ude00"'
    chunks = [Chunk(*key, "output", 0, escaped), Chunk(*key, "log", 0, "né \\u0000\n"), Chunk(*key, "log", 11, "two")]
    for _ in range(2):
        await scene.checkpoint(key, items=1, log_bytes=14, chunks=chunks)
    first = (await scene.attempt(key)).started_at
    await scene.checkpoint(key, items=2, log_bytes=14, chunks=[Chunk(*key, "output", 0, '"shorter"')])
    state = await scene.attempt(key)
    assert (state.started_at, state.output_items, state.log_bytes) == (first, 2, 14)
    assert await predictions.chunks(scene.db, [key, ("gone", 1)]) == [chunks[1], chunks[2], chunks[0]]
    assert await predictions.chunks(scene.db, []) == []


async def test_one_unit_checkpoints_many(scene: Scene) -> None:
    keys = []
    for _ in range(3):
        await scene.create()
        keys.append(await scene.claim_key())
    points = [Checkpoint(*key, 100 + n, n or None, n, epoch=1) for n, key in enumerate(keys)]
    await scene.db.write(*predictions.checkpoint(points, []))
    states = [await scene.attempt(key) for key in keys]
    assert [(state.started_at, state.output_items, state.log_bytes) for state in states] == [
        (100, 0, 0),
        (101, 1, 1),
        (102, 2, 2),
    ]
    assert [(await scene.row(key[0])).output_items for key in keys] == [None, 1, 2]


async def test_a_checkpoint_of_an_old_attempt_moves_nothing(scene: Scene) -> None:
    await scene.create()
    key = await scene.claim_key()
    await scene.requeue(key)
    await scene.checkpoint(key, items=3)
    row = await scene.row(key[0])
    assert (row.phase, row.output_items) == ("queued", None)
    newer = await scene.claim_key("w2")
    await scene.checkpoint(key, items=3)
    assert ((await scene.row(key[0])).phase, (await scene.attempt(newer)).output_items) == ("assigned", 0)
    assert (await scene.attempt(key)).output_items == 0


async def test_a_checkpoint_of_an_old_link_moves_nothing(scene: Scene) -> None:
    await scene.create()
    key = await scene.claim_key()
    await scene.link("w1", held=[key])
    stale, fresh = (Chunk(*key, "output", 0, data) for data in ("1,2,3", "1,2,3,4"))
    await scene.checkpoint(key, items=3, chunks=[stale], epoch=1)
    assert (await scene.row(key[0])).phase == "assigned"
    assert (await scene.attempt(key)).output_items == 0
    assert await predictions.chunks(scene.db, [key]) == []
    await scene.checkpoint(key, items=4, chunks=[fresh])
    assert await predictions.chunks(scene.db, [key]) == [fresh]


async def test_a_longer_chunk_replaces_a_shorter_one(scene: Scene) -> None:
    await scene.create()
    key = await scene.claim_key()
    short, long = Chunk(*key, "output", 0, "1,2"), Chunk(*key, "output", 0, "1,2,3")
    for chunk, kept in ((short, short), (long, long), (short, long)):
        await scene.db.write(predictions.append_chunks([chunk]))
        assert await predictions.chunks(scene.db, [key]) == [kept]


async def test_a_rescuer_leaves_a_lease_that_was_renewed(scene: Scene) -> None:
    await scene.create()
    key = await scene.claim_key()
    await scene.db.write(fleet.renew("w1", 1, [key]))
    with pytest.raises(Conflict):
        await scene.requeue(key, renewals=0)
    assert await scene.entries() == []
    await scene.requeue(key, renewals=1)


async def test_a_large_input_lies_apart(scene: Scene) -> None:
    large = '{"text": "' + "é\\u0000x" * 100_000 + '"}'
    id = await scene.create(input=large)
    small = await scene.create()
    assert (await scene.row(id)).input is None
    claimed = await scene.claim()
    assert claimed is not None
    assert claimed.input is None
    assert await predictions.inputs(scene.db, [id, small]) == {id: large}
    sizes = await scene.rows.fetch("SELECT length(data) FROM inputs")
    assert len(sizes) > 2
    assert max(size for (size,) in sizes) <= PART_BYTES


async def test_a_result_is_put_in_parts(scene: Scene) -> None:
    await scene.create()
    key = await scene.claim_key()

    async def put(position: int, data: str, worker: str = "w1", attempt: int = 1) -> bool:
        place: dict[str, Value] = {"prediction": key[0], "attempt": attempt, "position": position}
        return bool((await scene.db.write(Statement("put_result", {**place, "worker": worker, "data": data})))[0])

    assert await put(0, "[1,é")
    assert await put(5, '"\\u0000"]')
    assert await put(5, '"\\u0000"] ')
    assert not await put(9, "no", worker="w2")
    assert not await put(9, "no", attempt=2)
    assert await scene.db.read("result_bytes", prediction=key[0], attempt=1) == [(15,)]
    assert await scene.db.read("result_bytes", prediction=key[0], attempt=2) == [(0,)]
    await scene.finish(key, output=None, output_bytes=15)
    assert not await put(15, "late")
    assert "".join(chunk.data for chunk in await predictions.chunks(scene.db, [key])) == '[1,é"\\u0000"] '
    await scene.db.write(Statement("drop_results", {"prediction": key[0], "attempt": 1}))
    assert await predictions.chunks(scene.db, [key]) == []


async def test_the_tail_commits_with_the_finish(scene: Scene) -> None:
    await scene.create()
    key = await scene.claim_key()
    tail = [Chunk(*key, "output", 0, "1,2"), Chunk(*key, "log", 0, "log")]
    await scene.finish(key, chunks=tail, output=None, output_items=2, log_bytes=3)
    assert sorted(await predictions.chunks(scene.db, [key]), key=lambda chunk: chunk.kind, reverse=True) == tail
    state = await scene.attempt(key)
    assert (state.output_items, state.log_bytes) == (2, 3)
    with pytest.raises(Conflict):
        await scene.finish(key, chunks=[Chunk(*key, "log", 3, "more")])
    assert len(await predictions.chunks(scene.db, [key])) == 2


# --- lists -----------------------------------------------------------------------------------------------------------


async def test_pages_go_both_ways_with_every_filter(scene: Scene) -> None:
    ids = [await scene.create(name="m" if n % 2 else "n") for n in range(12)]
    others = [await scene.create("other") for _ in range(3)]
    for id in ids[:4]:
        await scene.cancel((id, 0))
    times = [(await scene.row(id)).created_at for id in ids]
    newest = ids[::-1]

    async def page(**query: object) -> list[str]:
        found = await list_page(scene.db, Query("acct", **query))  # type: ignore[arg-type]
        return [row.id for row in found]

    assert await page() == newest
    assert await page(limit=5) == newest[:5]
    assert await page(limit=5, before=newest[4]) == newest[5:10]
    assert await page(limit=5, before=newest[9]) == newest[10:]
    assert await page(limit=5, after=newest[10]) == newest[5:10]
    assert await page(limit=5, after=newest[5]) == newest[:5]
    assert await page(before=newest[2], after=newest[6]) == newest[3:6]
    assert await page(status="canceled") == ids[3::-1]
    assert await page(status="canceled", before=ids[2], limit=1) == [ids[1]]
    assert await page(status="canceled", after=ids[0], limit=2) == [ids[2], ids[1]]
    assert await page(model="o/m") == [id for n, id in reversed(list(enumerate(ids))) if n % 2]
    assert await page(model="o/m", before=ids[7], limit=2) == [ids[5], ids[3]]
    assert await page(model="o/m", after=ids[5], limit=1) == [ids[7]]
    assert await page(model="o/m", status="canceled") == [ids[3], ids[1]]
    assert await page(model="o/m", status="canceled", after=ids[1]) == [ids[3]]
    assert await page(created_from=times[3], created_to=times[6]) == [ids[5], ids[4], ids[3]]
    assert await page(created_from=times[3], model="o/m", limit=2) == [ids[11], ids[9]]
    assert await page(created_to=times[3], status="canceled") == [ids[2], ids[1], ids[0]]
    assert await page(created_from=times[3], created_to=times[6], after=ids[3]) == [ids[5], ids[4]]
    assert await page(status="failed") == []
    assert [row.id for row in await list_page(scene.db, Query("other"))] == others[::-1]
    assert await list_page(scene.db, Query("nobody")) == []


# --- races -----------------------------------------------------------------------------------------------------------


async def test_claims_at_once_never_share_an_entry(scene: Scene) -> None:
    ids = [await scene.create(f"f{n % 3}") for n in range(30)]
    for worker in ("w1", "w2", "w3"):
        await scene.link(worker)
    claims = await asyncio.gather(*(scene.claim(f"w{n % 3 + 1}") for n in range(40)))
    assert sorted(claimed.prediction for claimed in claims if claimed) == ids
    assert set((await scene.waiting()).values()) == {0}


async def test_a_repeated_create_is_refused(scene: Scene) -> None:
    new = predictions.NewPrediction("x", "a", "t", "shared", "o", "m", "v", False, (QUEUE,), "a", "{}", 1, "k")
    await scene.db.write(*predictions.insert(new))
    with pytest.raises(Constraint):
        await scene.db.write(*predictions.insert(new))
    assert await scene.waiting() == {(QUEUE, "a"): 1}
    assert await predictions.get(scene.db, "y") is None
