"""Predictions from create to end: create, read, cancel and finish.

Each transition is one unit with a compare-and-set on (phase, attempt); whoever loses looks again. What runs on
this node is in memory (`lives`), ahead of the store, and is answered from there if no other node writes to the store.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from cogflare.domain.clock import Clock
from cogflare.domain.errors import InvalidInput, NotFound, QueueFull
from cogflare.domain.ids import is_client_id, is_id, new_id, new_stream_key
from cogflare.domain.phases import Outcome, Phase, Status
from cogflare.domain.webhooks import lane_of
from cogflare.engine import endings
from cogflare.engine.batches import each
from cogflare.engine.catalog import Catalog, Target
from cogflare.engine.dispatcher import CHANNEL_QUEUE, Dispatcher, Seat
from cogflare.engine.inputs import Inputs
from cogflare.engine.live import Live, view_live
from cogflare.engine.losses import Losses
from cogflare.engine.router import Plan, Router
from cogflare.engine.stops import CHANNEL_CANCEL, CHANNEL_ENDED, Stops
from cogflare.engine.views import PredictionView, load_parts, view, view_ended, view_new, view_waiting
from cogflare.engine.waiters import Waiter, Waiters
from cogflare.protocol.messages import AttemptKey, Finish, Verdict
from cogflare.store import deliveries, fleet, limits
from cogflare.store import predictions as store
from cogflare.store.base import Conflict, Database, Hint, Row, Statement
from cogflare.store.catalog import Caller
from cogflare.store.limits import Filter
from cogflare.store.listing import Query, list_page
from cogflare.store.predictions import NewPrediction, PredictionRow

CANCEL_BATCH = 1_000
_LOOK_AGAIN_S = 5.0
_DIED = "the model's process ended"
_CANCEL = endings.Stop(Status.CANCELED, Outcome.CANCELED)

_json = msgspec.json.Encoder(order="deterministic")
PAGE_BYTES = 16 << 20  # of inputs, outputs and logs together

Beside = Callable[[NewPrediction], Sequence[Statement]]
"""What else belongs into the unit that writes a prediction."""
Learned = Callable[[Live, Finish | None], None]
"""Hears of each run that has ended; without a finish it was stopped."""


class Order(msgspec.Struct, frozen=True):
    """What a client asks for. `input` is the JSON text of an object as sent, `values` the same decoded.

    `cancel_after` is in microseconds from the creation. `webhook_origin`, under which the client knows this server,
    begins the URLs in what the webhook gets. `route` is its own wish (JSON text), `hops` counts the servers before us.
    `dialect`: how the client speaks, None for Replicate's way.
    """

    input: bytes
    values: dict[str, Any]
    model: str | None = None
    version: str | None = None
    webhook: str | None = None
    webhook_events: str | None = None
    cancel_after: int | None = None
    webhook_origin: str | None = None
    route: str | None = None
    hops: int = 0
    dialect: str | None = None


class Page(msgspec.Struct, frozen=True):
    """Some predictions, newest first; `is_cut` where fewer are shown than were asked for, because they are large."""

    views: list[PredictionView]
    is_cut: bool


class Predictions:
    """Predictions of all accounts; `lives` has what runs over the links of this node.

    `max_queued`: how many may wait for an account; None: any number.
    """

    def __init__(
        self,
        db: Database,
        clock: Clock,
        catalog: Catalog,
        dispatcher: Dispatcher,
        waiters: Waiters,
        stops: Stops,
        losses: Losses,
        max_queued: int | None = None,
        inputs: Inputs | None = None,
        learned: Learned = lambda live, finish: None,
        router: Router | None = None,
    ) -> None:
        self._db = db
        self._clock = clock
        self._catalog = catalog
        self._dispatcher = dispatcher
        self._waiters = waiters
        self._stops = stops
        self._losses = losses
        self._max_queued = max_queued
        self._inputs = inputs
        self._learned = learned
        self._router = router
        self._new: dict[str, PredictionView] = {}
        self.lives = stops.lives
        self.feeds = stops.feeds
        # Held by who commits what is live: two at once would cut the same data into pieces that overlap.
        self.saving = asyncio.Lock()
        db.listen(self._heard)

    # --- clients ---------------------------------------------------------------------------------------------------

    async def create(
        self,
        caller: Caller,
        order: Order,
        hold_s: float | None = None,
        *,
        client_id: str | None = None,
        beside: Beside | None = None,
    ) -> PredictionView:
        """Accept a prediction: it is durable when this returns. Waits up to `hold_s` seconds for its end.

        Raises `NotFound`, `VersionNotFound`, `InvalidInput`, `QueueFull`, or what a route makes of it (`BadRoute`,
        `OverBudget`, `ProviderAway`), or what the statements `beside` it raise; then nothing was changed. A prediction
        that has not ended within the hold is shown as `starting`, whatever it does: clients take anything else for its
        end.
        """
        target, plan = await self._planned(caller, order)
        if self._inputs is None or target.files is None:
            return await self._accept(self._new_prediction(caller, order, target, plan, client_id), hold_s, beside)
        origin = order.webhook_origin or ""
        async with self._inputs.taking(caller.account, order.input, target.files, order.values, origin) as taken:
            order = msgspec.structs.replace(order, input=taken.input)
            new = self._new_prediction(caller, order, target, plan, client_id)
            return await self._accept(new, hold_s, beside, taken.statements(new.id, new.account, new.created_at))

    async def _accept(
        self, new: NewPrediction, hold_s: float | None, beside: Beside | None, files: Sequence[Statement] = ()
    ) -> PredictionView:
        aside = files if beside is None else [*beside(new), *files]
        if hold_s is None:
            return await self._insert(new, aside)
        waiter = self._waiters.join(new.id)
        try:
            created = await self._insert(new, aside)
            return await self._hold(created, waiter, hold_s)
        finally:
            self._waiters.leave(new.id, waiter)

    async def again(self, account: str, prediction: str, hold_s: float | None) -> PredictionView:
        """Answer a create that was sent again: the prediction as it stands, or held as by `create`."""
        if hold_s is None:
            return await self.get(account, prediction)
        waiter = self._waiters.join(prediction)
        try:
            found = await self._read(account, prediction)
            return found if found.is_ended else await self._hold(found, waiter, hold_s)
        finally:
            self._waiters.leave(prediction, waiter)

    async def get(self, account: str, prediction: str) -> PredictionView:
        """Return a prediction as it stands now; raises `NotFound`."""
        live = self.lives.get(prediction)
        if live is not None and live.account == account and live.base is not None and not self._db.is_shared:
            return view_live(live.base, live)
        # Where other nodes write, one may have ended it and said so, and this one has not heard of it yet.
        found = await self._read(account, prediction)
        shown = self._overlaid(found)
        if shown is not found:
            self.lives[found.id].base = found
        return shown

    async def page(self, query: Query) -> Page:
        """Return a page of predictions, newest first; it ends early where it would be larger than `PAGE_BYTES`."""
        rows = await list_page(self._db, query)
        # The nearest to the cursor come first: those are the ones that a page that is cut off keeps.
        order = list(reversed(rows)) if query.is_upwards else rows
        shown: list[PredictionView] = []
        size = 0
        for row in order:
            found = self._overlaid(view(row, await load_parts(self._db, [row])))
            size += found.size
            if shown and size > PAGE_BYTES:
                break
            shown.append(found)
        views = list(reversed(shown)) if query.is_upwards else shown
        return Page(views, len(views) < len(rows))

    def _overlaid(self, shown: PredictionView) -> PredictionView:
        live = self.lives.get(shown.id)
        if live is None or shown.is_ended or live.attempt != shown.attempt:
            return shown
        return view_live(shown, live)

    async def cancel(self, account: str, prediction: str) -> PredictionView:
        """Cancel a prediction and return it; one that has ended stays as it is. Raises `NotFound`."""
        row = await self.row(account, prediction)
        await self._cancel(row)
        return await self._read(account, row.id)

    async def cancel_matching(self, wanted: Filter) -> tuple[int, bool]:
        """Cancel what a filter matches and has not ended, up to `CANCEL_BATCH`; returns how many, and if more are left.

        What waits goes first and the newest of it, so that no slot that becomes free gets what is canceled next.
        """
        found: list[str] = []
        for status in (Status.STARTING, Status.PROCESSING):
            if wanted.status in (None, status):
                found += await limits.live(self._db, wanted, status, CANCEL_BATCH + 1 - len(found))
        canceled = await each(found[:CANCEL_BATCH], lambda prediction: self._cancel_known(wanted.account, prediction))
        return canceled, len(found) > CANCEL_BATCH

    async def attempts(self, account: str, prediction: str) -> list[fleet.AttemptRow]:
        """Return the tries of a prediction; raises `NotFound`."""
        row = await self.row(account, prediction)
        return await fleet.list_attempts(self._db, row.id)

    async def row(self, account: str, prediction: str) -> PredictionRow:
        """Return what is stored of a prediction, by our id or by its client's; raises `NotFound`."""
        row = await store.get(self._db, prediction) if is_id(prediction) else None
        if (row is None or row.account != account) and is_client_id(prediction):
            row = await store.get_by_client_id(self._db, account, prediction)
        if row is None or row.account != account:
            raise NotFound
        return row

    async def input(self, row: PredictionRow) -> str | None:
        """Return the whole input of a prediction; None where its data has been removed, be it just now."""
        if row.data_removed or row.input is not None:
            return row.input
        return (await load_parts(self._db, [row])).inputs.get(row.id)

    async def input_as_sent(self, row: PredictionRow) -> str | None:
        """Return the whole input as its client sent it; None where its data has been removed. Raises a `BlobError`."""
        text = await self.input(row)
        return text if text is None or self._inputs is None else await self._inputs.as_sent(text, row.id)

    async def has_input(self, row: PredictionRow, values: dict[str, Any]) -> bool:
        """Say whether this is the input of a prediction, as far as it is still known."""
        text = await self.input(row)
        if text is None or _json.encode(msgspec.json.decode(text)) == _json.encode(values):
            return True
        return self._inputs is not None and await self._inputs.is_same(text, values, row.id)

    async def input_of(self, prediction: str, attempt: int, worker: str, origin: str) -> str:
        """Return the input of an attempt to the worker that holds it; raises `NotFound`.

        Files that only this server can hand out get URLs under `origin`, which is what the worker dialled.
        """
        state = await fleet.get_attempt(self._db, prediction, attempt)
        row = await store.get(self._db, prediction)
        if state is None or row is None or state.holder != worker or state.ended_at is not None:
            raise NotFound
        text = await self.input(row)
        if text is None:
            raise NotFound
        return text if self._inputs is None else await self._inputs.resolve(text, row.id, row.account, origin)

    # --- workers ---------------------------------------------------------------------------------------------------

    async def finish(self, live: Live, finish: Finish, seat: Seat | None) -> Verdict:
        """End the attempt as its worker says; a reserved `seat` claims in the same unit. Safe to repeat."""
        if finish.status == "lost" or (finish.status == "canceled" and await self._goes_on(live)):
            self.drop(live)
            reason = finish.error or ("its worker gave it up" if finish.status == "canceled" else _DIED)
            try:
                await self._losses.rescue(live.key, reason, live=live, slot_free=finish.slot_free)
            finally:
                # Not before: a worker that is set aside for this gets nothing more.
                if seat is not None:
                    self._dispatcher.cancel(seat)
            return "committed"
        uploaded = await self._uploaded(live) if finish.uploaded else 0
        result = endings.from_finish(live, finish, self._clock.wall(), uploaded)
        statements = store.finish(result.ending, result.chunks)
        rows: Sequence[list[Row]] = ()
        try:
            end = len(statements)
            if seat is not None:
                statements += self._dispatcher.claim(seat)
            landed = store.has_ended(*live.key, result.ending.completed_at)
            hints = [Hint(CHANNEL_ENDED, live.prediction)]
            if live.hook is not None:
                hints.append(deliveries.hint(lane_of(live.account, live.hook.url)))
            rows = await self._db.write(*statements, hints=hints, landed=landed)
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
        self._ended(live, finish, result)
        if seat is not None:
            self._dispatcher.settle(seat, rows[end:])
        return "committed"

    def _ended(self, live: Live, finish: Finish, result: endings.Result) -> None:
        """Tell of an end; only now that it is durable, for until then a cancel may win."""
        # The store's hint wakes them too, but after this.
        self._waiters.wake(live.prediction, result.ended)
        self.feeds.ended(live, result)
        self._learned(live, finish)
        self.drop(live)

    async def _goes_on(self, live: Live) -> bool:
        """Say whether the prediction has not ended: who cancels one ends it before its worker hears of that."""
        row = await store.get(self._db, live.prediction)
        return row is not None and row.phase != Phase.ENDED

    async def end_too_large(self, live: Live) -> None:
        """End a prediction whose output has outgrown its limit, with what it has shown; its worker is told to stop."""
        row = await store.get(self._db, live.prediction)
        if row is not None and row.attempt == live.attempt and row.phase != Phase.ENDED:
            await self._stops.stop(row, endings.Stop(Status.FAILED, Outcome.FAILED, live.overflow), live)

    async def verdict(self, key: AttemptKey, worker: str, status: str) -> Verdict:
        """Return the answer to a finish that changes nothing: it is known already, too late, or was never given out."""
        state = await fleet.get_attempt(self._db, *key)
        if state is None or state.holder != worker:
            return "unknown"
        return "committed" if state.outcome == status and state.current == key[1] else "superseded"

    # --- inside ----------------------------------------------------------------------------------------------------

    async def _planned(self, caller: Caller, order: Order) -> tuple[Target, Plan]:
        """Return what an order that can be carried out runs, and the way it takes."""
        router = self._router
        if router is None:
            target = await self._catalog.target(caller.account, model=order.model, version=order.version)
        else:
            target = await router.target(caller.account, order.model, order.version, order.route)
        problems = target.validator.problems(order.values)
        if problems:
            raise InvalidInput(problems)
        if router is None:
            return target, Plan(False, target.queues)
        return target, await router.plan(caller, target, order.route, order.hops)

    def _new_prediction(
        self, caller: Caller, order: Order, target: Target, plan: Plan, client_id: str | None = None
    ) -> NewPrediction:
        now, bounds = self._clock.wall(), target.bounds
        return NewPrediction(
            new_id(now),
            caller.account,
            caller.token,
            target.catalog,
            target.owner,
            target.name,
            target.version,
            target.pinned,
            plan.queues,
            caller.account,
            order.input.decode(),
            now,
            new_stream_key(of_files=target.shows_files),
            deadline=None if order.cancel_after is None else now + order.cancel_after,
            webhook=order.webhook,
            webhook_events=order.webhook_events,
            webhook_host=None if order.webhook is None else lane_of(caller.account, order.webhook),
            webhook_origin=None if order.webhook is None else order.webhook_origin,
            client_id=client_id,
            run_limit_s=bounds.run_limit_s,
            start_by=None if bounds.start_limit_s is None else now + int(bounds.start_limit_s * 1_000_000),
            max_queued=self._max_queued,
            max_queued_model=bounds.max_queued,
            routed=plan.routed,
            route=order.route,
            hops=order.hops,
            dialect=order.dialect,
        )

    async def _insert(self, new: NewPrediction, aside: Sequence[Statement] = ()) -> PredictionView:
        try:
            return await self._write(new, [*aside, *store.insert(new)])
        except Conflict as error:
            if error.statement != "insert_prediction":
                raise
        raise await self._queue_full(new)

    async def _queue_full(self, new: NewPrediction) -> QueueFull:
        whose, most = f"The model {new.owner}/{new.name}", new.max_queued_model
        if new.max_queued is not None and await limits.waiting(self._db, new.flow) >= new.max_queued:
            whose, most = "This account", new.max_queued
        advice = "Try again later, or cancel some."
        return QueueFull(f"{whose} has reached its limit of {most} waiting predictions. {advice}")

    async def _write(self, new: NewPrediction, statements: Sequence[Statement]) -> PredictionView:
        created = view_new(new)
        landed = Statement("get_prediction", {"id": new.id})
        told = [] if new.dialect is None or new.webhook_host is None else [deliveries.hint(new.webhook_host)]
        seat = self._dispatcher.reserve(new.queues)
        if seat is None:
            hints = [*told, *(Hint(CHANNEL_QUEUE, queue) for queue in new.queues)]
            await self._db.write(*statements, hints=hints, landed=landed, yields=True)
            self._poke(new)
            return created
        rows: Sequence[list[Row]] = ()
        try:
            end = len(statements)
            self._new[new.id] = created
            claim = self._dispatcher.claim(seat)
            rows = await self._db.write(*statements, *claim, hints=told, landed=landed, yields=True)
        finally:
            if not rows:
                self._dispatcher.cancel(seat)
                self._new.pop(new.id, None)
        claimed = self._dispatcher.settle(seat, rows[end:])
        self._new.pop(new.id, None)
        if claimed is None or claimed.prediction != new.id:
            self._dispatcher.wake(new.queues)
            self._poke(new)
        return created

    def _poke(self, new: NewPrediction) -> None:
        if new.routed and self._router is not None:
            self._router.poke(new.account, f"{new.owner}/{new.name}")

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
        return view_waiting(created)

    async def _cancel(self, row: PredictionRow) -> bool:
        """Cancel a prediction; False if it ended otherwise."""
        while row.phase != Phase.ENDED:
            if await self._stops.stop(row, _CANCEL):
                return True
            row = await self.row(row.account, row.id)
        return False

    async def _cancel_known(self, account: str, prediction: str) -> bool:
        try:
            return await self._cancel(await self.row(account, prediction))
        except NotFound:
            return False

    async def _read(self, account: str, prediction: str) -> PredictionView:
        row = await self.row(account, prediction)
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
                self._stopped(live)
        elif hint.channel == CHANNEL_CANCEL:
            prediction, _, attempt = hint.payload.partition(" ")
            live = self.lives.get(prediction)
            if live is not None and str(live.attempt) == attempt:
                self._stopped(live)

    def _stopped(self, live: Live) -> None:
        self._learned(live, None)
        self.drop(live)
        live.holder.cancel(live.key)
