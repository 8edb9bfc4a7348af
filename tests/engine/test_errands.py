"""Errands: what is shown of runs at a provider, and what becomes of them through cancels, refusals and faults."""

import asyncio

import msgspec
import pytest

from cogflare.engine.catalog import Bounds
from cogflare.engine.predictions import Order
from cogflare.providers.base import Busy, Denied, Refused, Submission, Terms, Unanswered
from cogflare.store import errands as store
from cogflare.store.base import Database
from cogflare.store.catalog import Caller
from cogflare.store.errands import ErrandRow
from engine.far import QUICK, Far, FarExecutor, Node, budget, is_queued, outcomes, run_of, with_output, with_status
from support.memory_blobs import MemoryBlobStore

pytestmark = pytest.mark.anyio


# --- what is shown ---------------------------------------------------------------------------------------------------


async def test_a_run_is_submitted_once_mirrored_and_settled(node: Node, far: Far) -> None:
    client = await node.known()
    created = await node.send(client)
    await run_of(node)
    assert (await node.shown(client, created.id)).status == "starting"
    far.only.start()
    far.only.logs = "one\n"
    await node.when(lambda: far.calls["poll"] > 2)
    far.only.logs = "one\ntwo\n"
    shown = await node.when(lambda: _with_logs(node, client, created.id, "one\ntwo\n"))
    assert shown.status == "processing"
    far.only.succeed(b'{"a":  1}')
    ended = await node.ended(client, created.id)
    assert (ended.status, ended.output, ended.logs) == ("succeeded", b'{"a":  1}', "one\ntwo\n")
    assert ended.metrics is not None
    assert msgspec.json.decode(ended.metrics)["predict_time"] == 1.5
    row = await node.over(created.id)
    assert (row.cost, row.run_us, row.remote_id, row.is_in_doubt) == (3_000, 1_500_000, "far-1", False)
    assert await outcomes(node, created.id) == [("succeeded", True)]
    assert len(far.submits) == 1
    [order] = far.submits
    assert (order.mark, order.input, order.hops, order.callback) == (row.mark, b"{}", 1, None)
    await node.tasks.settle(5)
    assert not node.predictions.lives
    assert not node.errands.sights


async def _with_logs(node: Node, client: Caller, prediction: str, logs: str) -> object:
    shown = await node.shown(client, prediction)
    return shown if shown.logs == logs else None


async def test_items_are_shown_as_they_come_and_only_grow(node: Node, far: Far) -> None:
    client = await node.known()
    created = await node.send(client)
    await run_of(node)
    run = far.only
    run.start()
    run.output = b'["a","b"]'
    await node.when(lambda: with_output(node, client, created.id, b'["a","b"]'))
    stale = run.sight()
    run.output = b'["a","b","c"]'
    await node.when(lambda: with_output(node, client, created.id, b'["a","b","c"]'))
    waiting = msgspec.structs.replace(stale, state="waiting", started=False, output=None, logs="")
    for old in (stale, waiting):
        far.stale = lambda run, old=old: old
        seen = far.calls["poll"]
        await node.when(lambda seen=seen: far.calls["poll"] > seen + 3)  # type: ignore[misc]
        shown = await node.shown(client, created.id)
        assert (shown.status, shown.output) == ("processing", b'["a","b","c"]')
    far.stale = None
    run.succeed(b'["a","b","c","d"]')
    ended = await node.ended(client, created.id)
    assert ended.output == b'["a","b","c","d"]'


async def test_a_run_that_began_anew_there_is_not_mixed_with_the_one_before(node: Node, far: Far) -> None:
    client = await node.known()
    created = await node.send(client)
    await run_of(node)
    run = far.only
    run.start()
    run.output, run.logs = b'["a","b"]', "first\n"
    await node.when(lambda: with_output(node, client, created.id, b'["a","b"]'))
    run.output, run.logs = b'["x","y","z"]', "second\n"
    await node.when(lambda: _with_logs(node, client, created.id, "first\nsecond\n"))
    assert (await node.shown(client, created.id)).output == b'["a","b"]'
    run.succeed(b'["x","y","z"]')
    ended = await node.ended(client, created.id)
    assert (ended.output, ended.logs) == (b'["x","y","z"]', "first\nsecond\n")


