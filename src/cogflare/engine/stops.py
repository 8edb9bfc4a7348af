"""Ends of predictions that the server itself decides: a cancel, a limit that was reached, a loss that was the last.

Whoever ends a prediction here competes with the worker's finish; the unit that is committed first wins.
"""

from cogflare.domain.clock import Clock
from cogflare.domain.webhooks import lane_of
from cogflare.engine import endings
from cogflare.engine.feeds import Feeds
from cogflare.engine.live import Live
from cogflare.store import deliveries, fleet
from cogflare.store import predictions as store
from cogflare.store.base import Conflict, Database, Hint
from cogflare.store.predictions import PredictionRow

CHANNEL_ENDED = "ended"
CHANNEL_CANCEL = "cancel"


class Stops:
    """Ends predictions; `lives` has what runs over the links of this node, by prediction, `feeds` who reads it."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self.lives: dict[str, Live] = {}
        self.feeds = Feeds(self.lives)

    async def stop(self, row: PredictionRow, stop: endings.Stop, live: Live | None = None) -> bool:
        """End a prediction with what it has shown so far (`live`: here); False if it moved meanwhile."""
        live = live or self.lives.get(row.id)
        if live is not None and not (live.attempt == row.attempt and await self._is_newest(live)):
            live = None
        if stop.unstarted and live is not None and live.started_at is not None:
            # It has just started, and only the store does not know yet.
            return False
        now = self._clock.wall()
        statements = endings.from_stop(row, live, stop, now)
        hints = [Hint(CHANNEL_ENDED, row.id), Hint(CHANNEL_CANCEL, f"{row.id} {row.attempt}")]
        if row.webhook is not None:
            hints.append(deliveries.hint(lane_of(row.account, row.webhook)))
        try:
            await self._db.write(*statements, hints=hints, landed=store.has_ended(row.id, row.attempt, now))
        except Conflict:
            return False
        return True

    async def _is_newest(self, live: Live) -> bool:
        """Say whether the attempt still runs over this link: a newer one, of another node, may know more of it."""
        state = await fleet.get_attempt(self._db, *live.key)
        return state is not None and state.link_epoch == live.holder.epoch

    def drop(self, live: Live) -> None:
        """Forget the live state of an attempt that does not run on this node any more."""
        if self.lives.get(live.prediction) is live:
            del self.lives[live.prediction]
            self.feeds.changed(live.prediction)
