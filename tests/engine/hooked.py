"""An engine whose webhooks go out for real, to receivers on loopback, by a clock that tests can move."""

import asyncio
import dataclasses
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cogflare.api import predictions as api
from cogflare.api.wire import Links
from cogflare.engine.announcements import Announcements
from cogflare.engine.deliveries import Deliveries
from cogflare.engine.hosts import Hosts
from cogflare.engine.links import Fleet
from cogflare.engine.predictions import Order
from cogflare.engine.secrets import Signer
from cogflare.engine.service import Checkpoints, Tasks
from cogflare.engine.views import PredictionView
from cogflare.engine.webhooks import Courier, Render, Terms
from cogflare.net.addresses import Reach
from cogflare.net.outgoing import Outgoing
from cogflare.protocol.messages import AttemptKey
from cogflare.store import deliveries
from cogflare.store.base import Database
from cogflare.store.catalog import Caller
from cogflare.store.deliveries import Delivery
from engine.rig import MovableClock, Rig, RigWorker
from support.web import serving

ORIGIN = "https://api.example.net"


class Receiver:
    """An HTTP server that takes webhooks: what came, and what it answers."""

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.answer: Callable[[], Response] = Response
        self.gate = asyncio.Event()
        self.gate.set()
        self.came = asyncio.Event()
        self.open = 0
        self.takes_s = 0.0
        self.most_open = 0
        self.url = ""
        self.overlaps: list[str] = []
        self._open_of: set[str] = set()

    @property
    def events(self) -> list[tuple[str, str]]:
        """What came, as status and id, in order."""
        return [(body["status"], id) for id, body in self.got]

    @property
    def ids(self) -> Counter[str]:
        return Counter(id for id, _ in self.got)

    async def take(self, request: Request) -> Response:
        body = await request.body()
        self.bodies.append(body)
        self.got.append((request.headers["webhook-id"], json.loads(body)))
        self.headers.append(dict(request.headers))
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        prediction = self.got[-1][1]["id"]
        if prediction in self._open_of:
            self.overlaps.append(prediction)
        self._open_of.add(prediction)
        self.came.set()
        try:
            await self.gate.wait()
            await asyncio.sleep(self.takes_s)
        finally:
            self.open -= 1
            self._open_of.discard(prediction)
        return self.answer()

    async def wait(self, count: int) -> None:
        """Wait until so many messages have come."""
        async with asyncio.timeout(10):
            while len(self.got) < count:
                self.came.clear()
                await self.came.wait()


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    """Serve a receiver."""
    made = Receiver()
    app = Starlette(routes=[Route("/{path:path}", made.take, methods=["POST"])])
    async with serving(app) as url:
        made.url = f"{url}/hook"
        try:
            yield made
        finally:
            made.gate.set()


async def render(view: PredictionView, origin: str | None) -> bytes:
    return api.render(view, Links(origin or ""), "webhook")


class Hooked(Rig):
    """One node that delivers."""

    def __init__(
        self, db: Database, *, timeout_s: float = 5.0, clock: MovableClock | None = None, render: Render = render
    ) -> None:
        self.moved = clock or MovableClock()
        super().__init__(db, clock=self.moved)
        self.outgoing = Outgoing(Reach.of(["127.0.0.0/8"]), timeout_s)
        self.hosts = Hosts(self.clock)
        terms = Terms(timeout_s)
        self.courier = Courier(db, self.clock, self.outgoing, Signer(self.secrets), self.hosts)
        same = db, self.clock, self.courier, self.hosts, render, terms, Tasks()
        self.deliveries = Deliveries(*same)
        self.announcements = Announcements(*same, self.predictions.lives, self.deliveries.look_at)
        self.checkpoints = Checkpoints(db, self.predictions, self.tasks.spawn, self.announcements.committed)
        # The rig's own told nobody.
        self.ground = dataclasses.replace(self.ground, started=self.checkpoints.started)
        self.fleet = Fleet(self.ground, self.accounts)

    async def hooked(self, caller: Caller, url: str, events: list[str] | None = None) -> str:
        """Create a prediction with a webhook and return its id."""
        text = None if events is None else json.dumps(events)
        order = Order(b"{}", {}, "ada/noop", None, url, text, webhook_origin=ORIGIN)
        return (await self.predictions.create(caller, order)).id

    async def run(self, worker: RigWorker, caller: Caller, url: str, events: list[str] | None = None) -> str:
        """Create a prediction with a webhook, run it at once, and return its id."""
        id = await self.hooked(caller, url, events)
        work = await worker.next()
        assert work.prediction == id
        assert await worker.finish(await worker.start(work)) == "committed"
        return id

    async def begin(self, worker: RigWorker, caller: Caller, url: str, events: list[str] | None = None) -> AttemptKey:
        """Create a prediction with a webhook and begin to run it."""
        id = await self.hooked(caller, url, events)
        work = await worker.next()
        assert work.prediction == id
        return await worker.start(work)

    async def tell(self) -> None:
        """Commit what is live, tell of it, and wait until nothing is under way."""
        await self.checkpoints.tick()
        await self.announcements.tick()
        await self.deliveries.settle()

    async def deliver(self) -> None:
        """Look once for what is due, and wait until nothing is under way."""
        await self.deliveries.settle()
        await self.deliveries.tick()
        await self.deliveries.settle()

    def pass_by(self, seconds: float) -> None:
        """Let time pass at once."""
        self.moved.wall_ahead_s += seconds
        self.moved.ahead_s += seconds

    async def pass_to_next(self, caller: Caller) -> float:
        """Let time pass until the first message is due, and its host too; returns the seconds that took."""
        due = [row.next_try_at for row in await self.log(caller, state="pending") if row.next_try_at is not None]
        seconds = max(0.0, (min(due) - self.clock.wall()) / 1e6) + 0.001 if due else 0.0
        self.pass_by(seconds)
        return seconds

    async def log(self, caller: Caller, **filters: Any) -> list[Delivery]:
        """Return the deliveries of an account, newest first."""
        return await deliveries.page(self.db, deliveries.Query(caller.account, **filters))

    async def aclose(self) -> None:
        await self.deliveries.stop(1)
        await self.outgoing.aclose()


@asynccontextmanager
async def hooked(db: Database, **options: Any) -> AsyncIterator[tuple[Hooked, Caller, RigWorker]]:
    """Open a node that delivers, with a caller and a worker."""
    rig = Hooked(db, **options)
    try:
        yield rig, await rig.caller("ada"), await rig.worker(slots=20)
    finally:
        await rig.aclose()


def dead_url() -> str:
    """Return a URL at which nobody listens."""
    return "http://127.0.0.1:9/hook"
