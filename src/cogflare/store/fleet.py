"""Workers, their links, and the leases of what they hold: typed functions over named queries."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from cogflare.store.base import Conflict, Database, Statement
from cogflare.store.recovery import Standing

AttemptKey = tuple[str, int]


class Link(msgspec.Struct, frozen=True):
    """What a hello writes. `offers`, `agent`, `machine` and `unmet` are JSON text; `now` is in microseconds.

    `unmet` has for each offer what its model requires and the machine has not.
    """

    id: str
    account: str
    token: str
    name: str
    instance: str
    node: str
    offers: str
    agent: str
    now: int
    probation: int = 0
    """Losses in a row that a worker is given whose new process ends a quarantine."""
    machine: str = "{}"
    unmet: str = "[]"


class HeldAttempt(msgspec.Struct, frozen=True):
    """An attempt that goes on under a new link, with the positions of its live data that are committed."""

    prediction: str
    attempt: int
    started_at: int | None
    output_items: int
    log_bytes: int


class Opened(NamedTuple):
    """A link that is open: its epoch, the attempts that go on, and how the worker is doing."""

    epoch: int
    held: list[HeldAttempt]
    standing: Standing


class LiveAttempt(msgspec.Struct, frozen=True):
    """An attempt that has not ended; its lease moves with `renewals`."""

    prediction: str
    attempt: int
    holder: str
    renewals: int


class AttemptState(msgspec.Struct, frozen=True):
    """An attempt beside the state of its prediction."""

    holder: str
    link_epoch: int
    renewals: int
    started_at: int | None
    ended_at: int | None
    outcome: str | None
    output_items: int
    log_bytes: int
    current: int
    phase: str
    queue: str


class WorkerRow(msgspec.Struct, frozen=True):
    """A worker as listed; `busy` counts its occupied slots. `offers`, `agent`, `machine` and `unmet` are JSON text."""

    id: str
    account: str
    name: str
    node: str
    link_epoch: int
    state: str
    offers: str
    agent: str
    connected_at: int
    changed_at: int
    quarantine: str | None
    quarantined_at: int | None
    machine: str
    unmet: str
    setup_since: int | None
    token: str
    busy: int


class Offering(msgspec.Struct, frozen=True):
    """What a worker runs, and on what: `models` has owner/name by version; `gpu` is empty where it is not known."""

    account: str
    name: str
    models: dict[str, str]
    gpu: str


class AttemptRow(msgspec.Struct, frozen=True):
    """One try of a prediction, as clients may read it."""

    attempt: int
    holder: str
    claimed_at: int
    started_at: int | None
    ended_at: int | None
    outcome: str | None
    reason: str | None
    slot_freed_at: int | None


def _keys(held: Sequence[AttemptKey]) -> str:
    return msgspec.json.encode(held).decode()


async def open_link(db: Database, link: Link, held: Sequence[AttemptKey]) -> Opened | None:
    """Raise the worker's epoch and take over the listed attempts that are current.

    None: the id is another account's, or as many workers are connected with the token as it lets. Who counts them holds
    the row of the token, so that two who come at once cannot both be the last for whom there is room, on any nodes.
    """
    key = {"worker": link.id, "held": _keys(held)}
    try:
        _, _, opened, _, _, adopted, _ = await db.write(
            Statement("limited_token", {"token": link.token}),
            Statement("token_has_room", {"token": link.token, "worker": link.id}, needs="row"),
            Statement("open_link", msgspec.structs.asdict(link), needs="row"),
            Statement("readopt_predictions", key),
            Statement("drop_held_entries", {"held": key["held"]}),
            Statement("adopt_attempts", key),
            Statement("free_unlisted", {**key, "now": link.now}),
        )
    except Conflict:
        return None
    epoch, *standing = opened[0]
    return Opened(epoch, [HeldAttempt(*row) for row in adopted], Standing(*standing))


def close_link(worker: str, epoch: int, state: str, now: int) -> Statement:
    """Return the statement that notes how a link ended (`away` or `offline`); a newer link is left alone."""
    return Statement("close_link", {"id": worker, "epoch": epoch, "state": state, "now": now})


def free_slots(worker: str, epoch: int, held: Sequence[AttemptKey], now: int) -> Statement:
    """Return the statement that gives the slots of these attempts back, save what goes on over a newer link."""
    return Statement("free_slots", {"worker": worker, "epoch": epoch, "held": _keys(held), "now": now})


def renew(worker: str, epoch: int, held: Sequence[AttemptKey]) -> Statement:
    """Return the statement that renews the leases of these attempts; its rows are those still wanted."""
    return Statement("renew", {"worker": worker, "epoch": epoch, "held": _keys(held)})


async def live_attempts(db: Database) -> list[LiveAttempt]:
    """Return every attempt of a worker that has not ended."""
    return [LiveAttempt(*row) for row in await db.read("live_attempts")]


async def live_of(db: Database, worker: str, epoch: int) -> dict[AttemptKey, int]:
    """Return the attempts of a worker that have not ended, with their renewals; none if it has opened a newer link."""
    rows = await db.read("live_of", worker=worker, epoch=epoch)
    return {(prediction, attempt): renewals for prediction, attempt, renewals in rows}


async def has_other_worker(
    db: Database, worker: str, catalogs: Sequence[str], model: tuple[str, str], version: str | None
) -> bool:
    """Say whether another worker of these accounts is connected that runs the model (this version of it, if given)."""
    owner, name = model
    accounts = msgspec.json.encode(catalogs).decode()
    rows = await db.read("has_other_worker", worker=worker, catalogs=accounts, owner=owner, name=name, version=version)
    return bool(rows)


async def get_attempt(db: Database, prediction: str, attempt: int) -> AttemptState | None:
    """Return an attempt and where its prediction stands."""
    rows = await db.read("get_attempt", prediction=prediction, attempt=attempt)
    return AttemptState(*rows[0]) if rows else None


async def list_attempts(db: Database, prediction: str) -> list[AttemptRow]:
    """Return the tries of a prediction, first to last."""
    return [AttemptRow(*row) for row in await db.read("list_attempts", prediction=prediction)]


async def offerings(db: Database, workers: Sequence[str]) -> dict[str, Offering]:
    """Return what these workers run, by worker, as far as they are known."""
    rows = await db.read("worker_offerings", workers=msgspec.json.encode(workers).decode())
    return {id: Offering(account, name, _models(offers), gpu_of(agent)) for id, account, name, offers, agent in rows}


def gpu_of(agent: str) -> str:
    """Return the GPU of which a worker's hello (JSON text) told; empty where it told of none."""
    told = msgspec.json.decode(agent).get("gpu", "")
    return told if isinstance(told, str) else ""


def _models(offers: str) -> dict[str, str]:
    return {offer["version"]: f"{offer['owner']}/{offer['name']}" for offer in msgspec.json.decode(offers)}


async def get_worker(db: Database, id: str) -> WorkerRow | None:
    """Return a worker."""
    rows = await db.read("get_worker", id=id)
    return WorkerRow(*rows[0]) if rows else None


async def list_workers(db: Database, account: str | None, after: str, limit: int) -> list[WorkerRow]:
    """Return workers by id; `account` None means all accounts."""
    return [WorkerRow(*row) for row in await db.read("list_workers", account=account, after=after, limit=limit)]
