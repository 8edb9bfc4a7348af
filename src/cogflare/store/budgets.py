"""What may be spent at providers, and what is: typed functions over named queries.

Money is in millionths of a dollar. Reserving and settling are statements of an errand's units (`errands.py`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from cogflare.store.base import Database, Hint, Statement
from cogflare.store.providers import CHANNEL_ROUTES


class BudgetRow(msgspec.Struct, frozen=True):
    """What an account, a token or a model (`ref`) may spend in a day or a month."""

    scope: str
    ref: str
    period: str
    amount: int
    changed_at: int


class Held(NamedTuple):
    """What runs that go on have reserved of a budget; `has_rest`: one of them has all that was left then."""

    amount: int
    has_rest: bool


async def put(db: Database, account: str, row: BudgetRow) -> None:
    """Set a budget."""
    fields = {"account": account, **msgspec.structs.asdict(row)}
    await db.write(Statement("put_budget", fields), hints=[Hint(CHANNEL_ROUTES, account)])


async def list_of(db: Database, account: str) -> list[BudgetRow]:
    """Return the budgets of an account."""
    return [BudgetRow(*row) for row in await db.read("list_budgets", account=account)]


async def remove(db: Database, account: str, scope: str, ref: str, period: str) -> bool:
    """Remove a budget; False if there is none."""
    place = {"account": account, "scope": scope, "ref": ref, "period": period}
    [gone] = await db.write(Statement("remove_budget", place), hints=[Hint(CHANNEL_ROUTES, account)])
    return bool(gone)


async def spent(db: Database, account: str, since: Sequence[str]) -> dict[tuple[str, str, str], int]:
    """Return what is spent or reserved in these days and months, by scope, ref and day or month."""
    rows = await db.read("spent", account=account, since=msgspec.json.encode(since).decode())
    return {(scope, ref, day): amount for scope, ref, day, amount in rows}


async def reserved(db: Database, account: str) -> dict[tuple[str, str, str], Held]:
    """Return what of that is only reserved, by errands that are not over."""
    rows = await db.read("reserved", account=account)
    return {(scope, ref, since): Held(amount, bool(is_rest)) for scope, ref, since, amount, is_rest in rows}
