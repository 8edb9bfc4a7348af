"""From what a worker or the server says to what is stored when an attempt ends: pure functions."""

import msgspec
from msgspec import UNSET, Raw, UnsetType

from cogflare.domain.phases import Outcome, Status
from cogflare.engine.live import Live, bounded_metrics
from cogflare.engine.sizes import too_large
from cogflare.engine.waiters import Ended
from cogflare.protocol.messages import Finish
from cogflare.store import predictions as store
from cogflare.store.base import Statement
from cogflare.store.predictions import INLINE_BYTES, Chunk, Ending, PredictionRow, cut

MAX_ERROR = 10_000  # characters
_MAX_RUN_MS = 1e12

_json = msgspec.json.Encoder()


class Result(msgspec.Struct, frozen=True):
    """What ends an attempt: the row, the chunks that go with it, and what waiters may be told."""

    ending: Ending
    chunks: list[Chunk]
    ended: Ended


def from_finish(live: Live, finish: Finish, now: int, uploaded_bytes: int) -> Result:
    """Return what a worker's finish stores; `uploaded_bytes` is the size of a result that was put by HTTP.

    A success whose output passes its limit is none.
    """
    finish = _within(live, finish)
    completed = max(live.created_at, live.started_at or 0, now - finish.ago_ms * 1000)
    started = live.started_at
    if started is None and finish.run_ms is not None:
        started = max(live.created_at, completed - int(_run_s(finish.run_ms) * 1_000_000))
    metrics = _metrics(live, finish, completed, started)
    chunks, output, items, size = _output(live, finish, uploaded_bytes)
    log_chunks, logs = _logs(live)
    error = _error(finish)
    ending = Ending(
        live.prediction,
        live.attempt,
        live.holder.worker,
        live.holder.epoch,
        finish.status,
        completed,
        started,
        output=output,
        output_items=items,
        output_bytes=size,
        logs=logs,
        log_bytes=len(live.log),
        error=error,
        metrics=metrics,
        slot_free=finish.slot_free,
        has_files=finish.files > 0,
    )
    shown = _shown(live, finish, size)
    # Of a rescued prediction only the store knows the first start.
    is_whole = size is None and live.attempt == 1
    ended = Ended(live.version, finish.status, completed, started, shown, live.logs(), error, metrics, is_whole)
    return Result(ending, chunks + log_chunks, ended)


class Stop(msgspec.Struct, frozen=True):
    """The server's own decision to end a prediction, and what becomes of the attempt that ran.

    `unstarted`: only while it has not started. One that has is never `aborted`, but `canceled` in its place.
    """

    status: Status
    outcome: Outcome
    error: str | None = None
    reason: str | None = None
    slot_free: bool = False
    renewals: int | None = None
    unstarted: bool = False
    struck_out: bool = False


def from_stop(row: PredictionRow, live: Live | None, stop: Stop, now: int) -> list[Statement]:
    """Return the statements that end a prediction with what it has shown so far (`live`: on this node)."""
    started_at = row.started_at if live is None else live.started_at or row.started_at
    statements = store.end(
        row.id,
        row.attempt,
        stop.status,
        now=now,
        error=stop.error,
        output_items=row.output_items if live is None else len(live.items) or None,
        log_bytes=row.log_bytes if live is None else len(live.log),
        metrics=_stopped_metrics(row.created_at, started_at, now),
        started_at=started_at,
        renewals=stop.renewals,
        unstarted=stop.unstarted,
        struck_out=stop.struck_out,
    )
    if row.attempt == 0:
        return statements
    # What the output has shown so far may name files.
    statements.append(Statement("bind_files", {"prediction": row.id, "attempt": row.attempt}))
    if live is not None and (chunks := live.uncommitted()):
        statements.append(store.append_chunks(chunks))
    begun = None if live is None else live.started_at
    statements.append(
        store.end_attempt(
            row.id,
            row.attempt,
            stop.outcome,
            now=now,
            started_at=begun,
            reason=stop.reason,
            slot_free=stop.slot_free,
        )
    )
    return statements


def _stopped_metrics(created_at: int, started_at: int | None, now: int) -> str:
    """Return the metrics of a prediction that the server ended: seconds run and seconds in all."""
    metrics = {"total_time": _seconds(now - created_at)}
    if started_at is not None:
        metrics["predict_time"] = _seconds(now - started_at)
    return _json.encode(metrics).decode()


def _within(live: Live, finish: Finish) -> Finish:
    """Return the finish, or the failure that is left of it where its output is too large to be kept."""
    is_large = not isinstance(finish.output, UnsetType) and len(memoryview(finish.output)) > live.sizes.result_bytes
    error = too_large(live.sizes.result_bytes) if is_large else live.overflow
    if error is None:
        return finish
    kept = msgspec.structs.replace(finish, output=UNSET, items=len(live.items) or None, uploaded=False)
    return kept if finish.status != "succeeded" else msgspec.structs.replace(kept, status="failed", error=error)


def _output(live: Live, finish: Finish, uploaded_bytes: int) -> tuple[list[Chunk], str | None, int | None, int | None]:
    """Return (chunks, inline text, number of items, bytes of a result apart) of the final output."""
    if finish.uploaded:
        return [], None, None, uploaded_bytes
    if not isinstance(finish.output, UnsetType):
        data = bytes(finish.output)
        if len(data) <= INLINE_BYTES:
            return [], data.decode(), None, None
        chunks, position = [], 0
        for part in cut(data.decode()):
            chunks.append(Chunk(live.prediction, live.attempt, "result", position, part))
            position += len(part.encode())
        return chunks, None, None, position
    if finish.items is None and not live.items:
        return [], None, None, None
    if not live.committed_items:
        data = _list(live)
        if len(data) <= INLINE_BYTES:
            return [], data.decode(), len(live.items), None
    return [chunk for chunk in live.uncommitted() if chunk.kind == "output"], None, len(live.items), None


def _logs(live: Live) -> tuple[list[Chunk], str | None]:
    """Return (chunks, inline text) of the log."""
    if not live.committed_log and len(live.log) <= INLINE_BYTES:
        return [], live.logs()
    return [chunk for chunk in live.uncommitted() if chunk.kind == "log"], None


def _shown(live: Live, finish: Finish, size: int | None) -> bytes | None:
    if not isinstance(finish.output, UnsetType):
        return bytes(finish.output)
    if size is not None or (finish.items is None and not live.items):
        return None
    return _list(live)


def _list(live: Live) -> bytes:
    return b"[" + b",".join(live.items) + b"]"


def _error(finish: Finish) -> str | None:
    if finish.status != "failed":
        return None
    text = (finish.error or "").replace("\0", " ").strip() or "The model failed without a message."
    return text if len(text) <= MAX_ERROR else text[:MAX_ERROR] + "… (cut)"


def _metrics(live: Live, finish: Finish, completed: int, started: int | None) -> str:
    metrics: dict[str, Raw | float] = {**bounded_metrics(live.metrics, finish.metrics)}
    if finish.run_ms is not None:
        metrics["predict_time"] = round(_run_s(finish.run_ms), 6)
    elif started is not None:
        metrics.setdefault("predict_time", _seconds(completed - started))
    metrics["total_time"] = _seconds(completed - live.created_at)
    return _json.encode(metrics).decode()


def _run_s(run_ms: float) -> float:
    """Return the seconds that a worker says its model ran; what no clock can mean is cut to what one can."""
    return min(max(run_ms, 0.0), _MAX_RUN_MS) / 1000


def _seconds(us: int) -> float:
    return max(0, us) / 1_000_000
