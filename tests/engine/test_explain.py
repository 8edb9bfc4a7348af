"""The exact reason of everything that waits, with its figures; and receipts. Over both databases."""

from collections import Counter
from typing import Any

import msgspec
import pytest

from cogflare.domain.errors import NotFound
from cogflare.domain.policy import parse
from cogflare.domain.routing import HopState
from cogflare.engine.backoff import Backoff
from cogflare.store import errands, recovery, routes
from cogflare.store.base import Database
from cogflare.store.recovery import Setup, SetupFailure
from engine.asked import Asked
from engine.rig import VERSION

pytestmark = pytest.mark.anyio

OTHER = "b" * 64
OFFERS = '[{"owner": "ada", "name": "noop", "version": "", "slots": 0}]'


async def test_who_is_behind_others_and_who_is_next(store: Database) -> None:
    rig = Asked(store)
    worker, ada = await rig.offer(slots=2), await rig.caller("ada")
    await rig.learn(10.0, 11.0, 12.0, 9.0, 10.0, 11.0, 10.5, 9.5, catalog=ada.account)
    running = [await rig.create(ada) for _ in range(2)]
    for _ in running:
        await rig.begin(worker)
    first, second, third = [await rig.create(ada) for _ in range(3)]
    found = await rig.why(ada, first.id)
    assert (found.code, found.position) == ("all_busy", 1)
    assert found.text.startswith("All 2 slots of 1 worker are taken, and it is next.")
    assert found.queue is not None
    assert (found.queue.workers, found.queue.slots, found.queue.free, found.queue.busy) == (1, 2, 0, 2)
    assert (found.queue.waiting, found.queue.waiting_others) == (3, 0)
    assert found.queue.mean_run_s == pytest.approx(10.375)
    later = await rig.why(ada, third.id)
    assert (later.code, later.position) == ("behind_n", 3)
    assert "2 come before it" in later.text
    assert "1 comes before it" in (await rig.why(ada, second.id)).text
    assert found.eta is not None
    assert later.eta is not None
    assert found.eta.low_s <= found.eta.mid_s <= found.eta.high_s
    assert 5 < found.eta.mid_s < 11
    assert 14 < later.eta.mid_s < 24, "one run more on each slot"
    assert found.figures is not None
    assert found.figures.expected_s == pytest.approx(found.figures.waited_s + found.eta.mid_s, abs=1.5)
    assert (await rig.why(ada, running[0].id)).code == "running"


async def test_an_eta_needs_something_to_go_by(store: Database) -> None:
    rig = Asked(store)
    worker, ada = await rig.offer(), await rig.caller("ada")
    await rig.create(ada)
    await rig.begin(worker)
    found = await rig.why(ada, (await rig.create(ada)).id)
    assert (found.code, found.eta) == ("all_busy", None)
    assert found.figures is not None
    assert found.figures.expected_s is None
    assert found.queue is not None
    assert found.queue.mean_run_s is None


async def test_nobody_has_the_model(store: Database) -> None:
    rig = Asked(store)
    worker, ada = await rig.offer(), await rig.caller("ada")
    await worker.disconnect()
    created = await rig.create(ada)
    away = await rig.why(ada, created.id)
    assert (away.code, away.eta) == ("worker_away", None)
    assert away.queue is not None
    assert [note.name for note in away.queue.away] == ["rig"]
    await rig.leave(worker)
    found = await rig.why(ada, created.id)
    assert (found.code, found.position, found.eta) == ("no_worker_has_model", 1, None)
    assert "cogflare worker --model ada/noop" in found.text
    assert "cogflare routes set" in found.text


async def test_another_version_is_offered(store: Database) -> None:
    rig = Asked(store)
    old, ada = await rig.offer(version=OTHER), await rig.caller("ada")
    await rig.leave(old)
    await rig.offer(version=VERSION)
    created = await rig.pinned(ada, OTHER)
    found = await rig.why(ada, created.id)
    assert found.code == "version_not_offered"
    assert OTHER[:12] in found.text
    assert VERSION[:12] in found.text
    assert found.queue is not None
    assert found.queue.other_versions == (VERSION,)