async def test_files_are_ours_before_they_are_shown(node: Node, far: Far) -> None:
    client = await node.known()
    created = await node.send(client)
    await run_of(node)
    run = far.only
    run.start()
    far.files = {f"https://far.example/{number}.png": b"x" * number for number in (1, 2)}
    fetched, go_on = far.hold("before fetch")
    run.output = b'["https://far.example/1.png"]'
    await fetched.wait()
    assert (await node.shown(client, created.id)).output is None
    go_on.set()
    await node.when(lambda: _has_output(node, client, created.id))
    run.succeed(b'["https://far.example/1.png","https://far.example/2.png"]')
    ended = await node.ended(client, created.id)
    assert b"far.example" not in (ended.output or b"")
    assert (ended.output or b"").count(b"cogflare-file:") == 2
    assert far.calls["fetch"] == 2


async def _has_output(node: Node, client: Caller, prediction: str) -> bool:
    return (await node.shown(client, prediction)).output is not None


async def test_an_output_that_has_vanished_fails_the_prediction(node: Node, far: Far) -> None:
    client = await node.known()
    created = await node.send(client)
    await run_of(node)
    far.only.succeed(b'"https://far.example/gone.png"')
    ended = await node.ended(client, created.id)
    assert ended.status == "failed"
    assert "could not be copied" in (ended.error or "")
    assert (await node.over(created.id)).cost == 3_000


async def test_a_run_costs_what_was_said_when_it_was_sent(node: Node, far: Far) -> None:
    """The route, and the price in it, are gone when the run ends."""
    client = await node.known()
    node.decision = '{"prices": {"per_run": 0.5}}'
    created = await node.send(client)
    await run_of(node)
    far.only.succeed(cost=None)
    await node.ended(client, created.id)
    assert (await node.over(created.id)).cost == 500_000


async def test_a_failure_is_passed_on_in_words(node: Node, far: Far) -> None:
    client = await node.known()
    created = await node.send(client)
    await run_of(node)
    far.only.start()
    far.only.fail("CUDA out of memory")
    ended = await node.ended(client, created.id)
    assert (ended.status, ended.error) == ("failed", "CUDA out of memory")
    assert (await node.over(created.id)).cost is None


# --- cancel ----------------------------------------------------------------------------------------------------------


async def test_what_is_canceled_before_the_call_is_never_submitted(node: Node, far: Far) -> None:
    client = await node.known()
    created = await node.create(client)
    row = await node.claim(client, created.id)
    await node.predictions.cancel(client.account, created.id)
    node.errands.start(row)
    settled = await node.over(created.id)
    assert (settled.cost, settled.remote_id, far.submits) == (0, None, [])
    assert await outcomes(node, created.id) == [("canceled", True)]


async def test_a_cancel_while_it_is_submitted_reaches_the_run_that_comes_of_it(node: Node, far: Far) -> None:
    client = await node.known()
    far.cancels_at_once = False
    made, go_on = far.hold("after submit")
    created = await node.send(client)
    await made.wait()
    assert (await node.predictions.cancel(client.account, created.id)).status == "canceled"
    go_on.set()
    await node.when(lambda: far.only.cancels)
    # It runs on there, so that its slot is not free, and somebody pays.
    assert await outcomes(node, created.id) == [("canceled", False)]
    far.only.state = "canceled"
    row = await node.over(created.id)
    assert (row.remote_id, row.cost) == ("far-1", 0)
    assert await outcomes(node, created.id) == [("canceled", True)]
    assert len(far.submits) == 1


async def test_a_cancel_does_not_wait_for_a_look_that_hangs(node: Node, far: Far) -> None:
    client = await node.known()
    created = await node.send(client)
    await run_of(node)
    far.only.start()
    hung, _ = far.hold("before poll")
    await hung.wait()
    before = asyncio.get_running_loop().time()
    await node.predictions.cancel(client.account, created.id)
    await node.when(lambda: far.only.cancels)
    assert asyncio.get_running_loop().time() - before < 1
    await node.over(created.id)
    assert await outcomes(node, created.id) == [("canceled", True)]


async def test_a_cancel_that_is_not_heard_of_is_seen_in_the_store(node: Node, far: Far) -> None:
    client = await node.known()
    created = await node.send(client)
    await run_of(node)
    far.only.start()
    node.mortal.is_mute = True
    await node.predictions.cancel(client.account, created.id)
    await node.when(lambda: far.only.cancels)
    await node.over(created.id)
    assert not node.predictions.lives


