"""Creates that may be repeated: typed functions over named queries.

A "key" is what a client called a create; a "retry" is a create of a client that marks its repetitions by a number only.
"""

from typing import Literal

import msgspec

from cogflare.store.base import Database, Statement, Value

Kind = Literal["key", "retry"]


class Known(msgspec.Struct, frozen=True):
    """What a key was used for."""

    fingerprint: str
    prediction: str


async def find_key(db: Database, account: str, key: str, since: int) -> Known | None:
    """Return what the account used the key for after `since` (microseconds)."""
    rows = await db.read("find_key", account=account, key=key, since=since)
    return Known(*rows[0]) if rows else None


def keep_key(account: str, key: str, known: Known, now: int, since: int) -> Statement:
    """Return the statement that binds a key to a prediction; `Conflict` says it was used after `since`."""
    fields = {"account": account, "key": key, "fingerprint": known.fingerprint, "prediction": known.prediction}
    return Statement("keep_key", {**fields, "now": now, "since": since}, needs="row")


def forget_key(account: str, key: str, prediction: str) -> Statement:
    """Return the statement that frees a key, if it is still bound to this prediction."""
    return Statement("forget_key", {"account": account, "key": key, "prediction": prediction})


def keep_retry(account: str, known: Known, number: int, now: int) -> Statement:
    """Return the statement that lets later repetitions find a create; itself it was repetition `number` (0: none)."""
    fields = {"account": account, "fingerprint": known.fingerprint, "prediction": known.prediction}
    return Statement("keep_retry", {**fields, "attached": number, "now": now})


async def attach_retry(db: Database, account: str, fingerprint: str, number: int, now: int, since: int) -> str | None:
    """Return the create that repetition `number` belongs to; each meets a number only once.

    Only a create that came, or was last repeated, after `since`.
    """
    fields: dict[str, Value] = {"account": account, "fingerprint": fingerprint, "attached": number}
    rows = await db.write(Statement("attach_retry", {**fields, "now": now, "since": since}))
    return str(rows[0][0][0]) if rows[0] else None


async def prune(db: Database, kind: Kind, before: int, limit: int) -> int:
    """Forget up to `limit` of what is older; returns how many there were."""
    rows = await db.write(Statement("prune_idempotency", {"kind": kind, "cutoff": before, "limit": limit}))
    return len(rows[0])
