"""What bringing tokens in from another store has to know: typed functions over named queries."""

import msgspec

from cogflare.store.base import Database


class KnownToken(msgspec.Struct, frozen=True):
    """Whose a secret is, of whatever kind; revoked ones too."""

    account: str
    username: str
    kind: str
    revoked_at: int | None


async def find(db: Database, digest: str) -> KnownToken | None:
    """Return the token of a secret by its hash."""
    rows = await db.read("token_of_secret", hash=digest)
    return KnownToken(*rows[0]) if rows else None