async def test_a_cancel_is_asked_for_until_the_run_has_ended(node: Node, far: Far) -> None:
    client = await node.known()
    far.cancels_at_once = False
    created = await node.send(client)
    await run_of(node)
    far.refuses["cancel"] = [Unanswered("connection reset"), Unanswered("connection reset")]
    await node.predictions.cancel(client.account, created.id)
    await node.when(lambda: far.only.cancels > 1)
    far.only.state = "canceled"
    await node.over(created.id)


async def test_a_cancel_wins_against_a_finish_that_is_not_committed(node: Node, far: Far) -> None:
    client = await node.known()
    created = await node.send(client)
    await run_of(node)
    ready, go_on = node.mortal.hold("before finish_prediction")
    far.only.succeed()
    await ready.wait()
    assert (await node.predictions.cancel(client.account, created.id)).status == "canceled"
    go_on.set()
    row = await node.over(created.id)
    assert row.cost == 3_000
    assert (await node.shown(client, created.id)).status == "canceled"
    assert await outcomes(node, created.id) == [("canceled", True)]


async def test_a_cancel_loses_against_a_finish_that_is_committed(node: Node, far: Far) -> None:
    client = await node.known()
    created = await node.send(client)
    await run_of(node)
    done, go_on = node.mortal.hold("finish_prediction")
    far.only.succeed()
    await done.wait()
    assert (await node.predictions.cancel(client.account, created.id)).status == "succeeded"
    go_on.set()
    await node.over(created.id)
    assert far.only.cancels == 0
    assert await outcomes(node, created.id) == [("succeeded", True)]


async def test_a_run_that_takes_too_long_is_ended_there(quick: Database, far: Far) -> None:
    node = Node(quick, far, MemoryBlobStore(), bounds=Bounds(0.2, None, None))
    node.begin()
    client = await node.known()
    created = await node.send(client)
    await run_of(node)
    far.only.start()
    ended = await node.ended(client, created.id)
    assert (ended.status, "longer than its limit" in (ended.error or "")) == ("failed", True)
    await node.when(lambda: far.only.cancels)
    await node.over(created.id)
    assert far.submits[0].run_limit_s == 0.2
    await node.halt()


async def test_a_deadline_ends_the_run_there(node: Node, far: Far) -> None:
    client = await node.known()
    created = await node.predictions.create(client, Order(b"{}", {}, "ada/noop", cancel_after=300_000))
    node.errands.start(await node.claim(client, created.id))
    await run_of(node)
    far.only.start()
    ended = await node.ended(client, created.id)
    assert ended.status == "canceled"
    await node.when(lambda: far.only.cancels)
    await node.over(created.id)
    [order] = far.submits
    assert (order.start_limit_s, order.run_limit_s) == (1.0, 1.0)


# --- refusals and doubt ----------------------------------------------------------------------------------------------


async def test_what_nobody_else_takes_fails_with_the_words_of_the_refusal(node: Node, far: Far) -> None:
    client = await node.known()
    far.refuses["submit"] = [Refused("input.steps is too large")]
    created = await node.send(client)
    ended = await node.ended(client, created.id)
    assert (ended.status, ended.error) == ("failed", "input.steps is too large")
    row = await node.over(created.id)
    assert (row.is_refused, row.cost) == (True, 0)


async def test_what_is_refused_goes_to_others_at_once_and_is_no_strike(node: Node, far: Far) -> None:
    client = await node.known()
    far.refuses["submit"] = [Refused("no such version")]
    created = await node.create(client)
    node.others.add(created.id)
    node.errands.start(await node.claim(client, created.id))
    await node.over(created.id)
    [row] = await node.mortal._db.read("get_prediction", id=created.id)
    assert (row[7], row[10]) == ("queued", 0)
    assert await outcomes(node, created.id) == [("lost", True)]
    assert await store.refused_by(node.mortal._db, created.id)


async def test_a_key_that_does_not_work_pauses_the_provider(node: Node, far: Far) -> None:
    client = await node.known()
    far.refuses["submit"] = [Denied("Unauthenticated")]
    created = await node.send(client)
    row = await node.over(created.id)
    assert (row.cost, row.is_refused) == (0, False)
    provider = await node.providers.find(client.account, "far")
    assert provider is not None
    assert provider.pause(node.clock.wall()) == "Unauthenticated"
    [stored] = await node.mortal._db.read("get_prediction", id=created.id)
    assert stored[7] == "queued"


