"""Predictions from create to end: create, read, cancel and finish.

Each transition is one unit with a compare-and-set on (phase, attempt); whoever loses looks again. Predictions that run
on this node are answered from memory (`lives`); everything else from the store.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from cogflare.domain.clock import Clock
from cogflare.domain.errors import InvalidInput, NotFound
from cogflare.domain.ids import is_id, new_id, new_key
from cogflare.domain.phases import Outcome, Phase, Status
from cogflare.engine import endings
from cogflare.engine.catalog import Catalog
from cogflare.engine.dispatcher import CHANNEL_QUEUE, Dispatcher, Seat
from cogflare.engine.live import Live, view_live
from cogflare.engine.losses import Losses
from cogflare.engine.stops import CHANNEL_CANCEL, CHANNEL_ENDED, Stops
from cogflare.engine.views import PredictionView, load_parts, view, view_ended
from cogflare.engine.waiters import Waiter, Waiters
from cogflare.protocol.messages import AttemptKey, Finish, Verdict
from cogflare.store import fleet
from cogflare.store import predictions as store
from cogflare.store.base import Conflict, Database, Hint, Row, Statement
from cogflare.store.catalog import Caller
from cogflare.store.predictions import NewPrediction, PredictionRow, Query

_LOOK_AGAIN_S = 5.0


class Order(msgspec.Struct, frozen=True):
    """What a client asks for. `input` is the JSON text of an object as sent, `values` the same decoded."""

    input: bytes
    values: dict[str, Any]
    model: str | None = None
    version: str | None = None
    webhook: str | None = None
    webhook_events: str | None = None


class Predictions:
    """Predictions of all accounts; `lives` has what runs over the links of this node."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        catalog: Catalog,
        dispatcher: Dispatcher,
        waiters: Waiters,
        stops: Stops,
        losses: Losses,
    ) -> None:
        self._db = db
        self._clock = clock
        self._catalog = catalog
        self._dispatcher = dispatcher
        self._waiters = waiters
        self._stops = stops
        self._losses = losses
        self._new: dict[str, PredictionView] = {}
        self.lives = stops.lives
        db.listen(self._heard)

    # --- clients ---------------------------------------------------------------------------------------------------

    async def create(self, caller: Caller, order: Order, hold_s: float | None = None) -> PredictionView:
        """Accept a prediction: it is durable when this returns. Waits up to `hold_s` seconds for its end.

        Raises `NotFound`, `VersionNotFound` or `InvalidInput`; then nothing was changed. A prediction that has not
        ended within the hold is shown as `starting`, whatever it does: clients take anything else for its end.
        """
        target = await self._catalog.target(caller.account, model=order.model, version=order.version)
        problems = target.validator.problems(order.values)
        if problems:
            raise InvalidInput(problems)
        now = self._clock.wall()
        new = NewPrediction(
            new_id(now),
            caller.account,
            caller.token,
            target.catalog,
            target.owner,
            target.name,
            target.version,
            target.pinned,
            target.queues,
            caller.account,
            order.input.decode(),
            now,
            new_key(),
            webhook=order.webhook,
            webhook_events=order.webhook_events,
        )
        if hold_s is None:
            return await self._insert(new)
        waiter = self._waiters.join(new.id)
        try:
            created = await self._insert(new)
            return await self._hold(created, waiter, hold_s)
        finally:
            self._waiters.leave(new.id, waiter)

    async def get(self, account: str, prediction: str) -> PredictionView:
        """Return a prediction as it stands now; raises `NotFound`."""
        live = self.lives.get(prediction)
        if live is None:
            found = await self._read(account, prediction)
            live = self.lives.get(prediction)
            if live is None or found.is_ended or found.attempt > live.attempt:
                return found
            if found.attempt == live.attempt:
                live.base = live.base or found
        if live.account != account:
            raise NotFound
        if live.base is None:
            found = await self._read(account, prediction)
            if found.is_ended or found.attempt != live.attempt:
                return found
            live.base = found
            return await self.get(account, prediction)
        return view_live(live.base, live)

    async def page(self, query: Query) -> list[PredictionView]:
        """Return a page of predictions, newest first."""
        rows = await store.list_page(self._db, query)
        parts = await load_parts(self._db, rows)
        views = [view(row, parts) for row in rows]
        lives = [self.lives.get(shown.id) for shown in views]
        return [
            view_live(shown, live)
            if live is not None and not shown.is_ended and live.attempt == shown.attempt
            else shown
            for shown, live in zip(views, lives, strict=True)
        ]

    async def cancel(self, account: str, prediction: str) -> PredictionView:
        """Cancel a prediction and return it; one that has ended stays as it is. Raises `NotFound`."""
        while True:
            row = await self._row(account, prediction)
            stop = endings.Stop(Status.CANCELED, Outcome.CANCELED)
            if row.phase == Phase.ENDED or await self._stops.stop(row, stop):
                return await self._read(account, prediction)

    async def attempts(self, account: str, prediction: str) -> list[fleet.AttemptRow]:
        """Return the tries of a prediction; raises `NotFound`."""
        await self._row(account, prediction)
        return await fleet.list_attempts(self._db, prediction)

    async def input_of(self, prediction: str, attempt: int, worker: str) -> str:
        """Return the input of an attempt to the worker that holds it; raises `NotFound`."""
        state = await fleet.get_attempt(self._db, prediction, attempt)
        row = await store.get(self._db, prediction)
        if state is None or row is None or state.holder != worker or state.ended_at is not None:
            raise NotFound
        parts = await load_parts(self._db, [row])
        return row.input if row.input is not None else parts.inputs[prediction]

    # --- workers ---------------------------------------------------------------------------------------------------

    async def finish(self, live: Live, finish: Finish, seat: Seat | None) -> Verdict:
        """End the attempt as its worker says; a reserved `seat` claims in the same unit. Safe to repeat."""
        if finish.status == "lost":
            self.drop(live)
            if seat is not None:
                self._dispatcher.cancel(seat)
            reason = finish.error or "the model's process ended"
            await self._losses.rescue(live.key, reason, live=live, slot_free=finish.slot_free)
            return "committed"
        uploaded = await self._uploaded(live) if finish.uploaded else 0
        result = endings.from_finish(live, finish, self._clock.wall(), uploaded)
        statements = store.finish(result.ending, result.chunks)
        rows: Sequence[list[Row]] = ()
        try:
            end = len(statements)
            if seat is not None:
                statements += self._dispatcher.claim(seat)
            rows = await self._db.write(*statements, hints=[Hint(CHANNEL_ENDED, live.prediction)])
        except Conflict:
            self.drop(live)
            if finish.slot_free:
                holder = live.holder
                # Whoever was faster (a cancel) left the slot to the worker, and this was its word.
                await self._db.write(fleet.free_slots(holder.worker, holder.epoch, [live.key], self._clock.wall()))
            return await self.verdict(live.key, live.holder.worker, finish.status)
        finally:
            if seat is not None and not rows:
                self._dispatcher.cancel(seat)
        # Only now: until the unit is durable, a cancel may win. The store's hint wakes them too, but after this.
        self._waiters.wake(live.prediction, result.ended)
        self.drop(live)
        if seat is not None:
            self._dispatcher.settle(seat, rows[end:])
        return "committed"

    async def verdict(self, key: AttemptKey, worker: str, status: str) -> Verdict:
        """Return the answer to a finish that changes nothing: it is known already, too late, or was never given out."""
        state = await fleet.get_attempt(self._db, *key)
        if state is None or state.holder != worker:
            return "unknown"
        return "committed" if state.outcome == status and state.current == key[1] else "superseded"

    # --- inside ----------------------------------------------------------------------------------------------------

    async def _insert(self, new: NewPrediction) -> PredictionView:
        created = PredictionView(
            new.id,
            new.account,
            f"{new.owner}/{new.name}",
            new.version,
            Status.STARTING,
            0,
            new.created_at,
            store.raw(new.input),
            webhook=new.webhook,
            webhook_events=new.webhook_events,
        )
        statements = store.insert(new)
        landed = Statement("get_prediction", {"id": new.id})
        seat = self._dispatcher.reserve(new.queues)
        if seat is None:
            hints = [Hint(CHANNEL_QUEUE, queue) for queue in new.queues]
            await self._db.write(*statements, hints=hints, landed=landed)
            return created
        rows: Sequence[list[Row]] = ()
        try:
            end = len(statements)
            self._new[new.id] = created
            rows = await self._db.write(*statements, *self._dispatcher.claim(seat), landed=landed)
        finally:
            if not rows:
                self._dispatcher.cancel(seat)
                self._new.pop(new.id, None)
        claimed = self._dispatcher.settle(seat, rows[end:])
        self._new.pop(new.id, None)
        if claimed is None or claimed.prediction != new.id:
            self._dispatcher.wake(new.queues)
        return created

    def new_base(self, prediction: str) -> PredictionView | None:
        """Return the view of a prediction whose create on this node claimed it at once."""
        return self._new.get(prediction)

    async def _hold(self, created: PredictionView, waiter: Waiter, hold_s: float) -> PredictionView:
        deadline = self._clock.monotonic() + hold_s
        while (left := deadline - self._clock.monotonic()) > 0:
            woken = await waiter.wait(min(left, _LOOK_AGAIN_S))
            if waiter.ended is not None and waiter.ended.complete:
                return view_ended(created, waiter.ended)
            found = await self._read(created.account, created.id)
            if found.is_ended:
                return found
            if woken:
                break
        return created

    async def _row(self, account: str, prediction: str) -> PredictionRow:
        row = await store.get(self._db, prediction) if is_id(prediction) else None
        if row is None or row.account != account:
            raise NotFound
        return row

    async def _read(self, account: str, prediction: str) -> PredictionView:
        row = await self._row(account, prediction)
        return view(row, await load_parts(self._db, [row]))

    async def _uploaded(self, live: Live) -> int:
        rows = await self._db.read("result_bytes", prediction=live.prediction, attempt=live.attempt)
        return int(rows[0][0])

    def drop(self, live: Live) -> None:
        """Forget the live state of an attempt that does not run on this node any more."""
        self._stops.drop(live)

    def _heard(self, hint: Hint) -> None:
        if hint.channel == CHANNEL_ENDED:
            self._waiters.wake(hint.payload)
            live = self.lives.get(hint.payload)
            if live is not None and not live.ending:
                # It ended elsewhere, or by a cancel that this node has not heard of.
                self.drop(live)
                live.holder.cancel(live.key)
        elif hint.channel == CHANNEL_CANCEL:
            prediction, _, attempt = hint.payload.partition(" ")
            live = self.lives.get(prediction)
            if live is not None and str(live.attempt) == attempt:
                self.drop(live)
                live.holder.cancel(live.key)
