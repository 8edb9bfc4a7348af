"""What streams read of predictions that run on another node: how far they are, and what is new of their live data."""

from collections.abc import Sequence

import msgspec

from cogflare.store.base import Database
from cogflare.store.predictions import Chunk, PredictionRow

_encoder = msgspec.json.Encoder()

State = tuple[object, ...]
"""What changes when there is something new to show: attempt, phase, items, bytes of the log."""


def state_of(row: PredictionRow) -> State:
    """Return the state of a prediction that was read."""
    return row.attempt, row.phase, row.output_items, row.log_bytes


async def states(db: Database, predictions: Sequence[str]) -> dict[str, State]:
    """Return the states of these predictions, without those that are not there any more."""
    rows = await db.read("stream_states", predictions=_encoder.encode(predictions).decode())
    return {row[0]: tuple(row[1:]) for row in rows}


async def chunks(db: Database, prediction: str, attempt: int, items: int, log_bytes: int) -> list[Chunk]:
    """Return the live data of an attempt from the chunks on in which these positions lie, by kind and position."""
    known = {"items": items, "log_bytes": log_bytes}
    rows = await db.read("stream_chunks", prediction=prediction, attempt=attempt, **known)
    return [Chunk(prediction, attempt, *row) for row in rows]
