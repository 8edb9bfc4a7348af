"""Several nodes on one PostgreSQL send predictions to providers: each goes once, and no budget is spent twice."""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress

import pytest

from cogflare.store import budgets, errands, predictions, providers
from cogflare.store.base import Conflict, Statement, Value
from cogflare.store.errands import ErrandRow
from cogflare.store.postgres import PostgresDatabase
from store.errands import DAY, HOLDER, MONTH, new, provider, row_of, send, settling, share
from store.scene import QUEUE, Scene
from store.test_nodes import books_are_right, cancel, uncommitted, waits_for_a_lock

pytestmark = pytest.mark.anyio

LIMIT = 1000


@pytest.fixture
def url(new_url: Callable[[str], str]) -> str:
    return new_url("postgres")


async def refused(sending: asyncio.Future[ErrandRow]) -> str:
    with pytest.raises(Conflict) as conflict:
        await sending
    return conflict.value.statement


async def test_the_second_of_two_claims_of_one_prediction_loses(scene: Scene, url: str) -> None:
    await provider(scene)
    id = await scene.create()
    shares = [share(LIMIT, 100)]
    async with uncommitted(url, *errands.claim(new(scene, id), shares)):
        sending = asyncio.ensure_future(send(scene, id, shares=shares))
        await waits_for_a_lock(scene.rows)
    assert await refused(sending) == "claim_errand"
    assert [row.key for row in await errands.for_prediction(scene.db, id)] == [(id, 1)]
    assert await budgets.spent(scene.db, "acct", [DAY]) == {("account", "", DAY): 100}
    await books_are_right(scene)


async def test_the_second_of_two_claims_sees_what_the_first_has_reserved(scene: Scene, url: str) -> None:
    await provider(scene)
    first, second = await scene.create(), await scene.create()
    # The first of its day, so that neither finds a row.
    async with uncommitted(url, *errands.claim(new(scene, first), [share(LIMIT, 600)])):
        sending = asyncio.ensure_future(send(scene, second, shares=[share(LIMIT, 600)]))
        await waits_for_a_lock(scene.rows)
    assert await refused(sending) == "reserve"
    assert await budgets.spent(scene.db, "acct", [DAY]) == {("account", "", DAY): 600}
    row = await send(scene, second, shares=[share(LIMIT, None)])
    assert row.reserved == 400


async def test_the_second_of_two_claims_finds_the_provider_full(scene: Scene, url: str) -> None:
    await provider(scene)
    first, second = await scene.create(), await scene.create()
    async with uncommitted(url, *errands.claim(new(scene, first), [])):
        sending = asyncio.ensure_future(send(scene, second, most_open=1))
        await waits_for_a_lock(scene.rows)
    assert await refused(sending) == "errand_room"


async def test_a_claim_goes_around_what_somebody_else_holds(scene: Scene, url: str) -> None:
    await provider(scene)
    id = await scene.create()
    # Up to the moment before the queue changes: from then on claims wait for each other.
    async with uncommitted(url, cancel(scene, id, 0)[0]):
        assert await refused(asyncio.ensure_future(send(scene, id))) == "claim_errand"
    assert await errands.for_prediction(scene.db, id) == []


async def test_a_worker_is_faster_than_a_provider(scene: Scene, url: str) -> None:
    await provider(scene)
    await scene.link()
    id = await scene.create()
    async with uncommitted(url, *predictions.claim(scene.wish(), scene.tick())):
        sending = asyncio.ensure_future(send(scene, id))
        await waits_for_a_lock(scene.rows)
    assert await refused(sending) == "claim_errand"
    assert (await scene.attempt((id, 1))).holder == "w1"


async def test_a_provider_is_faster_than_a_worker(scene: Scene, url: str) -> None:
    await provider(scene)
    await scene.link()
    id = await scene.create()
    async with uncommitted(url, *errands.claim(new(scene, id), [])):
        assert await scene.claim() is None
    assert (await scene.attempt((id, 1))).holder == HOLDER
    await books_are_right(scene)


async def test_a_cancel_waits_for_the_claim_and_loses(scene: Scene, url: str) -> None:
    await provider(scene)
    id = await scene.create()
    async with uncommitted(url, *errands.claim(new(scene, id), [])):
        canceling = asyncio.ensure_future(scene.db.write(*cancel(scene, id, 0)))
        await waits_for_a_lock(scene.rows)
    with pytest.raises(Conflict):
        await canceling
    assert (await scene.row(id)).phase == "assigned"