async def test_a_provider_that_is_busy_is_asked_again(node: Node, far: Far) -> None:
    client = await node.known()
    far.refuses["submit"] = [Busy("rate limit", 0.01), Busy("rate limit")]
    created = await node.send(client)
    await node.when(lambda: node.errands.words.get(created.id) == "rate limit")
    await run_of(node)
    far.only.succeed()
    assert (await node.ended(client, created.id)).status == "succeeded"
    assert len(far.submits) == 1
    assert not node.errands.words


@pytest.mark.parametrize("is_repeatable", [False, True])
@pytest.mark.parametrize("has_arrived", [False, True])
async def test_a_call_without_an_answer_makes_one_run(
    node: Node, far: Far, is_repeatable: bool, has_arrived: bool
) -> None:
    client = await node.known()
    far.is_repeatable = is_repeatable
    far.refuses["after submit" if has_arrived else "submit"] = [Unanswered("connection reset")]
    created = await node.send(client)
    await run_of(node)
    await node.when(lambda: created.id in node.errands.sights)
    far.only.succeed()
    assert (await node.ended(client, created.id)).status == "succeeded"
    row = await node.over(created.id)
    assert len(far.runs) == 1
    assert {order.mark for order in far.submits} == {row.mark}
    assert await outcomes(node, created.id) == [("succeeded", True)]


async def test_a_run_that_shows_late_is_found_before_it_is_made_again(node: Node, far: Far) -> None:
    """The first look finds nothing, because the request is still on its way."""
    client = await node.known()
    far.refuses["submit"] = [Unanswered("connection reset")]
    created = await node.send(client)
    await node.when(lambda: far.calls["find"])
    [row] = await store.open_of(node.mortal._db, None)
    await _arrive(far, row)
    await node.when(lambda: created.id in node.errands.sights)
    assert len(far.runs) == 1
    assert far.calls["submit"] == 1


async def _arrive(far: Far, row: ErrandRow) -> None:
    """Let the request of an errand arrive whose caller has gone."""
    await FarExecutor(far).submit(Submission(row.mark, Terms("ada/noop"), b"{}"))
    far.calls["submit"] -= 1


async def test_where_nobody_can_tell_the_reservation_is_the_cost(node: Node, far: Far) -> None:
    client = await node.known()
    far.can_tell = False
    far.refuses["after submit"] = [Unanswered("connection reset")]
    created = await node.send(client, budget(client))
    row = await node.over(created.id)
    assert (row.is_in_doubt, row.cost, row.remote_id) == (True, 10_000, None)
    [stored] = await node.mortal._db.read("get_prediction", id=created.id)
    assert stored[10] == 1
    assert await outcomes(node, created.id) == [("lost", True)]
    assert len(far.submits) == 1


async def test_a_cancel_in_doubt_ends_the_run_if_there_is_one(node: Node, far: Far) -> None:
    client = await node.known()
    far.is_repeatable = True
    far.refuses["after submit"] = [Unanswered("reset")] * 3
    made, go_on = far.hold("after submit")
    created = await node.send(client)
    await made.wait()
    await node.predictions.cancel(client.account, created.id)
    go_on.set()
    await node.over(created.id)
    assert (len(far.submits), far.only.state, far.only.cancels) == (1, "canceled", 1)


async def test_a_cancel_in_doubt_settles_at_nothing_if_there_is_none(node: Node, far: Far) -> None:
    client = await node.known()
    far.refuses["submit"] = [Unanswered("reset")]
    arrived, go_on = far.hold("before submit")
    created = await node.send(client)
    await arrived.wait()
    await node.predictions.cancel(client.account, created.id)
    go_on.set()
    row = await node.over(created.id)
    assert (row.cost, row.is_in_doubt, far.submits) == (0, False, [])


async def test_an_upstream_that_is_down_for_a_while_loses_nothing(node: Node, far: Far) -> None:
    client = await node.known()
    created = await node.send(client)
    await run_of(node)
    far.only.start()
    await node.when(lambda: with_status(node, client, created.id, "processing"))
    far.is_down = True
    seen = far.calls["poll"]
    await node.when(lambda: far.calls["poll"] > seen + 5)
    far.only.succeed()
    assert (await node.shown(client, created.id)).status == "processing"
    far.is_down = False
    assert (await node.ended(client, created.id)).status == "succeeded"
    assert len(far.submits) == 1


