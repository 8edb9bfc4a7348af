"""What the verbs of errands promise, over both dialects: one attempt, one errand, and money that adds up."""

from typing import Any

import msgspec
import pytest

from cogflare.domain.ids import new_id
from cogflare.store import budgets, errands, fleet, predictions, providers, secrets
from cogflare.store.base import Conflict, Constraint
from cogflare.store.budgets import BudgetRow
from cogflare.store.errands import CostRow
from cogflare.store.predictions import FAR_FUTURE
from store.errands import DAY, HOLDER, MONTH, new, provider, row_of, send, settling, share
from store.scene import OTHER_QUEUE, QUEUE, Scene

pytestmark = pytest.mark.anyio

BEGIN, END = 0, 2_000_000_000_000_000


async def spent(scene: Scene, *since: str) -> dict[tuple[str, str, str], int]:
    return await budgets.spent(scene.db, "acct", since or (DAY, MONTH))


async def refusal(scene: Scene, *args: object, **fields: object) -> str:
    """Return the name of the statement that refuses a claim."""
    with pytest.raises(Conflict) as refused:
        await send(scene, *args, **fields)  # type: ignore[arg-type]
    return refused.value.statement


# --- claims ----------------------------------------------------------------------------------------------------------


async def test_a_claim_moves_a_prediction_to_the_provider_in_one_unit(scene: Scene) -> None:
    await provider(scene)
    id = await scene.create(queues=(QUEUE, "mine/o/m"))
    row = await send(scene, id, shares=[share(1000, 100)], version="v9", decision='{"a": 1}')
    assert (row.key, row.epoch, row.state, row.node, row.provider, row.reserved) == (
        (id, 1),
        1,
        "intent",
        "n1",
        "p1",
        100,
    )
    assert (row.decision, row.is_refused, row.is_in_doubt, row.remote_id) == ('{"a": 1}', False, False, None)
    prediction = await scene.row(id)
    assert (prediction.phase, prediction.attempt, prediction.version, prediction.status) == (
        "assigned",
        1,
        "v9",
        "starting",
    )
    attempt = await scene.attempt((id, 1))
    assert (attempt.holder, attempt.link_epoch, attempt.queue, attempt.phase) == (HOLDER, 1, "mine/o/m", "assigned")
    assert await scene.entries() == []
    assert set((await scene.waiting()).values()) == {0}
    assert await scene.claim() is None


async def test_a_claim_leaves_the_version_that_the_client_has_pinned(scene: Scene) -> None:
    await provider(scene)
    pinned = await scene.create(queues=(OTHER_QUEUE,), pinned=True)
    unknown = await scene.create()
    await send(scene, pinned, version="v9")
    await send(scene, unknown)
    assert [(await scene.row(id)).version for id in (pinned, unknown)] == ["v1", "v1"]


async def test_a_claim_comes_too_late_for_what_has_moved_on(scene: Scene) -> None:
    await provider(scene)
    await scene.create()
    claimed, _ = await scene.claim_key()
    assert await refusal(scene, claimed) == "claim_errand"
    sent, canceled, parked = await scene.create(), await scene.create(), await scene.create()
    await send(scene, sent)
    assert await refusal(scene, sent) == "claim_errand"
    assert await refusal(scene, sent, 1) == "claim_errand"
    await scene.cancel((canceled, 0))
    assert await refusal(scene, canceled) == "claim_errand"
    await send(scene, parked)
    await scene.requeue((parked, 1), pause_us=1_000_000)
    assert await refusal(scene, parked, 1) == "claim_errand"
    assert [row.key for row in await errands.open_of(scene.db, None)] == sorted([(sent, 1), (parked, 1)])


