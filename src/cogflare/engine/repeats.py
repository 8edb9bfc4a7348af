"""Creates that are sent again: by a key, by an id of the client's own, or by a client that counts its retries.

Whatever makes a repetition known is written in the unit that writes the prediction. So what was refused leaves nothing
behind, and of creates that race with each other one wins and the others find it.
"""

import hashlib

import msgspec

from cogflare.domain.clock import Clock
from cogflare.domain.errors import NotFound, Reused
from cogflare.engine.predictions import Beside, Order, Predictions
from cogflare.engine.views import PredictionView
from cogflare.store import idempotency as store
from cogflare.store.base import Conflict, Constraint, Database
from cogflare.store.catalog import Caller
from cogflare.store.idempotency import Known
from cogflare.store.predictions import PredictionRow

KEY_US = 24 * 3600 * 1_000_000
RETRY_US = 120 * 1_000_000
PRUNE_S = 60.0
_PRUNE_BATCH = 1_000

_json = msgspec.json.Encoder(order="deterministic")


class Answer(msgspec.Struct, frozen=True):
    """What a create is answered with; not `is_new` where the prediction was there already."""

    view: PredictionView
    is_new: bool


class Repeats:
    """Creates that may be sent more than once. What they raise besides `Reused` is what `Predictions.create` raises."""

    def __init__(self, db: Database, clock: Clock, predictions: Predictions) -> None:
        self._db = db
        self._clock = clock
        self._predictions = predictions

    async def keyed(self, caller: Caller, order: Order, key: str, hold_s: float | None) -> Answer:
        """Create a prediction once for a key, which counts for 24 hours; raises `Reused` for another order."""
        fingerprint = _fingerprint(order)
        while True:
            now, gone = self._clock.wall(), None
            known = await store.find_key(self._db, caller.account, key, now - KEY_US)
            if known is not None:
                if known.fingerprint != fingerprint:
                    raise Reused("This Idempotency-Key was used with another request in the last 24 hours")
                try:
                    return Answer(await self._predictions.again(caller.account, known.prediction, hold_s), False)
                except NotFound:
                    # Its record is gone, and so is the use of the key.
                    gone = known.prediction
            try:
                keep = _keep_key(caller.account, key, fingerprint, now, gone)
                created = await self._predictions.create(caller, order, hold_s, beside=keep)
            except Conflict:
                continue
            return Answer(created, True)

    async def named(self, caller: Caller, order: Order, client_id: str, hold_s: float | None) -> Answer:
        """Create a prediction under an id of the client's own, once; raises `Reused` for another order."""
        found = await self._find(caller.account, client_id)
        if found is None:
            try:
                return Answer(await self._predictions.create(caller, order, hold_s, client_id=client_id), True)
            except Constraint:
                found = await self._find(caller.account, client_id)
                if found is None:
                    raise
        if not await self._is_same(found, order):
            raise Reused("There is a prediction of this id already, and it was made by another request")
        return Answer(await self._predictions.again(caller.account, found.id, hold_s), False)

    async def retried(self, caller: Caller, order: Order, number: int, hold_s: float | None) -> Answer:
        """Create a prediction for a client that counts its retries (`number`, 0 first), or find what it repeats.

        Equal orders are different predictions; so each create meets each number once.
        """
        fingerprint = _fingerprint(order, caller.token)
        now = self._clock.wall()
        if number > 0:
            since = now - RETRY_US
            prediction = await store.attach_retry(self._db, caller.account, fingerprint, number, now, since)
            if prediction is not None:
                try:
                    return Answer(await self._predictions.again(caller.account, prediction, hold_s), False)
                except NotFound:
                    pass
        created = await self._predictions.create(
            caller,
            order,
            hold_s,
            beside=lambda new: [store.keep_retry(caller.account, Known(fingerprint, new.id), number, now)],
        )
        return Answer(created, True)

    async def tick(self) -> float:
        """Forget what is too old to count, in small bites; returns the seconds until the next look."""
        now, left = self._clock.wall(), 0
        left += await store.prune(self._db, "key", now - KEY_US, _PRUNE_BATCH) == _PRUNE_BATCH
        left += await store.prune(self._db, "retry", now - RETRY_US, _PRUNE_BATCH) == _PRUNE_BATCH
        return 0.1 if left else PRUNE_S

    async def _find(self, account: str, client_id: str) -> PredictionRow | None:
        try:
            return await self._predictions.row(account, client_id)
        except NotFound:
            return None

    async def _is_same(self, row: PredictionRow, order: Order) -> bool:
        """Say whether a stored prediction is what the order asks for; its input counts for as long as it is kept."""
        if order.version is None:
            is_same = not row.pinned and order.model == row.model
        else:
            is_same = row.pinned and order.version == row.version and order.model in (None, row.model)
        told = (row.webhook, row.webhook_events, row.route)
        if not is_same or told != (order.webhook, order.webhook_events, order.route):
            return False
        return await self._predictions.has_input(row, order.values)


def _keep_key(account: str, key: str, fingerprint: str, now: int, gone: str | None) -> Beside:
    """Return what binds the key to a new prediction, in place of one whose record is `gone`."""
    forget = [] if gone is None else [store.forget_key(account, key, gone)]
    return lambda new: [*forget, store.keep_key(account, key, Known(fingerprint, new.id), now, now - KEY_US)]


def _fingerprint(order: Order, token: str | None = None) -> str:
    """Return what is equal for orders that mean the same, whatever their spelling in JSON."""
    meaning = [token, order.model, order.version, order.values, order.webhook, order.webhook_events]
    if order.route is not None:
        meaning.append(order.route)
    return hashlib.sha256(_json.encode(meaning)).hexdigest()
