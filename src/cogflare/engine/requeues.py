"""A second life for predictions that ended without success: a new prediction of the same input, made once."""

import msgspec

from cogflare.blobs.base import BlobMissing
from cogflare.domain.phases import Phase, Status
from cogflare.engine.predictions import Order, Predictions
from cogflare.engine.views import PredictionView
from cogflare.store import recovery
from cogflare.store.base import Conflict, Statement
from cogflare.store.catalog import Caller
from cogflare.store.predictions import NewPrediction, PredictionRow


class NotRequeued(Exception):
    """No new prediction can be made of this one; the message says why."""


async def requeue(predictions: Predictions, caller: Caller, prediction: str) -> tuple[PredictionView, bool]:
    """Make a new prediction of one that failed or was canceled; return it, and whether it was made just now.

    The old one keeps its end and leaves the list of those that struck out. Raises `NotRequeued`, and what a create
    raises.
    """
    while True:
        row = await predictions.row(caller.account, prediction)
        if row.requeued_as is not None:
            return await predictions.get(caller.account, row.requeued_as), False
        _check(row)
        try:
            text = await predictions.input_as_sent(row)
        except BlobMissing:
            raise NotRequeued("A file of the prediction's input has been removed.") from None
        if text is None:
            continue
        order = _order(row, text)

        def mark(new: NewPrediction, old: str = row.id) -> list[Statement]:
            return [recovery.mark_requeued(old, new.id)]

        try:
            return await predictions.create(caller, order, beside=mark), True
        except Conflict:
            # Somebody was faster, or its data was removed just now.
            continue


def _check(row: PredictionRow) -> None:
    if row.phase != Phase.ENDED:
        raise NotRequeued("The prediction has not ended.")
    if row.status == Status.SUCCEEDED:
        raise NotRequeued("The prediction has succeeded; create a new one to run it again.")
    if row.data_removed:
        raise NotRequeued("The input of the prediction has been removed.")


def _order(row: PredictionRow, text: str) -> Order:
    """Return what the prediction asked for; `text` is its input."""
    version = row.version if row.pinned else None
    return Order(
        text.encode(),
        msgspec.json.decode(text),
        row.model,
        version,
        row.webhook,
        row.webhook_events,
        webhook_origin=row.webhook_origin,
        route=row.route,
        cancel_after=row.deadline - row.created_at if row.dialect and row.deadline else None,
        hops=row.hops,
        dialect=row.dialect,
    )
