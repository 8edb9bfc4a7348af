"""Predictions whose time is over, and what waits: typed functions over named queries."""

import msgspec

from cogflare.domain.ids import HIGHEST_ID, lowest_id
from cogflare.store.base import Database, Value
from cogflare.store.predictions import FAR_FUTURE


class Filter(msgspec.Struct, frozen=True):
    """Which predictions of an account; the bounds are microseconds."""

    account: str
    status: str | None = None
    model: str | None = None
    created_from: int = 0
    created_to: int = FAR_FUTURE


async def due(db: Database, now: int, limit: int) -> dict[str, str]:
    """Return predictions that have reached their "deadline" or, without having started, the time to "start"."""
    found: dict[str, str] = {}
    for prediction, kind in await db.read("due_predictions", now=now, limit=limit):
        if found.get(prediction) != "deadline":
            found[prediction] = kind
    return found


async def waiting(db: Database, flow: str) -> int:
    """Return how many queue entries wait in all queues for an account."""
    return int((await db.read("waiting_entries", flow=flow))[0][0])


async def live(db: Database, wanted: Filter, status: str, limit: int) -> list[str]:
    """Return predictions with this status, which is not terminal, that a filter matches, newest first."""
    bounds: dict[str, Value] = {
        "before": min(HIGHEST_ID, lowest_id(wanted.created_to + 1000)),
        "after": lowest_id(wanted.created_from),
        "created_from": wanted.created_from,
        "created_to": wanted.created_to,
    }
    rows = await db.read(
        "live_predictions", account=wanted.account, model=wanted.model, status=status, limit=limit, **bounds
    )
    return [row[0] for row in rows]
