"""Predictions, their queue entries, attempts and live data: typed functions over named queries.

Functions that return statements are the verbs of the life of a prediction; the engine joins them into units.
"""

from collections.abc import Iterable, Sequence

import msgspec
from msgspec import Raw

from cogflare.domain.ids import is_route_queue, model_queue, version_queue
from cogflare.domain.phases import Phase, Status
from cogflare.domain.webhooks import UNKNOWN_HOST
from cogflare.store.base import Database, Row, Statement, Value

INLINE_BYTES = 8_192  # a larger input, output or log lies apart from the prediction's row
PART_BYTES = 256_000
FAR_FUTURE = 2**53 - 1


class NewPrediction(msgspec.Struct, frozen=True):
    """What a create writes. `queues` may all run it; `input` is JSON text; times are microseconds.

    It is written only while fewer than `max_queued` wait for the account, and than `max_queued_model` for the model.
    `routed`: a provider may run it too. `route` is the request's own wish (JSON), `hops` the servers it came through.
    `dialect`: how its client speaks, None for Replicate's way.
    """

    id: str
    account: str
    token: str
    catalog: str
    owner: str
    name: str
    version: str
    pinned: bool
    queues: tuple[str, ...]
    flow: str
    input: str
    created_at: int
    stream_key: str
    priority: int = 0
    deadline: int | None = None
    webhook: str | None = None
    webhook_events: str | None = None
    webhook_host: str | None = None
    webhook_origin: str | None = None
    client_id: str | None = None
    run_limit_s: float | None = None
    start_by: int | None = None
    max_queued: int | None = None
    max_queued_model: int | None = None
    routed: bool = False
    route: str | None = None
    hops: int = 0
    dialect: str | None = None


class PredictionRow(msgspec.Struct, frozen=True):
    """A prediction as stored; `input`, `output` and `logs` are None where they lie apart."""

    id: str
    account: str
    catalog: str
    model: str
    version: str
    pinned: bool
    flow: str
    phase: str
    status: str
    attempt: int
    strikes: int
    created_at: int
    started_at: int | None
    completed_at: int | None
    deadline: int | None
    input: str | None
    output: str | None
    output_items: int | None
    output_bytes: int | None
    logs: str | None
    log_bytes: int
    error: str | None
    metrics: str | None
    webhook: str | None
    webhook_events: str | None
    stream_key: str
    data_removed: bool
    client_id: str | None
    run_limit_s: float | None
    start_by: int | None
    struck_out: bool
    requeued_as: str | None
    webhook_origin: str | None
    token: str
    routed: bool
    route: str | None
    hops: int
    dialect: str | None


class Claim(msgspec.Struct, frozen=True):
    """A free slot that asks for work: the queues of one offer of one worker, under one link.

    With a `model` (owner/name) it takes predictions of no other, whatever else is pinned to the same version.
    """

    id: str
    worker: str
    epoch: int
    model_queue: str
    version_queue: str
    version: str
    model: str | None = None


class Claimed(msgspec.Struct, frozen=True):
    """What a claim got. `input` is None where it lies apart."""

    prediction: str
    attempt: int
    account: str
    version: str
    input: str | None
    created_at: int
    run_limit_s: float | None
    webhook: str | None = None
    webhook_events: str | None = None
    webhook_origin: str | None = None


class Ending(msgspec.Struct, frozen=True):
    """How an attempt of a prediction ended. `output`, `output_items` and `output_bytes` say where its output is."""

    prediction: str
    attempt: int
    worker: str
    epoch: int
    status: str
    completed_at: int
    started_at: int | None = None
    output: str | None = None
    output_items: int | None = None
    output_bytes: int | None = None
    logs: str | None = None
    log_bytes: int = 0
    error: str | None = None
    metrics: str | None = None
    slot_free: bool = False
    has_files: bool = False


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """A piece of live data; `kind` is output, log or result."""

    prediction: str
    attempt: int
    kind: str
    position: int
    data: str


class Checkpoint(msgspec.Struct, frozen=True, array_like=True):
    """How far the live data of a running attempt goes, as its link of that `epoch` knows it."""

    prediction: str
    attempt: int
    started_at: int
    output_items: int | None
    log_bytes: int
    epoch: int


_json = msgspec.json.Encoder()


def _text(value: object) -> str:
    return _json.encode(value).decode()


def cut(text: str, size: int = PART_BYTES) -> list[str]:
    """Cut text into parts of at most `size` UTF-8 bytes, never inside a character."""
    if len(text) * 4 <= size:
        return [text]
    data = text.encode()
    parts, start = [], 0
    while start < len(data):
        end = min(start + size, len(data))
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        parts.append(data[start:end].decode())
        start = end
    return parts


