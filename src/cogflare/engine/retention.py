"""The role that keeps house: removes what is past its retention, and what is left over, a little at a time.

Ages are measured by the wall clock, the only one that lives as long as what is kept. A clock that jumps ahead would
make everything old at once, so after a jump nothing is removed for an hour: time for a person, or for the time service.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import structlog

from cogflare.blobs.base import BlobStore
from cogflare.domain.clock import Clock
from cogflare.engine.pruning import Pruning, Terms
from cogflare.engine.sweeps import Sweeps
from cogflare.store import retention as store
from cogflare.store.base import Database

log = structlog.get_logger()

JUMP_S: Final = 300.0
HOLD_S: Final = 3_600.0
PAUSE_S: Final = 0.1  # between two bites: so long everybody else has the store
_LOOK_S: Final = 60.0
_RARELY_S: Final = 3_600.0
_QUIET_S: Final = 7 * 86_400.0


@dataclass
class _Chore:
    """Work that is done in bites until it says there is no more, then again after a while."""

    bite: Callable[[int], Awaitable[bool]]
    every_s: float
    due_at: float = 0.0


class Retention:
    """Keeps house on this node; several nodes may do so at once."""

    def __init__(self, db: Database, blobs: BlobStore, clock: Clock, terms: Terms) -> None:
        self._db = db
        self._clock = clock
        self._pruning = Pruning(db, terms)
        sweeps = Sweeps(db, blobs)
        look_s = min(_LOOK_S, max(1.0, terms.data_s / 10)) if terms.data_s else _LOOK_S
        self._chores = [
            _Chore(self._pruning.data, look_s),
            _Chore(sweeps.expired, look_s),
            _Chore(sweeps.unbound, _LOOK_S),
            _Chore(sweeps.uploads, _LOOK_S),
            _Chore(self._pruning.records, _LOOK_S),
            _Chore(sweeps.parts, _RARELY_S),
            _Chore(sweeps.deliveries, _LOOK_S),
            _Chore(sweeps.workers, _RARELY_S),
            _Chore(sweeps.flows, _RARELY_S),
            _Chore(sweeps.ledgers, _RARELY_S),
            _Chore(sweeps.run_times, _RARELY_S),
        ]
        self._offset_s: float | None = None
        self._held_until = 0.0

    async def tick(self) -> float:
        """Take one bite of each chore that is due; returns the seconds until the next look."""
        wall, now = self._clock.wall(), self._clock.monotonic()
        await self._watch_clock(wall, now)
        if now < self._held_until:
            return _LOOK_S
        for chore in self._chores:
            if now >= chore.due_at:
                more = await chore.bite(wall)
                chore.due_at = now + (PAUSE_S if more else chore.every_s)
        return max(PAUSE_S, min(chore.due_at for chore in self._chores) - now)

    async def _watch_clock(self, wall: int, now: float) -> None:
        """Hold off where the wall clock has moved apart from the monotonic one, or is far from all that is stored."""
        offset_s = wall / 1e6 - now
        if self._offset_s is None:
            newest = await store.newest(self._db)
            ahead_s = 0.0 if newest is None else wall / 1e6 - newest / 1e6
            if ahead_s > _QUIET_S:
                days = round(ahead_s / 86_400)
                self._hold(now, "the newest prediction is old, or the clock is wrong", days=days)
        elif abs(offset_s - self._offset_s) > JUMP_S:
            self._hold(now, "the clock has jumped", seconds=round(offset_s - self._offset_s))
        else:
            return
        self._offset_s = offset_s

    def _hold(self, now: float, reason: str, **details: int) -> None:
        self._held_until = now + HOLD_S
        self._pruning.forget()
        log.warning("nothing is removed for an hour", reason=reason, **details)
