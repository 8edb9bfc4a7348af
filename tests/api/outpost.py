"""A node whose account may use providers, behind an HTTP client; what stands for a provider is written down here."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2

from api.node import BASE, Node
from cogflare.api import admin, explain, money, providers, tokenimport
from cogflare.api import predictions as jobs
from cogflare.api import routes as policies
from cogflare.api.gateway import Gateway
from cogflare.api.routing import Application, table
from cogflare.domain.ids import new_id, new_key
from cogflare.engine.budgets import Budgets
from cogflare.engine.costs import Ledger
from cogflare.engine.explain import Explanations
from cogflare.engine.figures import FleetFigures
from cogflare.engine.forecasts import Forecasts
from cogflare.engine.providers import Providers
from cogflare.engine.receipts import Receipts
from cogflare.engine.routes import Routes
from cogflare.engine.tokenimport import TokenImport
from cogflare.providers.base import Denied, Described, File, Report, Sight, Submission, Terms
from cogflare.store import errands
from cogflare.store.base import Database
from cogflare.store.errands import ErrandRow, NewErrand

GOOD_KEY = "r8_a-key-that-works-0123456789"


class Service:
    """A provider of which only the door is there: it knows one key, and runs nothing."""

    is_repeatable = True

    def __init__(self, kind: str, base_url: str, key: str) -> None:
        self.kind, self.base_url, self.key = kind, base_url, key

    async def check(self, endpoint: str = "") -> Report:
        if endpoint:
            return Report(True, f"the key works, and {endpoint} has no workers", workers=0)
        if self.key == GOOD_KEY:
            return Report(True, "the key works", account="acme")
        return Report(False, "the key is not known there", is_denied=True)

    async def describe(self, model: str, version: str | None, terms: Terms) -> Described:
        raise Denied("nothing runs here")

    async def upload(self, name: str, content_type: str, size: int, body: AsyncIterator[bytes]) -> str:
        raise Denied("nothing runs here")

    async def submit(self, order: Submission) -> Sight:
        raise Denied("nothing runs here")

    async def find(self, mark: str, since: int) -> Sight | None:
        return None

    async def poll(self, remote_id: str, terms: Terms) -> Sight:
        raise Denied("nothing runs here")

    async def changes(self, sight: Sight, terms: Terms) -> AsyncIterator[None]:
        return
        yield

    async def cancel(self, remote_id: str, terms: Terms) -> None:
        return None

    def is_file(self, text: str) -> bool:
        return False

    async def fetch(self, url: str) -> File:
        raise Denied("nothing runs here")

    async def aclose(self) -> None:
        return None


class Bells:
    """Hears of marks."""

    def __init__(self) -> None:
        self.marks: list[str] = []

    def heard(self, mark: str) -> None:
        self.marks.append(mark)


class Outpost(Node):
    """A node with providers, routes, budgets and reasons."""

    def __init__(self, db: Database, folder: Path) -> None:
        super().__init__(db, folder)
        self.services: list[Service] = []
        self.providers = Providers(db, self.clock, self.vault, self._open)
        self.routes = Routes(db, self.clock, self.providers)
        self.budgets = Budgets(db, self.clock)
        self.bells = Bells()
        receipts = Receipts(db, self.clock, self.predictions)
        figures = FleetFigures(db, self.clock)
        explanations = Explanations(db, self.clock, self.predictions, figures, Forecasts(db, self.clock, figures), None)
        routes = [
            *jobs.routes(self.api, explanations),
            *providers.routes(self.api, self.providers),
            *policies.routes(self.api, self.routes),
            *money.routes(self.api, self.budgets, Ledger(db, self.routes, self.providers)),
            *explain.routes(receipts, self.bells),
            *admin.routes(self.api),
            *tokenimport.routes(TokenImport(db, self.clock, self.vault, self.providers)),
        ]
        app = Application(self.api, table(routes), Gateway(self.fleet))
        self.http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url=BASE)

    def _open(self, kind: str, base_url: str, key: str) -> Service:
        self.services.append(Service(kind, base_url, key))
        return self.services[-1]

    async def add(self, name: str = "replicate", account: str = "ada", **fields: Any) -> dict[str, Any]:
        """Add a provider whose key works."""
        order = {"kind": "replicate", "key": GOOD_KEY, **fields}
        answer = await self.call("PUT", f"/v1/providers/{name}", account, json=order)
        assert answer.status_code in (200, 201), answer.text
        added: dict[str, Any] = answer.json()
        return added

    async def ask(self, method: str, path: str, account: str = "ada", **options: Any) -> Any:
        """Send a request that has to succeed; return its JSON, None for an empty answer."""
        answer = await self.call(method, f"/v1{path}", account, **options)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    async def send_away(self, estimate: int | None = None, route: str = "", provider: str = "replicate") -> ErrandRow:
        """Give a new prediction of ada's to her provider, as the router does, and return its errand."""
        ada = await self.caller("ada")
        created = await self.create(ada)
        row = await self.predictions.row(ada.account, created.id)
        policy = await self.routes.policy(ada.account, row.model)
        found = await self.providers.find(ada.account, provider)
        assert policy is not None
        assert found is not None
        hop = policy.hop(provider)
        assert hop is not None
        now = self.clock.wall()
        new = NewErrand(
            row.id, row.attempt, ada.account, row.token, row.model, found.id, provider, f"provider:{found.id}", "node",
            new_id(now), new_key(), "{}", '{"code":"overflow","text":"no_workers"}', None, now, 100,
        )  # fmt: skip
        reservations = await self.budgets.reservations(ada.account, row.token, row.model, route, hop, estimate, now)
        await self.db.write(*errands.claim(new, reservations))
        errand = await errands.get(self.db, row.id, row.attempt + 1)
        assert errand is not None
        return errand

    async def settle_errand(self, errand: ErrandRow, cost: int | None, run_s: float = 1.0, **how: bool) -> None:
        """End an errand at a cost in millionths of a dollar."""
        statements = errands.settle(errand, now=self.clock.wall(), cost=cost, run_us=int(run_s * 1e6), **how)
        await self.db.write(*statements)