def insert(new: NewPrediction) -> list[Statement]:
    """Return the statements that write a prediction and its queue entries.

    `Conflict` (of `insert_prediction`) says that too many wait already.
    """
    fields = msgspec.structs.asdict(new)
    owner, name, queues = fields.pop("owner"), fields.pop("name"), fields.pop("queues")
    apart = len(new.input) > INLINE_BYTES
    held = [queue for queue in queues if is_route_queue(queue)]
    fields |= {
        "model": f"{owner}/{name}",
        "input": None if apart else new.input,
        "model_queue": model_queue(new.catalog, owner, name),
        "version_queue": held[0] if held else version_queue(new.catalog, new.version),
    }
    statements = [Statement("insert_prediction", fields, needs="row")]
    if apart:
        statements += [
            Statement("insert_input_part", {"prediction": new.id, "part": part, "data": data})
            for part, data in enumerate(cut(new.input))
        ]
    if new.dialect is not None and new.webhook is not None:
        statements.append(_creation(new))
    # The count comes last: its row is shared by all creates of the model, and locked after what else they share.
    count = Statement("count_run", {"catalog": new.catalog, "owner": owner, "name": name})
    return [*statements, *enqueue(new.id, queues), count]


def _creation(new: NewPrediction) -> Statement:
    """Return the statement that writes the message about a creation; its id comes before those of later ones."""
    fields: dict[str, Value] = {"account": new.account, "prediction": new.id, "url": new.webhook}
    fields |= {"host": new.webhook_host or UNKNOWN_HOST, "now": new.created_at}
    return Statement("announce_creation", {"id": f"msg_{new.id}_{0:012x}", **fields})


def enqueue(
    prediction: str, queues: Iterable[str], avoid_worker: str | None = None, avoid_until: int | None = None
) -> list[Statement]:
    """Return the statements that make a queued prediction claimable in these queues."""
    return [
        Statement(
            "enqueue",
            {"prediction": prediction, "queue": queue, "avoid_worker": avoid_worker, "avoid_until": avoid_until},
        )
        for queue in queues
    ]


def claim(wish: Claim, now: int) -> list[Statement]:
    """Return the statements that give the slot its best entry. The first ends the unit if there is none."""
    key = {"worker": wish.worker, "claim": wish.id}
    queues = {"model_queue": wish.model_queue, "version_queue": wish.version_queue, "model": wish.model}
    return [
        Statement("claim_attempt", {**key, **queues, "epoch": wish.epoch, "now": now}, needs="row_or_stop"),
        Statement("assign_claimed", {**key, "version": wish.version}),
        Statement("drop_claimed_entries", key),
        Statement("charge_flow", key),
    ]


def has_ended(prediction: str, attempt: int, completed_at: int) -> Statement:
    """Return the read that tells whether the unit that ended a prediction was committed."""
    return Statement("has_ended", {"prediction": prediction, "attempt": attempt, "completed_at": completed_at})


def claimed(rows: Sequence[list[Row]]) -> Claimed | None:
    """Read the answer of a `claim` (the rows of its four statements)."""
    return Claimed(*rows[1][0]) if rows[1] else None


def finish(ending: Ending, chunks: Sequence[Chunk]) -> list[Statement]:
    """Return the statements that end the current attempt and its prediction; `Conflict` says it is not current."""
    fields = msgspec.structs.asdict(ending)
    slot_free, has_files = fields.pop("slot_free"), fields.pop("has_files")
    key: dict[str, Value] = {"prediction": ending.prediction, "attempt": ending.attempt}
    statements = [Statement("finish_prediction", fields, needs="row")]
    if chunks:
        statements.append(append_chunks(chunks))
    statements.append(Statement("drop_entries", {"prediction": ending.prediction}))
    statements.append(
        end_attempt(
            ending.prediction,
            ending.attempt,
            ending.status,
            now=ending.completed_at,
            started_at=ending.started_at,
            slot_free=slot_free,
            output_items=ending.output_items or 0,
            log_bytes=ending.log_bytes,
            overrules=True,
        )
    )
    if has_files:
        statements.append(Statement("bind_files", key))
    return statements


def end_attempt(
    prediction: str,
    attempt: int,
    outcome: str,
    *,
    now: int,
    started_at: int | None = None,
    reason: str | None = None,
    slot_free: bool = False,
    output_items: int = 0,
    log_bytes: int = 0,
    overrules: bool = False,
) -> Statement:
    """Return the statement that ends an attempt; what an earlier one recorded stays.

    `overrules`: the holder itself says how it ended, so that a loss on record was a mistake.
    """
    return Statement(
        "end_attempt",
        {
            "prediction": prediction,
            "attempt": attempt,
            "outcome": outcome,
            "now": now,
            "started_at": started_at,
            "reason": reason,
            "slot_free": slot_free,
            "output_items": output_items,
            "log_bytes": log_bytes,
            "overrules": overrules,
        },
    )


