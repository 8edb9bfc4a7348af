"""What a prediction took: where it ran and why there, how long each part of it lasted, its bytes, and its cost.

Made of what is stored, so it is the same on every node. What nobody knows is null. Workers of others that one shares
have a name and no account.
"""

from typing import Any, Final, Literal, Protocol

import msgspec

from cogflare.domain.clock import Clock
from cogflare.domain.money import dollars
from cogflare.store import errands, fleet, inquiries
from cogflare.store.base import Database
from cogflare.store.errands import ErrandRow
from cogflare.store.fleet import AttemptRow, Offering
from cogflare.store.predictions import PredictionRow

PROVIDER: Final = "provider:"
"""How the holder of an attempt at a provider begins."""


class Books(Protocol):
    """The stored predictions."""

    async def row(self, account: str, prediction: str) -> PredictionRow:
        """Return a prediction of the account, by our id or by its client's; raises `NotFound`."""
        ...


class Decided(msgspec.Struct, frozen=True):
    """Why the last attempt went where it went; `figures` are those of that moment, null for workers of one's own."""

    hop: str | None
    code: str
    text: str
    figures: dict[str, Any] | None = None
    blocked: dict[str, str] = {}


class Trial(msgspec.Struct, frozen=True):
    """One attempt. `setup_s` is what passed between its claim and its start; `name` that of the worker or provider."""

    attempt: int
    place: Literal["worker", "provider"]
    name: str | None
    is_shared: bool
    gpu: str | None
    queue_s: float
    setup_s: float | None
    run_s: float | None
    outcome: str | None
    reason: str | None
    remote_id: str | None
    cost: float | None
    is_in_doubt: bool


class Volume(msgspec.Struct, frozen=True):
    """Bytes that went in or came out: of the JSON, and of the files that it names."""

    json: int | None
    files: int
    file_bytes: int


class Receipt(msgspec.Struct, frozen=True):
    """Everything that a prediction took. Durations are seconds, money is dollars; null where it is not known."""

    id: str
    model: str
    version: str
    status: str
    route: Decided | None
    attempts: tuple[Trial, ...]
    queue_s: float
    setup_s: float | None
    run_s: float | None
    total_s: float
    input: Volume
    output: Volume
    cost: float | None


class Receipts:
    """Writes receipts."""

    def __init__(self, db: Database, clock: Clock, books: Books) -> None:
        self._db = db
        self._clock = clock
        self._books = books

    async def receipt(self, account: str, prediction: str) -> Receipt:
        """Return what a prediction took so far; raises `NotFound`."""
        row = await self._books.row(account, prediction)
        tries = await fleet.list_attempts(self._db, row.id)
        sent = {errand.attempt: errand for errand in await errands.for_prediction(self._db, row.id)}
        costs = await inquiries.attempt_costs(self._db, row.id)
        workers = await fleet.offerings(self._db, sorted({one.holder for one in tries}))
        trials, waited_from = [], row.created_at
        for one in tries:
            worker, errand = workers.get(one.holder), sent.get(one.attempt)
            trials.append(_trial(one, account, worker, errand, costs.get(one.attempt), waited_from))
            waited_from = one.ended_at or one.claimed_at
        waits = row.phase in ("queued", "parked")
        end = row.completed_at or self._clock.wall()
        rest_s = _seconds(waited_from, end) if waits or not tries else 0.0
        sizes = await inquiries.bytes_of(self._db, row.id, row.attempt)
        return Receipt(
            row.client_id or row.id,
            row.model,
            row.version,
            row.status,
            route_of(tries[-1], sent.get(tries[-1].attempt)) if tries else None,
            tuple(trials),
            round(sum(trial.queue_s for trial in trials) + rest_s, 6),
            _sum([trial.setup_s for trial in trials if trial.setup_s is not None]),
            _sum([trial.run_s for trial in trials if trial.run_s is not None]),
            _seconds(row.created_at, end),
            Volume(sizes.input, sizes.input_files, sizes.input_file_bytes),
            Volume(sizes.output, sizes.output_files, sizes.output_file_bytes),
            _whole([trial.cost for trial in trials]),
        )


def route_of(one: AttemptRow, errand: ErrandRow | None) -> Decided:
    """Return why an attempt went where it went."""
    if errand is not None:
        known = msgspec.json.decode(errand.decision, type=dict[str, Any])
        text, blocked = str(known.get("text", "")), known.get("blocked") or {}
        return Decided(errand.provider_name, str(known.get("code", "")), text, known.get("figures"), blocked)
    if one.holder.startswith(PROVIDER):
        return Decided(None, "provider", "a provider ran it; the record of that has been removed")
    return Decided("workers", "workers", "a worker of your own, or one that you share, had a free slot for it")


def _trial(
    one: AttemptRow,
    account: str,
    worker: Offering | None,
    errand: ErrandRow | None,
    cost: float | None,
    waited_from: int,
) -> Trial:
    is_provider = one.holder.startswith(PROVIDER)
    run_s = None if one.started_at is None or one.ended_at is None else _seconds(one.started_at, one.ended_at)
    if errand is not None and errand.run_us is not None:
        run_s = errand.run_us / 1_000_000
    name = worker.name if worker is not None else None
    return Trial(
        one.attempt,
        "provider" if is_provider else "worker",
        name if errand is None else errand.provider_name,
        worker is not None and worker.account != account,
        (worker.gpu or None) if worker is not None else None,
        _seconds(waited_from, one.claimed_at),
        None if one.started_at is None else _seconds(one.claimed_at, one.started_at),
        run_s,
        one.outcome,
        one.reason,
        None if errand is None else errand.remote_id,
        _cost(errand, cost) if is_provider else 0.0,
        errand is not None and errand.is_in_doubt,
    )


def _cost(errand: ErrandRow | None, cost: float | None) -> float | None:
    """Return what an attempt at a provider has cost; what is not over may still cost more."""
    if errand is None:
        return cost
    return dollars(errand.cost) if errand.is_over and errand.cost is not None else None


def _whole(costs: list[float | None]) -> float | None:
    """Return the sum of all costs; where one is not known, neither is the sum."""
    known = [cost for cost in costs if cost is not None]
    return round(sum(known, 0.0), 6) if len(known) == len(costs) else None


def _sum(parts: list[float]) -> float | None:
    return round(sum(parts), 6) if parts else None


def _seconds(start: int, end: int) -> float:
    return max(end - start, 0) / 1_000_000