async def test_who_hears_from_a_provider_again_tells_those_that_wait_for_it(quick: Database, far: Far) -> None:
    node = Node(quick, far, MemoryBlobStore(), pace=msgspec.structs.replace(QUICK, retry_s=60.0, retry_most_s=60.0))
    client = await node.known()
    far.is_down = True
    for _ in range(2):
        await node.send(client)
    await node.when(lambda: len(node.errands.words) == 2)
    far.is_down = False
    [row, _] = await store.open_of(quick, None)
    node.errands.heard(row.mark)
    await run_of(node, 2)
    await node.halt()


async def test_an_upstream_that_stays_away_leaves_the_run_in_doubt(quick: Database, far: Far) -> None:
    node = Node(quick, far, MemoryBlobStore(), pace=msgspec.structs.replace(QUICK, lost_s=0.2))
    node.begin()
    client = await node.known()
    created = await node.send(client, budget(client))
    await run_of(node)
    far.only.start()
    await node.when(lambda: with_status(node, client, created.id, "processing"))
    far.is_down = True
    row = await node.over(created.id)
    assert (row.is_in_doubt, row.cost, row.remote_id) == (True, 10_000, "far-1")
    assert await outcomes(node, created.id) == [("lost", True)]
    [stored] = await quick.read("get_prediction", id=created.id)
    assert (stored[7] in ("queued", "parked"), stored[10]) == (True, 1)
    await node.halt()


async def test_a_run_that_is_gone_is_lost(node: Node, far: Far) -> None:
    client = await node.known()
    created = await node.send(client)
    await run_of(node)
    far.only.start()
    await node.when(lambda: with_status(node, client, created.id, "processing"))
    far.runs.clear()
    row = await node.over(created.id)
    assert row.is_in_doubt
    assert await outcomes(node, created.id) == [("lost", True)]


async def test_a_run_that_others_canceled_runs_again(node: Node, far: Far) -> None:
    client = await node.known()
    created = await node.send(client)
    await run_of(node)
    far.only.start()
    await node.when(lambda: with_status(node, client, created.id, "processing"))
    far.only.state = "canceled"
    await node.over(created.id)
    await node.when(lambda: is_queued(node, created.id))
    [stored] = await node.mortal._db.read("get_prediction", id=created.id)
    assert stored[10] == 1
    node.errands.start(await node.claim(client, created.id))
    await run_of(node, 2)
    far.runs["far-2"].succeed()
    assert (await node.ended(client, created.id)).status == "succeeded"
    await node.over(created.id, 2)
    assert await outcomes(node, created.id) == [("lost", True), ("succeeded", True)]


# --- the store fails -------------------------------------------------------------------------------------------------

UNITS = ["submit_errand", "checkpoint_attempts", "finish_prediction", "settle_errand", "get_attempt", "get_provider"]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("is_done", [False, True])
async def test_a_store_that_refuses_for_a_while_doubles_nothing(node: Node, far: Far, unit: str, is_done: bool) -> None:
    """The unit is refused, or done without an answer; either way it is tried again until it stands."""
    client = await node.known()
    created = await node.create(client)
    row = await node.claim(client, created.id)
    bad = node.mortal.lost if is_done else node.mortal.refused
    bad.add(unit)
    node.errands.start(row)
    await asyncio.sleep(0.1)
    if unit in ("checkpoint_attempts", "finish_prediction", "settle_errand"):
        far.only.start()
        await node.when(lambda: far.calls["poll"] > 3)
        far.only.succeed()
        await asyncio.sleep(0.1)
    bad.clear()
    await run_of(node)
    far.only.succeed()
    assert (await node.ended(client, created.id)).status == "succeeded"
    assert (await node.over(created.id)).cost == 3_000
    assert len(far.submits) == 1
    assert await outcomes(node, created.id) == [("succeeded", True)]
    [count] = await node.mortal._db.read("costs", account=client.account, since="2000-01-01", until="2100-01-01")
    assert count[4] == 1


async def test_a_rescue_that_the_store_refuses_is_done_later(node: Node, far: Far) -> None:
    client = await node.known()
    created = await node.send(client)
    await run_of(node)
    far.only.start()
    node.mortal.refused.add("requeue_prediction")
    far.only.state = "canceled"
    await asyncio.sleep(0.1)
    assert await outcomes(node, created.id) == [(None, False)]
    node.mortal.refused.clear()
    await node.over(created.id)
    assert await outcomes(node, created.id) == [("lost", True)]