def end(
    prediction: str,
    attempt: int,
    status: Status,
    *,
    now: int,
    error: str | None = None,
    output_items: int | None = None,
    log_bytes: int = 0,
    metrics: str | None = None,
    started_at: int | None = None,
    renewals: int | None = None,
    unstarted: bool = False,
    struck_out: bool = False,
) -> list[Statement]:
    """Return the statements that end a prediction by the server's own decision; `Conflict` says it moved meanwhile.

    With `unstarted`, only while it has not started. One that has is `canceled` where it would be `aborted`.
    `struck_out`: it ends because its attempts were lost, and is to be looked after.
    """
    return [
        Statement(
            "end_prediction",
            {
                "prediction": prediction,
                "attempt": attempt,
                "status": str(status),
                "completed_at": now,
                "error": error,
                "output_items": output_items,
                "log_bytes": log_bytes,
                "metrics": metrics,
                "started_at": started_at,
                "renewals": renewals,
                "unstarted": unstarted,
                "struck_out": int(struck_out),
            },
            needs="row",
        ),
        Statement("drop_entries", {"prediction": prediction}),
    ]


def requeue(
    prediction: str, attempt: int, started_at: int | None, renewals: int | None = None, *, parked: bool = False
) -> Statement:
    """Return the statement that takes a claimed prediction back to the queue; `Conflict` says it moved meanwhile.

    An attempt that had started counts as a strike. With `renewals`, a lease that was renewed since is left alone.
    A `parked` one pauses first.
    """
    fields: dict[str, Value] = {
        "prediction": prediction,
        "attempt": attempt,
        "started_at": started_at,
        "renewals": renewals,
        "phase": str(Phase.PARKED if parked else Phase.QUEUED),
    }
    return Statement("requeue_prediction", {**fields, "strike": int(started_at is not None)}, needs="row")


def append_chunks(chunks: Sequence[Chunk]) -> Statement:
    """Return the statement that appends live data; at a position that is there already, the longer piece stays."""
    return Statement("append_chunks", {"chunks": _text(chunks)})


def checkpoint(points: Sequence[Checkpoint], chunks: Sequence[Chunk]) -> list[Statement]:
    """Return the statements that commit live data of running attempts; those of an older link change nothing."""
    attempts = _text(points)
    # Whoever locks both takes the prediction first.
    statements = [
        Statement("checkpoint_predictions", {"attempts": attempts}),
        Statement("checkpoint_attempts", {"attempts": attempts}),
    ]
    if chunks:
        epochs = {(point.prediction, point.attempt): point.epoch for point in points}
        fenced = [(chunk, epochs[chunk.prediction, chunk.attempt]) for chunk in chunks]
        statements.append(Statement("checkpoint_chunks", {"chunks": _text(fenced)}))
    return statements


async def get(db: Database, prediction: str) -> PredictionRow | None:
    """Return the stored prediction."""
    rows = await db.read("get_prediction", id=prediction)
    return row_of(rows[0]) if rows else None


async def get_by_client_id(db: Database, account: str, client_id: str) -> PredictionRow | None:
    """Return the stored prediction to which its client gave this id."""
    rows = await db.read("get_client_prediction", account=account, client_id=client_id)
    return row_of(rows[0]) if rows else None


async def inputs(db: Database, predictions: Sequence[str]) -> dict[str, str]:
    """Return the inputs of these predictions that lie apart from their rows."""
    found: dict[str, list[str]] = {}
    for prediction, data in await db.read("input_parts", predictions=_text(predictions)):
        found.setdefault(prediction, []).append(data)
    return {prediction: "".join(parts) for prediction, parts in found.items()}


async def chunks(db: Database, attempts: Sequence[tuple[str, int]]) -> list[Chunk]:
    """Return the live data of these attempts, ordered by prediction, kind and position."""
    return [Chunk(*row) for row in await db.read("read_chunks", attempts=_text(attempts))]


def is_ended(row: PredictionRow) -> bool:
    """Say whether the prediction has its terminal status."""
    return row.phase == Phase.ENDED


def row_of(row: Row) -> PredictionRow:
    """Return a prediction as the store answers it."""
    found = PredictionRow(*row)
    flags = {name: bool(getattr(found, name)) for name in ("pinned", "data_removed", "struck_out", "routed")}
    return msgspec.structs.replace(found, **flags)


def raw(text: str) -> Raw:
    """Return JSON text as a value that passes through encoders untouched."""
    return Raw(text.encode())


async def held_attempt(
    db: Database, prediction: str, attempt: int, worker: str, account: str
) -> tuple[bool, str] | None:
    """Say whether this worker of this account holds the attempt now, and of which model; None: it never was given."""
    rows = await db.read("held_attempt", prediction=prediction, attempt=attempt, worker=worker, account=account)
    if not rows:
        return None
    ended_at, current, model = rows[0]
    return ended_at is None and current == attempt, model


async def put_result(db: Database, prediction: str, attempt: int, worker: str, text: str) -> None:
    """Store an output that is too large for a frame, in place of an earlier one; `Conflict` if the attempt is over."""
    key: dict[str, Value] = {"prediction": prediction, "attempt": attempt}
    statements = [Statement("drop_results", key)]
    position = 0
    for part in cut(text):
        fields = {**key, "worker": worker, "position": position, "data": part}
        statements.append(Statement("put_result", fields, needs="row"))
        position += len(part.encode())
    await db.write(*statements)
