"""Why a prediction is where it is: one exact reason with its figures, its place, and when it is going to start.

A reason says what to do about it. Workers of others that one shares have a name and nothing more; what others wait for
is a number.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

import msgspec

from cogflare.domain.clock import Clock
from cogflare.domain.forecast import Forecast
from cogflare.domain.phases import Phase
from cogflare.domain.policy import WORKERS
from cogflare.domain.routing import Decision, Figures, shown_s
from cogflare.engine.figures import FleetFigures, Group
from cogflare.engine.forecasts import Forecasts
from cogflare.engine.receipts import PROVIDER, Books, Decided, route_of
from cogflare.store import errands, fleet, inquiries
from cogflare.store.base import Database
from cogflare.store.errands import ErrandRow
from cogflare.store.fleet import AttemptRow, Offering
from cogflare.store.predictions import PredictionRow
from cogflare.store.routing import OfferedRow

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NAMED: Final = 10  # workers of a kind that are named
_ADVICE: Final = {
    "budget_exhausted": "It waits for a worker of your own or for the budget: cogflare budgets set raises it.",
    "your_limit": "It goes there when another of yours has ended there.",
    "provider_paused": "See to that; cogflare providers check resumes it.",
}


class Judge(Protocol):
    """The router, as far as it is asked what it would do."""

    async def weigh(self, row: PredictionRow) -> Decision | None:
        """Return which way a queued prediction would go now; None where no route names a provider for it."""
        ...


class Eta(msgspec.Struct, frozen=True):
    """Seconds until the start: the band it is expected in, and the middle; `at` is the time of the middle."""

    low_s: float
    mid_s: float
    high_s: float
    at: str


class Sent(Protocol):
    """What this node has at providers."""

    @property
    def words(self) -> Mapping[str, str]:
        """What keeps predictions from being submitted, by prediction."""
        ...


class WorkerNote(msgspec.Struct, frozen=True):
    """A worker that would run the prediction if it could; `reason` only of one's own, `since_s` of its setup."""

    name: str
    is_shared: bool
    reason: str | None = None
    since_s: float | None = None


class Queue(msgspec.Struct, frozen=True):
    """What waits for which workers. `waiting` counts all, `waiting_others` those of other accounts among them."""

    workers: int
    slots: int
    free: int
    busy: int
    waiting: int
    waiting_others: int
    mean_run_s: float | None
    quarantined: tuple[WorkerNote, ...]
    starting: tuple[WorkerNote, ...]
    away: tuple[WorkerNote, ...]
    other_versions: tuple[str, ...]
    unfit: tuple[WorkerNote, ...] = ()


class Explanation(msgspec.Struct, frozen=True):
    """The reason (`code`, and `text` for people), and what it was seen in.

    `position` is 1 for the next to start; `eta` None: cannot be told, or it has started. `decision` is the word of its
    route: that of now while it is queued, else the one that sent it where it is. `blocked` says why providers of its
    route are not used. `retry_at` is when a lost prediction is queued again.
    """

    id: str
    code: str
    text: str
    position: int | None = None
    eta: Eta | None = None
    queue: Queue | None = None
    figures: Figures | None = None
    decision: Decided | None = None
    blocked: dict[str, str] = {}
    retry_at: str | None = None