async def test_a_worker_that_is_set_aside(store: Database) -> None:
    rig = Asked(store)
    worker, ada = await rig.offer(name="pc"), await rig.caller("ada")
    await recovery.set_aside(rig.db, worker.end.worker, 1, "the GPU has fallen off the bus", rig.clock.wall())
    await rig.health.tick()
    found = await rig.why(ada, (await rig.create(ada)).id)
    assert found.code == "worker_quarantined"
    assert "pc: the GPU has fallen off the bus" in found.text


async def test_the_reason_of_a_shared_worker_is_nobody_elses_business(store: Database) -> None:
    rig = Asked(store)
    worker, ada = await rig.offer(account="shared", name="pool-1"), await rig.caller("ada")
    await recovery.set_aside(rig.db, worker.end.worker, 1, "eve's prompt broke it", rig.clock.wall())
    await rig.health.tick()
    found = await rig.why(ada, (await rig.create(ada)).id)
    assert found.code == "worker_quarantined"
    shown = msgspec.json.encode(found).decode()
    assert "pool-1" in shown
    assert "eve" not in shown
    assert found.queue is not None
    assert [(note.is_shared, note.reason) for note in found.queue.quarantined] == [(True, None)]


async def test_a_model_that_is_being_set_up(store: Database) -> None:
    rig = Asked(store)
    ada = await rig.caller("ada")
    worker = await rig.offer(name="pc")
    await worker.disconnect()
    setup = Setup(worker.end.worker, ada.account, ada.token, "pc", OFFERS, rig.clock.wall())
    assert await recovery.note_setup(rig.db, setup)
    created = await rig.create(ada)
    rig.pass_by(40)
    found = await rig.why(ada, created.id)
    assert found.code == "model_starting"
    assert found.text == "The model is being set up on pc (for 41 s). It starts when that is done."
    rig.pass_by(3_600)
    assert (await rig.why(ada, created.id)).code == "worker_away", "an hour is too long for a setup"
    assert await recovery.note_setup(rig.db, msgspec.structs.replace(setup, now=rig.clock.wall()))
    assert (await rig.why(ada, created.id)).code == "model_starting"
    failure = SetupFailure(worker.end.worker, ada.account, ada.token, "pc", OFFERS, "no torch", rig.clock.wall())
    assert await recovery.note_setup_failure(rig.db, failure)
    failed = await rig.why(ada, created.id)
    assert (failed.code, "pc: no torch" in failed.text) == ("worker_quarantined", True)
    assert await recovery.note_setup(rig.db, msgspec.structs.replace(setup, now=rig.clock.wall()))
    await recovery.note_setup_over(rig.db, worker.end.worker, ada.account)
    assert (await rig.why(ada, created.id)).code == "worker_quarantined"
    assert await recovery.note_setup(rig.db, msgspec.structs.replace(setup, now=rig.clock.wall()))
    await worker.connect()
    await worker.next()
    assert (await rig.why(ada, created.id)).code == "assigned", "a hello ends a setup"
    await worker.disconnect()
    assert (await rig.why(ada, (await rig.create(ada)).id)).code == "worker_away"


async def test_a_setup_of_another_account_is_refused(store: Database) -> None:
    rig = Asked(store)
    ada, eve = await rig.caller("ada"), await rig.caller("eve")
    setup = Setup("w1", ada.account, ada.token, "pc", OFFERS, rig.clock.wall())
    assert await recovery.note_setup(rig.db, setup)
    assert not await recovery.note_setup(rig.db, msgspec.structs.replace(setup, account=eve.account))
    await recovery.note_setup_over(rig.db, "w1", eve.account)
    created = await rig.offer()
    await created.disconnect()
    assert (await rig.why(ada, (await rig.create(ada)).id)).code == "model_starting"


async def test_others_are_counted_and_get_their_turns(store: Database) -> None:
    rig = Asked(store)
    worker = await rig.offer(account="shared")
    ada, eve = await rig.caller("ada"), await rig.caller("eve")
    await rig.create(eve)
    await rig.begin(worker)
    for _ in range(20):
        await rig.create(eve)
    own = [await rig.create(ada) for _ in range(3)]
    found = await rig.why(ada, own[2].id)
    assert found.queue is not None
    assert (found.queue.waiting, found.queue.waiting_others) == (23, 20)
    assert found.position in (5, 6), "the other account has 20 entries, and gets every second turn"
    assert eve.account not in msgspec.json.encode(found).decode()
    order = []
    key = ("", 0)
    for _ in range((found.position or 0) + 1):
        if key[0]:
            await worker.finish(key)
        else:
            held = next(iter(rig.predictions.lives.values()))
            await worker.finish(held.key)
        work = await worker.next()
        order.append(work.prediction)
        key = await worker.start(work)
    assert abs(order.index(own[2].id) + 1 - (found.position or 0)) <= 1, "who is first of two that are even is chance"
    with pytest.raises(NotFound):
        await rig.explanations.explain(eve.account, own[2].id)


