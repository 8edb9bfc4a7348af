"""Secrets of accounts: made when first asked for, stored sealed, replaced on request; and signatures with them."""

import secrets as randomness
from contextlib import suppress
from typing import Final, Protocol

import msgspec

from cogflare.domain.clock import Clock
from cogflare.domain.ids import new_id
from cogflare.domain.signatures import SECRET_BYTES, signed_headers
from cogflare.store import secrets as store
from cogflare.store.base import Conflict, Database, Hint
from cogflare.store.secrets import CHANNEL_ROTATED, SecretRow

WEBHOOKS: Final = "webhooks"
FILES: Final = "files"
OVERLAP_S: Final = 86_400.0
"""How long the secret before the last rotation counts beside the new one."""
_CACHE_S: Final = 5.0
_CACHE_SIZE: Final = 10_000


class Sealer(Protocol):
    """Seals what only servers with the same key may read."""

    def seal(self, content: bytes) -> str:
        """Return the content sealed."""
        ...

    def open(self, sealed: str) -> bytes:
        """Return what was sealed."""
        ...


class Secret(msgspec.Struct, frozen=True):
    """A secret that counts; `expires_at` (microseconds) is None for the one in use."""

    id: str
    key: bytes
    created_at: int
    expires_at: int | None


class Secrets:
    """Finds, makes and rotates the secrets of accounts; those found are remembered for a few seconds."""

    def __init__(self, db: Database, clock: Clock, sealer: Sealer) -> None:
        self._db = db
        self._clock = clock
        self._sealer = sealer
        self._cache: dict[tuple[str, str], tuple[float, list[Secret]]] = {}
        db.listen(self._heard)

    async def secret(self, account: str, purpose: str) -> bytes:
        """Return the secret in use, made if there is none."""
        return (await self.valid(account, purpose))[0].key

    async def valid(self, account: str, purpose: str) -> list[Secret]:
        """Return all that count: the one in use, and for a while the one before it."""
        cached = self._cache.get((account, purpose))
        if cached is None or cached[0] <= self._clock.monotonic():
            return await self.look(account, purpose)
        now = self._clock.wall()
        return [secret for secret in cached[1] if secret.expires_at is None or secret.expires_at > now]

    async def look(self, account: str, purpose: str) -> list[Secret]:
        """Return all that count as the store has them at this moment."""
        now = self._clock.wall()
        rows = await store.find_secrets(self._db, account, purpose, now)
        if not rows:
            sealed = self._sealer.seal(randomness.token_bytes(SECRET_BYTES))
            await store.add_first_secret(self._db, account, purpose, sealed, now)
            rows = await store.find_secrets(self._db, account, purpose, now)
        found = [self._opened(row) for row in rows]
        if len(self._cache) >= _CACHE_SIZE:
            self._cache.clear()
        self._cache[(account, purpose)] = (self._clock.monotonic() + _CACHE_S, found)
        return found

    async def rotate(self, account: str, purpose: str) -> list[Secret]:
        """Put a new secret in use and return what counts now: it, and for `OVERLAP_S` the one before it."""
        current = (await self.look(account, purpose))[0]
        now = self._clock.wall()
        # A clock that was set back must not make an id that sorts before the one in use.
        id = max(new_id(now), f"{current.id}0")
        sealed = self._sealer.seal(randomness.token_bytes(SECRET_BYTES))
        expires_at = now + int(OVERLAP_S * 1_000_000)
        with suppress(Conflict):  # somebody else rotated in the same moment, which is as good
            await store.replace_secret(
                self._db, account, purpose, current.id, id=id, sealed=sealed, now=now, expires_at=expires_at
            )
        return await self.look(account, purpose)

    def _opened(self, row: SecretRow) -> Secret:
        return Secret(row.id, self._sealer.open(row.sealed), row.created_at, row.expires_at)

    def _heard(self, hint: Hint) -> None:
        if hint.channel == CHANNEL_ROTATED:
            for purpose in (WEBHOOKS, FILES):
                self._cache.pop((hint.payload, purpose), None)


class Signer:
    """Signs webhooks with every secret of the account that counts, so that a rotation breaks no receiver."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets

    async def headers(self, account: str, id: str, timestamp_s: int, body: bytes) -> dict[str, str]:
        """Return the headers that say which message it is, when it was signed, and the signatures."""
        keys = [secret.key for secret in await self._secrets.valid(account, WEBHOOKS)]
        return signed_headers(keys, id, timestamp_s, body)
