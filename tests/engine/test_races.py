"""Interleavings that once broke a promise: each test holds one step of the engine still while another overtakes it."""

import asyncio
from collections.abc import Callable, Sequence

import pytest
from msgspec import Raw

from cogflare.api.wire import format_time
from cogflare.protocol.codec import encode
from cogflare.protocol.messages import PING, Assign, Finish
from cogflare.store import fleet
from cogflare.store.base import Database, Hint, Listener, Row, Statement, Unavailable, Value
from engine.rig import Rig, RigWorker

pytestmark = pytest.mark.anyio


class Slow:
    """A database whose answers can be held back, whose hints can be lost, and that can refuse."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.is_shared = db.is_shared
        self._held: dict[str, tuple[asyncio.Event, asyncio.Event]] = {}
        self.refused: set[str] = set()
        self.is_mute = False

    def hold(self, name: str) -> tuple[asyncio.Event, asyncio.Event]:
        """Hold the answer of the next call with this statement: (it was carried out, let it return)."""
        self._held[name] = pair = asyncio.Event(), asyncio.Event()
        return pair

    async def _wait(self, names: Sequence[str]) -> None:
        for name in names:
            pair = self._held.pop(name, None)
            if pair is not None:
                pair[0].set()
                await asyncio.wait_for(pair[1].wait(), 10)

    async def read(self, name: str, /, **params: Value) -> list[Row]:
        rows = await self._db.read(name, **params)
        await self._wait([name])
        return rows

    async def write(
        self,
        *statements: Statement,
        hints: Sequence[Hint] = (),
        landed: Statement | None = None,
        yields: bool = False,
    ) -> list[list[Row]]:
        names = [statement.name for statement in statements]
        await self._wait([f"before {name}" for name in names])
        if self.refused.intersection(names):
            raise Unavailable("refused by the test")
        rows = await self._db.write(*statements, hints=() if self.is_mute else hints, landed=landed, yields=yields)
        await self._wait(names)
        return rows

    def listen(self, listener: Listener) -> Callable[[], None]:
        return self._db.listen(listener)

    async def migrate(self) -> None:
        await self._db.migrate()

    async def aclose(self) -> None:
        await self._db.aclose()


class DeadPort:
    """A socket that nobody reads any more."""

    def send(self, frames: Sequence[str]) -> None:
        """Lose frames."""

    def close(self, code: int, reason: str) -> None:
        """Close nothing."""

    def room(self) -> int:
        """Have room."""
        return 1_000_000


async def quiet(rig: Rig) -> None:
    """Wait for the background tasks and for those that they start."""
    while rig.tasks._tasks:
        await asyncio.wait(set(rig.tasks._tasks))


def finish_items(worker: RigWorker, key: tuple[str, int], items: int) -> None:
    worker.answers[key] = asyncio.get_running_loop().create_future()
    worker.end.finish(Finish(*key, "succeeded", items=items, slot_free=True), worker.rig.clock.monotonic())


def numbers(first: int, end: int) -> list[Raw]:
    return [Raw(b"%d" % number) for number in range(first, end)]


# --- live data -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["finish", "cancel", "close"])
async def test_what_comes_while_a_checkpoint_is_written_is_not_lost(store: Database, how: str) -> None:
    slow = Slow(store)
    rig = Rig(slow)
    worker, client = await rig.worker(), await rig.caller("ada")
    created = await rig.create(client)
    key = await worker.start(await worker.next())
    worker.end.output(key, numbers(0, 10))
    await worker.pump()
    await rig.checkpoints.tick()
    worker.end.output(key, numbers(10, 12))
    await worker.pump()
    written, go_on = slow.hold("checkpoint_attempts")
    tick = asyncio.create_task(rig.checkpoints.tick())
    await written.wait()
    worker.end.output(key, numbers(12, 15))
    await worker.pump()
    if how == "finish":
        finish_items(worker, key, 15)
        await worker.pump()
        assert await asyncio.wait_for(worker.answers[key], 5) == "committed"
    elif how == "cancel":
        await rig.predictions.cancel(client.account, created.id)
    else:
        await worker.disconnect()
    go_on.set()
    await tick
    await rig.settle()
    shown = await rig.predictions.get(client.account, created.id)
    assert shown.output == b"[" + b",".join(b"%d" % number for number in range(15)) + b"]"


async def test_a_long_log_survives_a_finish_during_its_first_checkpoint(store: Database) -> None:
    slow = Slow(store)
    rig = Rig(slow)
    worker, client = await rig.worker(), await rig.caller("ada")
    created = await rig.create(client)
    key = await worker.start(await worker.next())
    worker.end.log(key, "a" * 9000)
    await worker.pump()
    written, go_on = slow.hold("checkpoint_attempts")
    tick = asyncio.create_task(rig.checkpoints.tick())
    await written.wait()
    worker.end.log(key, "the error that matters")
    assert await worker.finish(key) == "committed"
    go_on.set()
    await tick
    assert (await rig.predictions.get(client.account, created.id)).logs.endswith("the error that matters")


async def test_an_older_link_writes_nothing_over_a_newer_one(store: Database) -> None:
    old, new = Rig(store, node="old"), Rig(store, node="new")
    worker, client = await old.worker(), await old.caller("ada")
    created = await old.create(client)
    key = await worker.start(await worker.next())
    worker.end.output(key, numbers(0, 5))
    await worker.pump()
    await old.checkpoints.tick()
    worker.end.output(key, numbers(5, 8))
    await worker.pump()
    assert worker.link is not None
    half_open = worker.link
    await worker.connect(new)  # the old node has not noticed yet
    worker.end.output(key, numbers(8, 12))
    await worker.pump()
    await old.checkpoints.tick()
    await new.checkpoints.tick()
    await half_open.closed()
    finish_items(worker, key, 12)
    await worker.pump()
    assert await asyncio.wait_for(worker.answers[key], 5) == "committed"
    shown = await new.predictions.get(client.account, created.id)
    assert shown.output == b"[" + b",".join(b"%d" % number for number in range(12)) + b"]"


# --- slots -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["create", "fill", "finish"])
async def test_capacity_that_goes_while_a_claim_is_under_way(store: Database, by: str) -> None:
    slow = Slow(store)
    rig = Rig(slow)
    client = await rig.caller("ada")
    worker = await rig.worker()
    await rig.settle()
    if by == "create":
        claimed, go_on = slow.hold("claim_attempt")
        work: asyncio.Task[object] = asyncio.create_task(rig.create(client))
    else:
        key = None
        await rig.create(client)
        key = await worker.start(await worker.next())
        await rig.create(client)
        claimed, go_on = slow.hold("claim_attempt")
        if by == "finish":
            work = asyncio.create_task(worker.finish(key))
        else:
            worker.answers[key] = asyncio.get_running_loop().create_future()
            worker.end.finish(Finish(*key, "succeeded", output=Raw(b"1")), rig.clock.monotonic())
            await worker.pump()
            await worker.answers[key]
            worker.end.slot_free(key)
            work = asyncio.create_task(worker.pump())
    await asyncio.wait_for(claimed.wait(), 5)
    worker.end.resize(0, 0)
    await worker.pump()
    go_on.set()
    await work
    await quiet(rig)
    assert await store.read("live_attempts") == [], "the prediction is free for another worker"
    assert rig.predictions.lives == {}


async def test_a_slot_that_could_not_be_freed_in_the_store_does_not_leak(store: Database) -> None:
    slow = Slow(store)
    rig = Rig(slow)
    worker, client = await rig.worker(), await rig.caller("ada")
    created = await rig.create(client)
    key = await worker.start(await worker.next())
    await rig.predictions.cancel(client.account, created.id)
    await rig.settle()
    slow.refused.add("free_slots")
    worker.end.finish(Finish(*key, "canceled", slot_free=True), rig.clock.monotonic())
    await worker.pump()
    await rig.settle()
    slow.refused.clear()
    if worker.closed is not None:
        await worker.disconnect()
        await worker.connect()
    await rig.settle()
    assert await store.read("occupied_slots") == []


async def test_a_late_finish_is_answered_even_if_the_store_failed_at_first(store: Database) -> None:
    slow = Slow(store)
    rig = Rig(slow)
    worker, client = await rig.worker(), await rig.caller("ada")
    created = await rig.create(client)
    key = await worker.start(await worker.next())
    assert worker.link is not None
    await rig.predictions.cancel(client.account, created.id)
    slow.refused.add("free_slots")
    # The cancel and the finish passed each other on the way.
    finish = Finish(*key, "succeeded", output=Raw(b"1"), slot_free=True)
    await worker.link.receive(encode([finish]))
    await rig.settle()
    assert worker.closed is not None, "the agent has to come back and tell it again"


async def test_a_stop_waits_for_what_its_last_tasks_begin(store: Database) -> None:
    tasks, done = Rig(store).tasks, []

    async def second() -> None:
        await asyncio.sleep(0.01)
        done.append("second")

    async def first() -> None:
        await asyncio.sleep(0.01)
        tasks.spawn(second())

    tasks.spawn(first())
    assert await tasks.settle(5) == 0
    assert done == ["second"]


# --- what clients see ------------------------------------------------------------------------------------------------


async def test_a_cancel_whose_hint_was_lost_is_seen_after_the_next_heartbeat(store: Database) -> None:
    slow = Slow(store)
    rig, other = Rig(store), Rig(slow, node="other")
    worker, client = await rig.worker(), await rig.caller("ada")
    created = await rig.create(client)
    key = await worker.start(await worker.next())
    slow.is_mute = True
    assert (await other.predictions.cancel(client.account, created.id)).status == "canceled"
    await worker.heartbeat()
    assert worker.canceled == {key}
    assert (await rig.predictions.get(client.account, created.id)).status == "canceled"


async def test_a_cancel_that_overtakes_the_assignment(store: Database) -> None:
    slow = Slow(store)
    rig = Rig(slow)
    worker, client = await rig.worker(), await rig.caller("ada")
    await rig.settle()
    claimed, go_on = slow.hold("claim_attempt")
    creating = asyncio.create_task(rig.create(client))
    await claimed.wait()
    [(prediction, _, _, _)] = await store.read("live_attempts")
    assert (await rig.predictions.cancel(client.account, prediction)).status == "canceled"
    go_on.set()
    await creating
    await rig.settle()
    if not worker.assigned.empty():
        await worker.start(await worker.next())
    await worker.heartbeat()
    assert (await rig.predictions.get(client.account, prediction)).status == "canceled"


async def test_what_ended_elsewhere_is_not_shown_as_running_here(store: Database) -> None:
    here, there = Rig(store, node="here"), Rig(store, node="there")
    first, client = await here.worker(), await here.caller("ada")
    created = await here.create(client)
    await first.start(await first.next())
    await here.checkpoints.tick()
    second = await there.worker()
    await there.losses.rescue((created.id, 1), "the link is stuck", slot_free=True)
    work = await second.next()
    assert work.attempt == 2
    assert await second.finish(await second.start(work)) == "committed"
    await here.settle()
    assert (await there.predictions.get(client.account, created.id)).status == "succeeded"
    assert (await here.predictions.get(client.account, created.id)).status == "succeeded"


async def test_a_cancel_that_another_node_has_told_is_not_taken_back_here(store: Database) -> None:
    if not store.is_shared:
        pytest.skip("one node alone writes to a SQLite file")
    mute = Slow(store)
    mute.is_mute = True
    here, there = Rig(store, node="here"), Rig(mute, node="there")
    worker, client = await here.worker(), await here.caller("ada")
    created = await here.create(client)
    await worker.start(await worker.next())
    await here.checkpoints.tick()
    assert (await here.predictions.get(client.account, created.id)).status == "processing"
    assert (await there.predictions.cancel(client.account, created.id)).status == "canceled"
    assert created.id in here.predictions.lives, "nobody has told it"
    assert (await here.predictions.get(client.account, created.id)).status == "canceled"


@pytest.mark.parametrize("how", ["closed", "replaced", "goodbye"])
async def test_a_status_that_was_shown_never_moves_back(store: Database, how: str) -> None:
    slow = Slow(store)
    rig = Rig(slow)
    worker, client = await rig.worker(), await rig.caller("ada")
    created = await rig.create(client)
    await worker.start(await worker.next())
    await rig.checkpoints.tick()
    assert (await rig.predictions.get(client.account, created.id)).status == "processing"
    if how == "closed":
        reached, go_on = slow.hold("before close_link")
        leaving = asyncio.create_task(worker.disconnect())
    elif how == "goodbye":
        reached, go_on = slow.hold("before requeue_prediction")
        worker.end.goodbye("bye")
        leaving = asyncio.create_task(worker.pump())
    else:
        reached, go_on = asyncio.Event(), asyncio.Event()
        reached.set()
        link = rig.fleet.open(worker.caller, worker)
        [hello] = worker.end.connected()
        await link.receive(hello)
        leaving = asyncio.create_task(rig.settle())
    await asyncio.wait_for(reached.wait(), 5)
    shown = (await rig.predictions.get(client.account, created.id)).status
    go_on.set()
    await leaving
    assert shown == "processing"


async def test_a_canceled_prediction_keeps_the_start_that_was_shown(store: Database) -> None:
    rig = Rig(store)
    worker, client = await rig.worker(), await rig.caller("ada")
    created = await rig.create(client)
    await worker.start(await worker.next())
    await rig.checkpoints.tick()
    before = await rig.predictions.get(client.account, created.id)
    canceled = await rig.predictions.cancel(client.account, created.id)
    assert canceled.started_at == before.started_at


# --- hostile workers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run_ms", [1e308, 1e300, 1e15, -1e15])
async def test_a_run_time_that_cannot_be(store: Database, run_ms: float) -> None:
    rig = Rig(store)
    worker, client = await rig.worker(), await rig.caller("ada")
    created = await rig.create(client)
    work = await worker.next()
    assert await worker.finish((work.prediction, work.attempt), run_ms=run_ms) == "committed"
    shown = await rig.predictions.get(client.account, created.id)
    assert shown.started_at is not None
    assert shown.completed_at is not None
    assert format_time(shown.started_at)
    assert shown.created_at <= shown.started_at <= shown.completed_at


async def test_nothing_ends_before_it_started(store: Database) -> None:
    rig = Rig(store)
    worker, client = await rig.worker(), await rig.caller("ada")
    created = await rig.create(client)
    await asyncio.sleep(0.05)
    key = await worker.start(await worker.next())
    await rig.checkpoints.tick()
    assert worker.link is not None
    await worker.link.receive(
        f'[{{"type":"finish","prediction":"{key[0]}","attempt":1,"status":"succeeded","ago_ms":86400000}}]'
    )
    await rig.settle()
    shown = await rig.predictions.get(client.account, created.id)
    assert shown.started_at is not None
    assert shown.completed_at is not None
    assert shown.started_at <= shown.completed_at


async def test_heartbeats_do_not_pile_up(store: Database) -> None:
    rig = Rig(store)
    worker = await rig.worker()
    assert worker.link is not None
    before = len(asyncio.all_tasks())
    for _ in range(500):
        await worker.link.receive('[{"type":"heartbeat","held":[["x",1]]}]')
    assert len(asyncio.all_tasks()) - before < 10
    await rig.settle()


async def test_attempts_that_never_start_do_not_spin(store: Database) -> None:
    rig = Rig(store)
    client = await rig.caller("ada")
    workers = [await rig.worker(), await rig.worker()]

    async def hand_back(worker: RigWorker) -> None:
        while True:
            work: Assign = await worker.assigned.get()
            key = (work.prediction, work.attempt)
            worker.end.finish(Finish(*key, "lost", error="cannot", slot_free=True), rig.clock.monotonic())
            await worker.pump()

    tasks = [asyncio.create_task(hand_back(worker)) for worker in workers]
    created = await rig.create(client)
    await asyncio.sleep(0.7)
    for task in tasks:
        task.cancel()
    await rig.settle()
    tries = len(await fleet.list_attempts(store, created.id))
    assert tries < 50


# --- coming and going ------------------------------------------------------------------------------------------------


async def test_two_hellos_of_one_worker_at_once(store: Database) -> None:
    slow = Slow(store)
    rig = Rig(slow)
    worker, client = await rig.worker(), await rig.caller("ada")
    created = await rig.create(client)
    key = await worker.start(await worker.next())
    worker.end.output(key, numbers(0, 3))
    await worker.pump()
    await worker.disconnect()
    reading, go_on = slow.hold("read_chunks")
    # The agent gave up on its first dial while the store was slow, and came back.
    first = rig.fleet.open(worker.caller, DeadPort())
    [hello] = worker.end.connected()
    slow_hello = asyncio.create_task(first.receive(hello))
    await reading.wait()
    await worker.connect()
    go_on.set()
    await slow_hello
    await first.closed()
    assert rig.fleet.links[worker.end.worker] is worker.link
    worker.end.output(key, numbers(3, 4))
    await worker.pump()
    finish_items(worker, key, 4)
    await worker.pump()
    assert await asyncio.wait_for(worker.answers[key], 5) == "committed"
    assert (await rig.predictions.get(client.account, created.id)).output == b"[0,1,2,3]"
    assert rig.predictions.lives == {}


async def test_a_replaced_link_rescues_nothing(store: Database) -> None:
    slow = Slow(store)
    old, new = Rig(slow, node="old"), Rig(store, node="new")
    worker, client = await old.worker(), await old.caller("ada")
    await worker.disconnect()
    link = old.fleet.open(worker.caller, DeadPort())
    [hello] = worker.end.connected()

    original, reached, release = fleet.live_of, asyncio.Event(), asyncio.Event()

    async def live_of(db: Database, worker: str, epoch: int) -> dict[fleet.AttemptKey, int]:
        reached.set()
        await release.wait()
        return await original(db, worker, epoch)

    fleet.live_of = live_of
    try:
        greeting = asyncio.create_task(link.receive(hello))
        await asyncio.wait_for(reached.wait(), 5)
        fleet.live_of = original
        await worker.connect(new)
        created = await new.create(client)
        work = await worker.next()
        release.set()
        await greeting
        await old.settle()
    finally:
        fleet.live_of = original
    rows = await fleet.list_attempts(store, created.id)
    assert [(row.attempt, row.outcome) for row in rows] == [(work.attempt, None)]


async def test_a_lease_renewed_while_others_are_rescued_is_kept(store: Database) -> None:
    slow = Slow(store)
    rig = Rig(slow)
    worker, client = await rig.worker(), await rig.caller("ada")
    created = await rig.create(client)
    await worker.start(await worker.next())
    await rig.leases.tick()
    await asyncio.sleep(0.9)
    assert worker.link is not None
    await worker.link.receive(PING)
    looked, go_on = slow.hold("live_attempts")
    tick = asyncio.create_task(rig.leases.tick())
    await asyncio.wait_for(looked.wait(), 5)
    assert worker.link is not None
    await worker.link.receive(worker.end.heartbeat())
    await rig.settle()
    go_on.set()
    await tick
    assert [row.outcome for row in await fleet.list_attempts(store, created.id)] == [None]


async def test_a_worker_that_comes_back_at_the_end_of_its_grace_is_not_robbed(store: Database) -> None:
    slow = Slow(store)
    rig = Rig(slow)
    worker, client = await rig.worker(), await rig.caller("ada")
    created = await rig.create(client)
    await worker.start(await worker.next())
    await worker.disconnect()
    await asyncio.sleep(0.25)
    looked, go_on = slow.hold("live_of")
    tick = asyncio.create_task(rig.leases.tick())
    await asyncio.wait_for(looked.wait(), 5)
    await worker.connect()
    go_on.set()
    await tick
    assert [row.outcome for row in await fleet.list_attempts(store, created.id)] == [None]


async def test_what_is_canceled_between_its_requeue_and_its_return_leaves_no_open_attempt(store: Database) -> None:
    slow = Slow(store)
    rig = Rig(slow)
    worker, client = await rig.worker(), await rig.caller("ada")
    created = await rig.create(client)
    await worker.start(await worker.next())
    await worker.disconnect()
    await asyncio.sleep(0.25)
    await rig.leases.tick()
    looked, go_on = slow.hold("get_prediction")
    canceling = asyncio.create_task(rig.predictions.cancel(client.account, created.id))
    await looked.wait()
    await worker.connect()
    go_on.set()
    assert (await canceling).status == "canceled"
    await rig.settle()
    assert await store.read("live_attempts") == []
