"""Attempts that were lost to infrastructure: queued again after a pause, or failed where they may not run once more."""

import structlog

from cogflare.domain.clock import Clock
from cogflare.domain.ids import SHARED, is_route_queue, model_queue, version_queue
from cogflare.domain.phases import Outcome, Phase, Status
from cogflare.engine import endings
from cogflare.engine.backoff import AVOID_US, Backoff
from cogflare.engine.dispatcher import CHANNEL_QUEUE
from cogflare.engine.health import Health
from cogflare.engine.live import Live
from cogflare.engine.stops import Stops
from cogflare.protocol.messages import AttemptKey
from cogflare.store import catalog as catalog_store
from cogflare.store import fleet, recovery
from cogflare.store import predictions as store
from cogflare.store.base import Conflict, Database, Hint, Statement
from cogflare.store.fleet import AttemptState
from cogflare.store.predictions import PredictionRow

INTERRUPTED = "Prediction interrupted; please retry (code: PA)"
_TRIES_PER_STRIKE = 10

log = structlog.get_logger()


class Losses:
    """Takes lost attempts back. `max_strikes`: started attempts that may be lost before a prediction fails."""

    def __init__(
        self, db: Database, clock: Clock, stops: Stops, health: Health, max_strikes: int, backoff: Backoff
    ) -> None:
        self._db = db
        self._clock = clock
        self._stops = stops
        self._health = health
        self._max_strikes = max_strikes
        self._backoff = backoff

    async def rescue(
        self,
        key: AttemptKey,
        reason: str,
        *,
        live: Live | None = None,
        slot_free: bool,
        is_innocent: bool = False,
        is_farewell: bool = False,
        renewals: int | None = None,
    ) -> None:
        """Take an attempt back that was lost to infrastructure: it is queued again, or fails when it may not.

        `live` is what it had shown on this node. Another worker gets it first for a while, if there is one, unless
        its own `is_innocent` and had not started. A started run that was lost counts against its worker, unless that
        said goodbye (`is_farewell`). A lease that has moved on from `renewals` is left alone.
        """
        while True:
            state = await fleet.get_attempt(self._db, *key)
            row = await store.get(self._db, key[0])
            if state is None or row is None or (renewals is not None and state.renewals != renewals):
                return
            now = self._clock.wall()
            started_at = (live.started_at if live is not None else None) or state.started_at
            lost = store.end_attempt(
                *key, Outcome.LOST, now=now, started_at=started_at, reason=reason, slot_free=slot_free
            )
            if row.attempt != key[1] or row.phase not in (Phase.ASSIGNED, Phase.RUNNING):
                await self._db.write(lost)
                return
            was_shown = bool(state.output_items or (live is not None and live.items))
            error = await self._final_loss(row, was_shown, started_at is not None, reason)
            if error is not None:
                stop = endings.Stop(Status.FAILED, Outcome.LOST, error, reason, slot_free, renewals, struck_out=True)
                is_done = await self._stops.stop(row, stop, live)
            else:
                avoid = await self._avoided(row, state, started_at is None and is_innocent)
                queues = await self.queues(row, state.queue)
                is_done = await self._requeue(row, queues, lost, started_at, avoid, renewals)
            if is_done:
                self._stops.feeds.changed(key[0])
                again = error is None
                log.warning("attempt lost", prediction=key[0], attempt=key[1], reason=reason, runs_again=again)
                if started_at is not None and not is_farewell:
                    await self._health.lost(state.holder, reason, started_at)
                return

    async def _final_loss(self, row: PredictionRow, was_shown: bool, started: bool, reason: str) -> str | None:
        """Return the error of a prediction that may not run again after this loss."""
        if row.attempt >= _TRIES_PER_STRIKE * self._max_strikes:
            return f"Prediction could not be started in {row.attempt} tries; the last time because {reason}"
        if row.strikes + started >= self._max_strikes:
            return f"Prediction was lost {row.strikes + started} times; the last time because {reason}"
        if not row.output_items and not was_shown:
            return None
        owner, _, name = row.model.partition("/")
        model = await catalog_store.find_model(self._db, row.catalog, owner, name)
        version = await catalog_store.find_version(self._db, row.catalog, row.version, owner, name)
        is_text = version is not None and version.output_kind == "text"
        return INTERRUPTED if is_text and not (model is not None and model.rerun) else None

    async def _requeue(
        self,
        row: PredictionRow,
        queues: tuple[str, ...],
        lost: Statement,
        started_at: int | None,
        avoid: str | None,
        renewals: int | None,
    ) -> bool:
        """Take a prediction back to its queues: after a pause if this is a strike, at once if it had not started."""
        pause_us = 0 if started_at is None else self._backoff.pause_us(row.strikes + 1)
        not_before = self._clock.wall() + pause_us
        avoid_until = not_before + AVOID_US
        if pause_us:
            entries = recovery.park(row.id, queues, not_before, avoid, avoid_until)
            hints = []
        else:
            entries = store.enqueue(row.id, queues, avoid, avoid_until)
            hints = [Hint(CHANNEL_QUEUE, queue) for queue in queues]
        requeue = store.requeue(row.id, row.attempt, started_at, renewals, parked=bool(pause_us))
        try:
            await self._db.write(requeue, lost, *entries, hints=hints)
        except Conflict:
            return False
        return True

    async def _avoided(self, row: PredictionRow, state: AttemptState, is_innocent: bool) -> str | None:
        """Return the worker that gets the prediction last for a while: the one that lost it, if there is another."""
        return state.holder if not is_innocent and await self._has_other(row, state.holder) else None

    async def _has_other(self, row: PredictionRow, worker: str) -> bool:
        """Say whether another connected worker could run the prediction."""
        owner, _, name = row.model.partition("/")
        catalogs = await catalog_store.catalogs_with(self._db, row.account, owner, name)
        pinned = row.version if row.pinned else None
        return await fleet.has_other_worker(self._db, worker, catalogs, (owner, name), pinned)

    async def queues(self, row: PredictionRow, last: str) -> tuple[str, ...]:
        """Return where a prediction waits again that waited in `last`: there, if only its route takes it further."""
        if row.routed and is_route_queue(last):
            return (last,)
        if row.pinned:
            return (version_queue(row.catalog, row.version),)
        owner, _, name = row.model.partition("/")
        catalogs = await catalog_store.catalogs_with(self._db, row.account, owner, name)
        return tuple(model_queue(catalog, owner, name) for catalog in catalogs or (SHARED,))
