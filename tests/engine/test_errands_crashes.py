"""Errands through crashes, take overs and stops, and on their way back to workers; and how quiet they are."""

import asyncio

import msgspec
import pytest
from structlog.testing import capture_logs

from cogflare.engine.errand import TAKEN_BACK
from cogflare.engine.predictions import Order
from cogflare.engine.service import Engine
from cogflare.engine.waiters import Waiters
from cogflare.providers.base import Busy, Refused, Unanswered
from cogflare.store import errands as errands_store
from cogflare.store import fleet
from cogflare.store.base import Database
from cogflare.store.catalog import Caller
from cogflare.store.open import open_database
from engine.far import KEY, QUICK, Far, Node, budget, is_queued, outcomes, run_of, with_output, with_status
from support.memory_blobs import MemoryBlobStore

pytestmark = pytest.mark.anyio


# --- crashes ---------------------------------------------------------------------------------------------------------

STEPS = {
    "before the call": ("far", "before submit"),
    "during the call": ("far", "after submit"),
    "before the save": ("store", "before submit_errand"),
    "after the save": ("store", "submit_errand"),
    "while it looks": ("far", "after poll"),
    "before a checkpoint": ("store", "before checkpoint_attempts"),
    "after a checkpoint": ("store", "checkpoint_attempts"),
    "before the finish": ("store", "before finish_prediction"),
    "after the finish": ("store", "finish_prediction"),
    "before it is settled": ("store", "before settle_errand"),
    "after it is settled": ("store", "settle_errand"),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("is_repeatable", [False, True])
async def test_a_process_that_is_killed_pays_for_one_run(store: Database, step: str, is_repeatable: bool) -> None:
    far = Far(is_repeatable=is_repeatable)
    node = Node(store, far, MemoryBlobStore())
    client = await node.known()
    await node.provider(client.account)
    where, name = STEPS[step]
    reached, _ = far.hold(name) if where == "far" else node.mortal.hold(name)
    node.begin()
    created = await node.send(client, budget(client))
    if name not in ("before submit", "after submit", "before submit_errand", "submit_errand"):
        await run_of(node)
        far.only.start()
        far.only.logs, far.only.output = "one\n", b'["a"]'
    if "finish" in name or "settle" in name:
        await node.when(lambda: with_output(node, client, created.id, b'["a"]'))
        far.only.succeed(b'["a","b"]')
    await asyncio.wait_for(reached.wait(), 10)
    await node.kill()
    following = node.again()
    following.begin()
    await run_of(following)
    if far.only.state != "succeeded":
        far.only.start()
        far.only.logs = "one\ntwo\n"
        await following.when(lambda: far.calls["poll"] > 1)
        far.only.succeed(b'["a","b"]')
    ended = await following.ended(client, created.id)
    assert (ended.status, ended.output) == ("succeeded", b'["a","b"]')
    assert ended.logs == ("one\n" if "finish" in name or "settle" in name else "one\ntwo\n")
    row = await following.over(created.id)
    assert len(far.runs) == 1
    assert {order.mark for order in far.submits} == {row.mark}
    assert (row.cost, row.remote_id, row.is_in_doubt) == (3_000, "far-1", False)
    assert await outcomes(following, created.id) == [("succeeded", True)]
    [spent] = await store.read("costs", account=client.account, since="2000-01-01", until="2100-01-01")
    assert (spent[4], spent[8]) == (1, 3_000)
    await following.halt()


@pytest.mark.parametrize("step", ["before the call", "during the call", "before the save", "after the save"])
@pytest.mark.parametrize("is_repeatable", [False, True])
async def test_what_is_canceled_while_no_process_runs_is_ended_there(
    quick: Database, step: str, is_repeatable: bool
) -> None:
    far = Far(is_repeatable=is_repeatable)
    node = Node(quick, far, MemoryBlobStore())
    client = await node.known()
    where, name = STEPS[step]
    reached, _ = far.hold(name) if where == "far" else node.mortal.hold(name)
    node.begin()
    created = await node.send(client)
    await reached.wait()
    await node.kill()
    following = node.again()
    await following.predictions.cancel(client.account, created.id)
    following.begin()
    row = await following.over(created.id)
    assert (row.cost, len(far.runs)) == (0, step != "before the call")
    assert all((run.state, run.cancels) == ("canceled", 1) for run in far.runs.values())
    assert await outcomes(following, created.id) == [("canceled", True)]
    await following.halt()


async def test_a_rescue_that_a_crash_cuts_short_is_settled_later(quick: Database, far: Far) -> None:
    node = Node(quick, far, MemoryBlobStore())
    node.begin()
    client = await node.known()
    created = await node.send(client)
    await run_of(node)
    reached, _ = node.mortal.hold("before settle_errand")
    far.only.state = "canceled"
    await reached.wait()
    await node.kill()
    following = node.again()
    following.begin()
    row = await following.over(created.id)
    assert (row.cost, len(far.submits)) == (0, 1)
    assert await outcomes(following, created.id) == [("lost", True)]
    assert await is_queued(following, created.id)
    await following.halt()


# --- two processes ---------------------------------------------------------------------------------------------------


async def test_who_was_taken_over_changes_nothing_more(quick: Database, far: Far) -> None:
    """The old process still runs: its looks go on, and nothing that it writes counts."""
    old = Node(quick, far, MemoryBlobStore(), pace=msgspec.structs.replace(QUICK, check_s=60.0))
    client = await old.known()
    created = await old.send(client)
    await run_of(old)
    await old.when(lambda: created.id in old.errands.sights)
    far.only.start()
    # The old one sees the end first.
    following = old.again(pace=msgspec.structs.replace(QUICK, first_s=1.0, slowest_s=1.0))
    following.begin()
    await following.when(lambda: created.id in following.errands.sights)
    ready, go_on = old.mortal.hold("before finish_prediction")
    _, save = following.mortal.hold("before finish_prediction")
    far.only.succeed()
    # Both have seen the end, and neither has heard of the other.
    await ready.wait()
    save.set()
    assert (await following.ended(client, created.id)).status == "succeeded"
    row = await following.over(created.id)
    go_on.set()
    await old.when(lambda: not old.errands.sights)
    assert not old.predictions.lives
    assert (row.cost, row.epoch) == (3_000, 2)
    assert await outcomes(following, created.id) == [("succeeded", True)]
    [spent] = await quick.read("costs", account=client.account, since="2000-01-01", until="2100-01-01")
    assert spent[4] == 1
    await following.halt()
    await old.halt()


async def test_a_run_that_was_taken_over_is_rescued_by_its_new_driver_alone(quick: Database, far: Far) -> None:
    old = Node(quick, far, MemoryBlobStore(), pace=msgspec.structs.replace(QUICK, check_s=60.0))
    client = await old.known()
    created = await old.send(client)
    await run_of(old)
    await old.when(lambda: created.id in old.errands.sights)
    ready, go_on = far.hold("after poll")
    await ready.wait()
    following = old.again()
    following.begin()
    await following.when(lambda: created.id in following.errands.sights)
    held, save = following.mortal.hold("before requeue_prediction")
    far.only.state = "canceled"
    await held.wait()
    # The old one sees the same end, and has no say.
    go_on.set()
    await old.when(lambda: not old.errands._driven)
    assert await outcomes(following, created.id) == [(None, False)]
    save.set()
    await following.over(created.id)
    assert await is_queued(following, created.id)
    await following.halt()
    await old.halt()


async def test_a_process_that_was_taken_over_while_it_submits_saves_nothing(quick: Database, far: Far) -> None:
    """What it makes is found by whoever drives the errand now, and ended once."""
    old = Node(quick, far, MemoryBlobStore())
    client = await old.known()
    made, go_on = far.hold("before submit")
    created = await old.send(client)
    await made.wait()
    following = old.again()
    following.begin()
    await following.when(lambda: far.calls["find"])
    go_on.set()
    await run_of(following)
    await following.when(lambda: created.id in following.errands.sights)
    await old.when(lambda: not old.errands._driven)
    far.only.succeed()
    assert (await following.ended(client, created.id)).status == "succeeded"
    assert (await following.over(created.id)).remote_id == "far-1"
    assert len(far.runs) == 1
    await following.halt()
    await old.halt()


async def test_a_process_that_stood_still_before_the_call_makes_no_second_run(quick: Database, far: Far) -> None:
    old = Node(quick, far, MemoryBlobStore(), pace=msgspec.structs.replace(QUICK, check_s=60.0))
    client = await old.known()
    created = await old.create(client)
    row = await old.claim(client, created.id)
    old.providers._ids.clear()
    # The last that it does before it calls.
    stands, go_on = old.mortal.hold("before get_provider")
    old.errands.start(row)
    await stands.wait()
    following = old.again()
    following.begin()
    await run_of(following)
    go_on.set()
    await old.when(lambda: not old.errands._driven)
    assert len(far.submits) == 1
    far.only.succeed()
    await following.over(created.id)
    await following.halt()
    await old.halt()


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
async def test_a_node_that_died_is_taken_over_by_another_after_a_lease(url: str, far: Far) -> None:
    databases = [open_database(url), open_database(url)]
    await databases[0].migrate()
    blobs = MemoryBlobStore()
    first, second = (Node(db, far, blobs, name) for db, name in zip(databases, ("first", "second"), strict=True))
    client = await first.known()
    first.begin()
    second.begin()
    created = await first.send(client)
    await run_of(first)
    far.only.start()
    await first.when(lambda: with_status(first, client, created.id, "processing"))
    # For as long as the first one beats it stays there.
    await asyncio.sleep(1.2)
    assert created.id not in second.errands.sights
    assert (await outcomes(second, created.id)) == [(None, False)]
    await first.kill()
    await second.when(lambda: created.id in second.errands.sights)
    far.only.succeed()
    assert (await second.ended(client, created.id)).status == "succeeded"
    row = await second.over(created.id)
    assert (row.node, row.epoch, len(far.submits)) == ("second", 2, 1)
    assert await outcomes(second, created.id) == [("succeeded", True)]
    await second.halt()
    for database in databases:
        await database.aclose()


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
async def test_a_cancel_at_another_node_ends_the_run(url: str, far: Far) -> None:
    databases = [open_database(url), open_database(url)]
    await databases[0].migrate()
    blobs = MemoryBlobStore()
    first, second = (Node(db, far, blobs, name) for db, name in zip(databases, ("first", "second"), strict=True))
    client = await first.known()
    first.begin()
    second.begin()
    created = await first.send(client)
    await run_of(first)
    assert (await second.predictions.cancel(client.account, created.id)).status == "canceled"
    await first.when(lambda: far.only.cancels)
    await second.over(created.id)
    # A callback that comes to the wrong node is passed on.
    again = await first.send(client)
    await run_of(first, 2)
    await first.when(lambda: again.id in first.errands.sights)
    heard = asyncio.Event()
    [errand] = first.errands._driven.values()
    errand.look = heard.set  # type: ignore[method-assign]
    second.errands.heard(far.submits[-1].mark)
    await asyncio.wait_for(heard.wait(), 5)
    for node in (first, second):
        await node.halt()
    for database in databases:
        await database.aclose()


# --- stop ------------------------------------------------------------------------------------------------------------


async def test_a_stop_leaves_the_run_going_and_the_next_process_takes_it_over(quick: Database, far: Far) -> None:
    node = Node(quick, far, MemoryBlobStore())
    engine = Engine(node.mortal, None, node.fleet, node.predictions, Waiters(), node.tasks, {}, errands=node.errands)
    client = await node.known()
    created = await node.send(client)
    await run_of(node)
    far.only.start()
    far.only.logs = "one\n"
    await node.when(lambda: node.live(created.id).log == b"one\n")
    await engine.stop(5)
    assert far.only.state == "running"
    # What was shown is saved.
    [row] = await quick.read("get_prediction", id=created.id)
    assert (row[7], row[20]) == ("running", 4)
    following = node.again()
    following.begin()
    far.only.logs = "one\ntwo\n"
    far.only.succeed()
    ended = await following.ended(client, created.id)
    assert (ended.status, ended.logs) == ("succeeded", "one\ntwo\n")
    assert len(far.submits) == 1
    await following.halt()


async def test_a_stop_waits_for_the_name_of_a_run_that_is_being_made(quick: Database, far: Far) -> None:
    node = Node(quick, far, MemoryBlobStore())
    client = await node.known()
    made, go_on = far.hold("after submit")
    created = await node.send(client)
    await made.wait()
    stopping = asyncio.create_task(node.halt())
    await asyncio.sleep(0.05)
    assert not stopping.done()
    go_on.set()
    await stopping
    [row] = await errands_store.open_of(quick, None)
    assert (row.state, row.remote_id, row.prediction) == ("submitted", "far-1", created.id)
    # Nothing is begun any more.
    node.errands.start(row)
    assert not node.errands._driven


# --- back to workers -------------------------------------------------------------------------------------------------


async def routed(node: Node, client: Caller, policy: object) -> None:
    await node.provider(client.account)
    await node.routes.put(client.account, "ada/noop", policy)


async def test_a_worker_that_becomes_free_gets_what_waits_at_the_provider(node: Node, far: Far) -> None:
    client = await node.known()
    await routed(node, client, ["workers", "far"])
    created = await node.send(client)
    await run_of(node)
    await node.when(lambda: created.id in node.errands.sights)
    worker = await node.worker()
    work = await worker.next()
    # Not before it was over there.
    assert far.only.state == "canceled"
    assert (work.prediction, work.attempt) == (created.id, 2)
    await worker.finish(await worker.start(work))
    assert (await node.ended(client, created.id)).status == "succeeded"
    assert (await node.over(created.id)).cost == 0
    assert await outcomes(node, created.id) == [("lost", True), ("succeeded", True)]
    [first, _] = await fleet.list_attempts(node.mortal._db, created.id)
    assert first.reason == TAKEN_BACK
    [row] = await node.mortal._db.read("get_prediction", id=created.id)
    assert row[10] == 0


async def test_what_runs_at_the_provider_stays_there(node: Node, far: Far) -> None:
    client = await node.known()
    await routed(node, client, ["workers", "far"])
    created = await node.send(client)
    await run_of(node)
    far.only.start()
    await node.when(lambda: with_status(node, client, created.id, "processing"))
    worker = await node.worker()
    await asyncio.sleep(0.2)
    assert worker.assigned.empty()
    far.only.succeed()
    await node.ended(client, created.id)
    assert far.only.cancels == 0


async def test_a_route_that_has_the_provider_first_takes_nothing_back(node: Node, far: Far) -> None:
    client = await node.known()
    await routed(node, client, ["far", "workers"])
    created = await node.send(client)
    await run_of(node)
    await node.when(lambda: created.id in node.errands.sights)
    worker = await node.worker()
    await asyncio.sleep(0.2)
    assert worker.assigned.empty()
    assert far.only.cancels == 0


@pytest.mark.parametrize("is_success", [False, True])
async def test_a_run_that_begins_while_it_is_taken_back(node: Node, far: Far, is_success: bool) -> None:
    """One that succeeds after all is delivered; one that was canceled on its way is no strike."""
    client = await node.known()
    far.cancels_at_once = False
    await routed(node, client, ["workers", "far"])
    created = await node.send(client)
    await run_of(node)
    await node.when(lambda: created.id in node.errands.sights)
    worker = await node.worker()
    await node.when(lambda: far.only.cancels)
    far.only.start()
    seen = far.calls["poll"]
    await node.when(lambda: far.calls["poll"] > seen + 2)
    assert worker.assigned.empty()
    if is_success:
        far.only.succeed()
        assert (await node.ended(client, created.id)).status == "succeeded"
        assert worker.assigned.empty()
        assert (await node.over(created.id)).cost == 3_000
    else:
        far.only.state = "canceled"
        work = await worker.next()
        assert work.attempt == 2
        [row] = await node.mortal._db.read("get_prediction", id=created.id)
        assert row[10] == 0
        await node.over(created.id)


async def test_what_could_not_even_be_sent_is_taken_back(node: Node, far: Far) -> None:
    client = await node.known()
    await routed(node, client, ["workers", "far"])
    far.refuses["submit"] = [Busy("full")] * 1000
    created = await node.send(client)
    await node.when(lambda: node.errands.words)
    worker = await node.worker()
    assert (await worker.next()).prediction == created.id
    assert (await node.over(created.id)).cost == 0
    assert far.runs == {}


# --- quiet -----------------------------------------------------------------------------------------------------------


async def test_hints_end_a_rest_but_not_more_than_four_times_a_second(quick: Database, far: Far) -> None:
    node = Node(quick, far, MemoryBlobStore(), pace=msgspec.structs.replace(QUICK, first_s=60.0, slowest_s=60.0))
    client = await node.known()
    created = await node.send(client)
    await run_of(node)
    await node.when(lambda: created.id in node.errands.sights)
    node.errands.heard(far.submits[0].mark)
    await node.when(lambda: far.calls["poll"] == 1)
    for _ in range(200):
        far.hints.put_nowait(None)
        await asyncio.sleep(0.005)
    assert 2 <= far.calls["poll"] <= 7
    far.only.succeed()
    node.errands.heard(far.submits[0].mark)
    assert (await node.ended(client, created.id)).status == "succeeded"
    await node.over(created.id)
    await node.tasks.settle(5)
    assert not node.tasks._tasks
    assert not node.errands._marks
    await node.halt()


async def test_nothing_is_written_while_nothing_changes(quick: Database, far: Far) -> None:
    node = Node(quick, far, MemoryBlobStore())
    client = await node.known()
    created = await node.send(client)
    await run_of(node)
    await node.when(lambda: created.id in node.errands.sights)
    node.begin()
    await node.when(lambda: far.calls["poll"] > 5)
    before = len(node.mortal.units)
    seen = far.calls["poll"]
    await node.when(lambda: far.calls["poll"] > seen + 10)
    assert len(node.mortal.units) == before
    await node.halt()


async def test_no_log_line_has_a_key_or_an_input(node: Node, far: Far) -> None:
    client = await node.known()
    secret = b'{"prompt": "a prompt that is nobody\'s business"}'
    with capture_logs() as lines:
        far.refuses["submit"] = [Unanswered("reset"), Refused("prompt: a prompt that is nobody's business")]
        created = await node.predictions.create(client, Order(secret, msgspec.json.decode(secret), "ada/noop"))
        node.others.add(created.id)
        node.errands.start(await node.claim(client, created.id))
        await node.over(created.id)
    assert far.calls["submit"] == 2
    assert lines
    assert "nobody's business" not in str(lines)
    assert KEY not in str(lines)
