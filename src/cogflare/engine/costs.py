"""What was spent at providers, by whom and for what, and what workers of one's own have saved.

A run of one's own is priced as if the first provider of its model's route had done it: by the prices of the route, else
those of the provider, else by what runs of that model have really cost there in the same time. Where none of these is
known, it is counted and not priced.
"""

from collections.abc import Iterable, Sequence
from typing import Final, Literal, get_args

import msgspec

from cogflare.domain.money import Prices, day_of, dollars, micros
from cogflare.engine.providers import Providers
from cogflare.engine.routes import Routes
from cogflare.store import errands, usage
from cogflare.store.base import Database
from cogflare.store.errands import CostRow

By = Literal["day", "model", "provider", "token"]
BY: Final[tuple[By, ...]] = get_args(By)
_US: Final = 1_000_000


class Line(msgspec.Struct, frozen=True):
    """What was spent on some runs; `unknown` of them have no known cost, and `in_doubt` may not have happened."""

    names: dict[By, str]
    runs: int
    unknown: int
    in_doubt: int
    run_us: int
    cost: int


class Saved(msgspec.Struct, frozen=True):
    """What own workers have run of a model, and its price elsewhere; None: nobody knows one."""

    model: str
    runs: int
    run_us: int
    amount: int | None


class Costs(msgspec.Struct, frozen=True):
    """Some days (from the one of `since` to that before `until`), what was spent in them, and what was saved."""

    since: int
    until: int
    lines: Sequence[Line]
    total: Line
    saved: Sequence[Saved]


class Ledger:
    """Adds up what errands have cost."""

    def __init__(self, db: Database, routes: Routes, providers: Providers) -> None:
        self._db = db
        self._routes = routes
        self._providers = providers

    async def costs(self, account: str, since: int, until: int, by: Sequence[By]) -> Costs:
        """Return the costs of an account from a time to another (exclusive), by day, model, …; days count whole."""
        rows = await errands.costs(self._db, account, since, until)
        total = _sum({}, rows)
        groups: dict[tuple[str, ...], list[CostRow]] = {}
        for row in rows:
            groups.setdefault(tuple(_name(row, name) for name in by), []).append(row)
        lines = [_sum(dict(zip(by, names, strict=True)), groups[names]) for names in sorted(groups)] if by else []
        return Costs(since, until, lines, total, await self._saved(account, since, until, rows))

    async def _saved(self, account: str, since: int, until: int, rows: Sequence[CostRow]) -> list[Saved]:
        """Price what own workers have run."""
        runs: dict[str, list[int]] = {}
        for model, _, count, run_us in await usage.used(self._db, account, day_of(since), day_of(until - 1)):
            own = runs.setdefault(model, [0, 0])
            own[0] += count
            own[1] += run_us
        return [
            Saved(model, count, run_us, await self._price(account, model, count, run_us, rows))
            for model, (count, run_us) in sorted(runs.items())
        ]

    async def _price(self, account: str, model: str, count: int, run_us: int, rows: Sequence[CostRow]) -> int | None:
        prices = await self._prices(account, model) or _experience(row for row in rows if row.model == model)
        if prices is None:
            return None
        return micros((prices.per_run or 0) * count + (prices.per_s or 0) * run_us / _US)

    async def _prices(self, account: str, model: str) -> Prices | None:
        policy = await self._routes.policy(account, model)
        known = await self._providers.all(account)
        for hop in () if policy is None else policy.providers:
            if hop.prices.are_known:
                return hop.prices
            provider = known.get(hop.name)
            if provider is not None:
                prices = Prices(provider.settings.price_per_s, provider.settings.price_per_run)
                if prices.are_known:
                    return prices
        return None


def _name(row: CostRow, by: By) -> str:
    name: str = row.provider_name if by == "provider" else getattr(row, by)
    return name


def _sum(names: dict[By, str], rows: Sequence[CostRow]) -> Line:
    return Line(
        names,
        sum(row.runs for row in rows),
        sum(row.unknown for row in rows),
        sum(row.in_doubt for row in rows),
        sum(row.run_us for row in rows),
        sum(row.cost for row in rows),
    )


def _experience(rows: Iterable[CostRow]) -> Prices | None:
    """Return what a second, or else a run, has cost where all of it is known."""
    known = [row for row in rows if not row.unknown and row.cost]
    cost, run_us, runs = (sum(getattr(row, name) for row in known) for name in ("cost", "run_us", "runs"))
    if not cost:
        return None
    return Prices(per_s=dollars(cost) / (run_us / _US)) if run_us else Prices(per_run=dollars(cost) / runs)
