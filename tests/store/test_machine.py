"""Any order of verbs, checked step by step against a model of the rules in Python."""

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from cogflare.store import budgets, errands, fleet, predictions
from cogflare.store.base import Conflict, Database
from cogflare.store.fleet import AttemptKey
from cogflare.store.open import open_database
from store.errands import DAY, HOLDER, provider, row_of, send, settling, share
from store.scene import TURN, Rows, Scene

WORKERS = {"w1": ("A", "B"), "w2": ("B", "C"), "w3": ("C", "A")}
FLOWS = ("x", "y", "z")
AVOID_US = 20_000
PAUSE_US = 4_000
LATEST_US = 8_000
LIMIT = 50


@dataclass
class Entry:
    """A queue entry; the order of entries is by priority, then rank."""

    flow: str
    order: tuple[int, int]
    avoid: str | None = None
    avoid_until: int = 0


@dataclass
class Try:
    """An attempt. `outcome` None while it lives; `reserved`: of the budget, at a provider, until it is settled
    (`is_rest`: all that was left)."""

    holder: str
    epoch: int
    reserved: int | None = None
    is_rest: bool = False
    has_started: bool = False
    outcome: str | None = None
    is_slot_free: bool = False


@dataclass
class Job:
    """A prediction and what may be claimed of it, by queue."""

    flow: str
    order: tuple[int, int]
    queues: tuple[str, ...]
    phase: str = "queued"
    status: str = "starting"
    strikes: int = 0
    not_before: int = 0
    avoid: str | None = None
    is_struck_out: bool = False
    requeued_as: str | None = None
    tries: list[Try] = field(default_factory=list)
    entries: dict[str, Entry] = field(default_factory=dict)

    @property
    def attempt(self) -> int:
        return len(self.tries)

    @property
    def is_held(self) -> bool:
        return self.phase in ("assigned", "running")