async def test_what_was_lost_waits_for_its_time(store: Database) -> None:
    rig = Asked(store)
    rig.losses._backoff = Backoff(10.0, 60.0)
    worker, ada = await rig.offer(), await rig.caller("ada")
    created = await rig.create(ada)
    key = await rig.begin(worker)
    await worker.finish(key, status="lost", error="the model crashed")
    found = await rig.why(ada, created.id)
    assert (found.code, found.position) == ("retrying", None)
    assert "the model crashed" in found.text
    assert found.retry_at is not None
    assert found.retry_at.endswith("Z")


async def test_what_runs_and_what_has_ended(store: Database) -> None:
    rig = Asked(store)
    worker, ada = await rig.offer(gpu="NVIDIA A40", name="pc"), await rig.caller("ada")
    created = await rig.create(ada)
    work = await worker.next()
    given = await rig.why(ada, created.id)
    assert (given.code, "worker pc (NVIDIA A40)" in given.text) == ("assigned", True)
    key = await worker.start(work)
    await rig.checkpoints.tick()
    rig.pass_by(30)
    running = await rig.why(ada, created.id)
    assert running.code == "running"
    assert running.text.startswith("It has been running on worker pc (NVIDIA A40) for 3")
    assert running.decision is not None
    assert running.decision.hop == "workers"
    await worker.finish(key, status="failed", error="out of memory")
    ended = await rig.why(ada, created.id)
    assert ended.code == "ended"
    assert ended.text.endswith("ago: failed: out of memory.")


class _Counting:
    """A store that counts what is read."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.reads: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    async def read(self, name: str, /, **params: Any) -> Any:
        self.reads[name] += 1
        return await self._db.read(name, **params)


async def test_thousands_that_wait_ask_no_more_often_than_one(store: Database) -> None:
    rig = Asked(store)
    worker, ada = await rig.offer(), await rig.caller("ada")
    await rig.learn(10.0, 11.0, 12.0, catalog=ada.account)
    await rig.create(ada)
    await rig.begin(worker)
    created = await rig.create(ada)
    row = await rig.predictions.row(ada.account, created.id)
    counting = _Counting(store)
    rig.figures._db = counting
    for place in range(1, 1_000):
        group = await rig.figures.of(row)
        seen = rig.figures.figures(group, place, 1.0, rig.clock.wall())
        assert seen.expected_s is not None
    assert counting.reads["fleet_of"] <= 5, "they are half a second old at most"
    [(_, _, curve)] = rig.figures._curves.values()
    assert len(curve) < 40, "a forecast for each place would cost too much"
    for number in range(1_500):
        await rig.figures.of(msgspec.structs.replace(row, pinned=True, version=f"{number:064x}"))
    assert len(rig.figures._groups) <= 1_000


async def test_each_gpu_has_run_times_of_its_own(store: Database) -> None:
    rig = Asked(store)
    ada = await rig.caller("ada")
    await rig.learn(*[30.0] * 20, catalog=ada.account, gpu="NVIDIA A40")
    await rig.learn(*[3.0] * 20, catalog=ada.account, gpu="NVIDIA H100")
    slow = await rig.offer(gpu="NVIDIA A40")
    await rig.create(ada)
    await rig.begin(slow)
    first, second = await rig.create(ada), await rig.create(ada)
    alone = await rig.why(ada, second.id)
    assert alone.eta is not None
    assert alone.eta.mid_s == pytest.approx(59, abs=3)
    fast = await rig.offer(gpu="NVIDIA H100")
    await rig.begin(fast)
    helped = await rig.why(ada, second.id)
    assert helped.eta is not None
    assert helped.eta.mid_s < 4
    assert (await rig.why(ada, first.id)).code == "running"


# --- routes -----------------------------------------------------------------------------------------------------------

POLICY = parse(["workers", {"replicate": {"when": "wait > 30s or no_workers"}}])


async def routed(rig: Asked, *, busy: bool = True) -> tuple[str, str]:
    """Return a caller's account and a prediction that waits and has a route."""
    worker, ada = await rig.offer(), await rig.caller("ada")
    if busy:
        await rig.create(ada)
        await rig.begin(worker)
    else:
        await rig.leave(worker)
    created = await rig.create(ada)
    await routes.put(rig.db, ada.account, "", '["workers", "replicate"]', rig.clock.wall(), routed=True)
    return ada.account, created.id


