"""Limits in time: the client's deadline, the time by which a run has to start, and how long it may take.

The first two are times of the wall clock, stored with the prediction, and any node may enforce them. A run is measured
by the monotonic clock of the node that holds its link, so that no jump of a clock ends one. Whoever ends a prediction
here competes with its worker's finish as a cancel does.
"""

import structlog

from cogflare.domain.clock import Clock
from cogflare.domain.phases import Outcome, Phase, Status
from cogflare.engine import endings
from cogflare.engine.batches import each
from cogflare.engine.live import Live
from cogflare.engine.losses import Losses
from cogflare.engine.stops import Stops
from cogflare.store import limits as store
from cogflare.store import predictions
from cogflare.store.base import Database

LOOK_S = 0.5
START_GRACE_S = 600.0
_BATCH = 500
_GAP_S = 5.0  # between two looks: longer than that, this node itself stood still

_DEADLINE = endings.Stop(Status.ABORTED, Outcome.CANCELED, reason="its deadline was reached")

log = structlog.get_logger()


class Limits:
    """Ends what has taken too long."""

    def __init__(self, db: Database, clock: Clock, stops: Stops, losses: Losses) -> None:
        self._db = db
        self._clock = clock
        self._stops = stops
        self._losses = losses
        self._looked_at = clock.monotonic()

    async def tick(self) -> float:
        """End what is due; returns the seconds until the next look."""
        now = self._clock.monotonic()
        gap_s, self._looked_at = now - self._looked_at, now
        if gap_s > _GAP_S:
            # Finishes that came while this node stood still wait in the sockets.
            return LOOK_S
        due = await store.due(self._db, self._clock.wall(), _BATCH)
        ended = await each(due.items(), self._reached) if due else 0
        late = [live for live in self._stops.lives.values() if _is_late(live, now)]
        if late:
            await each(late, self._late)
        return LOOK_S / 10 if ended and len(due) == _BATCH else LOOK_S

    async def _reached(self, due: tuple[str, str]) -> bool:
        """End a prediction that has reached its deadline, or the time by which it had to start."""
        prediction, kind = due
        row = await predictions.get(self._db, prediction)
        if row is None or row.phase == Phase.ENDED:
            return False
        if kind == "deadline":
            return await self._stops.stop(row, _DEADLINE)
        live = self._stops.lives.get(row.id)
        is_here = live is not None and live.key == (row.id, row.attempt)
        if row.phase == Phase.ASSIGNED and not is_here:
            # Whether it has started is known where its worker is, or comes back to; else its lease ends.
            return False
        waited_s = ((row.start_by or 0) - row.created_at) / 1_000_000
        error = f"Prediction did not start within {waited_s:g} s (code: E6716)"
        stop = endings.Stop(Status.FAILED, Outcome.CANCELED, error, "it did not start in time", unstarted=True)
        return await self._stops.stop(row, stop)

    async def _late(self, live: Live) -> bool:
        """End an attempt that runs too long, or take back one that was assigned long ago and does not start."""
        if live.begun_at is None:
            log.warning("attempt does not start", prediction=live.prediction, attempt=live.attempt)
            await self._losses.rescue(live.key, "it did not start", live=live, slot_free=False)
            self._stops.drop(live)
            live.holder.cancel(live.key)
            return True
        row = await predictions.get(self._db, live.prediction)
        if row is None or row.phase == Phase.ENDED or row.attempt != live.attempt or live.ending:
            return False
        error = f"Prediction ran longer than its limit of {live.run_limit_s:g} s"
        stop = endings.Stop(Status.FAILED, Outcome.FAILED, error, "it ran longer than its limit")
        return await self._stops.stop(row, stop, live)


def _is_late(live: Live, now: float) -> bool:
    """Say whether an attempt has taken longer than it may; one whose finish is being stored is let through."""
    if live.run_limit_s is None or live.ending:
        return False
    if live.begun_at is None:
        return now - live.assigned_at > live.run_limit_s + START_GRACE_S
    return now - live.begun_at > live.run_limit_s
