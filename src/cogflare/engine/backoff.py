"""The pause between a lost attempt and the next one: how long it is, and the role that ends it.

What pauses is parked: its entries have a time before which nobody may claim them. The times are of the wall clock,
since they have to outlive this process; one that lies further ahead than any pause means that the clock was set back.
"""

import random

import msgspec

from cogflare.domain.clock import Clock
from cogflare.engine.dispatcher import CHANNEL_QUEUE
from cogflare.store import recovery
from cogflare.store.base import Database, Hint

AVOID_US = 10_000_000
"""How long what a worker lost goes to others first, from when it may be claimed again."""
_LOOK_S = 0.5
_BITE = 200  # entries released in one unit


class Backoff(msgspec.Struct, frozen=True):
    """Pauses that double from `first_s` up to `cap_s`, each drawn from its upper half; 0: no pause."""

    first_s: float = 1.0
    cap_s: float = 60.0

    def pause_us(self, strikes: int) -> int:
        """Return how long a prediction pauses after its loss number `strikes`, in microseconds."""
        bound_s = min(self.cap_s, self.first_s * 2 ** min(strikes - 1, 60))
        return int(random.uniform(bound_s / 2, bound_s) * 1_000_000)  # noqa: S311

    def latest(self, now: int) -> int:
        """Return the time after which no pause can end that began before `now`."""
        return now + int(2 * self.cap_s * 1_000_000)


class Releases:
    """Takes predictions whose pause is over back to the queue; any node does so for all."""

    def __init__(self, db: Database, clock: Clock, backoff: Backoff) -> None:
        self._db = db
        self._clock = clock
        self._backoff = backoff

    async def tick(self) -> float:
        """Release what is due; returns the seconds until the next look."""
        while (pauses := await recovery.pauses(self._db)) is not None:
            now = self._clock.wall()
            latest = self._backoff.latest(now)
            first, last = pauses
            if first > now and last <= latest:
                return min(_LOOK_S, (first - now) / 1_000_000)
            if not await self._release(now, latest):
                break
        return _LOOK_S

    async def _release(self, now: int, latest: int) -> bool:
        """Release some of what is due; False if nothing was, because others hold it or were faster."""
        due = await recovery.due(self._db, now, latest, _BITE)
        if not due:
            return False
        queues = {queue for found in due.values() for queue in found}
        hints = [Hint(CHANNEL_QUEUE, queue) for queue in sorted(queues)]
        released, _ = await self._db.write(*recovery.release(due, now, latest, now + AVOID_US), hints=hints)
        return bool(released)
