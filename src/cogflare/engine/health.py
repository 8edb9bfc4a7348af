"""Workers that lose one run after another are set aside: they keep what they run and get nothing new.

A circuit breaker per worker. `losses` in a row, or the agent's own word that its model does not work, put it into
quarantine; after a time that doubles with each quarantine in a row it is asked (`probe`), and if its model is well it
gets work again, one loss away from the next quarantine. The first run that succeeds clears the record. The store is the
truth and outlives nodes and links; hints and each node's look at it carry it to the links.
"""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from cogflare.domain.clock import Clock
from cogflare.protocol import messages
from cogflare.protocol.messages import MAX_REASON
from cogflare.store import recovery
from cogflare.store.base import Database, Hint, StoreError
from cogflare.store.recovery import Loss, Standing

CHANNEL_HEALTH = "health"
_LOOK_S = 2.0
_CAP_S = 600.0

log = structlog.get_logger()


class Patient(Protocol):
    """The link of a worker."""

    worker: str
    epoch: int

    def set_aside(self, is_aside: bool) -> None:
        """Give the worker nothing new, or work as before."""
        ...

    def probe(self) -> None:
        """Ask the worker whether its model is well."""
        ...


@dataclass(slots=True)
class _Watch:
    """A quarantine as this node times it: it can end from `ends_at` on; `probe_at` is when the worker is asked next."""

    since: int | None
    ends_at: float
    probe_at: float
    pause_s: float


class Health:
    """The records of the workers that are linked to this node, and the quarantines of all.

    `after`: lost runs in a row that set a worker aside. `first_s`: the least time of the first quarantine.
    """

    def __init__(
        self,
        db: Database,
        clock: Clock,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        after: int = 5,
        first_s: float = 10.0,
    ) -> None:
        self._db = db
        self._clock = clock
        self._spawn = spawn
        self._after = after
        self._first_s = first_s
        self._links: dict[str, Patient] = {}
        self._records: dict[str, Standing] = {}
        self._watches: dict[str, _Watch] = {}
        self._words: dict[str, tuple[Patient, messages.Health]] = {}
        self._touched: set[str] = set()
        self.probation = after - 1
        db.listen(self._heard)

    # --- links -----------------------------------------------------------------------------------------------------

    def join(self, link: Patient, standing: Standing) -> None:
        """Watch over a worker that has opened a link."""
        self._links[link.worker] = link
        self._learn(link.worker, standing)

    def leave(self, link: Patient) -> None:
        """Forget a link that has closed; a quarantine is timed on."""
        if self._links.get(link.worker) is link:
            del self._links[link.worker]
            self._records.pop(link.worker, None)

    def succeeded(self, link: Patient) -> None:
        """Note that a run succeeded: what was lost before it does not count any more."""
        record = self._records.get(link.worker)
        if record is not None and record.quarantine is None and self._links.get(link.worker) is link:
            del self._records[link.worker]
            self._spawn(recovery.forget_losses(self._db, link.worker, link.epoch))

    def heard(self, link: Patient, word: messages.Health) -> None:
        """Take a worker's word on its model; of several that come at once the last counts."""
        is_busy = link.worker in self._words
        self._words[link.worker] = (link, word)
        if not is_busy:
            self._spawn(self._judge(link.worker))

    # --- what counts against a worker ------------------------------------------------------------------------------

    async def lost(self, worker: str, reason: str, started_at: int) -> None:
        """Count a started run that was lost; what was lost with an earlier one does not count again."""
        now = self._clock.wall()
        loss = Loss(worker, reason[:MAX_REASON], started_at, now, self._after)
        try:
            standing = await recovery.count_loss(self._db, loss, _hints(worker))
        except StoreError as error:
            log.warning("a lost run was not counted", worker=worker, error=str(error))
            return
        if standing is not None:
            self._learn(worker, standing)

    async def _judge(self, worker: str) -> None:
        judged = None
        try:
            while (said := self._words[worker]) is not judged:
                link, word = judged = said
                if word.ok:
                    await self._is_well(link)
                else:
                    await self._is_ill(link, word.reason)
        finally:
            del self._words[worker]

    async def _is_ill(self, link: Patient, reason: str) -> None:
        text = reason.replace("\0", " ").strip()[:MAX_REASON] or "the model does not work"
        now, hints = self._clock.wall(), _hints(link.worker)
        standing = await recovery.set_aside(self._db, link.worker, link.epoch, text, now, hints)
        if standing is not None:
            self._learn(link.worker, standing)

    async def _is_well(self, link: Patient) -> None:
        watch = self._watches.get(link.worker)
        if watch is None or self._clock.monotonic() < watch.ends_at:
            return
        standing = await recovery.lift(self._db, link.worker, link.epoch, self.probation, _hints(link.worker))
        if standing is not None:
            log.info("worker is back", worker=link.worker)
            self._learn(link.worker, standing)

    # --- the store, and what others did ----------------------------------------------------------------------------

    async def tick(self) -> float:
        """Look for quarantines, and ask those whose time is over; returns the seconds until the next look."""
        self._touched.clear()
        found = await recovery.quarantined(self._db)
        for worker, standing in found.items():
            if worker not in self._touched:
                self._learn(worker, standing)
        for worker in [worker for worker in self._watches if worker not in found and worker not in self._touched]:
            await self._look(worker)
        now = self._clock.monotonic()
        for worker, watch in self._watches.items():
            link = self._links.get(worker)
            if link is not None and now >= watch.probe_at:
                watch.probe_at = now + watch.pause_s
                link.probe()
        return min(_LOOK_S, self._first_s / 2)

    def _heard(self, hint: Hint) -> None:
        if hint.channel == CHANNEL_HEALTH and (hint.payload in self._links or hint.payload in self._watches):
            self._spawn(self._look(hint.payload))

    async def _look(self, worker: str) -> None:
        self._learn(worker, await recovery.standing(self._db, worker) or Standing())

    def _learn(self, worker: str, standing: Standing) -> None:
        self._touched.add(worker)
        link = self._links.get(worker)
        if link is not None:
            if standing.is_clean:
                self._records.pop(worker, None)
            else:
                self._records[worker] = standing
            link.set_aside(standing.quarantine is not None)
        if standing.quarantine is None:
            self._watches.pop(worker, None)
        elif worker not in self._watches or self._watches[worker].since != standing.quarantined_at:
            if link is not None:
                log.warning("worker set aside", worker=worker, reason=" ".join(standing.quarantine.split()))
            self._watches[worker] = self._watch(standing)

    def _watch(self, standing: Standing) -> _Watch:
        pause_s = min(_CAP_S, self._first_s * 2 ** min(max(standing.quarantines - 1, 0), 60))
        ends_at = self._clock.monotonic() + pause_s
        return _Watch(standing.quarantined_at, ends_at, ends_at, pause_s)


def _hints(worker: str) -> list[Hint]:
    return [Hint(CHANNEL_HEALTH, worker)]
