"""Creates that are sent again, over both databases: one prediction for what is one request, and never one too few."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from cogflare.domain.errors import InvalidInput, QueueFull, Reused
from cogflare.domain.ids import new_id
from cogflare.engine.catalog import Bounds
from cogflare.engine.predictions import Order
from cogflare.engine.repeats import Answer
from cogflare.store import idempotency, retention
from cogflare.store.base import Database, Row, Statement, Value
from cogflare.store.catalog import Caller
from cogflare.store.listing import Query
from engine.rig import Rig
from engine.test_limits import MovedClock
from engine.test_races import Slow

pytestmark = pytest.mark.anyio

SCHEMA = b"""{"components": {"schemas": {
    "Input": {"type": "object", "properties": {"n": {"type": "integer"}}}, "Output": {"type": "string"}}}}"""
ORDER = Order(b'{"n": 1, "m": 2}', {"n": 1, "m": 2}, "ada/noop")
OTHER = Order(b'{"n": 2}', {"n": 2}, "ada/noop")
_same = (ORDER.input, ORDER.values)
MINUTE_S = 60.0


async def open_rig(db: Database, **options: int) -> tuple[Rig, MovedClock, Caller]:
    clock = MovedClock()
    rig = Rig(db, clock=clock, **options)  # type: ignore[arg-type]
    await rig.worker("shared", slots=0, schema=SCHEMA)
    return rig, clock, await rig.caller("ada")


async def count(rig: Rig, caller: Caller) -> int:
    return len((await rig.predictions.page(Query(caller.account))).views)


def ids(answers: list[Answer]) -> Counter[str]:
    return Counter(answer.view.id for answer in answers)


# --- keys -------------------------------------------------------------------------------------------------------------


async def test_one_key_sent_by_many_at_once_makes_one_prediction(store: Database) -> None:
    rig, _, ada = await open_rig(store)
    answers = await asyncio.gather(*(rig.repeats.keyed(ada, ORDER, "k", None) for _ in range(20)))
    assert len(ids(answers)) == await count(rig, ada) == 1
    assert [answer.is_new for answer in answers].count(True) == 1
    spelled = Order(b'{"m":2,"n":1}', {"m": 2, "n": 1}, "ada/noop")
    assert (await rig.repeats.keyed(ada, spelled, "k", None)).view.id == answers[0].view.id


async def test_two_nodes_make_one_prediction_of_one_key(store: Database) -> None:
    rig, _, ada = await open_rig(store)
    nodes = [rig, Rig(store, node="second")]
    answers = await asyncio.gather(*(nodes[n % 2].repeats.keyed(ada, ORDER, "k", None) for n in range(20)))
    assert len(ids(answers)) == await count(rig, ada) == 1


async def test_a_key_belongs_to_its_account_and_its_order(store: Database) -> None:
    rig, _, ada = await open_rig(store)
    eve = await rig.caller("eve")
    first = await rig.repeats.keyed(ada, ORDER, "k", None)
    others = await rig.repeats.keyed(eve, OTHER, "k", None)
    assert others.is_new
    assert others.view.account == eve.account
    for changed in (OTHER, Order(b"{}", {}, "ada/noop"), Order(*_same, "ada/noop", webhook="https://example.com/")):
        with pytest.raises(Reused):
            await rig.repeats.keyed(ada, changed, "k", None)
    assert (await rig.repeats.keyed(ada, ORDER, "k", None)).view.id == first.view.id
    assert await count(rig, ada) == 1


async def test_a_key_counts_for_a_day(store: Database) -> None:
    rig, clock, ada = await open_rig(store)
    first = await rig.repeats.keyed(ada, ORDER, "k", None)
    clock.ahead_s += 24 * 3600 - 10
    assert not (await rig.repeats.keyed(ada, ORDER, "k", None)).is_new
    await rig.repeats.tick()
    assert not (await rig.repeats.keyed(ada, ORDER, "k", None)).is_new
    clock.ahead_s += 11
    second = await rig.repeats.keyed(ada, OTHER, "k", None)
    assert second.is_new
    assert second.view.id != first.view.id
    assert not (await rig.repeats.keyed(ada, OTHER, "k", None)).is_new


async def test_what_was_refused_uses_up_no_key(store: Database) -> None:
    rig, _, ada = await open_rig(store, max_queued=1)
    bad = Order(b'{"n": "x"}', {"n": "x"}, "ada/noop")
    with pytest.raises(InvalidInput):
        await rig.repeats.keyed(ada, bad, "k", None)
    waiting = await rig.create(ada)
    with pytest.raises(QueueFull):
        await rig.repeats.keyed(ada, ORDER, "k", None)
    await rig.predictions.cancel(ada.account, waiting.id)
    assert (await rig.repeats.keyed(ada, OTHER, "k", None)).is_new


async def test_a_repeated_create_is_held_as_the_first_was(store: Database) -> None:
    rig = Rig(store)
    worker, ada = await rig.worker(), await rig.caller("ada")
    order = Order(b"{}", {}, "ada/noop")
    created = await rig.repeats.keyed(ada, order, "k", None)
    key = await worker.start(await worker.next())
    await rig.checkpoints.tick()
    assert (await rig.repeats.keyed(ada, order, "k", None)).view.status == "processing"
    assert (await rig.repeats.keyed(ada, order, "k", 0.01)).view.status == "starting", "anything else is its end"
    hold = asyncio.create_task(rig.repeats.keyed(ada, order, "k", 5))
    await worker.finish(key)
    held = await hold
    assert (held.view.id, held.view.status, held.is_new) == (created.view.id, "succeeded", False)


async def used_and_gone(rig: Rig, caller: Caller) -> None:
    """Use the key "k" for a prediction whose record is gone by now."""
    created = (await rig.repeats.keyed(caller, ORDER, "k", None)).view
    await rig.predictions.cancel(caller.account, created.id)
    await retention.remove_data(rig.db, [created.id])
    await retention.delete_records(rig.db, [created.id])


async def test_a_key_from_a_time_to_come_is_free_once_its_record_is_gone(store: Database) -> None:
    rig, clock, ada = await open_rig(store)
    clock.ahead_s = 3_600.0
    await used_and_gone(rig, ada)
    clock.ahead_s = 0.0
    assert (await asyncio.wait_for(rig.repeats.keyed(ada, ORDER, "k", None), 5)).is_new


async def test_two_that_find_a_record_gone_make_one_prediction(store: Database) -> None:
    rig, clock, ada = await open_rig(store)
    await used_and_gone(rig, ada)
    slow = Slow(store)
    held, go_on = slow.hold("before insert_prediction")
    second = asyncio.create_task(Rig(slow, clock=clock).repeats.keyed(ada, ORDER, "k", None))
    await held.wait()
    first = await rig.repeats.keyed(ada, ORDER, "k", None)
    go_on.set()
    assert first.is_new
    assert (await second).view.id == first.view.id


# --- ids of clients ---------------------------------------------------------------------------------------------------


async def test_one_id_put_by_many_at_once_is_one_prediction(store: Database) -> None:
    rig, _, ada = await open_rig(store)
    second = Rig(store, node="second")
    nodes = [rig, second]
    answers = await asyncio.gather(*(nodes[n % 2].repeats.named(ada, ORDER, "job-1", None) for n in range(20)))
    assert len(ids(answers)) == await count(rig, ada) == 1
    assert [answer.is_new for answer in answers].count(True) == 1
    assert answers[0].view.public_id == "job-1"
    with pytest.raises(Reused):
        await rig.repeats.named(ada, OTHER, "job-1", None)
    pinned = Order(*_same, "ada/noop", "a" * 64)
    with pytest.raises(Reused):
        await rig.repeats.named(ada, pinned, "job-1", None)


async def test_two_accounts_may_give_the_same_id(store: Database) -> None:
    rig, _, ada = await open_rig(store)
    eve = await rig.caller("eve")
    of_ada, of_eve = await rig.repeats.named(ada, ORDER, "job", None), await rig.repeats.named(eve, OTHER, "job", None)
    assert of_ada.is_new
    assert of_eve.is_new
    await rig.predictions.cancel(ada.account, "job")
    assert (await rig.predictions.get(ada.account, "job")).status == "canceled"
    assert (await rig.predictions.get(eve.account, "job")).status == "starting"
    assert await rig.predictions.attempts(eve.account, "job") == []


async def test_an_id_that_looks_like_ours(store: Database) -> None:
    rig, clock, ada = await open_rig(store)
    eve = await rig.caller("eve")
    ours = await rig.repeats.keyed(ada, ORDER, "k", None)
    assert (await rig.repeats.named(ada, ORDER, ours.view.id, None)).view.id == ours.view.id
    with pytest.raises(Reused):
        await rig.repeats.named(ada, OTHER, ours.view.id, None)
    # To another account that id says nothing, so it may give it away itself.
    stolen = await rig.repeats.named(eve, OTHER, ours.view.id, None)
    assert stolen.is_new
    assert (await rig.predictions.get(eve.account, ours.view.id)).id == stolen.view.id
    assert (await rig.predictions.get(ada.account, ours.view.id)).id == ours.view.id
    free = new_id(clock.wall())
    assert (await rig.repeats.named(ada, ORDER, free, None)).is_new
    assert (await rig.predictions.get(ada.account, free)).public_id == free


async def test_a_running_prediction_is_found_by_its_clients_id(store: Database) -> None:
    rig = Rig(store)
    worker, ada = await rig.worker("shared"), await rig.caller("ada")
    eve = await rig.caller("eve")
    order = Order(b"{}", {}, "ada/noop", "a" * 64)
    await rig.repeats.named(ada, order, "job", None)
    key = await worker.start(await worker.next())
    await rig.checkpoints.tick()
    worker.end.log(key, "half way")
    await worker.pump()
    assert (await rig.predictions.get(ada.account, "job")).logs == "half way"
    # The id by which this node knows what runs for ada may be a name that eve has given.
    named = await rig.repeats.named(eve, order, key[0], None)
    assert (await rig.predictions.get(eve.account, key[0])).id == named.view.id
    await worker.finish(key)
    assert (await rig.repeats.named(ada, order, "job", 1)).view.status == "succeeded"
    assert len(await rig.predictions.attempts(ada.account, "job")) == 1


async def test_what_was_refused_uses_up_no_id(store: Database) -> None:
    rig, _, ada = await open_rig(store, max_queued=1)
    waiting = await rig.create(ada)
    with pytest.raises(QueueFull):
        await rig.repeats.named(ada, ORDER, "job", None)
    await rig.predictions.cancel(ada.account, waiting.id)
    assert (await rig.repeats.named(ada, OTHER, "job", None)).is_new


async def test_a_large_input_counts_too(store: Database) -> None:
    rig, _, ada = await open_rig(store)
    text = "x" * 300_000
    order = Order(b'{"text": "%b"}' % text.encode(), {"text": text}, "ada/noop")
    assert (await rig.repeats.named(ada, order, "job", None)).is_new
    assert not (await rig.repeats.named(ada, order, "job", None)).is_new
    shorter = Order(b'{"text": "x"}', {"text": "x"}, "ada/noop")
    with pytest.raises(Reused):
        await rig.repeats.named(ada, shorter, "job", None)


async def test_an_id_whose_input_is_just_being_removed(store: Database) -> None:
    rig, clock, ada = await open_rig(store)
    large = Order(b'{"m": "%b"}' % (b"x" * 20_000), {"m": "x" * 20_000}, "ada/noop")
    created = (await rig.repeats.named(ada, large, "job", None)).view
    await rig.predictions.cancel(ada.account, created.id)
    slow = Slow(store)
    read, go_on = slow.hold("get_client_prediction")
    again = asyncio.create_task(Rig(slow, clock=clock).repeats.named(ada, large, "job", None))
    await read.wait()
    assert await retention.remove_data(store, [created.id]) == 1
    go_on.set()
    answer = await again
    assert (answer.view.id, answer.view.data_removed, answer.is_new) == (created.id, True, False)


# --- counted retries --------------------------------------------------------------------------------------------------


async def test_equal_creates_are_different_and_their_retries_pair_up(store: Database) -> None:
    rig, _, ada = await open_rig(store)
    originals = await asyncio.gather(*(rig.repeats.retried(ada, ORDER, 0, None) for _ in range(2)))
    assert len(ids(originals)) == 2
    for number in (1, 2):
        retries = await asyncio.gather(*(rig.repeats.retried(ada, ORDER, number, None) for _ in range(2)))
        assert ids(retries) == ids(originals)
        assert not any(retry.is_new for retry in retries)
    assert await count(rig, ada) == 2


async def test_a_retry_of_what_never_arrived_is_new_and_can_be_retried(store: Database) -> None:
    rig, _, ada = await open_rig(store)
    first = await rig.repeats.retried(ada, ORDER, 1, None)
    assert first.is_new
    assert (await rig.repeats.retried(ada, ORDER, 1, None)).is_new, "another create lost its original"
    assert (await rig.repeats.retried(ada, ORDER, 2, None)).view.id == first.view.id
    assert await count(rig, ada) == 2


async def test_a_retry_is_of_the_same_token_and_the_same_order(store: Database) -> None:
    rig, _, ada = await open_rig(store)
    await rig.repeats.retried(ada, ORDER, 0, None)
    other_token = await rig.caller("ada")
    assert other_token.token != ada.token
    assert (await rig.repeats.retried(other_token, ORDER, 1, None)).is_new
    assert (await rig.repeats.retried(ada, OTHER, 1, None)).is_new
    assert not (await rig.repeats.retried(ada, ORDER, 1, None)).is_new


async def test_a_retry_counts_for_two_minutes_from_the_last(store: Database) -> None:
    rig, clock, ada = await open_rig(store)
    original = await rig.repeats.retried(ada, ORDER, 0, None)
    for number in (1, 2):
        clock.ahead_s += 1.5 * MINUTE_S
        await rig.repeats.tick()
        assert (await rig.repeats.retried(ada, ORDER, number, None)).view.id == original.view.id
    clock.ahead_s += 2.1 * MINUTE_S
    assert (await rig.repeats.retried(ada, ORDER, 3, None)).is_new
    clock.ahead_s += 2.1 * MINUTE_S
    await rig.repeats.tick()
    assert await idempotency.prune(store, "retry", clock.wall(), 10) == 0, "nothing of it is left"


# --- creates that are not repeated ------------------------------------------------------------------------------------


class Counted:
    """A database that notes the names of what is asked of it."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.units: list[list[str]] = []
        self.reads: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    async def read(self, name: str, /, **params: Value) -> list[Row]:
        self.reads.append(name)
        return await self._db.read(name, **params)

    async def write(self, *statements: Statement, **options: Any) -> list[list[Row]]:
        self.units.append([statement.name for statement in statements])
        return await self._db.write(*statements, **options)


async def test_a_create_without_a_mark_is_one_unit_of_three_statements(store: Database) -> None:
    counted = Counted(store)
    rig = Rig(counted, max_queued=5, bounds=Bounds(1800.0, 60.0, 10))
    await rig.worker(slots=0)
    ada = await rig.caller("ada")
    await rig.create(ada)
    await rig.settle()
    counted.reads.clear()
    counted.units.clear()
    await rig.create(ada)
    assert (counted.units, counted.reads) == ([["insert_prediction", "enqueue", "count_run"]], [])
