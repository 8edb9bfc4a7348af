"""Errands of a node: starts them, beats for as long as there are any, and takes over what nobody drives any more.

A node takes over its own errands when it starts, and those of another when that has not beaten for a whole lease of
this node's monotonic clock. The epoch is the fence: whoever drove an errand before can write nothing about it any
more. A crash is no loss: the run goes on at the provider, and is not submitted again.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final

import structlog

from cogflare.engine.batches import each
from cogflare.engine.dispatcher import Dispatcher
from cogflare.engine.errand import Errand
from cogflare.engine.means import Means
from cogflare.protocol.messages import AttemptKey
from cogflare.providers.base import Sight
from cogflare.store import errands as store
from cogflare.store.base import Hint, StoreError
from cogflare.store.errands import ErrandRow

CHANNEL_ERRAND: Final = "errand"
BEAT_S: Final = 5.0
LOOK_S: Final = 0.5
IDLE_S: Final = 2.0
STOP_S: Final = 5.0  # for what has to be known of a run that is being made when the node stops
_LOOKS: Final = 8  # for what nobody drives, in a lease
_PASSING: Final = 100  # marks that are asked for at a time, since anybody may send one
_GAP_S: Final = 5.0  # between two looks: longer than that, this node itself stood still

log = structlog.get_logger()


class Errands:
    """The errands that this node drives. `dispatcher` says where a worker waits; `lease_s` is of other nodes."""

    def __init__(self, means: Means, dispatcher: Dispatcher, lease_s: float = 60.0) -> None:
        self._means = means
        self._db = means.db
        self._node = means.node
        self._now = means.clock.monotonic
        self._dispatcher = dispatcher
        self._lease_s = lease_s
        self._driven: dict[AttemptKey, Errand] = {}
        self._tasks: dict[AttemptKey, asyncio.Task[None]] = {}
        self._marks: dict[str, Errand] = {}
        self._given_up: set[AttemptKey] = set()
        self._undriven: set[AttemptKey] = set()
        self._beats: dict[str, tuple[int, float]] = {}
        self._passing: set[str] = set()
        self._has_begun = False
        self._is_stopping = False
        self._beat_at = self._look_at = float("-inf")
        self._looked_at = self._now()
        self._db.listen(self._heard)

    @property
    def sights(self) -> dict[str, Sight]:
        """What the providers show of the predictions that this node has there, by prediction."""
        return {errand.row.prediction: errand.sight for errand in self._driven.values() if errand.sight is not None}

    @property
    def words(self) -> dict[str, str]:
        """What keeps predictions from being submitted that this node has for providers, by prediction."""
        return {errand.row.prediction: errand.word for errand in self._driven.values() if errand.word is not None}

    def start(self, row: ErrandRow) -> None:
        """Drive an errand that was just made, by this node."""
        self._drive(row, is_new=True)

    def heard(self, mark: str) -> None:
        """Take the word of a provider that something happened to a run; whoever drives it looks there."""
        errand = self._marks.get(mark)
        if errand is not None:
            errand.look()
        elif self._db.is_shared and len(self._passing) < _PASSING and not self._is_stopping:
            self._passing.add(mark)
            self._means.spawn(self._pass_on(mark))

    async def tick(self) -> float:
        """Beat, take over what nobody drives, and take back what waits in vain; returns the seconds until the next."""
        now = self._now()
        gap_s, self._looked_at = now - self._looked_at, now
        if gap_s > _GAP_S:
            self._beats.clear()
        try:
            if not self._has_begun:
                await self._begin()
            if self._driven and self._db.is_shared and now >= self._beat_at:
                await store.beat(self._db, self._node)
                self._beat_at = now + min(BEAT_S, self._lease_s / _LOOKS)
            if now >= self._look_at:
                await self._look(now)
                self._look_at = now + self._lease_s / _LOOKS
        except StoreError:
            # While the store refuses, nobody can beat.
            self._beats.clear()
            raise
        await self._take_back()
        return LOOK_S if self._driven else min(IDLE_S, self._lease_s / _LOOKS)

    async def stop(self) -> None:
        """Drive nothing any more; what runs at providers goes on there, and is taken over later. Twice is harmless."""
        self._is_stopping = True
        delicate = []
        for key, task in list(self._tasks.items()):
            errand = self._driven[key]
            errand.halt()
            if errand.is_delicate:
                delicate.append(task)
            else:
                task.cancel()
        tasks = list(self._tasks.values())
        if delicate:
            await asyncio.wait(delicate, timeout=STOP_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if tasks:
            log.info("runs go on at their providers until a server is back", running=len(tasks))

    # --- errands ---------------------------------------------------------------------------------------------------

    def _drive(self, row: ErrandRow, *, is_new: bool) -> None:
        if self._is_stopping or row.key in self._driven:
            return
        errand = self._driven[row.key] = Errand(self._means, row, self._rouse, is_new=is_new)
        self._marks[row.mark] = errand
        self._tasks[row.key] = self._means.spawn(errand.run())
        self._tasks[row.key].add_done_callback(lambda task: self._driven_to_its_end(errand))

    def _driven_to_its_end(self, errand: Errand) -> None:
        key = errand.key
        del self._driven[key], self._tasks[key]
        if self._marks.get(errand.row.mark) is errand:
            del self._marks[errand.row.mark]
        if errand.is_lost:
            self._given_up.add(key)

    def _rouse(self, provider: str) -> None:
        """Let all look that wait, ever longer, for an answer of a provider."""
        for errand in self._driven.values():
            if errand.row.provider == provider and errand.is_silent:
                errand.look()

    async def _begin(self) -> None:
        """Take over what the last run of this node left; alone on a store, whatever that was called."""
        rows = await store.open_of(self._db, self._node if self._db.is_shared else None)
        taken = await self._take_over(rows)
        self._has_begun = True
        if taken:
            log.warning("runs of the last process are taken over", running=taken)

    async def _take_over(self, rows: Iterable[ErrandRow]) -> int:
        return await each(rows, self._take_one)

    async def _take_one(self, row: ErrandRow) -> bool:
        if row.key in self._driven or self._is_stopping:
            return False
        taken = await store.take_over(self._db, row.key, row.epoch, self._node)
        if taken is not None:
            self._drive(taken, is_new=False)
        return taken is not None

    async def _look(self, now: float) -> None:
        """Take over what a node has left that does not beat any more, and what of this node's own nobody drives."""
        rows = await store.open_of(self._db, None)
        beats = await store.nodes(self._db) if self._db.is_shared and rows else {}
        dead = self._dead({row.node for row in rows} - {self._node}, beats, now)
        undriven = {row.key for row in rows if row.node == self._node} - self._driven.keys() - self._given_up
        self._given_up.intersection_update({row.key for row in rows})
        # One that has just been made is not driven yet.
        wanted = [row for row in rows if row.node in dead or row.key in undriven & self._undriven]
        self._undriven = undriven
        taken = await self._take_over(wanted)
        if taken:
            log.warning("runs that nobody looked after are taken over", running=taken, nodes=sorted(dead))
        for row in rows:
            errand = self._driven.get(row.key)
            if errand is not None and errand.epoch < row.epoch:
                errand.doubt()

    def _dead(self, nodes: Iterable[str], beats: Mapping[str, int], now: float) -> set[str]:
        """Return the nodes whose beats have not moved for a whole lease of watching them."""
        known, self._beats = self._beats, {}
        for node in nodes:
            count = beats.get(node, 0)
            seen, since = known.get(node, (count, now))
            self._beats[node] = (count, since if seen == count else now)
        return {node for node, (_, since) in self._beats.items() if now - since >= self._lease_s}

    # --- workers ---------------------------------------------------------------------------------------------------

    async def _take_back(self) -> None:
        """Let idle workers have what waits at providers, for each queue one after the other."""
        cold = [errand for errand in self._driven.values() if errand.is_cold]
        if not cold:
            return
        busy: set[str] = set()
        for errand in self._driven.values():
            if errand.is_taken_back:
                busy.update(await errand.own_queues())
        for errand in cold:
            queues = await errand.own_queues()
            if queues and not busy.intersection(queues) and self._dispatcher.has_idle(queues):
                busy.update(queues)
                errand.take_back()

    # --- hints -----------------------------------------------------------------------------------------------------

    async def _pass_on(self, mark: str) -> None:
        """Tell the node that drives the errand."""
        try:
            row = await store.by_mark(self._db, mark)
            if row is not None and not row.is_over:
                await self._db.write(hints=[Hint(CHANNEL_ERRAND, mark)])
        finally:
            self._passing.discard(mark)

    def _heard(self, hint: Hint) -> None:
        if hint.channel == CHANNEL_ERRAND:
            errand = self._marks.get(hint.payload)
            if errand is not None:
                errand.look()
