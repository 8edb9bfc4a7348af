"""What the verbs of pauses, second chances and quarantines promise, over both dialects."""

import asyncio
from typing import Any

import msgspec
import pytest

from cogflare.store import fleet, recovery
from cogflare.store.base import Conflict
from cogflare.store.listing import Query, list_page
from cogflare.store.recovery import Loss, SetupFailure, Standing
from store.scene import OTHER_QUEUE, QUEUE, Scene

pytestmark = pytest.mark.anyio

S = 1_000_000
MOST = 3


# --- pauses ----------------------------------------------------------------------------------------------------------


async def lost(scene: Scene, pause_us: int = S, **fields: Any) -> tuple[str, int]:
    """Return a prediction whose first attempt had started and was lost."""
    await scene.create()
    key = await scene.claim_key()
    await scene.checkpoint(key)
    await scene.requeue(key, pause_us=pause_us, **fields)
    return key


async def test_nobody_gets_what_pauses_until_it_is_released(scene: Scene) -> None:
    id, _ = await lost(scene, queues=(QUEUE, OTHER_QUEUE))
    row = await scene.row(id)
    assert (row.phase, row.status, row.strikes) == ("parked", "processing", 1)
    assert await scene.waiting() == {(QUEUE, "acct"): 0}
    assert await scene.claim("w2") is None
    assert await scene.release() == set()
    scene.tick(S)
    assert await scene.release() == {id}
    assert await scene.waiting() == {(QUEUE, "acct"): 1, (OTHER_QUEUE, "acct"): 1}
    assert await scene.release() == set(), "once"
    assert await scene.claim_key("w2") == (id, 2)
    assert await scene.entries() == []


async def test_how_long_a_worker_is_avoided_counts_from_the_release(scene: Scene) -> None:
    await lost(scene, avoid="w1", avoid_us=S)
    scene.tick(10 * S)
    assert await scene.release(avoid_us=S)
    assert await scene.claim("w1") is None
    scene.tick(S)
    assert await scene.claim("w1") is not None


async def test_a_clock_that_was_set_back_holds_nothing(scene: Scene) -> None:
    parked, _ = await lost(scene, pause_us=S)
    scene.now -= 3600 * S
    assert await scene.release(latest_us=2 * S) == {parked}
    avoiding, _ = await lost(scene, pause_us=0, avoid="w1", avoid_us=S)
    await scene.cancel((parked, 1))
    scene.now -= 3600 * S
    assert (await scene.claim_key("w1"))[0] == avoiding


async def test_the_pauses_under_way(scene: Scene) -> None:
    assert await recovery.pauses(scene.db) is None
    await lost(scene, pause_us=S)
    first = scene.now + S
    await lost(scene, pause_us=2 * S)
    assert await recovery.pauses(scene.db) == (first, scene.now + 2 * S)


@pytest.mark.parametrize("how", ["cancel", "finish", "readopt"])
async def test_what_ends_or_goes_on_leaves_nothing_to_release(scene: Scene, how: str) -> None:
    key = await lost(scene)
    if how == "cancel":
        await scene.cancel(key)
    elif how == "finish":
        await scene.finish(key)
    else:
        assert [item.prediction for item in await scene.link("w1", held=[key])] == [key[0]]
    phase = (await scene.row(key[0])).phase
    assert phase == ("running" if how == "readopt" else "ended")
    assert await scene.entries() == []
    scene.tick(S)
    assert await scene.release() == set()
    assert (await scene.row(key[0])).phase == phase
    assert await scene.waiting() == {(QUEUE, "acct"): 0}


async def test_a_late_release_does_not_shorten_the_next_pause(scene: Scene) -> None:
    key = await lost(scene)
    scene.tick(S)
    now = scene.tick()
    stale = await recovery.due(scene.db, now, now + S, 10)
    assert await scene.release() == {key[0]}
    again = await scene.claim_key("w2")
    await scene.requeue(again, pause_us=S)
    await scene.db.write(*recovery.release(stale, now, now + 2 * S, now))
    assert (await scene.row(key[0])).phase == "parked"
    assert await scene.waiting() == {(QUEUE, "acct"): 0}


# --- second chances --------------------------------------------------------------------------------------------------


