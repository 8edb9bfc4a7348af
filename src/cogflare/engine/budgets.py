"""Budgets: what may be spent at providers by an account, a token, a model, or one place of a route, a day or a month.

What a run takes is reserved in the unit that sends it away, and replaced by its cost when that is known. Each run is
noted where no budget holds too, so that a budget that is set later knows what was spent before.
"""

from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from cogflare.domain.clock import Clock
from cogflare.domain.errors import NotFound
from cogflare.domain.money import Period, shown, since_of
from cogflare.domain.policy import Hop
from cogflare.store import budgets as store
from cogflare.store.base import Database
from cogflare.store.budgets import BudgetRow, Held
from cogflare.store.catalog import has_token
from cogflare.store.errands import Reservation

Scope = Literal["account", "token", "model"]
PERIODS: Final[tuple[Period, ...]] = ("day", "month")
UNLIMITED: Final = 2**53 - 1
"""What is left where nobody has set a budget."""
_KEPT_S: Final = 0.5
_KEPT: Final = 1_000

_Amounts = dict[tuple[str, str, str], int]
_Helds = dict[tuple[str, str, str], Held]
_NOTHING: Final = Held(0, False)


class Budget(msgspec.Struct, frozen=True):
    """A budget and what is gone of it, in millionths of a dollar; `since` is the day or month that is counted.

    `spent` includes what is only `reserved`, by runs that are not over.
    """

    scope: str
    ref: str
    period: str
    amount: int
    spent: int
    reserved: int
    since: str
    changed_at: int


class Share(msgspec.Struct, frozen=True):
    """What a run at a provider is counted in; `limit` is None where no budget holds."""

    scope: str
    ref: str
    since: str
    period: str
    limit: int | None


class Exhausted(msgspec.Struct, frozen=True):
    """Which budget does not cover another run; `is_passing`: only as long as the cost of others is not known."""

    text: str
    is_passing: bool


class Book(msgspec.Struct, frozen=True):
    """The budgets of an account, and what was spent of each and only reserved, as they were a moment ago."""

    account: str
    limits: dict[tuple[str, str, str], int]
    spent: dict[tuple[str, str, str], int]
    reserved: dict[tuple[str, str, str], Held]

    def shares(self, token: str, model: str, route: str, hop: Hop, now: int) -> Iterator[Share]:
        """Yield all that a run counts in: `route` is the model whose route it follows, empty for the account's."""
        for scope, ref in (("account", ""), ("token", token), ("model", model)):
            for period in PERIODS:
                yield Share(scope, ref, since_of(period, now), period, self.limits.get((scope, ref, period)))
        for period in PERIODS:
            yield Share("provider", f"{route}>{hop.name}", since_of(period, now), period, hop.budgets.get(period))

    def exhausted(
        self, token: str, model: str, route: str, hop: Hop, estimate: int | None, now: int
    ) -> Exhausted | None:
        """Say which budget does not cover another run, None if all do; an unknown `estimate` fits into any rest."""
        found = None
        for share in self.shares(token, model, route, hop, now):
            if share.limit is None:
                continue
            place = (share.scope, share.ref, share.since)
            spent, (reserved, has_rest) = self.spent.get(place, 0), self.reserved.get(place, _NOTHING)
            # An estimate that is not known fits wherever anything is left, but one at a time.
            is_taken = has_rest and estimate is None
            if not is_taken and spent + (1 if estimate is None else estimate) <= share.limit:
                continue
            is_passing = estimate is None and spent - reserved < share.limit
            if found is None or not is_passing:
                found = Exhausted(_told(share, hop.name, spent, reserved, estimate), is_passing)
            if not is_passing:
                break
        return found


