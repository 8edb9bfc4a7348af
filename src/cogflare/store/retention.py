"""What is kept for how long: typed functions over named queries. All of them are safe to repeat, on several nodes too.

Of an ended prediction the data goes first (input, output, logs, chunks, files), and its record stays: `data_removed` is
1 while some of it lies hidden, and 2 when there is none. Records go later, with their attempts.
"""

from collections.abc import Sequence

import msgspec

from cogflare.domain.ids import lowest_id
from cogflare.domain.money import day_of
from cogflare.store.base import Database, Statement, Value

HIDDEN = 1
REMOVED = 2


class Prunable(msgspec.Struct, frozen=True):
    """An ended prediction that has data: `rows` and `bytes` of what lies apart from its own row."""

    id: str
    data_removed: int
    rows: int
    bytes: int


def _text(ids: Sequence[str]) -> str:
    return msgspec.json.encode(ids).decode()


async def prunable(db: Database, before: int, limit: int) -> list[Prunable]:
    """Return predictions that ended before this time and still have data, the oldest first."""
    return [Prunable(*row) for row in await db.read("prunable_data", cutoff=before, limit=limit)]


async def remove_data(db: Database, predictions: Sequence[str]) -> int:
    """Remove all data of these predictions in one unit; their files expire. Returns how many predictions had some."""
    ids = {"predictions": _text(predictions)}
    rows = await db.write(
        Statement("remove_data", {**ids, "state": REMOVED}),
        Statement("expire_files", ids),
        Statement("drop_inputs", ids),
        Statement("drop_chunks", ids),
        yields=True,
    )
    return len(rows[0])


async def hide_data(db: Database, prediction: str) -> bool:
    """Show clients a prediction without its data, which goes part by part afterwards; its files expire.

    False if somebody else holds the prediction at this moment, or has done it: then it is not to be touched now.
    """
    ids = {"predictions": _text([prediction])}
    hide = Statement("remove_data", {**ids, "state": HIDDEN})
    hidden, _ = await db.write(hide, Statement("expire_files", ids), yields=True)
    return bool(hidden)


async def drop_parts(db: Database, prediction: str, limit: int) -> bool:
    """Remove up to `limit` parts of each kind of a prediction whose data is hidden; False when none are left."""
    key: dict[str, Value] = {"prediction": prediction, "limit": limit}
    rows = await db.write(Statement("drop_some_inputs", key), Statement("drop_some_chunks", key), yields=True)
    return bool(rows[0] or rows[1])


async def prunable_records(db: Database, before: int, limit: int) -> list[str]:
    """Return predictions without data that ended before this time, the oldest first."""
    # An id begins with the time of its creation, and nothing ends before that.
    rows = await db.read("prunable_records", cutoff=before, below=lowest_id(before), limit=limit)
    return [id for (id,) in rows]


async def delete_records(db: Database, predictions: Sequence[str]) -> None:
    """Forget predictions that have no data, with their attempts, errands and deliveries."""
    ids = {"predictions": _text(predictions)}
    await db.write(
        Statement("delete_predictions", ids),
        Statement("delete_attempts", ids),
        Statement("delete_errands", ids),
        Statement("delete_tries", ids),
        Statement("delete_deliveries", ids),
        yields=True,
    )


async def newest(db: Database) -> int | None:
    """Return when the newest prediction was created, in microseconds."""
    rows = await db.read("newest_prediction")
    return int(rows[0][0]) if rows else None


async def forget_gone_workers(db: Database, before: int, now: int, limit: int) -> int:
    """Forget workers that were not heard of since `before` and hold nothing; returns how many."""
    found = await db.read("gone_workers", cutoff=before, limit=limit)
    forgotten = 0
    for (worker,) in found:
        key = {"worker": worker, "cutoff": before}
        rows = await db.write(
            Statement("free_slots_of_gone", {**key, "now": now}), Statement("delete_gone_worker", key)
        )
        forgotten += len(rows[1])
    return forgotten


FlowKey = tuple[str, str]


async def prune_flows(db: Database, after: FlowKey, limit: int) -> FlowKey | None:
    """Forget idle flows of the `limit` that follow `after`, where fairness loses nothing; returns the last of those."""
    key = {"queue": after[0], "flow": after[1]}
    window = await db.read("flows_after", **key, limit=limit)
    if not window:
        return None
    queue, flow = window[-1]
    last = {"last_queue": queue, "last_flow": flow}
    await db.write(Statement("lock_flows", {}), Statement("prune_flows", {**key, **last}))
    return queue, flow


async def prune_ledgers(db: Database, before: int, limit: int) -> bool:
    """Forget what was spent, paid and run on days before this time; False when none are left."""
    term: dict[str, Value] = {"cutoff": day_of(before), "limit": limit}
    prunes = [Statement(f"prune_{ledger}", term) for ledger in ("spending", "costs", "usage")]
    _, *gone = await db.write(Statement("lock_flows", {}), *prunes, yields=True)
    return any(len(rows) == limit for rows in gone)


async def prune_run_times(db: Database, before: int, limit: int) -> bool:
    """Forget the run times of what has not run since this time; False when none are left."""
    prune = Statement("prune_run_times", {"cutoff": before, "limit": limit})
    _, gone = await db.write(Statement("lock_flows", {}), prune, yields=True)
    return len(gone) == limit
