"""Second chances: predictions that pause before their next attempt, those that struck out, workers that lose runs."""

from collections.abc import Iterable, Sequence

import msgspec

from cogflare.store.base import Conflict, Database, Hint, Row, Statement, Value


class Standing(msgspec.Struct, frozen=True):
    """How a worker is doing: runs lost in a row, quarantines in a row, and why and since when it is in one."""

    losses: int = 0
    quarantines: int = 0
    quarantine: str | None = None
    quarantined_at: int | None = None

    @property
    def is_clean(self) -> bool:
        """Whether nothing is held against the worker."""
        return not (self.losses or self.quarantines or self.quarantine)


class Loss(msgspec.Struct, frozen=True):
    """A started run that a worker lost; `most` of them in a row set it aside."""

    worker: str
    reason: str
    started_at: int
    now: int
    most: int


class SetupFailure(msgspec.Struct, frozen=True):
    """What a worker reports whose model was not set up; `offers` is JSON text."""

    worker: str
    account: str
    token: str
    name: str
    offers: str
    reason: str
    now: int


class Setup(msgspec.Struct, frozen=True):
    """What a worker reports that begins to set its model up; `offers` is JSON text."""

    worker: str
    account: str
    token: str
    name: str
    offers: str
    now: int


# --- pauses ----------------------------------------------------------------------------------------------------------


def park(
    prediction: str, queues: Iterable[str], not_before: int, avoid_worker: str | None, avoid_until: int | None
) -> list[Statement]:
    """Return the statements that give a parked prediction its entries in these queues."""
    return [
        Statement(
            "park",
            {
                "prediction": prediction,
                "queue": queue,
                "not_before": not_before,
                "avoid_worker": avoid_worker,
                "avoid_until": avoid_until,
            },
        )
        for queue in queues
    ]


async def pauses(db: Database) -> tuple[int, int] | None:
    """Return when the first and the last of the pauses under way are over; None if there is none."""
    first, last = (await db.read("next_release"))[0]
    return None if first is None else (first, last)


async def due(db: Database, now: int, latest: int, limit: int) -> dict[str, list[str]]:
    """Return the parked predictions whose pause is over or would end after `latest`, with their queues."""
    found: dict[str, list[str]] = {}
    for prediction, queue in await db.read("due_entries", now=now, latest=latest, limit=limit):
        found.setdefault(prediction, []).append(queue)
    return found


def release(predictions: Iterable[str], now: int, latest: int, avoid_until: int) -> list[Statement]:
    """Return the statements that take due predictions back to the queue; what is not due any more is left alone."""
    ids = msgspec.json.encode(list(predictions)).decode()
    return [
        Statement("release_predictions", {"predictions": ids, "now": now, "latest": latest}),
        Statement("release_entries", {"predictions": ids, "avoid_until": avoid_until}),
    ]


# --- struck out ------------------------------------------------------------------------------------------------------


def mark_requeued(prediction: str, requeued_as: str) -> Statement:
    """Return the statement that notes a prediction's successor; `Conflict` says that it cannot have one now."""
    return Statement("mark_requeued", {"prediction": prediction, "requeued_as": requeued_as}, needs="row")


# --- workers ---------------------------------------------------------------------------------------------------------


async def count_loss(db: Database, loss: Loss, hints: Sequence[Hint] = ()) -> Standing | None:
    """Count a lost run against its worker; None if it was counted with an earlier one."""
    [rows] = await db.write(Statement("count_loss", msgspec.structs.asdict(loss)), hints=hints)
    return _standing(rows)


async def set_aside(
    db: Database, worker: str, epoch: int, reason: str, now: int, hints: Sequence[Hint] = ()
) -> Standing | None:
    """Note the worker's own word that it cannot run anything; None over an older link."""
    key: dict[str, Value] = {"worker": worker, "epoch": epoch, "reason": reason, "now": now}
    [rows] = await db.write(Statement("set_aside", key), hints=hints)
    return _standing(rows)


async def lift(db: Database, worker: str, epoch: int, probation: int, hints: Sequence[Hint] = ()) -> Standing | None:
    """End a quarantine; None if there is none, or over an older link."""
    key: dict[str, Value] = {"worker": worker, "epoch": epoch, "probation": probation}
    [rows] = await db.write(Statement("lift_quarantine", key), hints=hints)
    return _standing(rows)


async def forget_losses(db: Database, worker: str, epoch: int) -> None:
    """Hold nothing against the worker any more, unless it is in quarantine."""
    await db.write(Statement("forget_losses", {"worker": worker, "epoch": epoch}))


async def standing(db: Database, worker: str) -> Standing | None:
    """Return how a worker is doing; None if it is not known."""
    return _standing(await db.read("worker_standing", worker=worker))


async def quarantined(db: Database) -> dict[str, Standing]:
    """Return the workers in quarantine, those of all nodes."""
    return {id: Standing(*rest) for id, *rest in await db.read("quarantined_workers")}


async def note_setup_failure(db: Database, failure: SetupFailure) -> bool:
    """Show a worker whose model was not set up; False if its id belongs to another account."""
    try:
        await db.write(Statement("note_setup_failure", msgspec.structs.asdict(failure), needs="row"))
    except Conflict:
        return False
    return True


async def note_setup(db: Database, setup: Setup) -> bool:
    """Show a worker that sets its model up; False if its id belongs to another account."""
    try:
        await db.write(Statement("note_setup", msgspec.structs.asdict(setup), needs="row"))
    except Conflict:
        return False
    return True


async def note_setup_over(db: Database, worker: str, account: str) -> None:
    """Note that a worker does not set its model up any more."""
    await db.write(Statement("note_setup_over", {"worker": worker, "account": account}))


def _standing(rows: Sequence[Row]) -> Standing | None:
    return Standing(*rows[0]) if rows else None
