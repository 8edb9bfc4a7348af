"""The verbs of limits and repetitions, over both databases."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cogflare.domain.phases import Status
from cogflare.store import catalog, idempotency, limits, predictions
from cogflare.store.base import Conflict, Constraint
from cogflare.store.idempotency import Known
from cogflare.store.limits import Filter
from cogflare.store.open import open_database
from store.scene import Rows, Scene

pytestmark = pytest.mark.anyio
S = 1_000_000


# --- full queues ------------------------------------------------------------------------------------------------------


async def test_of_many_creates_at_once_exactly_as_many_get_in_as_may_wait(scene: Scene) -> None:
    creates = [scene.create("ann", max_queued=20) for _ in range(50)]
    outcomes = await asyncio.gather(*creates, return_exceptions=True)
    assert sum(isinstance(outcome, str) for outcome in outcomes) == 20
    refused = [outcome for outcome in outcomes if isinstance(outcome, Conflict)]
    assert {error.statement for error in refused} == {"insert_prediction"}
    assert await limits.waiting(scene.db, "ann") == 20
    assert len(await scene.entries()) == 20
    await scene.create("bob", max_queued=20)


async def test_what_was_claimed_or_canceled_waits_no_more(scene: Scene) -> None:
    first, _ = await scene.create(max_queued=2), await scene.create(max_queued=2)
    await scene.claim_key()
    await scene.create(max_queued=2)
    with pytest.raises(Conflict):
        await scene.create(max_queued=2)
    key = await scene.claim_key()
    assert key[0] != first
    await scene.cancel(key)
    await scene.create(max_queued=2)


async def test_a_model_is_counted_over_all_accounts_and_with_the_version_in_question(scene: Scene) -> None:
    queues: dict[str, Any] = {"queues": ["shared/o/m"], "max_queued_model": 3}
    await scene.create("ann", **queues)
    await scene.create("bob", **queues)
    await scene.create("bob", queues=["shared:v1"], pinned=True, max_queued_model=3)
    for account, one in (("ann", queues), ("eve", {**queues, "queues": ["shared:v1"], "pinned": True})):
        with pytest.raises(Conflict):
            await scene.create(account, **one)
    await scene.create("ann", name="other", queues=["shared/o/other"], version="v2", max_queued_model=3)


async def test_two_nodes_exceed_a_limit_by_no_more_than_they_commit_at_once(new_url: Callable[[str], str]) -> None:
    url = new_url("postgres")
    rows = await Rows.open(url)
    nodes = [Scene(open_database(url), rows) for _ in range(2)]
    await nodes[0].db.migrate()
    nodes[1].now += 1
    try:
        for _ in range(20):
            await asyncio.gather(*(node.create("ann", max_queued=10) for node in nodes), return_exceptions=True)
        assert 10 <= await limits.waiting(nodes[0].db, "ann") <= 11
    finally:
        await rows.aclose()
        for node in nodes:
            await node.db.aclose()


# --- what is due ------------------------------------------------------------------------------------------------------


async def test_what_is_due(scene: Scene) -> None:
    now = scene.now
    await scene.create(deadline=now + 60 * S, start_by=now + 60 * S)
    await scene.create()
    started = await scene.create(queues=["shared:v1"], start_by=now + 5 * S)
    key = await scene.claim_key()
    while key[0] != started:
        key = await scene.claim_key()
    await scene.checkpoint(key)
    both = await scene.create(deadline=now + 10 * S, start_by=now + 5 * S)
    gone = await scene.create(deadline=now + 5 * S)
    late = await scene.create(start_by=now + 8 * S)
    await scene.cancel((gone, 0))
    assert await limits.due(scene.db, now + 4 * S, 10) == {}
    assert await limits.due(scene.db, now + 5 * S, 10) == {both: "start"}
    assert await limits.due(scene.db, now + 20 * S, 10) == {both: "deadline", late: "start"}
    assert len(await limits.due(scene.db, now + 20 * S, 1)) == 1


async def test_what_has_started_is_canceled_and_not_aborted(scene: Scene) -> None:
    waits, runs = await scene.create(), await scene.create()
    await scene.db.write(*predictions.end(waits, 0, Status.ABORTED, now=scene.tick()))
    key = await scene.claim_key()
    await scene.checkpoint(key)
    with pytest.raises(Conflict):
        await scene.db.write(*predictions.end(*key, Status.FAILED, now=scene.tick(), unstarted=True))
    await scene.db.write(*predictions.end(*key, Status.ABORTED, now=scene.tick()))
    assert [(await scene.row(one)).status for one in (waits, runs)] == ["aborted", "canceled"]
    only_known = await scene.create()
    await scene.db.write(*predictions.end(only_known, 0, Status.ABORTED, now=scene.tick(), started_at=scene.now))
    assert (await scene.row(only_known)).status == "canceled"


async def test_live_predictions_by_filter(scene: Scene) -> None:
    first, second = await scene.create("ann"), await scene.create("ann", name="other")
    await scene.create("bob")
    key = await scene.claim_key()
    await scene.checkpoint(key)
    third = await scene.create("ann")
    assert key[0] == first
    assert await limits.live(scene.db, Filter("ann"), "starting", 10) == [third, second]
    assert await limits.live(scene.db, Filter("ann"), "processing", 10) == [first]
    assert await limits.live(scene.db, Filter("ann", model="o/other"), "starting", 10) == [second]
    born = (await scene.row(third)).created_at
    assert await limits.live(scene.db, Filter("ann", created_from=born), "starting", 10) == [third]
    assert await limits.live(scene.db, Filter("ann", created_to=born), "starting", 10) == [second]
    assert await limits.live(scene.db, Filter("ann"), "starting", 1) == [third]


async def test_a_claim_tells_the_run_limit(scene: Scene) -> None:
    await scene.create(run_limit_s=12.5)
    claimed = await scene.claim()
    assert claimed is not None
    assert claimed.run_limit_s == 12.5
    assert (await scene.row(claimed.prediction)).run_limit_s == 12.5


# --- repetitions ------------------------------------------------------------------------------------------------------


async def test_an_id_of_a_client_is_unique_in_its_account(scene: Scene) -> None:
    made = await scene.create("ann", client_id="job")
    other = await scene.create("bob", client_id="job")
    with pytest.raises(Constraint):
        await scene.create("ann", client_id="job")
    for account, expected in (("ann", made), ("bob", other)):
        row = await predictions.get_by_client_id(scene.db, account, "job")
        assert row is not None
        assert (row.id, row.client_id) == (expected, "job")
    assert await predictions.get_by_client_id(scene.db, "eve", "job") is None
    assert len(await scene.entries()) == 2


async def test_a_key_is_kept_once_until_it_is_old(scene: Scene) -> None:
    async def keep(account: str, prediction: str, now: int) -> None:
        known = Known(f"print of {prediction}", prediction)
        await scene.db.write(idempotency.keep_key(account, "k", known, now, now - 10))

    await keep("ann", "p1", 100)
    await keep("bob", "p2", 100)
    with pytest.raises(Conflict) as refused:
        await keep("ann", "p3", 109)
    assert refused.value.statement == "keep_key"
    assert await idempotency.find_key(scene.db, "ann", "k", 99) == Known("print of p1", "p1")
    assert await idempotency.find_key(scene.db, "ann", "k", 100) is None
    await keep("ann", "p4", 110)
    assert await idempotency.find_key(scene.db, "ann", "k", 100) == Known("print of p4", "p4")
    assert await idempotency.find_key(scene.db, "eve", "k", 0) is None


async def test_each_create_meets_each_number_once(scene: Scene) -> None:
    for prediction, account, number in (("p1", "ann", 0), ("p2", "ann", 0), ("p3", "bob", 0), ("p4", "ann", 2)):
        await scene.db.write(idempotency.keep_retry(account, Known("same", prediction), number, 100))

    async def attach(number: int, since: int = 0) -> str | None:
        return await idempotency.attach_retry(scene.db, "ann", "same", number, 200, since)

    assert await asyncio.gather(*(attach(1) for _ in range(3))) == ["p1", "p2", None]
    assert await attach(2, since=200) is None
    assert [await attach(2), await attach(3), await attach(3), await attach(3)] == ["p1", "p1", "p2", "p4"]
    assert await attach(3) is None
    assert await idempotency.attach_retry(scene.db, "ann", "other", 1, 200, 0) is None


async def test_pruning_takes_one_kind_in_bites(scene: Scene) -> None:
    for number in range(5):
        await scene.db.write(idempotency.keep_retry("ann", Known("f", f"p{number}"), 0, number))
        await scene.db.write(idempotency.keep_key("ann", f"k{number}", Known("f", f"p{number}"), number, -1))
    assert await idempotency.prune(scene.db, "retry", 3, 3) == 3
    assert await idempotency.prune(scene.db, "retry", 3, 3) == 1
    left = await scene.rows.fetch("SELECT kind, key FROM idempotency ORDER BY kind, key")
    assert left == [*(("key", f"k{number}") for number in range(5)), ("retry", "p4")]


# --- what owners set --------------------------------------------------------------------------------------------------


async def test_columns_of_a_model_are_set_one_by_one(scene: Scene) -> None:
    await scene.account("ann")
    await scene.model("ann", "o", "m", "v1")

    async def change(**changes: float | str | None) -> tuple[object, ...]:
        assert await catalog.set_model(scene.db, "ann", "o", "m", changes)
        found = await catalog.find_model(scene.db, "ann", "o", "m")
        assert found is not None
        return found.description, found.rerun, found.run_limit_s, found.start_limit_s, found.max_queued

    assert await change(run_limit_s=10, rerun=1) == (None, True, 10.0, None, None)
    assert await change(max_queued=5, description='it\'s \\ "x"') == ('it\'s \\ "x"', True, 10.0, None, 5)
    assert await change(run_limit_s=None, start_limit_s=1.5) == ('it\'s \\ "x"', True, None, 1.5, 5)
    assert await change(rerun=0) == ('it\'s \\ "x"', False, None, 1.5, 5)
    assert await change() == ('it\'s \\ "x"', False, None, 1.5, 5)
    assert not await catalog.set_model(scene.db, "shared", "o", "m", {"rerun": 1})