async def test_one_of_two_takes_over(scene: Scene, url: str) -> None:
    await provider(scene)
    row = await send(scene, await scene.create())
    other = PostgresDatabase(url)
    taken = await asyncio.gather(
        errands.take_over(scene.db, row.key, 1, "n2"), errands.take_over(other, row.key, 1, "n3")
    )
    await other.aclose()
    assert [found.epoch for found in taken if found is not None] == [2]
    assert (await scene.attempt(row.key)).link_epoch == 2


async def test_a_settlement_waits_for_the_take_over_and_loses(scene: Scene, url: str) -> None:
    await provider(scene)
    row = await send(scene, await scene.create(), shares=[share(LIMIT, 100)])
    place: dict[str, Value] = {"prediction": row.prediction, "attempt": row.attempt, "epoch": row.epoch}
    taking = Statement("take_over_errand", {**place, "node": "n2"}), Statement("take_over_attempt", place)
    async with uncommitted(url, *taking):
        ending = asyncio.ensure_future(scene.db.write(*settling(scene, row, 30)))
        await waits_for_a_lock(scene.rows)
    with pytest.raises(Conflict):
        await ending
    assert (await row_of(scene, row.key)).epoch == 2
    assert await budgets.spent(scene.db, "acct", [DAY]) == {("account", "", DAY): 100}


async def test_a_take_over_waits_for_the_settlement_and_loses(scene: Scene, url: str) -> None:
    await provider(scene)
    row = await send(scene, await scene.create(), shares=[share(LIMIT, 100)])
    async with uncommitted(url, *settling(scene, row, 30)):
        taking = asyncio.ensure_future(errands.take_over(scene.db, row.key, 1, "n2"))
        await waits_for_a_lock(scene.rows)
    assert await taking is None
    settled = await row_of(scene, row.key)
    assert (settled.state, settled.epoch, settled.cost) == ("over", 1, 30)
    assert await budgets.spent(scene.db, "acct", [DAY]) == {("account", "", DAY): 30}


async def test_a_provider_is_not_removed_under_a_claim(scene: Scene, url: str) -> None:
    await provider(scene)
    id = await scene.create()
    async with uncommitted(url, *errands.claim(new(scene, id), [])):
        removing = asyncio.ensure_future(providers.remove(scene.db, "acct", "replicate"))
        await waits_for_a_lock(scene.rows)
    assert await removing == "busy"


async def test_nodes_at_once_keep_the_ledger_right(scene: Scene, url: str) -> None:
    """Three nodes send, settle and take over the same predictions; what is spent is what was paid or is reserved."""
    nodes = [PostgresDatabase(url, writers=2) for _ in range(3)]
    random_ = random.Random(11)
    await provider(scene)
    ids = [await scene.create() for _ in range(40)]
    paid: list[int] = []

    async def one(db: PostgresDatabase) -> None:
        mine = Scene(db, scene.rows)
        mine.now = scene.tick()
        row = await mine.row(random_.choice(ids))
        with suppress(Conflict):
            if row.phase == "queued":
                amount = random_.choice([None, 70, 70])
                shares = [share(LIMIT, amount), share(10 * LIMIT, amount or 0, since=MONTH)]
                await send(mine, row.id, row.attempt, shares, most_open=8)
                return
            known = await errands.get(db, row.id, row.attempt)
            if known is None or known.is_over:
                return
            if random_.random() < 0.2:
                await errands.take_over(db, known.key, known.epoch, "n2")
                return
            cost = random_.choice([None, 0, 5, 60])
            again = predictions.requeue(*known.key, None)
            lost = predictions.end_attempt(*known.key, "lost", now=mine.tick())
            await db.write(*settling(mine, known, cost), again, lost, *predictions.enqueue(row.id, [QUEUE]))
            paid.append(cost or 0)

    for _ in range(25):
        await asyncio.gather(*(one(nodes[n % 3]) for n in range(36)))
        [(spent,)] = await scene.rows.fetch("SELECT sum(amount)::bigint FROM spending WHERE since = $1", DAY)
        # What was not known beforehand, and cost more than was left.
        assert spent <= LIMIT + 60
    for db in nodes:
        await db.aclose()
    await books_are_right(scene)
    held = await scene.rows.fetch("SELECT since, sum(amount)::bigint FROM errand_reservations GROUP BY since")
    reserved: dict[str, int] = dict(held)
    spent_now = await budgets.spent(scene.db, "acct", [DAY, MONTH])
    for since in (DAY, MONTH):
        assert spent_now["account", "", since] == sum(paid) + reserved.get(since, 0)
    [row] = await errands.costs(scene.db, "acct", 0, 2 * scene.now)
    assert (row.runs, row.cost) == (len(paid), sum(paid))
    assert len(paid) > 20
