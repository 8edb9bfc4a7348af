"""Who is free, and the claims that give them work.

A seat is one offer of one open link. A claim reserves a slot of a seat before its unit is written, so no slot is given
twice; what the unit brings back is assigned, or the reservation is returned. Hints and finishes make seats claim;
`tick` asks the store which queues are waiting, because hints may be lost.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import structlog

from cogflare.domain.clock import Clock
from cogflare.domain.ids import new_id
from cogflare.store import predictions as store
from cogflare.store.base import Database, Hint, Row, Statement, StoreError
from cogflare.store.predictions import Claim, Claimed

CHANNEL_QUEUE = "queue"
POLL_S = 2.0
_STATEMENTS = 4  # of one claim
_BATCH = 16
_LOOKERS = 8  # seats of a queue that look for themselves at each poll

log = structlog.get_logger()


class Assignee(Protocol):
    """The link of a seat."""

    worker: str
    epoch: int

    def free(self, offer: int) -> int:
        """Return how many predictions the worker could take on this offer."""
        ...

    def assign(self, offer: int, claimed: Claimed) -> None:
        """Send the claimed prediction to the worker."""
        ...


@dataclass(slots=True, eq=False)
class Seat:
    """One offer of one link, with the two queues it serves."""

    link: Assignee
    offer: int
    model_queue: str
    version_queue: str
    version: str
    only: str | None = None  # model (owner/name) that it is for, where the version may be that of others too
    reserved: int = 0
    filling: bool = False
    again: bool = False
    closed: bool = False

    def available(self) -> int:
        """Return the slots that are free and not promised to a claim under way."""
        return 0 if self.closed else self.link.free(self.offer) - self.reserved


class Dispatcher:
    """The seats of this node."""

    def __init__(self, db: Database, clock: Clock, spawn: Callable[[Coroutine[Any, Any, None]], object]) -> None:
        self._db = db
        self._clock = clock
        self._spawn = spawn
        self._idle: dict[str, dict[Seat, None]] = {}
        self._claiming: Counter[str] = Counter()
        self._missed: set[str] = set()
        self._stopped = False
        db.listen(self._heard)

    # --- seats ---------------------------------------------------------------------------------------------------

    def changed(self, seat: Seat) -> None:
        """Note that the number of free slots of a seat may have changed, and let it claim."""
        self._sort(seat)
        if seat.available() > 0:
            self._start(seat)

    def remove(self, seat: Seat) -> None:
        """Forget a seat: its link is gone or takes nothing more."""
        seat.closed = True
        self._sort(seat)

    def stop(self) -> None:
        """Make no more claims."""
        self._stopped = True

    def _sort(self, seat: Seat) -> None:
        idle = seat.available() > 0
        for queue in (seat.model_queue, seat.version_queue):
            seats = self._idle.get(queue)
            if idle:
                if seats is None:
                    seats = self._idle[queue] = {}
                seats[seat] = None
            elif seats is not None:
                seats.pop(seat, None)
                if not seats:
                    del self._idle[queue]

    @property
    def is_stopped(self) -> bool:
        """Whether no more claims are made."""
        return self._stopped

    def has_idle(self, queues: Iterable[str]) -> bool:
        """Say whether a slot of this node is free for one of the queues: it takes what is put there at once."""
        return not self._stopped and any(queue in self._idle for queue in queues)

    # --- claims inside units of others ---------------------------------------------------------------------------

    def reserve(self, queues: Iterable[str]) -> Seat | None:
        """Promise a free slot that serves one of the queues to a claim; the least recently used seat first."""
        if self._stopped:
            return None
        for queue in queues:
            seats = self._idle.get(queue)
            if seats:
                seat = next(iter(seats))
                del seats[seat]
                seats[seat] = None
                self._promise(seat, 1)
                return seat
        return None

    def reserve_seat(self, seat: Seat) -> bool:
        """Promise a free slot of this seat to a claim; False if it has none."""
        if self._stopped or seat.available() < 1:
            return False
        self._promise(seat, 1)
        return True

    def claim(self, seat: Seat) -> list[Statement]:
        """Return the statements of a claim for a reserved slot; pass the rows they return to `settle`."""
        now = self._clock.wall()
        queues = seat.model_queue, seat.version_queue
        wish = Claim(new_id(now), seat.link.worker, seat.link.epoch, *queues, seat.version, seat.only)
        return store.claim(wish, now)

    def settle(self, seat: Seat, rows: Sequence[list[Row]]) -> Claimed | None:
        """Return the reservation and assign what the claim got."""
        claimed = store.claimed(rows)
        if claimed is not None:
            seat.link.assign(seat.offer, claimed)
        self._returned(seat, 1)
        return claimed

    def cancel(self, seat: Seat) -> None:
        """Return a reservation whose unit did not happen."""
        self._returned(seat, 1)
        self.changed(seat)

    def _promise(self, seat: Seat, slots: int) -> None:
        seat.reserved += slots
        for queue in (seat.model_queue, seat.version_queue):
            self._claiming[queue] += slots
        if seat.available() < 1:
            self._sort(seat)

    def _returned(self, seat: Seat, slots: int) -> None:
        """Note that claims for so many slots are over; what was missed while they were under way is looked for."""
        seat.reserved -= slots
        self._sort(seat)
        for queue in (seat.model_queue, seat.version_queue):
            if queue in self._missed and seat.available() > 0:
                self._missed.discard(queue)
                self._start(seat)
            self._claiming[queue] -= slots
            if not self._claiming[queue]:
                # Nobody is left who could have overlooked anything; who gets free looks anyway.
                del self._claiming[queue]
                self._missed.discard(queue)

    # --- claims on their own -------------------------------------------------------------------------------------

    def wake(self, queues: Iterable[str], seats: int = 1) -> None:
        """Let an idle seat of each of these queues claim (or some), the least recently used first.

        A seat goes on until it is full or the queue is empty, so that one is enough for one new entry; thousands of
        idle workers must not all run for it.
        """
        for queue in queues:
            idle = self._idle.get(queue, {})
            if not idle and queue in self._claiming:
                # Their claims may have looked before the entry was there.
                self._missed.add(queue)
            for seat in list(islice(idle, seats)):
                del idle[seat]
                idle[seat] = None
                self._start(seat)

    async def tick(self) -> float:
        """Wake idle seats whose queues wait, whatever became of the hints; returns the seconds until the next look."""
        if self._idle and not self._stopped:
            waiting = [row[0] for row in await self._db.read("ready_queues")]
            self.wake((queue for queue in waiting if queue in self._idle), _LOOKERS)
        return POLL_S

    def _heard(self, hint: Hint) -> None:
        if hint.channel == CHANNEL_QUEUE:
            self.wake([hint.payload])

    def _start(self, seat: Seat) -> None:
        if self._stopped:
            return
        if seat.filling:
            seat.again = True
            return
        seat.filling = True
        self._spawn(self._fill(seat))

    async def _fill(self, seat: Seat) -> None:
        try:
            while (slots := min(seat.available(), _BATCH)) > 0 and not self._stopped:
                seat.again = False
                if await self._claim_some(seat, slots) < slots and not seat.again:
                    break
        except StoreError as error:
            log.warning("claim failed; trying again with the next look", worker=seat.link.worker, error=str(error))
        finally:
            seat.filling = False

    async def _claim_some(self, seat: Seat, slots: int) -> int:
        """Claim for several slots in one unit; the first claim that finds nothing ends it."""
        self._promise(seat, slots)
        settled = 0
        try:
            statements = [statement for _ in range(slots) for statement in self.claim(seat)]
            rows = await asyncio.shield(self._db.write(*statements))
            got = 0
            for slot in range(slots):
                settled += 1
                part = rows[slot * _STATEMENTS : (slot + 1) * _STATEMENTS]
                got += self.settle(seat, part) is not None
            return got
        finally:
            if settled < slots:
                self._returned(seat, slots - settled)
