"""Errands: attempts at providers, from the moment before the first call until their cost is known.

An errand shares its key with its attempt, and its epoch with the attempt's link. Money is in millionths of a dollar.
Typed functions over named queries; what returns statements is joined into units by the engine.
"""

from collections.abc import Sequence

import msgspec

from cogflare.domain.money import day_of
from cogflare.store.base import Conflict, Database, Row, Statement, Value
from cogflare.store.fleet import AttemptKey


class NewErrand(msgspec.Struct, frozen=True):
    """What a claim for a provider writes: the next attempt of a prediction that is at `attempt`, and its errand.

    `holder` holds the attempt, `claim` names the claim. `mark` is the run's unguessable name at the provider; `terms`
    and `decision` are JSON text. `version` is written where the prediction is not pinned. The provider has at most
    `most_open` errands at a time.
    """

    prediction: str
    attempt: int
    account: str
    token: str
    model: str
    provider: str
    provider_name: str
    holder: str
    node: str
    claim: str
    mark: str
    terms: str
    decision: str
    version: str | None
    now: int
    most_open: int


class Reservation(msgspec.Struct, frozen=True):
    """What is taken of the budget (`limit`) of a day or month (`since`).

    `amount` None: all that is left, if anything is.
    """

    account: str
    scope: str
    ref: str
    since: str
    limit: int
    amount: int | None


