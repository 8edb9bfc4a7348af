"""What the verbs of the outbox promise, over both dialects."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from cogflare.domain.phases import Status
from cogflare.store import deliveries, predictions, retention
from cogflare.store.base import Conflict, Statement
from cogflare.store.deliveries import Delivery, News, Query, Term, Try, Waiting
from store.scene import Scene

pytestmark = pytest.mark.anyio

S = 1_000_000
HOST = "a.example:443"
LEASE = 15 * S


async def hooked(scene: Scene, host: str = HOST, **fields: Any) -> str:
    """Create a prediction with a webhook and return its id."""
    return await scene.create(webhook=f"https://{host}/", webhook_host=host, webhook_origin="https://o", **fields)


async def ended(scene: Scene, host: str = HOST, **fields: Any) -> str:
    """Return the message about the end of a new prediction."""
    id = await hooked(scene, host, **fields)
    await scene.cancel((id, 0))
    return f"msg_{id}"


async def running(scene: Scene, **fields: Any) -> tuple[str, int]:
    await hooked(scene, **fields)
    key = await scene.claim_key()
    await scene.checkpoint(key)
    return key


def term(scene: Scene) -> Term:
    now = scene.tick()
    return Term(now, now + LEASE, now + 100 * S, now + 50 * S, now + 20 * S)


async def claim(scene: Scene, limit: int = 10, hosts: Sequence[str] = (HOST,)) -> list[Delivery]:
    return await deliveries.claim(scene.db, dict.fromkeys(hosts, limit), term(scene))


async def settle(scene: Scene, delivery: Delivery, state: str, next_try_at: int | None = None) -> None:
    over = None if state == "pending" else scene.tick()
    statement = deliveries.settle(delivery.id, delivery.tries, state, next_try_at=next_try_at, ended_at=over)
    await scene.db.write(statement)


async def get(scene: Scene, id: str, account: str = "acct") -> Delivery:
    found = await deliveries.get(scene.db, account, id)
    assert found is not None
    return found


# --- the outbox ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["finish", "cancel", "strike out"])
async def test_whatever_ends_a_prediction_writes_the_message(scene: Scene, how: str) -> None:
    key = await running(scene)
    assert await deliveries.page(scene.db, Query("acct")) == []
    if how == "finish":
        await scene.finish(key)
    elif how == "cancel":
        await scene.cancel(key)
    else:
        await scene.strike_out(key)
    [row] = await deliveries.page(scene.db, Query("acct"))
    assert (row.id, row.event, row.state, row.tries) == (f"msg_{key[0]}", "completed", "pending", 0)
    assert (row.url, row.host, row.next_try_at) == (f"https://{HOST}/", HOST, row.created_at)
    await scene.create()
    await scene.cancel(await scene.claim_key())
    assert len(await deliveries.page(scene.db, Query("acct"))) == 1, "no webhook, no message"


async def test_a_unit_that_is_rolled_back_leaves_no_message(scene: Scene) -> None:
    id = await hooked(scene)
    with pytest.raises(Conflict):
        await scene.db.write(
            *predictions.end(id, 0, Status.CANCELED, now=scene.tick()),
            Statement("mark_requeued", {"prediction": "none", "requeued_as": ""}, needs="row"),
        )
    assert await deliveries.page(scene.db, Query("acct")) == []


async def test_an_end_is_told_once(scene: Scene) -> None:
    key = await running(scene)
    await scene.cancel(key)
    with pytest.raises(Conflict):
        await scene.finish(key)
    assert len(await deliveries.page(scene.db, Query("acct"))) == 1


# --- trying ----------------------------------------------------------------------------------------------------------


async def test_hosts_come_in_order_some_at_a_time(scene: Scene) -> None:
    for host in ("b", "a", "c", "b"):
        await ended(scene, host)
    rows = await deliveries.page(scene.db, Query("acct"))
    times = {host: [row.created_at for row in rows if row.host == host] for host in "abc"}
    expected = [Waiting(host, min(found), max(found)) for host, found in times.items()]
    assert await deliveries.waiting(scene.db, "", 10) == expected
    assert await deliveries.waiting(scene.db, "", 2) == expected[:2]
    assert await deliveries.waiting(scene.db, "b", 2) == expected[2:]
    for delivery in await claim(scene, hosts="abc"):
        await settle(scene, delivery, "delivered")
    assert await deliveries.waiting(scene.db, "", 10) == []


async def test_a_claim_is_for_one_try_and_its_time(scene: Scene) -> None:
    ids = {await ended(scene) for _ in range(3)}
    await ended(scene, "other")
    claimed = await claim(scene)
    assert {row.id for row in claimed} == ids
    assert {(row.tries, row.give_up_at) for row in claimed} == {(1, scene.now + 100 * S)}
    assert await claim(scene) == []
    scene.tick(LEASE)
    again = await claim(scene)
    assert {(row.tries, row.give_up_at) for row in again} == {(2, claimed[0].give_up_at)}


async def test_the_longest_due_come_first(scene: Scene) -> None:
    ids = [await ended(scene) for _ in range(4)]
    assert {row.id for row in await claim(scene, 2)} == set(ids[:2])
    assert {row.id for row in await claim(scene, 1)} == {ids[2]}


async def test_claims_at_once_share(scene: Scene) -> None:
    ids = [await ended(scene) for _ in range(12)]
    found = await asyncio.gather(*(claim(scene, 4) for _ in range(6)))
    assert sorted(row.id for rows in found for row in rows) == sorted(ids)


async def test_what_was_taken_over_is_settled_by_the_new_holder_unless_it_arrived(scene: Scene) -> None:
    id = await ended(scene)
    [old] = await claim(scene)
    scene.tick(LEASE)
    [new] = await claim(scene)
    assert not await deliveries.extend(scene.db, old, scene.now + LEASE)
    await settle(scene, old, "failed")
    await settle(scene, old, "pending", scene.now)
    assert (await get(scene, id)).next_try_at == new.next_try_at
    await settle(scene, old, "delivered")
    await settle(scene, new, "failed")
    assert (await get(scene, id)).state == "delivered"


async def test_a_far_time_is_due_after_the_clock_was_set_back(scene: Scene) -> None:
    id = await ended(scene)
    [row] = await claim(scene)
    await settle(scene, row, "pending", scene.now + 1000 * S)
    times = term(scene)
    [waiting] = await deliveries.waiting(scene.db, "", 10)
    assert waiting.last > times.latest
    await deliveries.hurry(scene.db, [HOST], times)
    assert [row.id for row in await claim(scene)] == [id]


# --- before the end --------------------------------------------------------------------------------------------------


def news(key: tuple[str, int], number: int = 1) -> News:
    return News(f"msg_{key[0]}_{number}", *key, "output", HOST, number, 10 * number)


async def announce(scene: Scene, *found: News) -> set[str]:
    now = scene.tick()
    return await deliveries.announce(scene.db, found, now, now + LEASE)


async def test_one_at_a_time_and_none_after_the_end(scene: Scene) -> None:
    key, other = await running(scene), await running(scene)
    first = news(key)
    assert await announce(scene, first, news(other)) == {first.id, news(other).id}
    assert await announce(scene, news(key, 2)) == set()
    row = await get(scene, first.id)
    assert (row.state, row.tries, row.event, row.give_up_at) == ("pending", 1, "output", row.created_at)
    await settle(scene, row, "failed")
    assert await announce(scene, first) == set(), "an id is used once"
    assert await announce(scene, News("x", key[0], 2, "logs", HOST, 0, 0)) == set(), "of another attempt"
    assert await announce(scene, news(key, 2)) == {news(key, 2).id}
    told = await deliveries.told(scene.db, key[0])
    assert [(one.event, one.items, one.log_bytes) for one in told] == [("output", 1, 10), ("output", 2, 20)]
    await settle(scene, await get(scene, news(key, 2).id), "delivered")
    await scene.finish(key)
    assert await announce(scene, news(key, 3)) == set()


async def test_the_end_waits_for_what_is_under_way(scene: Scene) -> None:
    key = await running(scene)
    await announce(scene, news(key))
    await scene.finish(key)
    assert await claim(scene) == []
    await settle(scene, await get(scene, news(key).id), "delivered")
    assert [row.event for row in await claim(scene)] == ["completed"]


async def test_what_comes_late_needs_the_message_about_the_end(scene: Scene) -> None:
    key = await running(scene)
    await scene.finish(key)
    [old] = await claim(scene)
    now = scene.tick()
    assert await deliveries.announce_late(scene.db, news(key), old, now, now + LEASE)
    assert (await get(scene, old.id)).next_try_at == now + LEASE
    scene.tick(LEASE)
    assert {row.event for row in await claim(scene)} == {"completed", "output"}
    assert not await deliveries.announce_late(scene.db, news(key, 2), old, scene.now, scene.now + LEASE)
    await deliveries.drop(scene.db, old)
    assert (await get(scene, old.id)).state == "pending", "somebody else has it"
    await deliveries.drop(scene.db, await get(scene, old.id))
    assert await deliveries.get(scene.db, "acct", old.id) is None


# --- the log ---------------------------------------------------------------------------------------------------------


async def test_pages_of_the_log(scene: Scene) -> None:
    ids = [await ended(scene) for _ in range(5)]
    await ended(scene, "other", account="eve")
    first, second, *_ = await claim(scene)
    await settle(scene, first, "failed")
    await settle(scene, second, "delivered")

    async def page(**filters: Any) -> list[str]:
        return [row.id for row in await deliveries.page(scene.db, Query("acct", **filters))]

    newest = ids[::-1]
    assert await page() == newest
    assert await page(limit=2) == newest[:2]
    assert await page(limit=2, before=newest[1]) == newest[2:4]
    assert await page(state="failed") == [first.id]
    assert await page(state="delivered") == [second.id]
    assert len(await page(state="pending")) == len(ids) - 2
    assert await page(prediction=ids[0].removeprefix("msg_")) == [ids[0]]
    assert await page(prediction=ids[0].removeprefix("msg_"), state="nothing") == []
    assert await deliveries.get(scene.db, "eve", ids[0]) is None


async def test_tries_are_kept_in_order(scene: Scene) -> None:
    id = await ended(scene)
    tries = [Try(2, 30, 4, 500, "answered 500", "oh"), Try(1, 10, 2, None, "nobody there", None)]
    for one in (*tries, Try(1, 99, 9, 200, None, None)):
        await scene.db.write(deliveries.record(id, one))
    assert await deliveries.tries(scene.db, id) == tries[::-1]


async def test_a_replay_needs_one_that_is_over(scene: Scene) -> None:
    id = await ended(scene)
    assert await deliveries.replay(scene.db, "acct", id, scene.tick()) is None
    [row] = await claim(scene)
    await settle(scene, row, "failed")
    assert await deliveries.replay(scene.db, "eve", id, scene.tick()) is None
    again = await deliveries.replay(scene.db, "acct", id, scene.tick())
    assert again is not None
    assert (again.state, again.next_try_at, again.give_up_at, again.ended_at) == ("pending", scene.now, None, None)
    [row] = await claim(scene)
    assert (row.id, row.tries) == (id, 2)


async def test_old_messages_go_with_their_tries(scene: Scene) -> None:
    old, pending = await ended(scene), await ended(scene, "other")
    [row] = await claim(scene)
    await scene.db.write(deliveries.record(old, Try(1, 1, 1, 200, None, None)))
    await settle(scene, row, "delivered")
    assert await deliveries.forget_old(scene.db, scene.now, 10) == 0
    assert await deliveries.forget_old(scene.db, scene.now + 1, 10) == 1
    assert await deliveries.tries(scene.db, old) == []
    assert [row.id for row in await deliveries.page(scene.db, Query("acct"))] == [pending]


async def test_a_record_goes_with_its_messages(scene: Scene) -> None:
    id = await ended(scene)
    prediction = id.removeprefix("msg_")
    await scene.db.write(deliveries.record(id, Try(1, 1, 1, 200, None, None)))
    await retention.remove_data(scene.db, [prediction])
    await retention.delete_records(scene.db, [prediction])
    assert await deliveries.page(scene.db, Query("acct")) == []
    assert await deliveries.tries(scene.db, id) == []