@pytest.mark.parametrize(
    ("state", "code", "said"),
    [
        (HopState("budget_exhausted", "the account's budget of $5.00 a day is spent"), "budget_exhausted", "$5.00"),
        (HopState("your_limit", "20 of your predictions run there"), "your_limit", "20 of your predictions"),
        (HopState("provider_paused", "the key was refused"), "provider_paused", "the key was refused"),
        (
            HopState("provider_refused", "it has no such model", is_permanent=True),
            "no_worker_has_model",
            "no such model",
        ),
    ],
)
async def test_what_blocks_its_provider(store: Database, state: HopState, code: str, said: str) -> None:
    rig = Asked(store)
    account, id = await routed(rig, busy=False)
    rig.route.policy, rig.route.states = POLICY, {"replicate": state}
    rig.pass_by(0.6)
    found = await rig.explanations.explain(account, id)
    assert (found.code, found.blocked) == (code, {"replicate": state.text})
    assert said in found.text
    assert found.decision is not None
    assert found.decision.figures is not None
    assert found.decision.figures["workers"] == 0


async def test_a_condition_that_does_not_hold_yet_is_said(store: Database) -> None:
    rig = Asked(store)
    account, id = await routed(rig)
    rig.route.policy = POLICY
    rig.pass_by(2)
    found = await rig.explanations.explain(account, id)
    assert found.code == "all_busy"
    assert "Its route: " in found.text
    assert "replicate takes it when wait > 30s" in found.text
    rig.pass_by(40)
    sent = await rig.explanations.explain(account, id)
    assert sent.code == "submitting"
    assert "replicate" in sent.text


async def test_what_nothing_can_run(store: Database) -> None:
    rig = Asked(store)
    account, id = await routed(rig, busy=False)
    rig.route.policy = parse(["replicate"])
    rig.route.states = {"replicate": HopState("hops", "it came through 4 servers already", is_permanent=True)}
    found = await rig.explanations.explain(account, id)
    assert found.code == "impossible"
    assert "it came through 4 servers already" in found.text
    rig.route.policy = parse([{"replicate": {"when": "wait > 1h"}}])
    assert (await rig.explanations.explain(account, id)).code == "not_yet"


async def test_what_a_provider_has(store: Database) -> None:
    rig = Asked(store)
    account, id = await routed(rig)
    ada = await rig.caller("ada")
    provider = await rig.provider(ada)
    decision = (
        '{"hop": "replicate", "code": "overflow", "text": "it has waited 41 s (wait > 30s)", "figures": {"free": 0}}'
    )
    errand = await rig.send(ada, id, provider, decision)
    found = await rig.why(ada, id)
    assert (found.code, found.text) == ("submitting", "It is being sent to replicate.")
    assert found.decision is not None
    assert (found.decision.hop, found.decision.text) == ("replicate", "it has waited 41 s (wait > 30s)")
    assert found.decision.figures == {"free": 0}
    await rig.db.write(errands.submitted(errand.key, errand.epoch, "r1", rig.clock.wall()))
    rig.pass_by(20)
    cold = await rig.why(ada, id)
    assert (cold.code, cold.eta) == ("provider_cold", None)
    assert cold.text.startswith("replicate has had it for 2")
    assert account == ada.account


async def test_a_cold_provider_is_known_by_its_earlier_waits(store: Database) -> None:
    rig = Asked(store)
    worker, ada = await rig.offer(), await rig.caller("ada")
    await rig.create(ada)
    await rig.begin(worker)
    provider = await rig.provider(ada)
    for wait_s in (20, 30, 40, 50, 60, 70):
        id = (await rig.create(ada)).id
        errand = await rig.send(ada, id, provider)
        start = errand.created_at + wait_s * 1_000_000
        await rig.started(errand.key, start)
    last = await rig.send(ada, (await rig.create(ada)).id, provider)
    await rig.db.write(errands.submitted(last.key, last.epoch, "r1", rig.clock.wall()))
    rig.pass_by(25 - 0.6)
    found = await rig.why(ada, last.prediction)
    assert found.eta is not None
    assert 4 < found.eta.low_s < found.eta.mid_s < found.eta.high_s < 46
    assert found.eta.mid_s == pytest.approx(25, abs=1)
    rig.pass_by(30)
    assert (await rig.why(ada, last.prediction)).eta is None, "it has waited longer than nearly all before"