async def struck_out(scene: Scene, **fields: Any) -> str:
    id = await scene.create(**fields)
    await scene.strike_out((id, 0))
    return id


async def test_the_list_of_what_struck_out(scene: Scene) -> None:
    ids = [await struck_out(scene) for _ in range(3)]
    other = await struck_out(scene, name="other")
    await struck_out(scene, flow="eve")
    canceled = await scene.create()
    await scene.cancel((canceled, 0))
    page = await list_page(scene.db, Query("acct", struck_out=True))
    assert [row.id for row in page] == [other, *reversed(ids)]
    assert all(row.struck_out and row.status == "failed" for row in page)
    filtered = Query("acct", struck_out=True, model="o/m", limit=2)
    assert [row.id for row in await list_page(scene.db, filtered)] == [ids[2], ids[1]]
    upwards = Query("acct", struck_out=True, after=ids[0], limit=2)
    assert [row.id for row in await list_page(scene.db, upwards)] == [ids[2], ids[1]]
    assert await scene.make_anew(ids[1]) is not None
    page = await list_page(scene.db, Query("acct", struck_out=True))
    assert [row.id for row in page] == [other, ids[2], ids[0]]


async def test_a_new_one_is_made_once(scene: Scene) -> None:
    old = await struck_out(scene)
    made = await asyncio.gather(*(scene.make_anew(old) for _ in range(5)))
    [new] = [id for id in made if id is not None]
    row = await scene.row(old)
    assert (row.phase, row.status, row.requeued_as, row.struck_out) == ("ended", "failed", new, False)
    assert (await scene.row(new)).phase == "queued"
    assert len(await scene.entries()) == 1


async def test_what_cannot_be_made_anew(scene: Scene) -> None:
    waiting = await scene.create()
    assert await scene.make_anew(waiting) is None
    done = await scene.claim_key()
    await scene.finish(done)
    assert await scene.make_anew(done[0]) is None
    removed = await struck_out(scene)
    await scene.rows.run(f"UPDATE predictions SET data_removed = 1 WHERE id = '{removed}'")
    assert await scene.make_anew(removed) is None
    for status in ("failed", "canceled"):
        id = await scene.create()
        await scene.finish(await scene.claim_key(), status=status)
        assert await scene.make_anew(id) is not None
        await scene.cancel(await scene.claim_key())


# --- workers ---------------------------------------------------------------------------------------------------------


async def lose(
    scene: Scene, worker: str = "w1", started_at: int | None = None, reason: str = "gone"
) -> Standing | None:
    started = scene.tick() if started_at is None else started_at
    return await recovery.count_loss(scene.db, Loss(worker, reason, started, scene.tick(), MOST))


async def test_losses_in_a_row_set_a_worker_aside(scene: Scene) -> None:
    await scene.link("w1")
    assert [await lose(scene), await lose(scene)] == [Standing(1), Standing(2)]
    assert await recovery.quarantined(scene.db) == {}
    aside = await lose(scene, reason="the third")
    assert aside == Standing(3, 1, "the third", scene.now)
    assert await lose(scene, reason="one that still ran") == msgspec.structs.replace(aside, losses=4)
    assert await recovery.quarantined(scene.db) == {"w1": msgspec.structs.replace(aside, losses=4)}
    [row] = await fleet.list_workers(scene.db, None, "", 10)
    assert (row.quarantine, row.quarantined_at) == ("the third", aside.quarantined_at)
    assert await lose(scene, "nobody") is None


async def test_what_is_lost_together_counts_once(scene: Scene) -> None:
    await scene.link("w1")
    before = scene.tick()
    for _ in range(8):
        await lose(scene, started_at=before)
    assert await recovery.standing(scene.db, "w1") == Standing(1)
    assert await lose(scene) == Standing(2)
    scene.now -= 3600 * S
    assert await lose(scene) is not None, "the clock was set back"


