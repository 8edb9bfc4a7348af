"""Pages of predictions: which to list, and the statements that walk through an index for them."""

import msgspec

from cogflare.domain.ids import HIGHEST_ID, lowest_id
from cogflare.store.base import Database, Value
from cogflare.store.predictions import FAR_FUTURE, PredictionRow, row_of


class Query(msgspec.Struct, frozen=True):
    """Which predictions of an account to list: `before` and `after` are ids, the created bounds microseconds.

    `struck_out`: only those that failed because their attempts were lost, and that nobody has looked after yet.
    """

    account: str
    status: str | None = None
    model: str | None = None
    before: str | None = None
    after: str | None = None
    created_from: int = 0
    created_to: int = FAR_FUTURE
    limit: int = 100
    struck_out: bool = False

    @property
    def is_upwards(self) -> bool:
        """Whether the page is the one before a cursor."""
        return self.before is None and self.after is not None


async def list_page(db: Database, query: Query) -> list[PredictionRow]:
    """Return a page of predictions, newest first."""
    filters: dict[str, Value] = {"status": query.status, "model": query.model}
    bounds: dict[str, Value] = {
        "account": query.account,
        "created_from": query.created_from,
        "created_to": query.created_to,
    }
    # An id begins with the time of its creation, so bounds in time are bounds of the index too.
    after = max(query.after or "", lowest_id(query.created_from))
    if query.is_upwards:
        upwards = "list_struck_out_upwards" if query.struck_out else "list_predictions_upwards"
        rows = await db.read(upwards, **bounds, **filters, after=after, limit=query.limit)
        return [row_of(row) for row in reversed(rows)]
    before = min(query.before or HIGHEST_ID, lowest_id(query.created_to + 1000))
    page: dict[str, Value] = {**bounds, "before": before, "after": after, "limit": query.limit}
    if query.struck_out:
        rows = await db.read("list_struck_out", **page, **filters)
    elif query.model is not None:
        rows = await db.read("list_predictions_by_model", **page, **filters)
    elif query.status is not None:
        rows = await db.read("list_predictions_by_status", **page, status=query.status)
    else:
        rows = await db.read("list_predictions", **page)
    return [row_of(row) for row in rows]
