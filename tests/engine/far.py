"""A provider that is the test itself, and nodes that have errands there and can be killed at any step."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Raw

from cogflare.domain.ids import new_id, new_key
from cogflare.engine.errands import Errands
from cogflare.engine.files import Files
from cogflare.engine.imports import Imports
from cogflare.engine.live import Live
from cogflare.engine.means import Means, Pace
from cogflare.engine.providers import Provider, Providers, ProviderSettings
from cogflare.engine.routes import Routes
from cogflare.engine.sizes import SIZES
from cogflare.engine.views import PredictionView
from cogflare.protocol.messages import Offer
from cogflare.providers.base import (
    Described,
    File,
    Gone,
    ProviderError,
    Report,
    Sight,
    State,
    Submission,
    Terms,
    Unanswered,
)
from cogflare.store import errands as store
from cogflare.store import fleet
from cogflare.store.base import Database, Hint, Listener, Row, Statement, Unavailable, Value
from cogflare.store.catalog import Caller
from cogflare.store.errands import ErrandRow, NewErrand, Reservation
from engine.rig import VERSION, Rig
from support.memory_blobs import MemoryBlobStore

KEY = "r8_a-key-of-a-test-that-nobody-may-see"


class Bounded(asyncio.Event):
    """An event that fails whoever waits for it in vain."""

    async def wait(self) -> Literal[True]:
        """Wait until it is set, but not for ever."""
        return await asyncio.wait_for(super().wait(), 20)


QUICK = Pace(
    first_s=0.01,
    slowest_s=0.05,
    retry_s=0.01,
    retry_most_s=0.05,
    find_again_s=0.1,
    cancel_again_s=0.2,
    gone_s=0.05,
    lost_s=30.0,
    check_s=0.1,
    call_s=5.0,
    submit_s=5.0,
)


@dataclass
class Run:
    """A run at the provider."""

    id: str
    order: Submission
    state: State = "waiting"
    started: bool = False
    output: bytes | None = None
    logs: str = ""
    error: str | None = None
    run_s: float | None = None
    cost: float | None = None
    cancels: int = 0

    def start(self) -> None:
        self.state, self.started = "running", True

    def succeed(self, output: bytes = b'"done"', run_s: float = 1.5, cost: float | None = 0.003) -> None:
        self.state, self.started, self.output, self.run_s, self.cost = "succeeded", True, output, run_s, cost

    def fail(self, error: str) -> None:
        self.state, self.error, self.run_s = "failed", error, 0.5

    def sight(self) -> Sight:
        output = None if self.output is None else Raw(self.output)
        return Sight(
            self.id, self.state, self.started, output, self.logs, self.error,
            run_s=self.run_s, cost=self.cost, stream="events",
        )  # fmt: skip


class Far:
    """The provider: it outlives every node. `submits` has every order that arrived, answered or not.

    `cancels_at_once`: a run ends with its cancel; else when the test says so. `refuses` are errors of the next calls.
    """

    def __init__(self, *, is_repeatable: bool = False) -> None:
        self.is_repeatable = is_repeatable
        self.runs: dict[str, Run] = {}
        self.submits: list[Submission] = []
        self.cancels_at_once = True
        self.can_tell = True
        self.is_down = False
        self.stale: Callable[[Run], Sight] | None = None
        self.refuses: dict[str, list[ProviderError]] = {}
        self.calls: Counter[str] = Counter()
        self.files: dict[str, bytes] = {}
        self.hints: asyncio.Queue[None] = asyncio.Queue()
        self._numbers = itertools.count(1)
        self._held: dict[str, tuple[asyncio.Event, asyncio.Event]] = {}

    @property
    def only(self) -> Run:
        [run] = self.runs.values()
        return run

    def hold(self, step: str) -> tuple[asyncio.Event, asyncio.Event]:
        """Hold the next call at `before X` or `after X`: (it has come there, let it go on)."""
        self._held[step] = pair = Bounded(), asyncio.Event()
        return pair

    async def gate(self, step: str) -> None:
        pair = self._held.pop(step, None)
        if pair is not None:
            pair[0].set()
            await asyncio.wait_for(pair[1].wait(), 10)

    async def enter(self, call: str) -> None:
        self.calls[call] += 1
        await self.gate(f"before {call}")
        if self.refuses.get(call):
            raise self.refuses[call].pop(0)
        if self.is_down:
            raise Unanswered("connection refused")


class FarExecutor:
    """The way of one node to the provider."""

    def __init__(self, far: Far) -> None:
        self._far = far

    @property
    def is_repeatable(self) -> bool:
        return self._far.is_repeatable

    async def check(self, endpoint: str = "") -> Report:
        return Report(not self._far.is_down, "")

    async def describe(self, model: str, version: str | None, terms: Terms) -> Described:
        raise NotImplementedError

    async def upload(self, name: str, content_type: str, size: int, body: AsyncIterator[bytes]) -> str:
        raise NotImplementedError

    async def submit(self, order: Submission) -> Sight:
        far = self._far
        await far.enter("submit")
        far.submits.append(order)
        known = [run for run in far.runs.values() if run.order.mark == order.mark]
        if known and far.is_repeatable:
            run = known[0]
        else:
            run = Run(f"far-{next(far._numbers)}", order)
            far.runs[run.id] = run
        sight = run.sight()
        await far.gate("after submit")
        if far.refuses.get("after submit"):
            raise far.refuses["after submit"].pop(0)
        return sight

    async def find(self, mark: str, since: int) -> Sight | None:
        far = self._far
        await far.enter("find")
        if not far.can_tell:
            raise Unanswered("there is no list")
        return next((run.sight() for run in far.runs.values() if run.order.mark == mark), None)

    async def poll(self, remote_id: str, terms: Terms) -> Sight:
        await self._far.enter("poll")
        run = self._run(remote_id)
        sight = run.sight() if self._far.stale is None else self._far.stale(run)
        await self._far.gate("after poll")
        return sight

    async def changes(self, sight: Sight, terms: Terms) -> AsyncIterator[None]:
        while True:
            await self._far.hints.get()
            yield

    async def cancel(self, remote_id: str, terms: Terms) -> None:
        await self._far.enter("cancel")
        run = self._run(remote_id)
        run.cancels += 1
        if self._far.cancels_at_once and not run.sight().is_ended:
            run.state = "canceled"
        await self._far.gate("after cancel")

    def is_file(self, text: str) -> bool:
        return text.startswith("https://far.example/")

    async def fetch(self, url: str) -> File:
        await self._far.enter("fetch")
        if url not in self._far.files:
            raise Gone("the file has expired")
        content = self._far.files[url]

        async def body() -> AsyncIterator[bytes]:
            yield content

        return File(url.rsplit("/", 1)[1], "image/png", len(content), body())

    async def aclose(self) -> None:
        pass

    def _run(self, remote_id: str) -> Run:
        if remote_id not in self._far.runs:
            raise Gone("there is no such prediction")
        return self._far.runs[remote_id]


class Mortal:
    """A store as one process has it: answers can be held, units be refused, and all of it ends with the process."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.is_shared = db.is_shared
        self.is_dead = False
        self.is_mute = False
        self.refused: set[str] = set()
        self.lost: set[str] = set()
        self.units: list[list[str]] = []
        self._held: dict[str, tuple[asyncio.Event, asyncio.Event]] = {}

    def hold(self, name: str) -> tuple[asyncio.Event, asyncio.Event]:
        """Hold the next unit or read at `before NAME` or, done but not answered, at NAME."""
        self._held[name] = pair = Bounded(), asyncio.Event()
        return pair

    async def _wait(self, names: Sequence[str]) -> None:
        for name in names:
            pair = self._held.pop(name, None)
            if pair is not None:
                pair[0].set()
                await asyncio.wait_for(pair[1].wait(), 10)
        if self.is_dead:
            raise Unavailable("killed")

    async def read(self, name: str, /, **params: Value) -> list[Row]:
        await self._wait([f"before {name}"])
        if name in self.refused:
            raise Unavailable("refused by the test")
        rows = await self._db.read(name, **params)
        await self._wait([name])
        return rows

    async def write(
        self,
        *statements: Statement,
        hints: Sequence[Hint] = (),
        landed: Statement | None = None,
        yields: bool = False,
    ) -> list[list[Row]]:
        names = [statement.name for statement in statements]
        await self._wait([f"before {name}" for name in names])
        if self.refused.intersection(names):
            raise Unavailable("refused by the test")
        rows = await self._db.write(*statements, hints=hints, landed=landed, yields=yields)
        self.units.append(names)
        await self._wait(names)
        if self.lost.intersection(names):
            raise Unavailable("the answer was lost")
        return rows

    def listen(self, listener: Listener) -> Callable[[], None]:
        return self._db.listen(lambda hint: None if self.is_dead or self.is_mute else listener(hint))

    async def migrate(self) -> None:
        await self._db.migrate()

    async def aclose(self) -> None:
        await self._db.aclose()