# --- receipts ---------------------------------------------------------------------------------------------------------


async def test_the_receipt_of_a_run_on_a_worker(store: Database) -> None:
    rig = Asked(store)
    worker, ada = await rig.offer(gpu="NVIDIA A40", name="pc"), await rig.caller("ada")
    created = await rig.create(ada)
    work = await worker.next()
    early = await rig.receipts.receipt(ada.account, created.id)
    assert (early.run_s, early.cost, len(early.attempts)) == (None, 0.0, 1)
    key = await worker.start(work)
    await rig.checkpoints.tick()
    rig.pass_by(4)
    await worker.finish(key, output=b'"four"', run_ms=4_000.0)
    receipt = await rig.receipts.receipt(ada.account, created.id)
    [trial] = receipt.attempts
    assert (trial.place, trial.name, trial.gpu, trial.is_shared) == ("worker", "pc", "NVIDIA A40", False)
    assert (trial.outcome, trial.cost, receipt.cost) == ("succeeded", 0.0, 0.0)
    assert receipt.run_s == pytest.approx(4, abs=1)
    assert receipt.route is not None
    assert receipt.route.hop == "workers"
    assert (receipt.input.json, receipt.output.json, receipt.output.files) == (2, 6, 0)
    assert receipt.total_s >= receipt.queue_s + (receipt.run_s or 0)
    eve = await rig.caller("eve")
    with pytest.raises(NotFound):
        await rig.receipts.receipt(eve.account, created.id)


async def test_the_receipt_of_what_nobody_has_run(store: Database) -> None:
    rig = Asked(store)
    await rig.offer(slots=0)
    ada = await rig.caller("ada")
    created = await rig.create(ada)
    rig.pass_by(7)
    receipt = await rig.receipts.receipt(ada.account, created.id)
    assert (receipt.attempts, receipt.route, receipt.run_s, receipt.setup_s, receipt.cost) == (
        (),
        None,
        None,
        None,
        0.0,
    )
    assert receipt.queue_s == pytest.approx(7, abs=1)
    assert receipt.total_s == receipt.queue_s


async def test_the_receipt_of_two_attempts_at_providers(store: Database) -> None:
    rig = Asked(store)
    await rig.offer(slots=0)
    ada = await rig.caller("ada")
    provider = await rig.provider(ada)
    id = (await rig.create(ada)).id
    first = await rig.send(ada, id, provider, '{"code": "overflow", "text": "no worker", "figures": {}}')
    await rig.db.write(errands.submitted(first.key, first.epoch, "r1", rig.clock.wall()))
    open_ = await rig.receipts.receipt(ada.account, id)
    assert (open_.cost, open_.attempts[0].remote_id) == (None, "r1"), "what it costs is not known before the end"
    rig.pass_by(5)
    await rig.losses.rescue(first.key, "it went away", slot_free=False, is_innocent=True)
    await rig.db.write(*errands.settle(first, now=rig.clock.wall(), cost=1_500, run_us=3_000_000))
    second = await rig.send(ada, id, provider)
    await rig.db.write(*errands.settle(second, now=rig.clock.wall(), cost=2_500, run_us=1_000_000))
    receipt = await rig.receipts.receipt(ada.account, id)
    assert [trial.cost for trial in receipt.attempts] == [0.0015, 0.0025]
    assert [trial.place for trial in receipt.attempts] == ["provider", "provider"]
    assert [trial.name for trial in receipt.attempts] == ["replicate", "replicate"]
    assert (receipt.cost, receipt.run_s) == (0.004, 4.0)
    assert receipt.attempts[0].outcome == "lost"
    third = await rig.lose_and_send(ada, second, provider)
    await rig.db.write(*errands.settle(third, now=rig.clock.wall(), cost=None, run_us=None))
    receipt = await rig.receipts.receipt(ada.account, id)
    assert ([trial.cost for trial in receipt.attempts][2], receipt.cost) == (None, None)