async def test_a_refused_claim_leaves_nothing(scene: Scene) -> None:
    await provider(scene)
    id = await scene.create()
    shares = [share(1000, 100), share(50, 100, "model", DAY, "o/m")]
    assert await refusal(scene, id, shares=shares) == "reserve"
    assert ((await scene.row(id)).phase, await scene.entries()) == ("queued", [(id, QUEUE)])
    assert await errands.for_prediction(scene.db, id) == []
    assert await spent(scene) == {}
    assert await scene.claim_key() == (id, 1)


async def test_a_provider_has_only_so_many_errands(scene: Scene) -> None:
    await provider(scene)
    await provider(scene, "p2", name="other")
    first, second = await scene.create(), await scene.create()
    row = await send(scene, first, most_open=1)
    assert await refusal(scene, second, most_open=1) == "errand_room"
    assert await errands.open_counts(scene.db, "acct") == {"p1": 1}
    await send(scene, second, most_open=1, provider="p2")
    assert await errands.open_counts(scene.db, "acct") == {"p1": 1, "p2": 1}
    await scene.db.write(*settling(scene, row))
    await send(scene, await scene.create(), most_open=1)


async def test_nothing_goes_to_a_provider_that_is_paused_or_gone(scene: Scene) -> None:
    await provider(scene)
    id = await scene.create()
    assert await refusal(scene, id, provider="p9") == "errand_room"
    await providers.pause(scene.db, "p1", FAR_FUTURE, "no money", scene.tick())
    assert await refusal(scene, id) == "errand_room"
    await providers.resume(scene.db, "p1")
    await providers.pause(scene.db, "p1", scene.now - 1, "busy", scene.now - 10)
    await send(scene, id)


async def test_a_mark_is_of_one_errand(scene: Scene) -> None:
    await provider(scene)
    row = await send(scene, await scene.create())
    assert await errands.by_mark(scene.db, row.mark) == row
    assert await errands.by_mark(scene.db, "other") is None
    again = msgspec.structs.replace(new(scene, await scene.create()), mark=row.mark)
    with pytest.raises(Constraint):
        await scene.db.write(*errands.claim(again, []))


async def test_leases_are_not_for_what_a_provider_runs(scene: Scene) -> None:
    await provider(scene)
    await send(scene, await scene.create())
    await scene.create()
    key = await scene.claim_key()
    assert [(live.prediction, live.attempt) for live in await fleet.live_attempts(scene.db)] == [key]


# --- life ------------------------------------------------------------------------------------------------------------


async def test_the_remote_id_is_saved_once_by_the_one_that_drives(scene: Scene) -> None:
    await provider(scene)
    row = await send(scene, await scene.create())
    with pytest.raises(Conflict):
        await scene.db.write(errands.submitted(row.key, 2, "r1", scene.tick()))
    await scene.db.write(errands.submitted(row.key, 1, "r1", scene.tick()))
    with pytest.raises(Conflict):
        await scene.db.write(errands.submitted(row.key, 1, "r2", scene.tick()))
    row = await row_of(scene, row.key)
    assert (row.state, row.remote_id, row.submitted_at is not None) == ("submitted", "r1", True)


async def test_a_take_over_is_the_new_fence(scene: Scene) -> None:
    await provider(scene)
    row = await send(scene, await scene.create())
    taken = await errands.take_over(scene.db, row.key, 1, "n2")
    assert taken is not None
    assert (taken.epoch, taken.node, taken.state) == (2, "n2", "intent")
    assert await errands.take_over(scene.db, row.key, 1, "n3") is None
    attempt = await scene.attempt(row.key)
    assert (attempt.link_epoch, attempt.renewals) == (2, 1)
    for statements in ([errands.submitted(row.key, 1, "r1", scene.now)], settling(scene, row)):
        with pytest.raises(Conflict):
            await scene.db.write(*statements)
    ending = predictions.Ending(*row.key, HOLDER, 1, "succeeded", completed_at=scene.tick(), output="1")
    with pytest.raises(Conflict):
        await scene.db.write(*predictions.finish(ending, []))
    await scene.checkpoint(row.key, epoch=1)
    assert (await scene.row(row.prediction)).phase == "assigned"
    await scene.checkpoint(row.key, epoch=2)
    assert (await scene.row(row.prediction)).phase == "running"
    await scene.db.write(*settling(scene, taken))
    assert await errands.take_over(scene.db, row.key, 2, "n3") is None