class Machine(RuleBasedStateMachine):
    """The verbs beside their model; `make` opens an empty store and the way to its rows."""

    def __init__(self, make: Callable[[], Coroutine[Any, Any, tuple[Database, Rows]]]) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.db, self.rows = self.runner.run(make())
        self.scene = Scene(self.db, self.rows)
        self.jobs: dict[str, Job] = {}
        self.waiting: dict[tuple[str, str], int] = {}
        self.virtual: dict[tuple[str, str], int] = {}
        self.spent = 0
        self.runner.run(provider(self.scene))
        for worker in WORKERS:
            self.runner.run(self.scene.link(worker))

    def teardown(self) -> None:
        self.runner.run(self.rows.aclose())
        self.runner.run(self.db.aclose())
        self.runner.close()

    # --- the model -----------------------------------------------------------------------------------------------

    def enter(self, job: Job, avoid: str | None = None, avoid_until: int = 0) -> None:
        for queue in job.queues:
            job.entries[queue] = Entry(job.flow, job.order, avoid, avoid_until)
            key = (queue, job.flow)
            if not self.waiting.get(key):
                others = {of: time for of, time in self.virtual.items() if of[0] == queue}
                ready = [time for of, time in others.items() if self.waiting[of]]
                start = min(ready) if ready else max(others.values(), default=0)
                self.virtual[key] = max(self.virtual.get(key, 0), start)
            self.waiting[key] = self.waiting.get(key, 0) + 1

    def leave(self, job: Job) -> None:
        for queue in job.entries:
            self.waiting[queue, job.flow] -= 1
        job.entries.clear()

    def best(self, worker: str) -> set[tuple[str, str]]:
        """Return the (queue, prediction) that this worker's claim may choose: several where flows are equal."""
        flows: dict[int, list[tuple[str, str]]] = {}
        for key, time in self.virtual.items():
            if key[0] in WORKERS[worker] and self.waiting[key]:
                flows.setdefault(time, []).append(key)
        for _, keys in sorted(flows.items()):
            found = set()
            for queue, flow in keys:
                entries = [
                    (entry.order, id)
                    for id, job in self.jobs.items()
                    if (entry := job.entries.get(queue)) is not None
                    and entry.flow == flow
                    and (entry.avoid != worker or entry.avoid_until <= self.scene.now)
                ]
                if entries:
                    found.add((queue, min(entries)[1]))
            if found:
                return found
        return set()

    def keys(self) -> list[AttemptKey]:
        return [(id, n) for id, job in self.jobs.items() for n in range(1, job.attempt + 1)]

    def draw_key(self, data: st.DataObject) -> AttemptKey:
        """Draw an attempt, as often one that runs as any."""
        running = [(id, job.attempt) for id, job in self.jobs.items() if job.is_held]
        choose_running = bool(running) and data.draw(st.booleans())
        return data.draw(st.sampled_from(running if choose_running else self.keys()))

    def drives(self, tried: Try, holder: str) -> bool:
        """Say whether this is the holder, over the link that counts."""
        return tried.holder == holder and tried.epoch == self.scene.epochs[holder]

    def end(self, job: Job, status: str) -> None:
        job.phase, job.status = "ended", status
        self.leave(job)

    def attempted(self, action: Coroutine[Any, Any, None]) -> bool:
        try:
            self.runner.run(action)
        except Conflict:
            return False
        return True

    # --- the verbs -----------------------------------------------------------------------------------------------

    @rule(flow=st.sampled_from(FLOWS), queues=st.sets(st.sampled_from("ABC"), min_size=1), priority=st.integers(0, 1))
    def create(self, flow: str, queues: set[str], priority: int) -> None:
        order = tuple(sorted(queues))
        id = self.runner.run(self.scene.create(flow, order, priority=priority))
        self.jobs[id] = Job(flow, (priority, self.scene.now), order)
        self.enter(self.jobs[id])

    @rule(worker=st.sampled_from(sorted(WORKERS)))
    def claim(self, worker: str) -> None:
        claimed = self.runner.run(self.scene.claim(worker, queues=WORKERS[worker]))
        allowed = self.best(worker)
        if claimed is None:
            assert not allowed
            return
        job = self.jobs[claimed.prediction]
        sql = f"SELECT queue FROM attempts WHERE prediction = '{claimed.prediction}' AND attempt = {claimed.attempt}"
        queue = self.runner.run(self.rows.fetch(sql))[0][0]
        assert (queue, claimed.prediction) in allowed
        assert claimed.attempt == job.attempt + 1
        self.leave(job)
        self.virtual[queue, job.flow] += TURN
        job.tries.append(Try(worker, self.scene.epochs[worker]))
        job.phase = "assigned"

    @rule(worker=st.sampled_from(sorted(WORKERS)))
    def claim_with_an_old_link(self, worker: str) -> None:
        epoch = self.scene.epochs[worker] - 1
        assert self.runner.run(self.scene.claim(worker, epoch=epoch or 99, queues=WORKERS[worker])) is None

    @precondition(lambda self: self.keys())
    @rule(data=st.data())
    def checkpoint(self, data: st.DataObject) -> None:
        id, attempt = self.draw_key(data)
        job = self.jobs[id]
        tried = job.tries[attempt - 1]
        self.scene.epochs[HOLDER] = max(1, tried.epoch - data.draw(st.integers(0, 1)))
        self.runner.run(self.scene.checkpoint((id, attempt), data.draw(st.sampled_from([None, 1, 2]))))
        if tried.outcome is None and self.drives(tried, tried.holder):
            tried.has_started = True
            job.phase, job.status = "running", "processing"

    @precondition(lambda self: self.keys())
    @rule(data=st.data(), worker=st.sampled_from([*sorted(WORKERS), HOLDER]), slot_free=st.booleans())
    def finish(self, data: st.DataObject, worker: str, slot_free: bool) -> None:
        id, attempt = self.draw_key(data)
        job = self.jobs[id]
        tried = job.tries[attempt - 1]
        status = data.draw(st.sampled_from(["succeeded", "failed", "canceled"]))
        self.scene.epochs[HOLDER] = max(1, tried.epoch - data.draw(st.integers(0, 1)))
        finished = self.attempted(self.scene.finish((id, attempt), worker, status=status, slot_free=slot_free))
        assert finished == (attempt == job.attempt and job.phase != "ended" and self.drives(tried, worker))
        if finished:
            self.end(job, status)
            tried.outcome = status
            tried.is_slot_free |= slot_free

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), back=st.integers(0, 1))
    def cancel(self, data: st.DataObject, back: int) -> None:
        id = data.draw(st.sampled_from(sorted(self.jobs)))
        job = self.jobs[id]
        canceled = self.attempted(self.scene.cancel((id, job.attempt - back)))
        assert canceled == (back == 0 and job.phase != "ended")
        if canceled:
            self.end(job, "canceled")
            if job.tries and job.tries[-1].outcome is None:
                job.tries[-1].outcome = "canceled"

    @precondition(lambda self: self.keys())
    @rule(data=st.data(), avoids=st.booleans(), pauses=st.booleans())
    def requeue(self, data: st.DataObject, avoids: bool, pauses: bool) -> None:
        id, attempt = self.draw_key(data)
        job = self.jobs[id]
        tried = job.tries[attempt - 1]
        avoid = tried.holder if avoids else None
        pause_us = PAUSE_US if pauses else 0
        requeue = self.scene.requeue((id, attempt), job.queues, avoid, AVOID_US, pause_us=pause_us)
        requeued = self.attempted(requeue)
        assert requeued == (attempt == job.attempt and job.is_held)
        if requeued:
            job.strikes += tried.has_started
            tried.outcome, tried.is_slot_free = "lost", True
            if pauses:
                job.phase, job.avoid, job.not_before = "parked", avoid, self.scene.now + PAUSE_US
            else:
                job.phase = "queued"
                self.enter(job, avoid, self.scene.now + AVOID_US)

    @rule(jump_us=st.sampled_from([0, 0, PAUSE_US, -20 * PAUSE_US]))
    def release(self, jump_us: int) -> None:
        """End pauses that are over, perhaps after the wall clock has jumped."""
        self.scene.now += jump_us
        released = self.runner.run(self.scene.release(LATEST_US, AVOID_US))
        now = self.scene.now
        parked = {id: job for id, job in self.jobs.items() if job.phase == "parked"}
        assert released == {
            id for id, job in parked.items() if job.not_before <= now or job.not_before > now + LATEST_US
        }
        for id in sorted(released):
            parked[id].phase = "queued"
            self.enter(parked[id], parked[id].avoid, now + AVOID_US)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def strike_out(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.jobs)))
        job = self.jobs[id]
        ended = self.attempted(self.scene.strike_out((id, job.attempt)))
        assert ended == (job.phase != "ended")
        if ended:
            self.end(job, "failed")
            job.is_struck_out = True
            if job.tries and job.tries[-1].outcome is None:
                job.tries[-1].outcome = "lost"

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def make_anew(self, data: st.DataObject) -> None:
        """Make a new prediction of an old one: once, and only of one that ended without success."""
        id = data.draw(st.sampled_from(sorted(self.jobs)))
        job = self.jobs[id]
        made = self.runner.run(self.scene.make_anew(id, job.flow, job.queues))
        is_free = job.phase == "ended" and job.status != "succeeded" and job.requeued_as is None
        assert (made is not None) == is_free
        if made is not None:
            job.is_struck_out, job.requeued_as = False, made
            self.jobs[made] = Job(job.flow, (0, self.scene.now), job.queues)
            self.enter(self.jobs[made])

    @rule(data=st.data(), worker=st.sampled_from(sorted(WORKERS)))
    def reopen_link(self, data: st.DataObject, worker: str) -> None:
        keys = self.keys()
        held = {(id, attempt) for id, attempt in keys if self.jobs[id].tries[attempt - 1].holder == worker}
        if keys:
            # It may have forgotten some, and may list what is not its own.
            held ^= data.draw(st.sets(st.sampled_from(keys), max_size=1))
        epoch = self.scene.epochs[worker]
        adopted = self.runner.run(self.scene.link(worker, sorted(held)))
        assert self.scene.epochs[worker] == epoch + 1
        expected = set()
        for id, attempt in held:
            job = self.jobs[id]
            tried = job.tries[attempt - 1]
            if tried.holder == worker and attempt == job.attempt and job.phase != "ended":
                expected.add((id, attempt))
                if job.phase in ("queued", "parked"):
                    job.phase = "running" if tried.has_started else "assigned"
                    job.strikes = max(0, job.strikes - tried.has_started)
                    self.leave(job)
                tried.outcome, tried.is_slot_free, tried.epoch = None, False, epoch + 1
        assert {(item.prediction, item.attempt) for item in adopted} == expected
        for id, attempt in self.keys():
            tried = self.jobs[id].tries[attempt - 1]
            if tried.holder == worker and tried.outcome is not None and (id, attempt) not in held:
                tried.is_slot_free = True

    @rule(worker=st.sampled_from(sorted(WORKERS)))
    def renew(self, worker: str) -> None:
        rows = self.runner.run(self.db.write(fleet.renew(worker, self.scene.epochs[worker], self.keys())))
        expected = {
            (id, job.attempt) for id, job in self.jobs.items() if job.is_held and job.tries[-1].holder == worker
        }
        assert set(rows[0]) == expected

    # --- at a provider -------------------------------------------------------------------------------------------

    def draw_errand(self, data: st.DataObject) -> tuple[AttemptKey, Try]:
        key = data.draw(st.sampled_from(self.errands()))
        return key, self.jobs[key[0]].tries[key[1] - 1]

    def errands(self) -> list[AttemptKey]:
        return [(id, n) for id, n in self.keys() if self.jobs[id].tries[n - 1].holder == HOLDER]

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), amount=st.sampled_from([None, 20]), back=st.sampled_from([0, 0, 1]))
    def send(self, data: st.DataObject, amount: int | None, back: int) -> None:
        """Give a prediction to the provider, as long as the budget lasts."""
        id = data.draw(st.sampled_from(sorted(self.jobs)))
        job = self.jobs[id]

        async def sending() -> None:
            await send(self.scene, id, job.attempt - back, [share(LIMIT, amount)])

        sent = self.attempted(sending())
        rests = [one for job in self.jobs.values() for one in job.tries if one.is_rest and one.reserved is not None]
        is_paid = self.spent < LIMIT and not rests if amount is None else self.spent + amount <= LIMIT
        assert sent == (job.phase == "queued" and back == 0 and is_paid)
        if sent:
            reserved = LIMIT - self.spent if amount is None else amount
            self.spent += reserved
            self.leave(job)
            job.tries.append(Try(HOLDER, 1, reserved, amount is None))
            job.phase = "assigned"

    @precondition(lambda self: self.errands())
    @rule(data=st.data(), back=st.sampled_from([0, 0, 1]))
    def take_over(self, data: st.DataObject, back: int) -> None:
        key, tried = self.draw_errand(data)
        taken = self.runner.run(errands.take_over(self.db, key, tried.epoch - back, "n2"))
        assert (taken is not None) == (back == 0 and tried.reserved is not None)
        if taken is not None:
            tried.epoch += 1
            assert taken.epoch == tried.epoch

    @precondition(lambda self: self.errands())
    @rule(data=st.data(), cost=st.sampled_from([None, 0, 10, 30]), is_late=st.booleans())
    def settle(self, data: st.DataObject, cost: int | None, is_late: bool) -> None:
        """Settle an errand, perhaps by what a driver knew before another took over."""
        key, tried = self.draw_errand(data)

        async def settling_it() -> None:
            row = await row_of(self.scene, key)
            epoch = row.epoch - 1 if is_late else row.epoch
            await self.db.write(*settling(self.scene, msgspec.structs.replace(row, epoch=epoch), cost))

        settled = self.attempted(settling_it())
        assert settled == (tried.reserved is not None and not is_late)
        if settled:
            self.spent += (cost or 0) - (tried.reserved or 0)
            tried.reserved, tried.is_slot_free = None, True

    # --- what always holds ---------------------------------------------------------------------------------------

    @invariant()
    def rows_are_as_the_model_says(self) -> None:
        self.runner.run(self.check())

    async def check(self) -> None:
        sql = "SELECT id, phase, status, attempt, strikes, struck_out, requeued_as FROM predictions"
        assert {row[0]: row[1:] for row in await self.rows.fetch(sql)} == {
            id: (job.phase, job.status, job.attempt, job.strikes, int(job.is_struck_out), job.requeued_as)
            for id, job in self.jobs.items()
        }
        waiting = {id: job for id, job in self.jobs.items() if job.phase in ("queued", "parked")}
        assert set(await self.scene.entries()) == {(id, queue) for id, job in waiting.items() for queue in job.queues}
        pauses = await self.rows.fetch("SELECT DISTINCT prediction, not_before FROM queue_entries")
        assert dict(pauses) == {id: job.not_before if job.phase == "parked" else None for id, job in waiting.items()}
        flows = await self.rows.fetch("SELECT queue, flow, waiting, virtual_time FROM flows")
        assert {row[:2]: row[2:] for row in flows} == {
            key: (waiting, self.virtual[key]) for key, waiting in self.waiting.items()
        }
        tries = {key: self.jobs[key[0]].tries[key[1] - 1] for key in self.keys()}
        outcomes = await self.rows.fetch("SELECT prediction, attempt, outcome FROM attempts")
        assert {row[:2]: row[2] for row in outcomes} == {key: tried.outcome for key, tried in tries.items()}
        live = {(item.prediction, item.attempt) for item in await fleet.live_attempts(self.db)}
        held = {(id, job.attempt): job.tries[-1].holder for id, job in self.jobs.items() if job.is_held}
        assert live == {key for key, holder in held.items() if holder != HOLDER}
        opened = {row.key: row.epoch for row in await errands.open_of(self.db, None)}
        assert opened == {key: tried.epoch for key, tried in tries.items() if tried.reserved is not None}
        assert (await budgets.spent(self.db, "acct", [DAY])).get(("account", "", DAY), 0) == self.spent
        assert await self.scene.occupied() == {key for key, tried in tries.items() if not tried.is_slot_free}


