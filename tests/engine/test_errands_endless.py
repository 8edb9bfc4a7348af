"""Errands that would never get over: runs that do not end, answers of no use, and runs that nobody looks at."""

import msgspec
import pytest

from cogflare.providers.base import Busy, Sight, Unanswered
from cogflare.store.base import Database
from engine.far import QUICK, Far, Node, Run, budget, outcomes, run_of
from support.memory_blobs import MemoryBlobStore

pytestmark = pytest.mark.anyio


def _broken(run: Run) -> Sight:
    raise RuntimeError("an answer that nobody has thought of")


async def test_answers_that_break_the_program_leave_the_run_in_doubt(quick: Database, far: Far) -> None:
    node = Node(quick, far, MemoryBlobStore(), pace=msgspec.structs.replace(QUICK, lost_s=0.2))
    node.begin()
    client = await node.known()
    far.stale = _broken
    created = await node.send(client, budget(client))
    row = await node.over(created.id)
    assert (row.is_in_doubt, row.cost, row.remote_id) == (True, 10_000, "far-1")
    assert await outcomes(node, created.id) == [("lost", True)]
    [stored] = await quick.read("get_prediction", id=created.id)
    assert (stored[7] in ("queued", "parked"), stored[10]) == (True, 1)
    await node.halt()


async def test_an_answer_that_breaks_the_program_for_a_while_loses_nothing(node: Node, far: Far) -> None:
    client = await node.known()
    far.stale = _broken
    created = await node.send(client)
    await node.when(lambda: far.calls["poll"] > 3)
    far.stale = None
    far.only.succeed()
    assert (await node.ended(client, created.id)).status == "succeeded"
    await node.over(created.id)
    assert len(far.submits) == 1


@pytest.mark.parametrize("is_busy", [False, True])
async def test_a_run_that_no_cancel_ends_is_left_in_doubt(quick: Database, far: Far, is_busy: bool) -> None:
    node = Node(quick, far, MemoryBlobStore(), pace=msgspec.structs.replace(QUICK, unwanted_s=0.3))
    node.begin()
    client = await node.known()
    far.cancels_at_once = False
    created = await node.send(client, budget(client))
    await run_of(node)
    far.only.start()
    if is_busy:
        far.refuses["poll"] = [Busy("rate limit", 0.01) for _ in range(1_000)]
    await node.predictions.cancel(client.account, created.id)
    assert await outcomes(node, created.id) == [("canceled", False)]
    row = await node.over(created.id)
    assert (row.is_in_doubt, row.cost) == (True, 10_000)
    assert far.only.cancels
    assert await outcomes(node, created.id) == [("canceled", True)]
    await node.halt()


async def test_a_run_that_a_process_makes_after_it_was_taken_over_is_ended(quick: Database, far: Far) -> None:
    """It stood still in the call for so long that the next one looked in vain, and made a run of its own."""
    old = Node(quick, far, MemoryBlobStore())
    client = await old.known()
    stands, go_on = far.hold("before submit")
    created = await old.send(client)
    await stands.wait()
    following = old.again()
    following.begin()
    await run_of(following)
    await following.when(lambda: created.id in following.errands.sights)
    far.refuses["cancel"] = [Unanswered("connection reset")]
    go_on.set()
    await run_of(following, 2)
    await old.when(lambda: not old.errands._driven)
    assert (far.runs["far-1"].cancels, far.runs["far-2"].state) == (0, "canceled")
    far.runs["far-1"].succeed()
    assert (await following.ended(client, created.id)).status == "succeeded"
    assert (await following.over(created.id)).remote_id == "far-1"
    await following.halt()
    await old.halt()