async def test_an_errand_is_open_until_it_is_settled_whatever_became_of_the_prediction(scene: Scene) -> None:
    await provider(scene)
    row = await send(scene, await scene.create(), shares=[share(1000, 100)])
    await scene.cancel(row.key)
    assert [found.key for found in await errands.open_of(scene.db, "n1")] == [row.key]
    assert await errands.open_of(scene.db, "n2") == []
    assert row.key in await scene.occupied()
    await scene.db.write(*settling(scene, row, 30))
    assert await errands.open_of(scene.db, None) == []
    assert await scene.occupied() == set()
    [attempt] = await fleet.list_attempts(scene.db, row.prediction)
    assert (attempt.outcome, attempt.slot_freed_at) == ("canceled", scene.now)
    assert await scene.rows.fetch("SELECT cost, remote_id FROM attempts") == [(0.00003, None)]


async def test_a_prediction_may_go_from_one_provider_to_the_next(scene: Scene) -> None:
    await provider(scene)
    await provider(scene, "p2", name="other")
    id = await scene.create()
    row = await send(scene, id)
    await scene.requeue(row.key)
    await scene.db.write(*settling(scene, row, 0, is_refused=True))
    assert await errands.refused_by(scene.db, id) == {"p1"}
    second = await send(scene, id, 1, provider="p2")
    assert [found.key for found in await errands.for_prediction(scene.db, id)] == [row.key, second.key]
    assert [found.is_refused for found in await errands.for_prediction(scene.db, id)] == [True, False]
    # What was refused is no run.
    assert await errands.costs(scene.db, "acct", BEGIN, END) == []


async def test_nodes_beat(scene: Scene) -> None:
    assert await errands.nodes(scene.db) == {}
    for node in ("n1", "n2", "n1"):
        await errands.beat(scene.db, node)
    assert await errands.nodes(scene.db) == {"n1": 2, "n2": 1}


# --- money -----------------------------------------------------------------------------------------------------------


async def test_an_estimate_is_reserved_while_it_fits(scene: Scene) -> None:
    await provider(scene)
    shares = [share(250, 100), share(1000, 100, since=MONTH)]
    for _ in range(2):
        await send(scene, await scene.create(), shares=shares)
    id = await scene.create()
    assert await refusal(scene, id, shares=shares) == "reserve"
    assert await spent(scene) == {("account", "", DAY): 200, ("account", "", MONTH): 200}
    await send(scene, id, shares=[share(250, 50), share(1000, 50, since=MONTH)])
    assert await spent(scene, DAY) == {("account", "", DAY): 250}


async def test_an_unknown_cost_reserves_all_that_is_left(scene: Scene) -> None:
    await provider(scene)
    shares = [share(250, None), share(1000, None, since=MONTH), share(FAR_FUTURE, 0, "model", DAY, "o/m")]
    row = await send(scene, await scene.create(), shares=shares)
    assert row.reserved == 250
    assert await spent(scene) == {("account", "", DAY): 250, ("account", "", MONTH): 1000, ("model", "o/m", DAY): 0}
    waiting = await scene.create()
    assert await refusal(scene, waiting, shares=shares) == "reserve"
    await scene.db.write(*settling(scene, row, 90))
    assert await spent(scene) == {("account", "", DAY): 90, ("account", "", MONTH): 90, ("model", "o/m", DAY): 90}
    again = await send(scene, waiting, shares=shares)
    assert again.reserved == 160
    assert (await spent(scene))["account", "", MONTH] == 1000


