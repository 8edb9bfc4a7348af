"""What a route is decided on: what waits, and what the workers do. Typed functions over named queries."""

from collections.abc import Sequence

import msgspec

from cogflare.store.base import Database, Statement, Value
from cogflare.store.predictions import enqueue


class Candidate(msgspec.Struct, frozen=True):
    """A queued prediction that may go to a provider; `queue` is one in which it waits, `route` its own wish (JSON)."""

    id: str
    account: str
    token: str
    catalog: str
    model: str
    version: str
    pinned: bool
    flow: str
    attempt: int
    created_at: int
    route: str | None
    hops: int
    run_limit_s: float | None
    start_by: int | None
    deadline: int | None
    queue: str | None
    webhook_origin: str | None


class OfferedRow(msgspec.Struct, frozen=True):
    """A model's version that a worker offers, with `busy` of its `slots` taken; `agent` is JSON text.

    `setup_since`: it sets its model up; `quarantine`: why it gets no work; `unmet`: what the model requires and its
    machine has not.
    """

    worker: str
    account: str
    state: str
    quarantine: str | None
    version: str
    slots: int
    busy: int
    agent: str
    setup_since: int | None
    unmet: str = ""


def _text(values: Sequence[str]) -> str:
    return msgspec.json.encode(values).decode()


async def waiting(db: Database) -> list[tuple[str, str]]:
    """Return the accounts and models of what is queued and may go to a provider."""
    return [(account, model) for account, model in await db.read("waiting_routes")]


async def candidates(db: Database, account: str, model: str, after: str = "", limit: int = 200) -> list[Candidate]:
    """Return predictions of a model that are queued and may go to a provider, in the order in which they came.

    `after` is the id of the one before the first.
    """
    rows = await db.read("candidates", account=account, model=model, after=after, limit=limit)
    return [msgspec.structs.replace(found, pinned=bool(found.pinned)) for found in (Candidate(*row) for row in rows)]


def hand_over(prediction: str, attempt: int, queues: Sequence[str]) -> list[Statement]:
    """Return the statements that put a queued prediction into other queues; `Conflict` says it moved meanwhile."""
    key: dict[str, Value] = {"prediction": prediction}
    return [
        Statement("lock_flows", {}),
        Statement("keep_queued", {**key, "attempt": attempt}, needs="row"),
        Statement("drop_entries", key),
        *enqueue(prediction, queues),
    ]


async def fleet_of(db: Database, catalogs: Sequence[str], owner: str, name: str) -> list[OfferedRow]:
    """Return what the workers of these accounts offer of a model, whatever their state."""
    rows = await db.read("fleet_of", catalogs=_text(catalogs), owner=owner, name=name)
    return [OfferedRow(*row) for row in rows]


async def flows(db: Database, queues: Sequence[str]) -> list[tuple[str, str, int, int]]:
    """Return the flows that wait in these queues: queue, flow, entries that wait, virtual time; the next one first."""
    rows = await db.read("waiting_flows", queues=_text(queues))
    return [(queue, flow, count, time) for queue, flow, count, time in rows]


async def ahead(db: Database, prediction: str, queue: str) -> int | None:
    """Return how many of its own flow come before a prediction in a queue; None where it is not ready there."""
    rows = await db.read("entries_ahead", prediction=prediction, queue=queue)
    return rows[0][0] if rows else None


async def running(db: Database, queues: Sequence[str]) -> list[tuple[str, str, int, int | None]]:
    """Return what takes slots of workers and came from these queues: prediction, holder, claimed and started at."""
    rows = await db.read("running_attempts", queues=_text(queues))
    return [(prediction, holder, claimed, started) for prediction, holder, claimed, started in rows]