class Node(Rig):
    """One process of a server."""

    def __init__(
        self, db: Database, far: Far, blobs: MemoryBlobStore, node: str = "node", pace: Pace = QUICK, **about: Any
    ) -> None:
        self.mortal = Mortal(db)
        super().__init__(self.mortal, node, blobs=blobs, **about)
        self.far = far
        self.blobs = blobs
        self.node = node
        self.others: set[str] = set()
        self.providers = Providers(self.mortal, self.clock, self.vault, lambda kind, url, key: FarExecutor(far))
        self.routes = Routes(self.mortal, self.clock, self.providers)
        files = Files(self.mortal, blobs, self.clock)
        assert self.inputs is not None
        self.imports = Imports(files, self.inputs, blobs, 256 << 10, pauses_s=(0.01,))
        self.callbacks = False
        self.decision = "{}"
        self.means = Means(
            self.mortal,
            self.clock,
            node,
            self.providers,
            self.routes,
            self.predictions,
            self.losses,
            self.imports,
            self.tasks.spawn,
            self.checkpoints.started,
            SIZES,
            lambda mark: f"https://us.example/v1/hooks/{mark}" if self.callbacks else None,
            self._has_other,
            pace,
        )
        self.errands = Errands(self.means, self.dispatcher, about.get("lease_s", 0.8))
        self._loop: asyncio.Task[None] | None = None

    async def _has_other(self, row: ErrandRow) -> bool:
        return row.prediction in self.others

    async def known(self, account: str = "ada") -> Caller:
        """Return a client of an account whose model is known, and whom no worker serves."""
        offer = Offer("ada", "noop", VERSION, 1, UNSET, "0.16.0")
        caller = await self.caller(account)
        await self.catalog.register(caller.account, [offer], self.clock.wall())
        return caller

    async def provider(self, account: str = "ada", **settings: object) -> Provider:
        about = msgspec.convert(settings, ProviderSettings)
        made, _ = await self.providers.put(account, "far", "replicate", None, KEY, about)
        return made

    async def claim(self, caller: Caller, prediction: str, *reservations: Reservation) -> ErrandRow:
        """Give a queued prediction to the provider, as the router does; nobody drives it yet."""
        provider = await self.providers.find(caller.account, "far") or await self.provider(caller.account)
        [row] = await self.db.read("get_prediction", id=prediction)
        attempt, now = row[9], self.clock.wall()
        new = NewErrand(
            prediction,
            attempt,
            caller.account,
            caller.token,
            "ada/noop",
            provider.id,
            "far",
            f"provider:{provider.id}",
            self.node,
            new_id(now),
            new_key(),
            msgspec.json.encode(Terms("ada/noop", VERSION)).decode(),
            self.decision,
            None,
            now,
            100,
        )
        await self.mortal._db.write(*store.claim(new, reservations))
        claimed = await store.get(self.mortal._db, prediction, attempt + 1)
        assert claimed is not None
        return claimed

    async def send(self, caller: Caller, *reservations: Reservation) -> PredictionView:
        """Create a prediction and have it run at the provider."""
        created = await self.create(caller)
        self.errands.start(await self.claim(caller, created.id, *reservations))
        return created

    def begin(self) -> None:
        """Let the roles tick."""
        self._loop = asyncio.create_task(self._roles())

    async def _roles(self) -> None:
        while True:
            for tick in (self.errands.tick, self.checkpoints.tick, self.limits.tick, self.releases.tick):
                with suppress(Unavailable):
                    await tick()
            await asyncio.sleep(0.01)

    async def kill(self) -> None:
        """Die: nothing is written any more, and nothing waits for anything."""
        self.mortal.is_dead = True
        if self._loop is not None:
            self._loop.cancel()
        await self.tasks.settle(0)

    async def halt(self) -> None:
        """End in order, as `Engine.stop` does."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        self.dispatcher.stop()
        await self.errands.stop()
        await self.tasks.settle(5)

    def again(self, **about: Any) -> "Node":
        """Return the next process of the same node."""
        following = Node(self.mortal._db, self.far, self.blobs, self.node, **about)
        following.others = self.others
        return following

    def live(self, prediction: str) -> Live:
        return self.predictions.lives[prediction]

    async def shown(self, caller: Caller, prediction: str) -> PredictionView:
        return await self.predictions.get(caller.account, prediction)

    async def ended(self, caller: Caller, prediction: str) -> PredictionView:
        """Wait until a prediction has ended."""
        found: PredictionView = await self.when(lambda: self._ended(caller, prediction))
        return found

    async def _ended(self, caller: Caller, prediction: str) -> PredictionView | None:
        with suppress(Unavailable):
            found = await self.shown(caller, prediction)
            return found if found.is_ended else None
        return None

    async def over(self, prediction: str, attempt: int = 1) -> ErrandRow:
        """Wait until an errand is over."""

        async def look() -> ErrandRow | None:
            row = await store.get(self.mortal._db, prediction, attempt)
            return row if row is not None and row.is_over else None

        found: ErrandRow = await self.when(look)
        return found

    async def when(self, look: Callable[[], Any]) -> Any:
        """Wait until there is something."""
        async with asyncio.timeout(10):
            while True:
                found = look()
                found = await found if asyncio.iscoroutine(found) else found
                if found:
                    return found
                await asyncio.sleep(0.005)


def budget(client: Caller) -> Reservation:
    """Return what a run takes of a budget."""
    return Reservation(client.account, "account", "", "2026-11", 1_000_000, 10_000)


async def outcomes(node: Node, prediction: str) -> list[tuple[str | None, bool]]:
    """Return how each attempt ended, and whether its slot is free."""
    rows = await fleet.list_attempts(node.mortal._db, prediction)
    return [(row.outcome, row.slot_freed_at is not None) for row in rows]


async def run_of(node: Node, number: int = 1) -> None:
    """Wait until so many runs are at the provider."""
    await node.when(lambda: len(node.far.runs) >= number)


async def with_output(node: Node, client: Caller, prediction: str, output: bytes) -> bool:
    return (await node.shown(client, prediction)).output == output


async def with_status(node: Node, client: Caller, prediction: str, status: str) -> bool:
    return (await node.shown(client, prediction)).status == status


async def is_queued(node: Node, prediction: str) -> bool:
    [row] = await node.mortal._db.read("get_prediction", id=prediction)
    return bool(row[7] == "queued")
