"""What became of messages to webhooks: the list, one message with its tries, and sending one once more."""

from collections.abc import Sequence

import msgspec

from cogflare.domain.clock import Clock
from cogflare.domain.errors import NotFound
from cogflare.engine.predictions import Predictions
from cogflare.engine.views import load_parts, view, view_created
from cogflare.engine.webhooks import Render, Signer, Terms
from cogflare.store import deliveries as store
from cogflare.store import deliverylog, predictions
from cogflare.store.base import Database
from cogflare.store.deliveries import Delivery, Query, Try


class Request(msgspec.Struct, frozen=True):
    """A message as it goes out."""

    headers: dict[str, str]
    body: bytes


class Shown(msgspec.Struct, frozen=True):
    """A message, what came of its tries, and the request; None where it cannot be told any more."""

    delivery: Delivery
    tries: Sequence[Try]
    request: Request | None


class DeliveryLog:
    """The messages of an account, as its clients may see them."""

    def __init__(
        self, db: Database, clock: Clock, jobs: Predictions, signer: Signer, render: Render, terms: Terms
    ) -> None:
        self._db = db
        self._clock = clock
        self._jobs = jobs
        self._signer = signer
        self._render = render
        self._terms = terms

    async def page(self, query: Query) -> list[tuple[Delivery, Try | None]]:
        """Return messages, newest first, each with its last try.

        A prediction is named by our id or by its client's; raises `NotFound` for one that is not there.
        """
        if query.prediction is not None:
            row = await self._jobs.row(query.account, query.prediction)
            query = msgspec.structs.replace(query, prediction=row.id)
        found = await store.page(self._db, query)
        last = await deliverylog.last_tries(self._db, [delivery.id for delivery in found])
        return [(delivery, last.get(delivery.id)) for delivery in found]

    async def show(self, account: str, id: str) -> Shown:
        """Return a message with its tries; raises `NotFound`.

        Bodies are not kept: the request is what its last try sent, as long as the prediction and the secrets are the
        same; before the first try it is what that will send. What was sent before the end cannot be told after it.
        """
        delivery = await self._get(account, id)
        tries = await store.tries(self._db, id)
        row = await predictions.get(self._db, delivery.prediction)
        if row is None or (delivery.event != "completed" and delivery.tries):
            return Shown(delivery, tries, None)
        shown = view(row, await load_parts(self._db, [row]))
        body = await self._render(view_created(shown) if delivery.event == "created" else shown, row.webhook_origin)
        signed_at = tries[-1].at if tries else self._clock.wall()
        signed = await self._signer.headers(account, id, signed_at // 1_000_000, body)
        return Shown(delivery, tries, Request({"content-type": "application/json", **signed}, body))

    async def replay(self, account: str, id: str) -> Delivery:
        """Send a message once more, under its id, or one that waits for its next try now; raises `NotFound`."""
        delivery, now = await self._get(account, id), self._clock.wall()
        if delivery.state == "pending":
            await deliverylog.hurry(self._db, delivery, now, self._terms.until(now))
        else:
            await store.replay(self._db, account, id, now)
        return await self._get(account, id)

    async def _get(self, account: str, id: str) -> Delivery:
        found = await store.get(self._db, account, id)
        if found is None:
            raise NotFound
        return found
