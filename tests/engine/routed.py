"""An engine with routes, on a real store, and providers that are told what to say; what goes there is only noted."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from cogflare.engine.budgets import Budgets
from cogflare.engine.discovery import Discovery
from cogflare.engine.figures import FleetFigures
from cogflare.engine.predictions import Order
from cogflare.engine.providers import Provider, Providers, ProviderSettings
from cogflare.engine.router import Router
from cogflare.engine.routes import Routes
from cogflare.engine.views import PredictionView
from cogflare.providers.base import Described, File, ProviderError, Refused, Report, Sight, Submission, Terms
from cogflare.store import errands, routing
from cogflare.store.base import Database, Row, Value
from cogflare.store.catalog import Caller
from cogflare.store.errands import ErrandRow
from engine.rig import MovableClock, Rig

FAR_VERSION = "f" * 64
PLANTED = "r8_a_key_that_must_never_be_seen_0123456789"


@dataclass
class Scripted:
    """A provider that has what `versions` says, newest last, of any model in `models` (None: of all)."""

    kind: str
    base_url: str
    key: str
    models: set[str] | None = None
    versions: list[str] = field(default_factory=lambda: [FAR_VERSION])
    schema: bytes | None = None
    error: ProviderError | None = None
    report: Report = field(default_factory=lambda: Report(True, "it works"))
    asked: list[tuple[str, str | None, Terms]] = field(default_factory=list)
    gate: asyncio.Event | None = None
    is_closed: bool = False

    @property
    def is_repeatable(self) -> bool:
        return True

    async def check(self, endpoint: str = "") -> Report:
        return self.report

    async def describe(self, model: str, version: str | None, terms: Terms) -> Described:
        self.asked.append((model, version, terms))
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        if self.models is not None and terms.model not in self.models:
            raise Refused(f"there is no model {terms.model}")
        if version is not None and version not in self.versions:
            raise Refused(f"there is no version {version}")
        owner, _, name = model.partition("/")
        found = version or self.versions[-1]
        exact = msgspec.structs.replace(terms, version=found)
        return Described(owner, name, found, self.schema, "0.16.0", exact)

    async def upload(self, name: str, content_type: str, size: int, body: AsyncIterator[bytes]) -> str:
        raise NotImplementedError

    async def submit(self, order: Submission) -> Sight:
        raise NotImplementedError

    async def find(self, mark: str, since: int) -> Sight | None:
        raise NotImplementedError

    async def poll(self, remote_id: str, terms: Terms) -> Sight:
        raise NotImplementedError

    async def changes(self, sight: Sight, terms: Terms) -> AsyncIterator[None]:
        for _ in ():
            yield

    async def cancel(self, remote_id: str, terms: Terms) -> None:
        raise NotImplementedError

    def is_file(self, text: str) -> bool:
        return False

    async def fetch(self, url: str) -> File:
        raise NotImplementedError

    async def aclose(self) -> None:
        self.is_closed = True


class Counted:
    """A database that counts what is read."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.reads: list[str] = []

    async def read(self, name: str, /, **params: Value) -> list[Row]:
        self.reads.append(name)
        return await self._db.read(name, **params)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)


class Routed:
    """A rig whose predictions may go to providers. `sent` has the errands that were begun."""

    def __init__(self, db: Database, node: str = "node", **options: Any) -> None:
        self.sent: asyncio.Queue[ErrandRow] = asyncio.Queue()
        self.opened: list[Scripted] = []
        self.clock = MovableClock()
        self.rig = Rig(db, node, router=self._router, clock=self.clock, **options)
        self.db = db

    def _router(self, rig: Rig) -> Router:
        self.providers = Providers(rig.db, rig.clock, rig.vault, self._open)
        self.routes = Routes(rig.db, rig.clock, self.providers)
        self.budgets = Budgets(rig.db, rig.clock)
        self.figures = FleetFigures(rig.db, rig.clock)
        self.discovery = Discovery(rig.clock, rig.catalog, self.routes, self.providers)
        self.router = Router(
            rig.db, rig.clock, "node", self.routes, self.providers, self.figures, self.budgets, self.discovery,
            rig.dispatcher, rig.tasks.spawn, self.sent.put_nowait,
        )  # fmt: skip
        return self.router

    def _open(self, kind: str, base_url: str, key: str) -> Scripted:
        self.opened.append(Scripted(kind, base_url, key))
        return self.opened[-1]

    async def provider(
        self, client: Caller, name: str = "far", settings: ProviderSettings | None = None
    ) -> tuple[Provider, Scripted]:
        """Set a provider up."""
        put = self.providers.put(client.account, name, "cogflare", f"https://{name}.test/v1", PLANTED, settings)
        provider, _ = await put
        executor = self.providers.executor(provider)
        assert isinstance(executor, Scripted)
        return provider, executor

    async def create(
        self, client: Caller, wish: object = None, *, model: str = "ada/noop", version: str | None = None, hops: int = 0
    ) -> PredictionView:
        """Create a prediction with an empty input, and a wish if one is given."""
        text = None if wish is None else msgspec.json.encode(wish).decode()
        return await self.rig.predictions.create(client, Order(b"{}", {}, model, version, route=text, hops=hops))

    async def gone(self, prediction: PredictionView) -> ErrandRow:
        """Return the errand of a prediction that has gone to a provider, as the next one that was begun."""
        async with asyncio.timeout(5):
            sent = await self.sent.get()
        assert sent.prediction == prediction.id
        return sent

    async def look(self) -> None:
        """Let the router look at all that waits, and wait until it has."""
        await self.router.tick()
        await self.rig.settle()

    def later(self) -> None:
        """Make everything that is remembered for a while forgotten."""
        self.clock.ahead_s += 10.0

    async def queues(self, client: Caller, model: str = "ada/noop") -> list[str | None]:
        """Return the queue of each routed prediction that waits."""
        return [one.queue for one in await routing.candidates(self.db, client.account, model)]

    async def over(self, errand: ErrandRow, cost: int | None) -> None:
        """Settle an errand."""
        unit = errands.settle(errand, now=self.rig.clock.wall(), cost=cost, run_us=1_000_000)
        await self.db.write(*unit)
