"""Where the predictions of an account may run: typed functions over named queries.

What goes on is marked in the unit that changes a route: `routed` says whether a provider may run it.
"""

import msgspec

from cogflare.store.base import Database, Hint, Statement, Value
from cogflare.store.providers import CHANNEL_ROUTES


class RouteRow(msgspec.Struct, frozen=True):
    """The route of a model (owner/name), or of all that have none of their own (empty); `policy` is JSON text."""

    model: str
    policy: str
    changed_at: int


async def put(db: Database, account: str, model: str, policy: str, now: int, routed: bool) -> None:
    """Set a route; `routed` says whether it names a provider."""
    await db.write(*putting(account, model, policy, now, routed), hints=[Hint(CHANNEL_ROUTES, account)])


def putting(account: str, model: str, policy: str, now: int, routed: bool) -> list[Statement]:
    """Return the statements of `put`."""
    fields: dict[str, Value] = {"account": account, "model": model, "policy": policy, "routed": int(routed), "now": now}
    return [Statement("put_route", fields), _marking(account, model)]


async def remove(db: Database, account: str, model: str) -> bool:
    """Remove a route; False if there is none."""
    place = {"account": account, "model": model}
    gone, _ = await db.write(
        Statement("remove_route", place), _marking(account, model), hints=[Hint(CHANNEL_ROUTES, account)]
    )
    return bool(gone)


async def list_of(db: Database, account: str) -> list[RouteRow]:
    """Return the routes of an account, by model: its own first."""
    return [RouteRow(*row) for row in await db.read("list_routes", account=account)]


def _marking(account: str, model: str) -> Statement:
    return Statement("mark_routed", {"account": account, "model": model})
