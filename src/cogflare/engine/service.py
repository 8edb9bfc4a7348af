"""Start, run and stop of the engine: one loop drives every periodic role; tasks of links and claims are kept here."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any, Protocol

import structlog

from cogflare.engine.links import Fleet
from cogflare.engine.live import Live, commit, commit_all, gather
from cogflare.engine.predictions import Predictions
from cogflare.engine.streams import Streams
from cogflare.engine.waiters import Waiters
from cogflare.store import fleet
from cogflare.store.base import Database, Statement, StoreError

CHECKPOINT_S = 0.5
REST_S = 0.05  # until the next unit, where one could not hold all
START_S = 0.03
FLIGHTS_S = 2.0  # for messages that are under way to webhooks when the node stops
_NAMED = 20  # predictions that a stop names in the log

log = structlog.get_logger()

Tick = Callable[[], Awaitable[float]]


class Tasks:
    """Background tasks: kept until they end; an error in one is logged and harms nobody else."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine in the background."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def settle(self, timeout_s: float) -> int:
        """Wait for the tasks under way; returns how many did not end in time (they are cancelled)."""
        clock = asyncio.get_running_loop().time
        due = clock() + timeout_s
        while self._tasks and (left_s := due - clock()) > 0:
            await asyncio.wait(set(self._tasks), timeout=left_s)
        left = list(self._tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        return len(left)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, StoreError):
            log.warning("the store refused; polling will try again", error=str(error))
        elif error is not None:
            log.error("task failed", exc_info=error)


class Checkpoints:
    """Commits the live data of running attempts: one unit a tick for all that changed, of a bounded size.

    A start is committed sooner than the next tick, because clients see it only then; but not at once: a run that is
    over within that moment needs no unit of its own for it. `announce` hears of what is durable and has a webhook.
    """

    def __init__(
        self,
        db: Database,
        predictions: Predictions,
        spawn: Callable[[Coroutine[Any, Any, None]], Any],
        announce: Callable[[Live], None] | None = None,
    ) -> None:
        self._db = db
        self._predictions = predictions
        self._spawn = spawn
        self._announce = announce
        self._is_due = False
        self._behind: dict[Live, None] = {}

    def started(self) -> None:
        """Note that an attempt has begun."""
        if not self._is_due:
            self._is_due = True
            self._spawn(self._commit_starts())

    async def _commit_starts(self) -> None:
        await asyncio.sleep(START_S)
        self._is_due = False
        await self._commit([live for live in self._predictions.lives.values() if not live.committed_start])

    async def tick(self) -> float:
        """Commit what is new, or as much of it as a unit may hold; returns the seconds until the next look."""
        await self._commit(self._predictions.lives.values())
        return REST_S if self._behind else CHECKPOINT_S

    async def _commit(self, lives: Iterable[Live]) -> None:
        async with self._predictions.saving:
            current, behind = self._predictions.lives, self._behind
            first = [live for live in behind if current.get(live.prediction) is live]
            others = [live for live in lives if live not in behind]
            dirty = [live for live in (*first, *others) if live.started_at is not None and not live.ending]
            portions = gather(dirty)
            served = {portion.live for portion in portions}
            taken = await commit(self._db, portions) if portions else []
            if self._announce is not None:
                for portion in taken:
                    if portion.live.hook is not None:
                        self._announce(portion.live)
            # Those who got nothing come first in the next unit, then those who got a part.
            waiting = [live for live in dirty if live not in served and live.is_dirty()]
            self._behind = dict.fromkeys([*waiting, *(portion.live for portion in taken if not portion.is_rest)])


class Outbox(Protocol):
    """What delivers messages, and has a way to stop of its own."""

    async def stop(self, limit_s: float) -> None:
        """Wait for what is under way, but not longer than this."""
        ...


class Runs(Protocol):
    """What drives runs at providers."""

    async def stop(self) -> None:
        """Drive nothing any more, within a bound; the runs go on there."""
        ...


class Engine:
    """The running engine of one node: starts and stops its roles, each within a bound.

    `node` None: there is no other, so whatever the store calls connected was connected to this one.
    """

    def __init__(
        self,
        db: Database,
        node: str | None,
        links: Fleet,
        predictions: Predictions,
        waiters: Waiters,
        tasks: Tasks,
        ticks: Mapping[str, Tick],
        streams: Streams | None = None,
        outbox: Outbox | None = None,
        errands: Runs | None = None,
    ) -> None:
        self._db = db
        self._node = node
        self._links = links
        self._predictions = predictions
        self._waiters = waiters
        self._tasks = tasks
        self._ticks = ticks
        self._streams = streams
        self._outbox = outbox
        self._errands = errands
        self._loops: list[asyncio.Task[None]] = []
        self.is_stopping = False

    async def start(self, now: int) -> None:
        """Repair what the last run of this node left, and start the periodic roles."""
        rows = await self._db.write(Statement("release_node", {"node": self._node, "now": now}))
        if rows[0]:
            workers = {worker for (worker,) in rows[0]}
            running = [live for live in await fleet.live_attempts(self._db) if live.holder in workers]
            what = "the last run did not end in order; its workers are away until they come back"
            log.warning(what, workers=len(workers), running=len(running))
        self._loops = [asyncio.create_task(_run(name, tick), name=name) for name, tick in self._ticks.items()]

    async def stop(self, limit_s: float) -> None:
        """Stop in order: no claims, answer waiters, tell agents, save live data. Twice is harmless."""
        if self.is_stopping:
            return
        self.is_stopping = True
        self._links.stop()
        self._waiters.wake_all()
        if self._streams is not None:
            self._streams.stop()
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        flying = None if self._outbox is None else asyncio.ensure_future(self._outbox.stop(min(limit_s, FLIGHTS_S)))
        if self._errands is not None:
            await self._errands.stop()
        left = await self._tasks.settle(limit_s)
        if flying is not None:
            await flying
        lives = list(self._predictions.lives.values())
        try:
            async with self._predictions.saving:
                await commit_all(self._db, lives)
        except StoreError as error:
            log.error("live data not saved; the agents have it", error=str(error))
        if lives:
            some = [live.prediction for live in lives[:_NAMED]]
            log.info("predictions run on at their workers until the server is back", running=len(lives), some=some)
        if left:
            log.warning("work did not end in time and was given up", tasks=left)
        log.info("stopped")


async def _run(name: str, tick: Tick) -> None:
    while True:
        try:
            pause = await tick()
        except StoreError as error:
            log.warning("store refused a periodic role", role=name, error=str(error))
            pause = 1.0
        except Exception:
            log.exception("periodic role failed", role=name)
            pause = 1.0
        await asyncio.sleep(pause)
