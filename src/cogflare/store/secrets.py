"""Sealed secrets of accounts, and the fingerprint of the key they are sealed with: functions over named queries."""

from typing import Final

import msgspec

from cogflare.store.base import Database, Hint, Statement, Value

CHANNEL_ROTATED: Final = "secret_rotated"
_FIRST: Final = "0"


class SecretRow(msgspec.Struct, frozen=True):
    """A secret that counts; `expires_at` is null for the one in use, of which there is one."""

    id: str
    sealed: str
    created_at: int
    expires_at: int | None


async def find_secrets(db: Database, account: str, purpose: str, now: int) -> list[SecretRow]:
    """Return the secrets of a purpose that count, the one in use first."""
    return [SecretRow(*row) for row in await db.read("find_secrets", account=account, purpose=purpose, now=now)]


async def add_first_secret(db: Database, account: str, purpose: str, sealed: str, now: int) -> None:
    """Store the first secret of a purpose, unless another node was first."""
    values: dict[str, Value] = {"account": account, "purpose": purpose, "id": _FIRST, "sealed": sealed, "now": now}
    await db.write(Statement("insert_secret", values))


async def replace_secret(
    db: Database, account: str, purpose: str, current: str, *, id: str, sealed: str, now: int, expires_at: int
) -> None:
    """Put a new secret in use; the `current` one counts until `expires_at`, those before it no more.

    Raises `Conflict` where `current` is not in use any more.
    """
    place = {"account": account, "purpose": purpose}
    await db.write(
        Statement("retire_secret", {**place, "id": current, "expires_at": expires_at}, "row"),
        Statement("remove_older_secrets", {**place, "kept": current}),
        Statement("insert_secret", {**place, "id": id, "sealed": sealed, "now": now}),
        hints=[Hint(CHANNEL_ROTATED, account)],
    )


async def fingerprint(db: Database) -> str | None:
    """Return the fingerprint of the key that the secrets are sealed with, None before the first."""
    rows = await db.read("get_fingerprint")
    return rows[0][0] if rows else None


async def remember_fingerprint(db: Database, value: str) -> str:
    """Store the fingerprint, unless there is one, and return the one that holds."""
    await db.write(Statement("set_fingerprint", {"fingerprint": value}))
    return (await fingerprint(db)) or value


async def forget_secrets(db: Database) -> int:
    """Remove all secrets, the keys of providers too, and the fingerprint of their key; return how many there were.

    Providers stay, paused until they are given their keys again.
    """
    secrets, keys, _ = await db.write(
        Statement("remove_secrets", {}), Statement("remove_provider_keys", {}), Statement("remove_fingerprint", {})
    )
    return len(secrets) + len(keys)
