"""Leases of attempts: who has gone silent, whose grace is over, and what is taken back from them.

A lease has expired when its renewal count has not moved for `lease_s` of this observer's own monotonic clock. A new
observer therefore watches a full period before it rescues anything, and no jump of a wall clock rescues by mistake.
"""

from collections.abc import Callable

import structlog

from cogflare.domain.clock import Clock
from cogflare.engine.adoption import LinkTimes
from cogflare.engine.links import Fleet
from cogflare.engine.losses import Losses
from cogflare.protocol.messages import AttemptKey
from cogflare.store import fleet
from cogflare.store.base import Database

log = structlog.get_logger()

_TOKENS_S = 10.0
_GAP_S = 5.0  # between two looks: longer than that, this node itself stood still


class Leases:
    """Watches the leases of all workers, and the links of this node."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        links: Fleet,
        losses: Losses,
        times: LinkTimes,
        has_refused: Callable[[float], bool] = lambda since: False,
    ) -> None:
        self._db = db
        self._clock = clock
        self._links = links
        self._losses = losses
        self._times = times
        self._has_refused = has_refused
        self._seen: dict[AttemptKey, tuple[int, float]] = {}
        self._look_at = 0.0
        self._check_at = 0.0
        self._looked_at = clock.monotonic()

    async def tick(self) -> float:
        """Look for silent links, ended graces and expired leases; returns the seconds until the next look."""
        now = self._clock.monotonic()
        looked_at, self._looked_at = self._looked_at, now
        if now - looked_at > _GAP_S:
            self._stood_still(now - looked_at)
        if self._has_refused(looked_at):
            self._watch_anew(now)
        self._silence(now)
        self._links.expire()
        await self._departed(now)
        if now >= self._look_at:
            self._look_at = now + self._times.lease_s / 8
            await self._expired(now)
        if now >= self._check_at:
            self._check_at = now + _TOKENS_S
            await self._links.check_tokens()
        return min(1.0, self._times.close_grace_s / 4, self._times.lease_s / 8)

    def _stood_still(self, gap_s: float) -> None:
        """Begin to watch anew: what was said meanwhile waits in the sockets."""
        log.warning("this node stood still", seconds=round(gap_s, 1))
        self._seen.clear()
        for link in self._links.links.values():
            link.heard_at += gap_s
        for worker, (epoch, at) in self._links.departed.items():
            self._links.departed[worker] = (epoch, at + gap_s)

    def _watch_anew(self, now: float) -> None:
        """Give everybody a whole lease: while the store refuses, no worker can renew or come back."""
        self._seen.clear()
        for worker, (epoch, at) in self._links.departed.items():
            self._links.departed[worker] = (epoch, max(at, now + self._times.lease_s))

    def _silence(self, now: float) -> None:
        for link in list(self._links.links.values()):
            silent_s = now - link.heard_at
            if silent_s > self._times.lease_s:
                link.close(4408, "nothing was heard for too long")
            elif not link.is_away and silent_s > self._times.silence_s:
                log.warning("worker silent", worker=link.worker)
                link.away()

    async def _departed(self, now: float) -> None:
        due = [worker for worker, (_, at) in self._links.departed.items() if at <= now]
        for worker in due:
            epoch, _ = self._links.departed.pop(worker)
            for key, renewals in (await fleet.live_of(self._db, worker, epoch)).items():
                reason = f"worker {worker} closed its connection and did not come back"
                await self._rescue(key, reason, renewals)

    async def _expired(self, now: float) -> None:
        seen: dict[AttemptKey, tuple[int, float]] = {}
        for attempt in await fleet.live_attempts(self._db):
            key = (attempt.prediction, attempt.attempt)
            renewals, since = self._seen.get(key, (attempt.renewals, now))
            if renewals != attempt.renewals:
                renewals, since = attempt.renewals, now
            if now - since < self._times.lease_s:
                seen[key] = (renewals, since)
            else:
                reason = f"worker {attempt.holder} was silent for {self._times.lease_s:g} s"
                await self._rescue(key, reason, renewals)
        self._seen = seen

    async def _rescue(self, key: AttemptKey, reason: str, renewals: int) -> None:
        await self._losses.rescue(key, reason, slot_free=True, renewals=renewals)