async def test_what_reserves_all_that_is_left_goes_alone(scene: Scene) -> None:
    """Others that end make room again: for those whose cost is known."""
    await provider(scene)
    known = await send(scene, await scene.create(), shares=[share(1000, 400)])
    unknown = await send(scene, await scene.create(), shares=[share(1000, None)])
    await scene.db.write(*settling(scene, known, 100))
    id = await scene.create()
    assert await refusal(scene, id, shares=[share(1000, None)]) == "reserve"
    await send(scene, await scene.create(), shares=[share(1000, 100)])
    await scene.db.write(*settling(scene, unknown, 650))
    assert await spent(scene) == {("account", "", DAY): 850}
    assert (await send(scene, id, shares=[share(1000, None)])).reserved == 150


async def test_nothing_is_left_of_a_budget_that_was_made_smaller(scene: Scene) -> None:
    await provider(scene)
    await send(scene, await scene.create(), shares=[share(250, 200)])
    id = await scene.create()
    for amount in (None, 0, 1):
        assert await refusal(scene, id, shares=[share(150, amount)]) == "reserve"
    assert await refusal(scene, id, shares=[share(200, None)]) == "reserve"
    await send(scene, id, shares=[share(200, 0)])


@pytest.mark.parametrize(("cost", "told"), [(130, 130), (40, 40), (0, 0), (None, 0)])
async def test_the_cost_takes_the_place_of_what_was_reserved_once(scene: Scene, cost: int | None, told: int) -> None:
    await provider(scene)
    await send(scene, await scene.create(), shares=[share(1000, 100)])
    row = await send(scene, await scene.create(), shares=[share(1000, 100)])
    assert await budgets.reserved(scene.db, "acct") == {("account", "", DAY): (200, False)}
    await scene.db.write(*settling(scene, row, cost))
    assert await spent(scene) == {("account", "", DAY): 100 + told}
    assert await budgets.reserved(scene.db, "acct") == {("account", "", DAY): (100, False)}
    with pytest.raises(Conflict):
        await scene.db.write(*settling(scene, row, 500))
    assert await spent(scene) == {("account", "", DAY): 100 + told}
    settled = await row_of(scene, row.key)
    assert (settled.state, settled.cost, settled.run_us, settled.reserved) == ("over", cost, 2_000_000, 100)
    assert await scene.rows.fetch("SELECT count(*) FROM errand_reservations") == [(1,)]


async def test_costs_are_added_up_by_day(scene: Scene) -> None:
    await provider(scene)
    await provider(scene, "p2", "bob")
    settled: list[tuple[int | None, dict[str, Any]]] = [
        (100, {}),
        (30, {}),
        (None, {}),
        (50, {"token": "t2"}),
        (7, {"account": "bob", "provider": "p2"}),
    ]
    for cost, fields in settled:
        await scene.db.write(*settling(scene, await send(scene, await scene.create(), **fields), cost))
    await scene.db.write(*settling(scene, await send(scene, await scene.create()), None, is_in_doubt=True, run_us=None))
    scene.tick(86_400_000_000)
    await scene.db.write(*settling(scene, await send(scene, await scene.create(), model="o/n"), 11))
    mine = [
        CostRow(DAY, "t1", "o/m", "replicate", 4, 1, 1, 6_000_000, 130),
        CostRow(DAY, "t2", "o/m", "replicate", 1, 0, 0, 2_000_000, 50),
        CostRow("2023-11-15", "t1", "o/n", "replicate", 1, 0, 0, 2_000_000, 11),
    ]
    assert await errands.costs(scene.db, "acct", BEGIN, END) == mine
    assert await errands.costs(scene.db, "acct", BEGIN, scene.now - 86_400_000_000) == mine[:2]
    assert await errands.costs(scene.db, "acct", scene.now, END) == mine[2:]
    everyone = [CostRow(DAY, "t1", "o/m", "replicate", 5, 1, 1, 8_000_000, 137), *mine[1:]]
    assert await errands.costs(scene.db, None, BEGIN, END) == everyone


