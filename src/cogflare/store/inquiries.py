"""What is asked about one prediction: what it waits for, and what it took. Typed functions over named queries."""

from typing import NamedTuple

from cogflare.store.base import Database


class Entry(NamedTuple):
    """A queue entry: from when it may be claimed (None: now), and which worker it avoids until when."""

    queue: str
    not_before: int | None
    avoid_worker: str | None
    avoid_until: int | None


class Bytes(NamedTuple):
    """Bytes of a prediction's input and output (None: gone, or none), and the number and bytes of the files of both."""

    input: int | None
    output: int | None
    input_files: int
    input_file_bytes: int
    output_files: int
    output_file_bytes: int


class Ran(NamedTuple):
    """Who holds the last attempt of a prediction; of a provider its kind, and its own name for the run, if known."""

    holder: str
    kind: str | None
    remote_id: str | None


async def entries_of(db: Database, prediction: str) -> list[Entry]:
    """Return what a prediction has in queues."""
    return [Entry(*row) for row in await db.read("entries_of", prediction=prediction)]


async def provider_waits(
    db: Database, account: str, provider: str, model: str, since: int, limit: int = 64
) -> list[float]:
    """Return how long runs of a model waited for their start at a provider (seconds), the newest first."""
    rows = await db.read("provider_waits", account=account, provider=provider, model=model, since=since, limit=limit)
    return [max(row[0], 0) / 1_000_000 for row in rows]


async def dearest(
    db: Database, account: str, provider: str, model: str, since: int, limit: int = 64
) -> tuple[int | None, int | None]:
    """Return the longest time (microseconds) and the highest cost (micros) of a model's last runs at a provider."""
    rows = await db.read("dearest", account=account, provider=provider, model=model, since=since, limit=limit)
    return rows[0][0], rows[0][1]


async def ran_where(db: Database, prediction: str) -> Ran | None:
    """Return where a prediction runs, or ran last; None before its first attempt."""
    rows = await db.read("ran_where", prediction=prediction)
    return Ran(*rows[0]) if rows else None


async def attempt_costs(db: Database, prediction: str) -> dict[int, float]:
    """Return what the attempts of a prediction have cost in dollars, as far as it is known."""
    return {row[0]: row[1] for row in await db.read("attempt_costs", prediction=prediction)}


async def bytes_of(db: Database, prediction: str, attempt: int) -> Bytes:
    """Return how much went in and came out."""
    rows = await db.read("prediction_bytes", prediction=prediction)
    came, went = rows[0] if rows else (None, None)
    files = await db.read("prediction_files", prediction=prediction, attempt=attempt)
    counts = {kind: (count, size) for kind, count, size in files}
    return Bytes(came, went, *counts["input"], *counts["output"])