async def test_a_success_clears_the_record_but_ends_no_quarantine(scene: Scene) -> None:
    await scene.link("w1")
    await lose(scene)
    await recovery.forget_losses(scene.db, "w1", 99)
    assert await recovery.standing(scene.db, "w1") == Standing(1), "over another link"
    await recovery.forget_losses(scene.db, "w1", 1)
    assert await recovery.standing(scene.db, "w1") == Standing()
    for _ in range(MOST):
        await lose(scene)
    await recovery.forget_losses(scene.db, "w1", 1)
    standing = await recovery.standing(scene.db, "w1")
    assert standing is not None
    assert standing.quarantine == "gone"


async def test_a_quarantine_ends_in_probation(scene: Scene) -> None:
    await scene.link("w1")
    assert await recovery.lift(scene.db, "w1", 1, MOST - 1) is None, "there is none"
    for _ in range(MOST):
        await lose(scene)
    assert await recovery.lift(scene.db, "w1", 99, MOST - 1) is None, "over another link"
    assert await recovery.lift(scene.db, "w1", 1, MOST - 1) == Standing(MOST - 1, 1)
    again = await lose(scene)
    assert again is not None
    assert (again.quarantines, again.quarantine) == (2, "gone")


async def test_the_own_word_of_a_worker_sets_it_aside_at_once(scene: Scene) -> None:
    await scene.link("w1")
    now = scene.tick()
    assert await recovery.set_aside(scene.db, "w1", 99, "no GPU", now) is None
    assert await recovery.set_aside(scene.db, "w1", 1, "no GPU", now) == Standing(0, 1, "no GPU", now)
    assert await recovery.set_aside(scene.db, "w1", 1, "still no GPU", now + 5) == Standing(0, 1, "still no GPU", now)


async def test_a_quarantine_outlives_the_link_but_not_the_process(scene: Scene) -> None:
    await scene.link("w1")
    for _ in range(MOST):
        await lose(scene)
    hello = msgspec.structs.replace(scene.hello("w1"), probation=MOST - 1)
    opened = await fleet.open_link(scene.db, hello, [])
    assert opened is not None
    assert (opened.standing.losses, opened.standing.quarantine) == (MOST, "gone")
    opened = await fleet.open_link(scene.db, msgspec.structs.replace(hello, instance="i2"), [])
    assert opened is not None
    assert opened.standing == Standing(MOST - 1, 1)
    assert await recovery.quarantined(scene.db) == {}


async def test_who_is_set_aside_is_no_other_worker(scene: Scene) -> None:
    offers = '[{"owner": "o", "name": "m", "version": "v1", "slots": 1}]'
    await fleet.open_link(scene.db, msgspec.structs.replace(scene.hello("w2"), offers=offers), [])
    assert await fleet.has_other_worker(scene.db, "w1", ["shared"], ("o", "m"), "v1")
    await recovery.set_aside(scene.db, "w2", 1, "no GPU", scene.tick())
    assert not await fleet.has_other_worker(scene.db, "w1", ["shared"], ("o", "m"), "v1")


async def test_a_worker_that_never_came_is_shown_with_the_reason(scene: Scene) -> None:
    offers = '[{"owner": "o", "name": "m", "version": "", "slots": 0}]'
    failure = SetupFailure("w1", "shared", "t2", "pc", offers, "no module named torch", scene.tick())
    assert await recovery.note_setup_failure(scene.db, failure)
    [row] = await fleet.list_workers(scene.db, None, "", 10)
    assert (row.state, row.quarantine, row.link_epoch, row.offers) == ("offline", failure.reason, 0, offers)
    await scene.account("other")
    foreign = msgspec.structs.replace(failure, account="other")
    assert not await recovery.note_setup_failure(scene.db, foreign)
    await scene.link("w1")
    assert scene.epochs["w1"] == 1
    assert await recovery.quarantined(scene.db) == {}
    assert await recovery.note_setup_failure(scene.db, failure), "it fails again after a restart"
    [row] = await fleet.list_workers(scene.db, None, "", 10)
    assert (row.quarantine, row.name) == (failure.reason, "pc")


async def test_a_prediction_that_is_held_is_not_parked(scene: Scene) -> None:
    await scene.create()
    key = await scene.claim_key()
    await scene.db.write(*recovery.park(key[0], [QUEUE], scene.now, None, None))
    assert await scene.entries() == []
    await scene.finish(key)
    with pytest.raises(Conflict):
        await scene.requeue(key, pause_us=S)