async def test_budgets_are_set_changed_and_removed(scene: Scene) -> None:
    await budgets.put(scene.db, "acct", BudgetRow("token", "t1", "day", 5, 1))
    await budgets.put(scene.db, "acct", BudgetRow("account", "", "month", 9, 1))
    await budgets.put(scene.db, "acct", BudgetRow("token", "t1", "day", 6, 2))
    await budgets.put(scene.db, "bob", BudgetRow("account", "", "day", 1, 1))
    rows = [BudgetRow("account", "", "month", 9, 1), BudgetRow("token", "t1", "day", 6, 2)]
    assert await budgets.list_of(scene.db, "acct") == rows
    assert not await budgets.remove(scene.db, "acct", "token", "t1", "month")
    assert await budgets.remove(scene.db, "acct", "token", "t1", "day")
    assert await budgets.list_of(scene.db, "acct") == rows[:1]
    with pytest.raises(Constraint):
        await budgets.put(scene.db, "acct", BudgetRow("planet", "", "day", 1, 1))


# --- providers -------------------------------------------------------------------------------------------------------


async def test_a_provider_that_is_set_again_stays_the_same_and_goes_on(scene: Scene) -> None:
    first = await provider(scene)
    await providers.pause(scene.db, "p1", FAR_FUTURE, "no money", scene.tick())
    paused = await providers.get(scene.db, "p1")
    assert paused is not None
    assert (paused.paused_until, paused.pause_reason, paused.changed_at) == (FAR_FUTURE, "no money", first.changed_at)
    changed = msgspec.structs.replace(first, id="p2", sealed="new", changed_at=first.changed_at - 50, created_at=5)
    again = await providers.put(scene.db, changed)
    assert (again.id, again.sealed, again.paused_until, again.created_at) == ("p1", "new", None, first.created_at)
    assert again.changed_at > first.changed_at
    assert await providers.find(scene.db, "acct", "replicate") == again
    assert await providers.get(scene.db, "p2") is None
    other = await provider(scene, "p3", name="a")
    assert await providers.list_of(scene.db, "acct") == [other, again]
    assert await providers.find(scene.db, "bob", "replicate") is None


async def test_the_longer_pause_stands(scene: Scene) -> None:
    await provider(scene)
    now = scene.now
    for until, reason, stands in (
        (now + 50, "busy", "busy"),
        (FAR_FUTURE, "denied", "denied"),
        (now + 90, "busy", "denied"),
    ):
        await providers.pause(scene.db, "p1", until, reason, now)
        row = await providers.get(scene.db, "p1")
        assert row is not None
        assert row.pause_reason == stands
    await providers.resume(scene.db, "p1")
    row = await providers.get(scene.db, "p1")
    assert row is not None
    assert (row.paused_until, row.pause_reason) == (None, None)


async def test_a_provider_stays_while_it_runs_something(scene: Scene) -> None:
    await provider(scene)
    row = await send(scene, await scene.create())
    assert await providers.remove(scene.db, "acct", "replicate") == "busy"
    assert await providers.remove(scene.db, "acct", "other") == "unknown"
    await scene.db.write(*settling(scene, row))
    assert await providers.remove(scene.db, "bob", "replicate") == "unknown"
    assert await providers.remove(scene.db, "acct", "replicate") == "removed"
    assert await providers.list_of(scene.db, "acct") == []


async def test_a_lost_secret_key_takes_the_keys_of_providers_with_it(scene: Scene) -> None:
    await provider(scene)
    await secrets.add_first_secret(scene.db, "acct", "webhooks", "sealed", scene.now)
    assert await secrets.forget_secrets(scene.db) == 2
    row = await providers.get(scene.db, "p1")
    assert row is not None
    assert (row.sealed, row.hint, row.paused_until) == ("", "", FAR_FUTURE)
    assert "give it again" in (row.pause_reason or "")
    assert await refusal(scene, await scene.create()) == "errand_room"
    assert (await provider(scene, new_id(scene.now))).paused_until is None