class Explanations:
    """Finds reasons."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        books: Books,
        figures: FleetFigures,
        forecasts: Forecasts,
        judge: Judge | None,
        sent: Sent | None = None,
    ) -> None:
        self._db = db
        self._clock = clock
        self._books = books
        self._figures = figures
        self._forecasts = forecasts
        self._judge = judge
        self._sent = sent

    async def explain(self, account: str, prediction: str) -> Explanation:
        """Return why a prediction is where it is; raises `NotFound`."""
        row = await self._books.row(account, prediction)
        if row.phase == Phase.ENDED:
            return self._ended(row)
        if row.phase == Phase.PARKED:
            return await self._parked(row)
        if row.phase in (Phase.ASSIGNED, Phase.RUNNING):
            return await self._given(row)
        return await self._queued(row)

    # --- what does not wait for workers ----------------------------------------------------------------------------

    def _ended(self, row: PredictionRow) -> Explanation:
        ago_s = _seconds(row.completed_at or row.created_at, self._clock.wall())
        why = f": {row.error}" if row.error else ""
        return _told(row, "ended", f"It ended {shown_s(ago_s)} ago: {row.status}{why}.")

    async def _parked(self, row: PredictionRow) -> Explanation:
        entries = await inquiries.entries_of(self._db, row.id)
        times = [entry.not_before for entry in entries if entry.not_before is not None]
        tries = await fleet.list_attempts(self._db, row.id)
        reason = next((one.reason for one in reversed(tries) if one.reason), None)
        lost = f"Attempt {row.attempt} was lost" + (f": {reason}. " if reason else ". ")
        left_s = max(min(times, default=0) - self._clock.wall(), 0) / 1_000_000
        text = f"{lost}It is queued again in {shown_s(left_s)}; nothing has to be done."
        return msgspec.structs.replace(_told(row, "retrying", text), retry_at=_iso(min(times)) if times else None)

    async def _given(self, row: PredictionRow) -> Explanation:
        """Explain what a worker or a provider has."""
        tries = [one for one in await fleet.list_attempts(self._db, row.id) if one.attempt == row.attempt]
        if not tries:
            return _told(row, "assigned", "A slot was found for it just now.")
        [one] = tries
        errand = await errands.get(self._db, row.id, row.attempt) if one.holder.startswith(PROVIDER) else None
        decision = route_of(one, errand)
        if errand is not None:
            told = await self._away_at(row, one, errand)
        else:
            workers = await fleet.offerings(self._db, [one.holder])
            told = self._at_worker(row, one, workers.get(one.holder))
        return msgspec.structs.replace(told, decision=decision, blocked=decision.blocked)

    def _at_worker(self, row: PredictionRow, one: AttemptRow, worker: Offering | None) -> Explanation:
        now = self._clock.wall()
        name = "a worker" if worker is None else _named(worker.name, worker.account != row.account)
        on = name + (f" ({worker.gpu})" if worker is not None and worker.gpu else "")
        if one.started_at is None:
            since_s = _seconds(one.claimed_at, now)
            text = f"It was given to {on} {shown_s(since_s)} ago, which fetches its input and starts it."
            return _told(row, "assigned", text)
        return _told(row, "running", f"It has been running on {on} for {shown_s(_seconds(one.started_at, now))}.")

    async def _away_at(self, row: PredictionRow, one: AttemptRow, errand: ErrandRow) -> Explanation:
        """Explain what a provider has."""
        now, name = self._clock.wall(), errand.provider_name
        if one.started_at is not None:
            since_s = _seconds(one.started_at, now)
            return _told(row, "running", f"It has been running at {name} for {shown_s(since_s)}.")
        if errand.state == "intent":
            word = None if self._sent is None else self._sent.words.get(row.id)
            again = f": {word}. That is tried again and again; cogflare providers check {name} asks it now."
            return _told(row, "submitting", f"It is being sent to {name}" + (again if word else "."))
        since_s = _seconds(errand.submitted_at or errand.created_at, now)
        found = await self._forecasts.of_errand(errand)
        text = (
            f"{name} has had it for {shown_s(since_s)} and has not started it: it waits there for a machine or for the"
            " model to load. Nothing has to be done; a worker of your own that has the model would take it back."
        )
        return msgspec.structs.replace(_told(row, "provider_cold", text), eta=self._eta(found))

    # --- what waits ------------------------------------------------------------------------------------------------

    async def _queued(self, row: PredictionRow) -> Explanation:
        group = await self._figures.of(row)
        place = await self._forecasts.place(group, row)
        now = self._clock.wall()
        decision = None if self._judge is None or not row.routed else await self._judge.weigh(row)
        found = group.forecast(place) if place is not None else None
        figures = self._figures.figures(group, place or 1, _seconds(row.created_at, now), now)
        queue = await self._queue(group, row)
        code, text = await self._reason(row, group, place, queue, decision)
        if decision is not None and decision.hop == WORKERS and code not in (*_ADVICE, "assigned"):
            text += f" Its route: {decision.text}."
        return Explanation(
            row.client_id or row.id,
            code,
            text,
            place,
            self._eta(found) if group.workers else None,
            queue,
            figures if decision is None else decision.figures,
            None if decision is None else _decided(decision),
            {} if decision is None else decision.blocked,
        )

    async def _reason(
        self, row: PredictionRow, group: Group, place: int | None, queue: Queue, decision: Decision | None
    ) -> tuple[str, str]:
        """Return the reason of a queued prediction: of its route if that holds it up, else of the workers."""
        routed = None if decision is None else _routed(decision)
        if routed is not None:
            return routed
        if place is None:
            return "assigned", "A slot was found for it just now."
        if not group.workers:
            return _without_workers(row, group, queue)
        if group.free >= place:
            return await self._nearly(row, group)
        return _behind(row, place, queue)

    async def _nearly(self, row: PredictionRow, group: Group) -> tuple[str, str]:
        """Explain what waits though a slot is free: it may avoid the worker that has just lost it."""
        now = self._clock.wall()
        free = {offer.worker for offer in group.serving if offer.slots > offer.busy}
        for entry in await inquiries.entries_of(self._db, row.id):
            if entry.avoid_worker in free and len(free) == 1 and (entry.avoid_until or 0) > now:
                left_s = _seconds(now, entry.avoid_until or now)
                return "retrying", (
                    f"The only free worker is the one that lost it; others go first for {shown_s(left_s)}, then it may"
                    " run there again. Nothing has to be done."
                )
        return "assigned", "A slot is free for it, and it is being given out."

    async def _queue(self, group: Group, row: PredictionRow) -> Queue:
        kinds = group.quarantined, group.unfit, group.starting, group.away
        noted = [row for rows in kinds for row in rows[:_NAMED]]
        workers = await fleet.offerings(self._db, sorted({offer.worker for offer in noted})) if noted else {}
        now = self._clock.wall()

        def notes(rows: Sequence[OfferedRow]) -> tuple[WorkerNote, ...]:
            return tuple(_note(offer, workers.get(offer.worker), row.account, now) for offer in rows[:_NAMED])

        return Queue(
            group.workers,
            group.slots,
            group.free,
            max(group.slots - group.free, 0),
            group.waiting,
            sum(line.waiting for line in group.lines if line.flow != row.flow),
            group.mean_run_s,
            notes(group.quarantined),
            notes(group.starting),
            notes(group.away),
            group.versions,
            notes(group.unfit),
        )

    def _eta(self, found: Forecast | None) -> Eta | None:
        if found is None:
            return None
        at = _iso(self._clock.wall() + int(found.mid_s * 1_000_000))
        return Eta(round(found.low_s, 3), round(found.mid_s, 3), round(found.high_s, 3), at)


def _routed(decision: Decision) -> tuple[str, str] | None:
    """Explain what its route holds up, or sends away in a moment; None: it is up to the workers."""
    if decision.code in _ADVICE:
        return decision.code, f"It waits, because {decision.text}. {_ADVICE[decision.code]}"
    if decision.hop == WORKERS:
        return None
    if decision.hop is not None:
        return "submitting", f"It is about to be sent to {decision.hop}: {decision.text}."
    if decision.code == "not_yet":
        return "not_yet", f"Its route has no workers, and no provider takes it yet: {decision.text}."
    return "impossible", f"Nothing can run it: {decision.text}. Change its route (cogflare routes set), or cancel it."


def _without_workers(row: PredictionRow, group: Group, queue: Queue) -> tuple[str, str]:
    """Explain what waits while nobody can run it."""
    what = f"{row.model}, version {row.version[:12]}" if row.pinned else row.model
    if queue.starting:
        names = ", ".join(
            note.name + (f" (for {shown_s(note.since_s)})" if note.since_s is not None else "")
            for note in queue.starting
        )
        return "model_starting", f"The model is being set up on {names}. It starts when that is done."
    if queue.quarantined:
        told = "; ".join(f"{note.name}: {note.reason}" if note.reason else note.name for note in queue.quarantined)
        return "worker_quarantined", (
            f"Every worker that has {what} is set aside ({told}). It is asked again by and by; see to what is wrong"
            " there, or start another worker."
        )
    if queue.unfit and not queue.away:
        told = "; ".join(_unfit(note) for note in queue.unfit)
        return "requirements_unmet", (
            f"No connected worker that has {what} meets what the model requires: {told}. Start a worker on a machine"
            f" that does, or change what it requires: cogflare models set {row.model}."
        )
    if row.pinned and queue.other_versions:
        others = ", ".join(version[:12] for version in queue.other_versions[:3])
        return "version_not_offered", (
            f"No connected worker has version {row.version[:12]} of {row.model}; they have {others}. Start a worker"
            " with that version, or create the prediction without a version."
        )
    if queue.away:
        names = ", ".join(note.name for note in queue.away)
        return "worker_away", f"The link to {names} is lost; it starts when that is back. No other worker has {what}."
    return "no_worker_has_model", (
        f"No connected worker has {what}. Start one: cogflare worker --model {row.model}; or give it a route to a"
        " provider: cogflare routes set."
    )


def _behind(row: PredictionRow, place: int, queue: Queue) -> tuple[str, str]:
    """Explain what waits for slots that are taken."""
    busy = f"All {queue.slots} slots" if queue.slots > 1 else "The only slot"
    on = f"{queue.workers} workers" if queue.workers > 1 else "1 worker"
    state = f"{busy} of {on} {'are' if queue.slots > 1 else 'is'} taken"
    more = f"start another worker: cogflare worker --model {row.model}"
    if place <= 1:
        return "all_busy", f"{state}, and it is next. To be faster, {more}."
    ahead = place - 1
    return "behind_n", f"{state}, and {ahead} {'come' if ahead > 1 else 'comes'} before it. To be faster, {more}."


def _note(offer: OfferedRow, worker: Offering | None, account: str, now: int) -> WorkerNote:
    is_shared = offer.account != account
    since_s = None if offer.setup_since is None else _seconds(offer.setup_since, now)
    name = worker.name if worker is not None else offer.worker
    return WorkerNote(name, is_shared, None if is_shared else offer.quarantine or offer.unmet or None, since_s)


def _unfit(note: WorkerNote) -> str:
    return f"{_named(note.name, note.is_shared)} {note.reason or 'lacks something of it'}"


def _named(name: str, is_shared: bool) -> str:
    return f"the shared worker {name}" if is_shared else f"worker {name}"


def _decided(decision: Decision) -> Decided:
    figures: dict[str, Any] = msgspec.structs.asdict(decision.figures)
    return Decided(decision.hop, decision.code, decision.text, figures, decision.blocked)


def _told(row: PredictionRow, code: str, text: str) -> Explanation:
    return Explanation(row.client_id or row.id, code, text)


def _iso(time: int) -> str:
    return (_EPOCH + timedelta(microseconds=time)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _seconds(start: int, end: int) -> float:
    return max(end - start, 0) / 1_000_000
