"""Deadlines, run and start limits, full queues, and cancels of whatever a filter matches, over both databases."""

import asyncio
import time

import pytest
from msgspec import UNSET, Raw

from cogflare.domain.errors import QueueFull
from cogflare.engine.backoff import Backoff
from cogflare.engine.catalog import Bounds
from cogflare.engine.predictions import CANCEL_BATCH, Order
from cogflare.engine.views import PredictionView
from cogflare.protocol.messages import Finish, Offer
from cogflare.store import fleet
from cogflare.store.base import Database
from cogflare.store.catalog import Caller
from cogflare.store.limits import Filter
from cogflare.store.listing import Query
from engine.rig import Rig, RigWorker

pytestmark = pytest.mark.anyio


class MovedClock:
    """The clock of this machine, moved on by the test."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def wall(self) -> int:
        return time.time_ns() // 1000 + int(self.ahead_s * 1_000_000)

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s


class Stage:
    """A node with a clock of its own, one worker and one client."""

    def __init__(self, db: Database, clock: MovedClock, rig: Rig, worker: RigWorker, client: Caller) -> None:
        self.db = db
        self.clock = clock
        self.rig = rig
        self.worker = worker
        self.client = client

    @classmethod
    async def open(cls, db: Database, slots: int = 1, **limits: float | None) -> "Stage":
        clock = MovedClock()
        rig = Rig(db, clock=clock, bounds=Bounds(**limits), backoff=Backoff(10.0, 60.0))  # type: ignore[arg-type]
        return cls(db, clock, rig, await rig.worker(slots=slots), await rig.caller("ada"))

    async def create(self, cancel_after_s: int | None = None) -> PredictionView:
        after = None if cancel_after_s is None else cancel_after_s * 1_000_000
        return await self.rig.predictions.create(self.client, Order(b"{}", {}, "ada/noop", cancel_after=after))

    async def later(self, seconds: float) -> None:
        """Let time pass, and the limits look as often as they would have (no gap)."""
        self.clock.ahead_s += seconds
        self.rig.limits._looked_at = self.clock.monotonic()
        await self.rig.limits.tick()
        await self.rig.settle()

    async def get(self, created: PredictionView) -> PredictionView:
        return await self.rig.predictions.get(self.client.account, created.id)

    async def begin(self) -> tuple[str, int]:
        """Let the worker start what it gets next, and commit the start."""
        key = await self.worker.start(await self.worker.next())
        await self.rig.checkpoints.tick()
        return key

    async def occupied(self) -> int:
        await self.rig.settle()
        return len(await self.db.read("occupied_slots"))


# --- deadlines --------------------------------------------------------------------------------------------------------


async def test_a_deadline_aborts_what_waits(store: Database) -> None:
    stage = await Stage.open(store, slots=0)
    created, other = await stage.create(10), await stage.create()
    assert created.deadline == created.created_at + 10_000_000
    await stage.later(9)
    assert (await stage.get(created)).status == "starting"
    await stage.later(1)
    ended = await stage.get(created)
    assert (ended.status, ended.error, ended.started_at, ended.deadline) == ("aborted", None, None, created.deadline)
    assert (await stage.get(other)).status == "starting", "without a deadline nothing is ever aborted"


async def test_a_deadline_aborts_what_was_assigned_and_did_not_start(store: Database) -> None:
    stage = await Stage.open(store)
    created = await stage.create(10)
    work = await stage.worker.next()
    await stage.later(10)
    assert (await stage.get(created)).status == "aborted"
    assert stage.worker.canceled == {(work.prediction, 1)}
    assert await stage.occupied() == 1, "the slot is taken until the worker frees it"
    await stage.worker.finish((work.prediction, 1), status="canceled")
    assert await stage.occupied() == 0
    assert (await stage.get(created)).status == "aborted"


async def test_a_deadline_cancels_what_runs(store: Database) -> None:
    stage = await Stage.open(store)
    created = await stage.create(10)
    key = await stage.begin()
    stage.worker.end.log(key, "half way")
    await stage.worker.pump()
    await stage.later(10)
    ended = await stage.get(created)
    assert (ended.status, ended.error, ended.logs) == ("canceled", None, "half way")
    assert stage.worker.canceled == {key}
    assert await stage.worker.finish(key) == "superseded"
    assert (await stage.get(created)).status == "canceled"
    assert await stage.occupied() == 0


async def test_a_start_that_is_not_committed_yet_counts(store: Database) -> None:
    stage = await Stage.open(store)
    created = await stage.create(10)
    await stage.worker.start(await stage.worker.next())
    await stage.later(10)
    ended = await stage.get(created)
    assert ended.status == "canceled"
    assert ended.started_at is not None


async def test_a_start_that_is_committed_meanwhile_counts(store: Database) -> None:
    stage = await Stage.open(store)
    created = await stage.create(10)
    await stage.worker.start(await stage.worker.next())
    behind = Rig(store, node="behind", clock=stage.clock)
    row = await behind.predictions.row(stage.client.account, created.id)
    assert row.started_at is None
    await stage.rig.checkpoints.tick()
    stage.clock.ahead_s += 10
    from_old = await behind.limits._reached((created.id, "deadline"))
    assert from_old
    assert (await stage.get(created)).status == "canceled"


async def test_a_deadline_cancels_what_is_parked_after_a_loss(store: Database) -> None:
    stage = await Stage.open(store)
    created = await stage.create(5)
    key = await stage.begin()
    assert await stage.worker.finish(key, status="lost", error="the model crashed") == "committed"
    assert (await stage.rig.predictions.row(stage.client.account, created.id)).phase == "parked"
    await stage.later(5)
    ended = await stage.get(created)
    assert (ended.status, ended.error) == ("canceled", None)
    await stage.rig.releases.tick()
    assert await store.read("ready_queues") == []


async def test_a_deadline_holds_while_the_worker_is_gone(store: Database) -> None:
    stage = await Stage.open(store)
    created = await stage.create(10)
    key = await stage.begin()
    await stage.worker.disconnect()
    await stage.later(10)
    assert (await stage.get(created)).status == "canceled"
    await stage.worker.connect()
    assert stage.worker.canceled == {key}
    assert await stage.worker.finish(key) == "unwanted"
    assert await stage.occupied() == 0


async def test_a_deadline_that_passed_while_the_server_was_down(store: Database) -> None:
    stage = await Stage.open(store, slots=0)
    created = await stage.create(10)
    later = Rig(store, clock=stage.clock)
    stage.clock.ahead_s += 3600
    later.limits._looked_at = stage.clock.monotonic()
    await later.limits.tick()
    ended = await stage.get(created)
    assert ended.status == "aborted"


async def test_after_a_standstill_finishes_that_wait_in_the_sockets_go_first(store: Database) -> None:
    stage = await Stage.open(store)
    created = await stage.create(10)
    key = await stage.begin()
    stage.clock.ahead_s += 60
    await stage.rig.limits.tick()
    assert await stage.worker.finish(key) == "committed"
    await stage.rig.limits.tick()
    assert (await stage.get(created)).status == "succeeded"


@pytest.mark.parametrize("other", ["finish", "cancel"])
async def test_a_deadline_wins_or_loses_once(store: Database, other: str) -> None:
    stage = await Stage.open(store, slots=20)
    created = [await stage.create(10) for _ in range(20)]
    keys = [await stage.worker.start(await stage.worker.next()) for _ in range(20)]
    await stage.rig.checkpoints.tick()
    stage.clock.ahead_s += 10
    stage.rig.limits._looked_at = stage.clock.monotonic()

    async def overtake() -> None:
        for key in keys:
            if other == "finish":
                await stage.worker.finish(key)
            else:
                await stage.rig.predictions.cancel(stage.client.account, key[0])

    await asyncio.gather(stage.rig.limits.tick(), overtake())
    await stage.rig.settle()
    statuses = {(await stage.get(one)).status for one in created}
    assert statuses <= ({"succeeded", "canceled"} if other == "finish" else {"canceled"})
    for one in created:
        outcomes = [(row.outcome, row.ended_at) for row in await fleet.list_attempts(store, one.id)]
        assert len(outcomes) == 1
        assert outcomes[0][0] == (await stage.get(one)).status


# --- run limit --------------------------------------------------------------------------------------------------------


async def test_a_run_over_its_limit_fails_and_keeps_its_slot_until_the_model_stops(store: Database) -> None:
    stage = await Stage.open(store, run_limit_s=30.0)
    created, following = await stage.create(), await stage.create()
    key = await stage.begin()
    await stage.later(29)
    assert (await stage.get(created)).status == "processing"
    await stage.later(2)
    ended = await stage.get(created)
    assert (ended.status, ended.error) == ("failed", "Prediction ran longer than its limit of 30 s")
    assert stage.worker.canceled == {key}
    # The model passes over the cancel: nothing else is put into its slot.
    await stage.later(60)
    assert await stage.occupied() == 1
    assert stage.worker.assigned.empty()
    assert await stage.worker.finish(key) == "superseded"
    assert (await stage.worker.next()).prediction == following.id
    assert (await stage.get(created)).error == "Prediction ran longer than its limit of 30 s"
    attempts = await fleet.list_attempts(store, created.id)
    assert [(row.outcome, row.reason) for row in attempts] == [("failed", "it ran longer than its limit")]


async def test_a_run_counts_from_its_start_over_every_link(store: Database) -> None:
    stage = await Stage.open(store, run_limit_s=30.0)
    created = await stage.create()
    work = await stage.worker.next()
    await stage.later(100)
    key = await stage.worker.start(work)
    await stage.rig.checkpoints.tick()
    await stage.worker.disconnect()
    stage.clock.ahead_s += 29
    await stage.worker.connect()
    await stage.later(0)
    assert (await stage.get(created)).status == "processing"
    await stage.later(2)
    assert (await stage.get(created)).status == "failed"
    assert stage.worker.canceled == {key}


async def test_a_run_that_ended_in_time_while_its_link_was_down(store: Database) -> None:
    stage = await Stage.open(store, run_limit_s=30.0)
    created = await stage.create()
    key = await stage.begin()
    await stage.worker.disconnect()
    stage.clock.ahead_s += 20
    stage.worker.end.output(key, [Raw(b'"%b"' % (b"y" * 400_000))] * 6)
    stage.worker.end.finish(Finish(*key, "succeeded", items=6, slot_free=True), stage.clock.monotonic())
    stage.clock.ahead_s += 20
    link = stage.worker.link = stage.rig.fleet.open(stage.worker.caller, stage.worker)
    for frame in stage.worker.end.connected():
        await link.receive(frame)
    frames = stage.worker.end.take_frames()
    assert len(frames) > 1, "the finish comes after what it took the link a while to send"
    for frame in frames:
        await link.receive(frame)
        await stage.later(0)
    assert (await stage.get(created)).status == "succeeded"


async def test_the_limit_of_a_model_is_its_own(store: Database) -> None:
    stage = await Stage.open(store, run_limit_s=30.0, slots=2)
    await stage.rig.catalog.change(stage.client, "ada", "noop", {"run_limit_s": 0})
    endless = await stage.create()
    await stage.begin()
    await stage.rig.catalog.change(stage.client, "ada", "noop", {"run_limit_s": 5})
    short = await stage.create()
    await stage.begin()
    await stage.later(20)
    assert (await stage.get(short)).error == "Prediction ran longer than its limit of 5 s"
    await stage.later(3600)
    assert (await stage.get(endless)).status == "processing"


async def test_what_is_assigned_and_never_starts_goes_elsewhere(store: Database) -> None:
    stage = await Stage.open(store, run_limit_s=30.0)
    created = await stage.create()
    work = await stage.worker.next()
    other = await stage.rig.worker()
    await stage.later(629)
    assert other.assigned.empty()
    await stage.later(2)
    assert (await other.next()).prediction == created.id
    assert stage.worker.canceled == {(work.prediction, 1)}
    first = (await fleet.list_attempts(store, created.id))[0]
    assert (first.outcome, first.reason, first.slot_freed_at) == ("lost", "it did not start", None)


# --- start limit ------------------------------------------------------------------------------------------------------


async def test_what_does_not_start_in_time_fails(store: Database) -> None:
    stage = await Stage.open(store, start_limit_s=30.0)
    runs, assigned, waits = [await stage.create() for _ in range(3)]
    await stage.begin()
    second = await stage.rig.worker()
    await second.next()
    await stage.later(31)
    assert (await stage.get(runs)).status == "processing"
    for late in (assigned, waits):
        ended = await stage.get(late)
        assert (ended.status, ended.error) == ("failed", "Prediction did not start within 30 s (code: E6716)")
    assert second.canceled == {(assigned.id, 1)}


async def test_a_start_that_is_just_being_committed_is_in_time(store: Database) -> None:
    stage = await Stage.open(store, start_limit_s=30.0)
    created = await stage.create()
    await stage.worker.start(await stage.worker.next())
    await stage.later(31)
    assert not (await stage.get(created)).is_ended
    behind = Rig(store, node="behind", clock=stage.clock)
    await stage.rig.checkpoints.tick()
    assert not await behind.limits._reached((created.id, "start"))
    assert (await stage.get(created)).status == "processing"


async def test_whether_it_has_started_is_for_its_worker_to_say(store: Database) -> None:
    stage = await Stage.open(store, start_limit_s=30.0)
    created, lost = await stage.create(), await stage.create()
    work = await stage.worker.next()
    dead = await stage.rig.worker()
    await dead.next()
    # The node dies before it hears of the start.
    stage.worker.link = None
    stage.worker.end.disconnected()
    key = (work.prediction, work.attempt)
    stage.worker.end.started(key, stage.clock.monotonic(), stage.clock.monotonic())
    stage.clock.ahead_s += 40
    stage.rig = Rig(store, clock=stage.clock)
    await stage.later(0)
    assert [(await stage.get(one)).status for one in (created, lost)] == ["starting", "starting"]
    # What nobody comes back with is queued again, and then it is late.
    await stage.rig.losses.rescue((lost.id, 1), "silent", slot_free=True)
    await stage.later(0)
    assert (await stage.get(lost)).error == "Prediction did not start within 30 s (code: E6716)"
    await stage.worker.connect(stage.rig)
    await stage.later(0)
    assert await stage.worker.finish(key) == "committed"
    assert (await stage.get(created)).status == "succeeded"


# --- full queues ------------------------------------------------------------------------------------------------------


async def test_no_more_wait_than_may_wait_for_an_account(store: Database) -> None:
    rig = Rig(store, max_queued=10)
    await rig.worker("shared", slots=0)
    ada, eve = await rig.caller("ada"), await rig.caller("eve")
    answers = await asyncio.gather(*(rig.create(ada) for _ in range(50)), return_exceptions=True)
    accepted = [answer for answer in answers if isinstance(answer, PredictionView)]
    assert len(accepted) == 10
    refusals = {str(answer) for answer in answers if isinstance(answer, QueueFull)}
    assert refusals == {
        "This account has reached its limit of 10 waiting predictions. Try again later, or cancel some."
    }
    await rig.create(eve)
    await rig.predictions.cancel(ada.account, accepted[0].id)
    await rig.create(ada)
    with pytest.raises(QueueFull):
        await rig.create(ada)


async def test_no_more_wait_than_may_wait_for_a_model(store: Database) -> None:
    rig = Rig(store, bounds=Bounds(max_queued=7))
    worker = await rig.worker("shared", slots=0)
    ada, eve = await rig.caller("ada"), await rig.caller("eve")
    answers = await asyncio.gather(*(rig.create(who) for who in (ada, eve) * 25), return_exceptions=True)
    assert sum(isinstance(answer, PredictionView) for answer in answers) == 7
    with pytest.raises(QueueFull, match=r"^The model ada/noop has reached its limit of 7 "):
        await rig.create(ada)
    with pytest.raises(QueueFull):
        await rig.predictions.create(ada, Order(b"{}", {}, "ada/noop", "a" * 64))
    worker.end.resize(0, 1)
    await worker.pump()
    await worker.next()
    await rig.create(eve)


async def test_an_idle_worker_takes_what_may_not_wait(store: Database) -> None:
    rig = Rig(store, max_queued=1)
    worker, client = await rig.worker(slots=3), await rig.caller("ada")
    await rig.settle()
    created = [await rig.create(client) for _ in range(4)]
    assert [(await worker.next()).prediction for _ in range(3)] == [view.id for view in created[:3]]
    with pytest.raises(QueueFull):
        await rig.create(client)


# --- cancel by filter -------------------------------------------------------------------------------------------------


async def test_whatever_a_filter_matches_is_canceled_and_nothing_of_others(store: Database) -> None:
    rig = Rig(store)
    worker = await rig.worker("shared", slots=4)
    ada, eve = await rig.caller("ada"), await rig.caller("eve")
    callers = [*(ada,) * 2 * CANCEL_BATCH, *(eve,) * 20, *(ada,) * 500]
    created = await asyncio.gather(*(rig.create(who) for who in callers))
    keys = [await worker.start(await worker.next()) for _ in range(4)]
    await rig.checkpoints.tick()
    counts = []
    more = True
    while more:
        canceled, more = await rig.predictions.cancel_matching(Filter(ada.account))
        counts.append(canceled)
    assert counts == [CANCEL_BATCH, CANCEL_BATCH, 500]
    await rig.settle()
    assert {row.status for row in (await rig.predictions.page(Query(ada.account, limit=3000))).views} == {"canceled"}
    left = (await rig.predictions.page(Query(eve.account))).views
    assert len(left) == 20
    assert {row.status for row in left} <= {"starting", "processing"}
    of_ada = {view.id for view in created if view.account == ada.account}
    assert worker.canceled == {key for key in keys if key[0] in of_ada}
    assert len(await store.read("occupied_slots")) == 4, "slots are taken until the worker frees them"
    assert await rig.predictions.cancel_matching(Filter(ada.account)) == (0, False)


async def test_filters_choose(store: Database) -> None:
    rig = Rig(store)
    worker, client = await rig.worker(), await rig.caller("ada")
    other_model = Offer("ada", "other", "b" * 64, 0, UNSET, "0.16.0")
    await rig.catalog.register(client.account, [other_model], rig.clock.wall())
    runs, old, new = [await rig.create(client) for _ in range(3)]
    other = await rig.create(client, "ada/other")
    await worker.start(await worker.next())
    await rig.checkpoints.tick()
    account = client.account
    cancel = rig.predictions.cancel_matching
    assert await cancel(Filter(account, status="succeeded")) == (0, False)
    assert await cancel(Filter(account, model="ada/nothing")) == (0, False)
    assert await cancel(Filter(account, model="ada/other")) == (1, False)
    assert await cancel(Filter(account, created_from=new.created_at)) == (1, False)
    assert await cancel(Filter(account, status="starting", created_to=new.created_at)) == (1, False)
    statuses = {id: (await rig.predictions.get(account, id)).status for id in (runs.id, old.id, new.id, other.id)}
    assert statuses == {runs.id: "processing", old.id: "canceled", new.id: "canceled", other.id: "canceled"}
    assert await cancel(Filter(account, status="processing")) == (1, False)
