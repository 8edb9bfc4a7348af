"""Hosted services that run predictions of an account with its own key: typed functions over named queries."""

from typing import Final, Literal

import msgspec

from cogflare.store.base import Database, Hint, Row, Statement, Value

CHANNEL_ROUTES: Final = "routes"
"""Tells that providers, routes or budgets of an account have changed; the payload is the account."""


class ProviderRow(msgspec.Struct, frozen=True):
    """A provider as stored. `sealed` is its key, `hint` the key's first characters, `settings` JSON text.

    Nothing is sent there until `paused_until`, for the reason given.
    """

    id: str
    account: str
    name: str
    kind: str
    base_url: str
    sealed: str
    hint: str
    settings: str
    paused_until: int | None
    pause_reason: str | None
    created_at: int
    changed_at: int


async def put(db: Database, row: ProviderRow) -> ProviderRow:
    """Write a provider, or change the account's one of that name, which keeps its id and is paused no more."""
    [rows] = await db.write(putting(row), hints=[Hint(CHANNEL_ROUTES, row.account)])
    return ProviderRow(*rows[0])


def putting(row: ProviderRow) -> Statement:
    """Return the statement of `put`."""
    fields = msgspec.structs.asdict(row)
    del fields["paused_until"], fields["pause_reason"]
    return Statement("put_provider", fields)


async def get(db: Database, id: str) -> ProviderRow | None:
    """Return the provider of that id."""
    return _first(await db.read("get_provider", id=id))


async def find(db: Database, account: str, name: str) -> ProviderRow | None:
    """Return the account's provider of that name."""
    return _first(await db.read("find_provider", account=account, name=name))


async def list_of(db: Database, account: str) -> list[ProviderRow]:
    """Return the providers of an account, by name."""
    return [ProviderRow(*row) for row in await db.read("list_providers", account=account)]


async def exist(db: Database) -> bool:
    """Say whether any account has a provider, or anything waits for one that is gone."""
    return bool(await db.read("has_providers"))


async def remove(db: Database, account: str, name: str) -> Literal["removed", "busy", "unknown"]:
    """Remove a provider, unless it is busy: what it still runs needs its key."""
    place = {"account": account, "name": name}
    # Under the lock that claims take, so that none comes in between.
    _, rows = await db.write(
        Statement("lock_flows", {}), Statement("remove_provider", place), hints=[Hint(CHANNEL_ROUTES, account)]
    )
    if rows:
        return "removed"
    return "unknown" if await find(db, account, name) is None else "busy"


async def pause(db: Database, id: str, until: int, reason: str, now: int) -> None:
    """Send nothing there until a time; a longer pause that is under way stands."""
    row = await get(db, id)
    if row is not None:
        fields: dict[str, Value] = {"id": id, "until": until, "reason": reason, "now": now}
        await db.write(Statement("pause_provider", fields), hints=[Hint(CHANNEL_ROUTES, row.account)])


async def resume(db: Database, id: str) -> None:
    """End a pause."""
    row = await get(db, id)
    if row is not None:
        await db.write(Statement("resume_provider", {"id": id}), hints=[Hint(CHANNEL_ROUTES, row.account)])


def _first(rows: list[Row]) -> ProviderRow | None:
    return ProviderRow(*rows[0]) if rows else None