class Budgets:
    """Sets budgets, says what is left of them, and what a run has to reserve."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._books: dict[str, tuple[float, Book]] = {}

    async def put(self, account: str, scope: Scope, ref: str, period: Period, amount: int) -> Budget:
        """Set a budget in millionths of a dollar; it counts what was spent before too. Raises `NotFound` of a token."""
        if scope == "token" and not await has_token(self._db, account, ref):
            raise NotFound
        now = self._clock.wall()
        await store.put(self._db, account, BudgetRow(scope, ref, period, amount, now))
        self._books.pop(account, None)
        since = since_of(period, now)
        place = (scope, ref, since)
        spent, reserved = await self._gone(account, now)
        return Budget(scope, ref, period, amount, spent.get(place, 0), reserved.get(place, _NOTHING).amount, since, now)

    async def all(self, account: str) -> list[Budget]:
        """Return all budgets of an account with what was spent of them: its own first, then by scope and name."""
        now = self._clock.wall()
        rows = await store.list_of(self._db, account)
        spent, reserved = await self._gone(account, now)
        found = []
        for row in sorted(rows, key=lambda row: (row.scope, row.ref, row.period)):
            since = since_of("month" if row.period == "month" else "day", now)
            place = (row.scope, row.ref, since)
            gone, held = spent.get(place, 0), reserved.get(place, _NOTHING).amount
            found.append(Budget(row.scope, row.ref, row.period, row.amount, gone, held, since, row.changed_at))
        return found

    async def remove(self, account: str, scope: Scope, ref: str, period: Period) -> None:
        """Remove a budget; raises `NotFound`."""
        if not await store.remove(self._db, account, scope, ref, period):
            raise NotFound
        self._books.pop(account, None)

    async def reservations(
        self, account: str, token: str, model: str, route: str, hop: Hop, estimate: int | None, now: int
    ) -> list[Reservation]:
        """Return what a run reserves: its estimate, or all that is left of a budget where it cannot be estimated."""
        book = await self._read(account, now)
        return [
            Reservation(account, share.scope, share.ref, share.since, UNLIMITED, estimate or 0)
            if share.limit is None
            else Reservation(account, share.scope, share.ref, share.since, share.limit, estimate)
            for share in book.shares(token, model, route, hop, now)
        ]

    async def exhausted(
        self, account: str, token: str, model: str, route: str, hop: Hop, estimate: int | None, now: int
    ) -> Exhausted | None:
        """Say which budget does not cover another run, None if all do; what was spent is half a second old at most."""
        return (await self.book(account, now)).exhausted(token, model, route, hop, estimate, now)

    async def book(self, account: str, now: int) -> Book:
        """Return the budgets of an account and what is gone of them, half a second old at most."""
        kept = self._books.get(account)
        if kept is not None and kept[0] > self._clock.monotonic():
            return kept[1]
        book = await self._read(account, now)
        if len(self._books) >= _KEPT:
            self._books.clear()
        self._books[account] = (self._clock.monotonic() + _KEPT_S, book)
        return book

    def forget(self, account: str) -> None:
        """Read what is spent anew when it is next asked for: something was reserved or paid."""
        self._books.pop(account, None)

    async def _read(self, account: str, now: int) -> Book:
        rows = await store.list_of(self._db, account)
        limits = {(row.scope, row.ref, row.period): row.amount for row in rows}
        return Book(account, limits, *await self._gone(account, now))

    async def _gone(self, account: str, now: int) -> tuple[_Amounts, _Helds]:
        """Return what is spent or reserved in this day and month, and what of it is reserved."""
        spent = await store.spent(self._db, account, [since_of(period, now) for period in PERIODS])
        return spent, await store.reserved(self._db, account)


def _told(share: Share, provider: str, spent: int, reserved: int, estimate: int | None) -> str:
    owner = {
        "account": "the account's budget",
        "token": "the budget of this token",
        "model": f"the budget of {share.ref}",
        "provider": f"the budget that the route gives to {provider}",
    }[share.scope]
    parts = [f"{shown(spent - reserved)} of it is spent"]
    if reserved:
        parts.append(f"{shown(reserved)} is reserved by runs that go on")
    if estimate is not None:
        parts.append(f"a run costs about {shown(estimate)}")
    again = f"the next {share.period} begins at 00:00 UTC"
    if estimate is not None and estimate > (share.limit or 0):
        again = "it covers none at all"
    limit = f"{shown(share.limit or 0)} a {share.period}"
    return f"{owner} of {limit} does not cover another run: {', '.join(parts)}; {again}"
