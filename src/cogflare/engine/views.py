"""A prediction as the API shows it: the stored row, its parts that lie apart, and what is live on this node."""

from collections.abc import Sequence

import msgspec
from msgspec import Raw

from cogflare.domain.phases import Phase, Status
from cogflare.engine.waiters import Ended
from cogflare.store import predictions as store
from cogflare.store.base import Database
from cogflare.store.predictions import Chunk, NewPrediction, PredictionRow

_ABSENT: tuple[list[bytes], list[str], list[str]] = ([], [], [])


class PredictionView(msgspec.Struct, frozen=True):
    """Everything a rendering needs. `input`, `output` and `metrics` are JSON; times are microseconds since 1970."""

    id: str
    account: str
    model: str
    version: str
    status: str
    attempt: int
    created_at: int
    input: Raw
    output: bytes | None = None
    logs: str = ""
    error: str | None = None
    started_at: int | None = None
    completed_at: int | None = None
    deadline: int | None = None
    metrics: str | None = None
    webhook: str | None = None
    webhook_events: str | None = None
    data_removed: bool = False
    client_id: str | None = None
    stream_key: str = ""
    dialect: str | None = None

    @property
    def public_id(self) -> str:
        """The id by which clients know it: their own, if they gave one."""
        return self.client_id or self.id

    @property
    def stream_token(self) -> str | None:
        """What opens the stream of its events; None once there is nothing left to show."""
        return None if self.data_removed else self.id + self.stream_key

    @property
    def size(self) -> int:
        """Bytes of what may be large: input, output and log."""
        return len(memoryview(self.input)) + len(self.output or b"") + len(self.logs)

    @property
    def is_ended(self) -> bool:
        """Whether the status is terminal."""
        return self.status not in (Status.STARTING, Status.PROCESSING)


class Parts(msgspec.Struct, frozen=True):
    """What of some predictions lies apart from their rows."""

    inputs: dict[str, str]
    chunks: dict[str, tuple[list[bytes], list[str], list[str]]]


async def load_parts(db: Database, rows: Sequence[PredictionRow]) -> Parts:
    """Read what of these predictions lies apart; nothing is read for rows that are complete."""
    apart = [row.id for row in rows if row.input is None and not row.data_removed]
    chunked = [(row.id, row.attempt) for row in rows if _is_chunked(row)]
    inputs = await store.inputs(db, apart) if apart else {}
    found: dict[str, tuple[list[bytes], list[str], list[str]]] = {}
    limits = {row.id: row for row in rows}
    for chunk in await store.chunks(db, chunked) if chunked else ():
        _sort(chunk, limits[chunk.prediction], found.setdefault(chunk.prediction, ([], [], [])))
    return Parts(inputs, found)


def _is_chunked(row: PredictionRow) -> bool:
    if row.data_removed or row.phase in (Phase.QUEUED, Phase.PARKED):
        return False
    in_logs = row.logs is None and row.log_bytes > 0
    return in_logs or (row.output is None and (bool(row.output_items) or bool(row.output_bytes)))


def _sort(chunk: Chunk, row: PredictionRow, parts: tuple[list[bytes], list[str], list[str]]) -> None:
    """Put a chunk with its kind; what was appended after the end of the prediction does not belong to it."""
    items, log, result = parts
    if chunk.kind == "output" and chunk.position < (row.output_items or 0):
        items.append(chunk.data.encode())
    elif chunk.kind == "log" and chunk.position < row.log_bytes:
        log.append(chunk.data)
    elif chunk.kind == "result" and chunk.position < (row.output_bytes or 0):
        result.append(chunk.data)


def view(row: PredictionRow, parts: Parts) -> PredictionView:
    """Show a prediction as stored."""
    items, log, result = parts.chunks.get(row.id, _ABSENT)
    waits = row.phase in (Phase.QUEUED, Phase.PARKED)
    output = row.output.encode() if row.output is not None else None
    if output is None and not waits:
        if row.output_bytes:
            # Nothing: its retention ended after the row was read.
            output = "".join(result).encode() or None
        elif row.output_items is not None and (items or not row.output_items):
            output = b"[" + b",".join(items) + b"]"
    text = row.input if row.input is not None else parts.inputs.get(row.id, "{}")
    return PredictionView(
        id=row.id,
        account=row.account,
        model=row.model,
        version=row.version,
        status=row.status,
        attempt=row.attempt,
        created_at=row.created_at,
        input=store.raw(text),
        output=output,
        logs="" if waits else (row.logs if row.logs is not None else "".join(log)),
        error=row.error,
        started_at=row.started_at,
        completed_at=row.completed_at,
        deadline=row.deadline,
        metrics=row.metrics,
        webhook=row.webhook,
        webhook_events=row.webhook_events,
        data_removed=bool(row.data_removed),
        client_id=row.client_id,
        stream_key=row.stream_key,
        dialect=row.dialect,
    )


def view_new(new: NewPrediction) -> PredictionView:
    """Show a prediction that is just being created."""
    return PredictionView(
        new.id,
        new.account,
        f"{new.owner}/{new.name}",
        new.version,
        Status.STARTING,
        0,
        new.created_at,
        store.raw(new.input),
        deadline=new.deadline,
        webhook=new.webhook,
        webhook_events=new.webhook_events,
        client_id=new.client_id,
        stream_key=new.stream_key,
        dialect=new.dialect,
    )


def view_waiting(base: PredictionView) -> PredictionView:
    """Show a prediction as when it was created: a client whose wait was in vain takes anything else for its end."""
    return msgspec.structs.replace(base, status=Status.STARTING, started_at=None, output=None, logs="", metrics=None)


def view_created(base: PredictionView) -> PredictionView:
    """Show a prediction as it was before anything came of it."""
    return msgspec.structs.replace(view_waiting(base), attempt=0, completed_at=None, error=None)


def view_begun(base: PredictionView) -> PredictionView:
    """Show a prediction as it was when it had just begun to run."""
    base = msgspec.structs.replace(base, output=None, logs="", metrics=None)
    return msgspec.structs.replace(base, status=Status.PROCESSING, completed_at=None, error=None)


def view_ended(base: PredictionView, ended: Ended) -> PredictionView:
    """Show a prediction that has just ended on this node."""
    return msgspec.structs.replace(
        base,
        version=ended.version,
        status=ended.status,
        completed_at=ended.completed_at,
        started_at=base.started_at or ended.started_at,
        output=ended.output,
        logs=ended.logs,
        error=ended.error,
        metrics=ended.metrics,
    )
