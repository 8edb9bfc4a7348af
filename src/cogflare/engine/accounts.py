"""Tokens and the accounts they speak for. Secrets are stored as SHA-256 of 160 random bits and shown once."""

import hashlib
from typing import Final

import msgspec

from cogflare.domain.clock import Clock
from cogflare.domain.errors import NotFound
from cogflare.domain.ids import new_id, new_key
from cogflare.store import catalog as store
from cogflare.store.base import Database, Hint, Statement
from cogflare.store.catalog import Caller, NewToken, TokenRow

CACHE_S = 5.0
CHANNEL_REVOKED = "token_revoked"
_CACHE_SIZE = 10_000
_PREFIXES = {"admin": "cfa_", "api": "cft_", "worker": "cfw_"}


class Created(msgspec.Struct, frozen=True):
    """A new token; `secret` is not kept anywhere."""

    id: str
    kind: str
    account: str
    name: str
    secret: str


class Limits(msgspec.Struct, frozen=True):
    """What a worker token is limited to: models, and how many workers may be connected with it; None: to nothing."""

    models: tuple[str, ...] | None = None
    max_connections: int | None = None


NO_LIMITS: Final = Limits()


class Accounts:
    """Finds callers by token (cached for a few seconds) and makes and revokes tokens."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._cache: dict[str, tuple[float, Caller]] = {}
        db.listen(self._heard)

    async def caller(self, secret: str) -> Caller | None:
        """Return who this token speaks for, or None if it is unknown, revoked or expired."""
        now = self._clock.monotonic()
        cached = self._cache.get(secret)
        if cached is None or cached[0] <= now:
            found = await store.find_token(self._db, _digest(secret))
            if found is None:
                self._cache.pop(secret, None)
                return None
            if len(self._cache) >= _CACHE_SIZE:
                self._cache.clear()
            cached = self._cache[secret] = (now + CACHE_S, found)
        caller = cached[1]
        return None if caller.expires_at is not None and caller.expires_at <= self._clock.wall() else caller

    async def create(
        self,
        username: str,
        kind: str,
        name: str,
        expires_at: int | None = None,
        secret: str | None = None,
        limits: Limits = NO_LIMITS,
    ) -> Created | None:
        """Make a token for the account of that name (made too, if new). None if exactly this secret exists already."""
        now = self._clock.wall()
        secret = secret or _PREFIXES[kind] + new_key()
        about = new_id(now), username, kind, name, _digest(secret), secret[:8], now, expires_at
        token = NewToken(*about, limits.models, limits.max_connections)
        added = await store.add_token(self._db, new_id(now), token)
        return Created(token.id, kind, username, name, secret) if added else None

    async def list(self, account: str | None, after: str, limit: int) -> list[TokenRow]:
        """Return tokens by id, of one account or (None) of all."""
        return await store.list_tokens(self._db, account, after, limit)

    async def get(self, token: str) -> TokenRow:
        """Return a token; raises `NotFound`."""
        row = await store.get_token(self._db, token)
        if row is None:
            raise NotFound
        return row

    async def revoke(self, token: str, account: str | None) -> None:
        """Revoke a token at once on this node, and on others as soon as they hear of it; raises `NotFound`."""
        statement = Statement("revoke_token", {"id": token, "account": account, "now": self._clock.wall()})
        rows = await self._db.write(statement, hints=[Hint(CHANNEL_REVOKED, token)])
        if not rows[0]:
            raise NotFound

    async def is_valid(self, token: str) -> bool:
        """Say whether the token of that id still counts."""
        return bool(await self._db.read("token_is_valid", id=token, now=self._clock.wall()))

    async def ensure_admin(self, secret: str | None) -> Created | None:
        """See to it that an admin token exists: the configured one, or on the first start a new one, returned once."""
        if secret is None and await store.has_admin(self._db, self._clock.wall()):
            return None
        return await self.create("admin", "admin", "first start" if secret is None else "configured", secret=secret)

    def _heard(self, hint: Hint) -> None:
        if hint.channel == CHANNEL_REVOKED:
            stale = [secret for secret, (_, caller) in self._cache.items() if caller.token == hint.payload]
            for secret in stale:
                del self._cache[secret]


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()