class ErrandRow(msgspec.Struct, frozen=True):
    """An errand as stored; `state` is intent, submitted or over."""

    prediction: str
    attempt: int
    account: str
    token: str
    model: str
    provider: str
    provider_name: str
    node: str
    epoch: int
    state: str
    mark: str
    terms: str
    decision: str
    remote_id: str | None
    is_refused: bool
    is_in_doubt: bool
    created_at: int
    submitted_at: int | None
    ended_at: int | None
    run_us: int | None
    reserved: int
    cost: int | None

    @property
    def key(self) -> AttemptKey:
        """The key of the attempt."""
        return self.prediction, self.attempt

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do."""
        return self.state == "over"


class CostRow(msgspec.Struct, frozen=True):
    """What errands that began on a day have cost.

    Of the `runs`, `unknown` have no known cost, and `in_doubt` may never have been.
    """

    day: str
    token: str
    model: str
    provider_name: str
    runs: int
    unknown: int
    in_doubt: int
    run_us: int
    cost: int


# --- life ------------------------------------------------------------------------------------------------------------


def claim(new: NewErrand, reservations: Sequence[Reservation]) -> list[Statement]:
    """Return the statements that give a queued prediction to a provider.

    The `Conflict` of the unit names what stood in the way: `claim_errand` (the prediction has moved on, or somebody
    holds it), `errand_room` (the provider is paused, gone, or has enough), or `reserve` (a budget).
    """
    key: dict[str, Value] = {"prediction": new.prediction, "attempt": new.attempt + 1}
    room: dict[str, Value] = {"account": new.account, "provider": new.provider, "most_open": new.most_open}
    begun: dict[str, Value] = {"claim": new.claim, "holder": new.holder, "now": new.now}
    fields = msgspec.structs.asdict(new)
    for name in ("attempt", "holder", "claim", "version", "most_open"):
        del fields[name]
    statements = [
        # First of all, because whoever drops entries takes it later: two nodes would wait for each other.
        Statement("lock_flows", {}),
        Statement("claim_errand", {**key, "attempt": new.attempt, "version": new.version}, needs="row"),
        Statement("errand_room", {**room, "now": new.now}, needs="row"),
        *(Statement("reserve", {**key, **msgspec.structs.asdict(taken)}, needs="row") for taken in reservations),
        Statement("begin_errand_attempt", {**key, **begun}),
        Statement("insert_errand", {**fields, "attempt": new.attempt + 1}),
        Statement("drop_entries", {"prediction": new.prediction}),
    ]
    if reservations:
        statements += [Statement("spend_reserved", {**key, "account": new.account}), Statement("note_reserved", key)]
    return statements


def submitted(key: AttemptKey, epoch: int, remote_id: str, now: int) -> Statement:
    """Return the statement that notes what the provider calls the run.

    `Conflict`: another has taken the errand over, or this is known.
    """
    fields: dict[str, Value] = {"prediction": key[0], "attempt": key[1], "epoch": epoch, "remote_id": remote_id}
    return Statement("submit_errand", {**fields, "now": now}, needs="row")


async def take_over(db: Database, key: AttemptKey, epoch: int, node: str) -> ErrandRow | None:
    """Drive an errand from this node from now on; None where it is over, or another was first."""
    place: dict[str, Value] = {"prediction": key[0], "attempt": key[1], "epoch": epoch}
    try:
        _, rows, _ = await db.write(
            Statement("lock_flows", {}),
            Statement("take_over_errand", {**place, "node": node}, needs="row"),
            Statement("take_over_attempt", place),
        )
    except Conflict:
        return None
    return _row(rows[0])


def settle(
    row: ErrandRow,
    *,
    now: int,
    cost: int | None,
    run_us: int | None,
    is_refused: bool = False,
    is_in_doubt: bool = False,
) -> list[Statement]:
    """Return the statements that end an errand, free its slot, and put its cost in the place of what it had reserved.

    A `cost` of None is not known and counts as nothing. `Conflict` (of `settle_errand`): it is over, or another has
    taken it over.
    """
    key: dict[str, Value] = {"prediction": row.prediction, "attempt": row.attempt}
    outcome = {"cost": cost, "run_us": run_us, "is_refused": int(is_refused), "is_in_doubt": int(is_in_doubt)}
    dollars = None if cost is None else cost / 1e6
    statements = [
        Statement("lock_flows", {}),
        Statement("settle_errand", {**key, "epoch": row.epoch, "now": now, **outcome}, needs="row"),
        Statement("settle_attempt", {**key, "remote_id": row.remote_id, "dollars": dollars, "now": now}),
        Statement("settle_spending", {**key, "account": row.account, "cost": cost or 0}),
        Statement("drop_reservations", key),
    ]
    return statements if is_refused else [*statements, Statement("count_cost", key)]


# --- looks -----------------------------------------------------------------------------------------------------------


async def get(db: Database, prediction: str, attempt: int) -> ErrandRow | None:
    """Return the errand of an attempt."""
    return _first(await db.read("get_errand", prediction=prediction, attempt=attempt))


async def by_mark(db: Database, mark: str) -> ErrandRow | None:
    """Return the errand whose run at the provider has this mark."""
    return _first(await db.read("errand_by_mark", mark=mark))


async def open_of(db: Database, node: str | None) -> list[ErrandRow]:
    """Return the errands of a node, or of all, that are not over."""
    return [_row(row) for row in await db.read("open_errands", node=node)]


async def for_prediction(db: Database, prediction: str) -> list[ErrandRow]:
    """Return the errands of a prediction, first to last."""
    return [_row(row) for row in await db.read("errands_of", prediction=prediction)]


async def open_counts(db: Database, account: str) -> dict[str, int]:
    """Return how many errands of an account are not over, by the id of their provider."""
    rows = await db.read("open_errand_counts", account=account)
    return dict(rows)


async def refused_by(db: Database, prediction: str) -> set[str]:
    """Return the ids of the providers that did not take a prediction."""
    return {provider for (provider,) in await db.read("refused_by", prediction=prediction)}


async def costs(db: Database, account: str | None, since: int, until: int) -> list[CostRow]:
    """Return what settled errands have cost that began from a time to another (exclusive); None: of all accounts.

    Days (UTC) count whole.
    """
    days = {"since": day_of(since), "until": day_of(until - 1)}
    return [CostRow(*row) for row in await db.read("costs", account=account, **days)]


# --- nodes -----------------------------------------------------------------------------------------------------------


async def beat(db: Database, node: str) -> None:
    """Show others that this node lives."""
    await db.write(Statement("beat", {"node": node}))


async def nodes(db: Database) -> dict[str, int]:
    """Return how often each node has shown that it lives."""
    rows = await db.read("nodes")
    return dict(rows)


def _first(rows: Sequence[Row]) -> ErrandRow | None:
    return _row(rows[0]) if rows else None


def _row(row: Row) -> ErrandRow:
    found = ErrandRow(*row)
    return msgspec.structs.replace(found, is_refused=bool(found.is_refused), is_in_doubt=bool(found.is_in_doubt))