def run(make: Callable[[], Coroutine[Any, Any, tuple[Database, Rows]]], examples: int, steps: int) -> None:
    run_state_machine_as_test(
        lambda: Machine(make),  # type: ignore[arg-type]
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            # A run of few steps can be read as it is; making it shorter takes minutes.
            phases=[Phase.generate],
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_any_order_of_verbs_on_sqlite(tmp_path: Any) -> None:
    numbers = itertools.count()

    async def make() -> tuple[Database, Rows]:
        url = f"sqlite:///{tmp_path}/{next(numbers)}.db"
        database = open_database(f"{url}?synchronous=off")
        await database.migrate()
        return database, await Rows.open(url)

    run(make, examples=120, steps=40)


def test_any_order_of_verbs_on_postgres(new_url: Callable[[str], str]) -> None:
    url = new_url("postgres")

    async def make() -> tuple[Database, Rows]:
        database = open_database(url)
        await database.migrate()
        rows = await Rows.open(url)
        await rows.run("TRUNCATE predictions, attempts, queue_entries, flows, workers, chunks, providers, errands")
        await rows.run("TRUNCATE errand_reservations, spending, costs")
        return database, rows

    run(make, examples=15, steps=30)


@pytest.mark.anyio
async def test_a_prediction_row_is_never_left_once_ended(scene: Scene) -> None:
    """The model never leaves `ended`; here the statements that could are tried one by one."""
    await scene.create()
    key = await scene.claim_key()
    await scene.finish(key)
    row = await scene.row(key[0])
    await scene.checkpoint(key, items=9)
    await scene.link("w1", held=[key])
    await scene.db.write(*predictions.enqueue(key[0], ["A"]))
    assert await scene.row(key[0]) == row
    assert await scene.entries() == []
