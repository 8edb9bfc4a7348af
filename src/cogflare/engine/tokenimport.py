"""Tokens of the first Cogflare: each becomes an account with its own secrets, so that bots and workers stay the same.

An entry is taken as a whole, in one unit, or not at all; taking it again changes nothing. What somebody has set here
since (another key, another route) is left alone. No answer, error or log line has a secret in it.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from cogflare.domain.clock import Clock
from cogflare.domain.ids import new_id
from cogflare.domain.policy import parse, render
from cogflare.engine.providers import BASE_URLS, BadProvider, Providers, ProviderSettings, checked_key, hint_of
from cogflare.engine.routes import OF_ACCOUNT
from cogflare.engine.secrets import Sealer
from cogflare.store import catalog, tokenimport
from cogflare.store import providers as provider_store
from cogflare.store import routes as route_store
from cogflare.store.base import Conflict, Database, Hint, Statement
from cogflare.store.catalog import NewToken
from cogflare.store.providers import CHANNEL_ROUTES, ProviderRow
from cogflare.store.tokenimport import KnownToken

NAME: Final = "imported"
"""What the tokens are called."""
PROVIDER: Final = "replicate"
SHORT: Final = 20
"""Characters below which a secret is said to be short."""
MAX_SECRET: Final = 512
_CLASSIC: Final = msgspec.json.encode(render(parse("classic"))).decode()

Outcome = Literal["imported", "known", "skipped", "refused"]


class OldToken(msgspec.Struct, frozen=True):
    """An entry of the old store. `worker` is what workers had in their URL, `replicate` the account's key there."""

    token: str
    worker: str | None = None
    replicate: str | None = None
    is_allowed: bool = False
    has_runpod: bool = False

    def __repr__(self) -> str:
        """Show nothing: all of it is secret."""
        return "OldToken()"


class Taken(msgspec.Struct, frozen=True):
    """What became of an entry: what was `made` for which account, and what has to be said of it."""

    outcome: Outcome
    account: str | None = None
    made: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Unfit(ValueError):
    """An entry cannot be taken; the text says why, without a secret."""


def read(key: str, value: object) -> OldToken:
    """Read an entry as the old store had it: its value is an object, or the JSON text of one. Raises `Unfit`."""
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except (ValueError, RecursionError):
            raise Unfit("its value is not JSON") from None
    if not isinstance(value, Mapping):
        raise Unfit("its value is no object")
    _check_secret("the token", key)
    worker, replicate = _text(value, "worker"), _text(value, "replicate")
    if worker is not None:
        _check_secret("its worker secret", worker)
    if worker == key:
        raise Unfit("its worker secret is the token itself: one secret cannot be both, change it in the file")
    if replicate is not None:
        try:
            replicate = checked_key(replicate)
        except BadProvider as error:
            raise Unfit(f"its Replicate key cannot be one: {error}") from None
    return OldToken(key, worker, replicate, value.get("allow") is True, _text(value, "runpod") is not None)


def _text(value: Mapping[Any, Any], name: str) -> str | None:
    found = value.get(name)
    if found is not None and not isinstance(found, str):
        raise Unfit(f"its {name} is no text")
    return found or None


def _check_secret(what: str, secret: str) -> None:
    """Raise `Unfit` for what cannot come in a header or a URL."""
    if not secret or len(secret) > MAX_SECRET or not (secret.isascii() and secret.isprintable()) or " " in secret:
        raise Unfit(f"{what} is not 1 to {MAX_SECRET} printable characters of ASCII, without blanks")


def account_of(old: OldToken) -> str:
    """Return the name of an entry's account, always the same: tokens with one worker secret had one queue."""
    digest = hashlib.sha256(b"account of 2022: " + (old.worker or old.token).encode()).hexdigest()
    return f"old-{digest[:12]}"


class TokenImport:
    """Takes entries of the old store."""

    def __init__(self, db: Database, clock: Clock, sealer: Sealer, providers: Providers) -> None:
        self._db = db
        self._clock = clock
        self._sealer = sealer
        self._providers = providers

    async def take(
        self, key: str, value: object, account: str | None = None, *, check: bool = False, is_rehearsal: bool = False
    ) -> Taken:
        """Take an entry, into the account of that name if one is given; a rehearsal only says what would be done.

        With `check` Replicate is asked whether its key works; one that does not is stored all the same.
        """
        try:
            old = read(key, value)
            if not old.is_allowed:
                return Taken("skipped", notes=("it was not allowed to do anything",))
            taken = await self._take(old, account, is_rehearsal)
        except Unfit as error:
            return Taken("refused", notes=(str(error),))
        if check and old.replicate is not None and not is_rehearsal and taken.account is not None:
            return msgspec.structs.replace(taken, notes=(*taken.notes, await self._checked(taken.account)))
        return taken

    async def _take(self, old: OldToken, account: str | None, is_rehearsal: bool) -> Taken:
        while True:
            draft = await _Draft.open(self._db, self._clock.wall(), old, account)
            await draft.add_tokens(old)
            if old.replicate is not None:
                await draft.add_provider(old.replicate, self._sealer)
            if old.has_runpod:
                draft.notes.append("its RunPod key was left out: add it with the endpoint that it is for")
            if is_rehearsal or not draft.made:
                return draft.taken()
            try:
                await self._db.write(*draft.unit, hints=[Hint(CHANNEL_ROUTES, draft.account)])
            except Conflict:
                # Somebody has made the account or one of the tokens just now.
                continue
            return draft.taken()

    async def _checked(self, username: str) -> str:
        account = await catalog.find_account(self._db, username)
        provider = None if account is None else await self._providers.find(account.id, PROVIDER)
        return "" if provider is None else f"Replicate: {(await self._providers.check(provider)).text}"


class _Draft:
    """The unit that takes one entry, as it is put together."""

    def __init__(self, db: Database, now: int, account: str, username: str) -> None:
        self.account = account
        self.unit: list[Statement] = []
        self.made: list[str] = []
        self.notes: list[str] = []
        self._db = db
        self._now = now
        self._username = username

    @classmethod
    async def open(cls, db: Database, now: int, old: OldToken, account: str | None) -> "_Draft":
        """Find the account of an entry, or begin a new one; raises `Unfit` where its secrets are somebody else's."""
        known = await _known(db, "the token", old.token, ("api", "admin"))
        worker = None if old.worker is None else await _known(db, "its worker secret", old.worker, ("worker",))
        names = {found.username for found in (known, worker) if found is not None} | ({account} if account else set())
        if len(names) > 1:
            raise Unfit(
                f"its secrets, or the name given for it, are of more than one account: {', '.join(sorted(names))}"
            )
        username = names.pop() if names else account_of(old)
        found = await catalog.find_account(db, username)
        draft = cls(db, now, new_id(now) if found is None else found.id, username)
        if found is None:
            draft.made.append("account")
        draft.unit += [
            catalog.new_account(draft.account, username, now),
            Statement("account_is", {"id": draft.account, "username": username}, needs="row"),
        ]
        return draft

    async def add_tokens(self, old: OldToken) -> None:
        """Add the secrets that are not known yet, as tokens."""
        for kind, secret, what in (("api", old.token, "the token"), ("worker", old.worker, "its worker secret")):
            if secret is None:
                continue
            if len(secret) < SHORT:
                self.notes.append(f"{what} is short, and may be guessed: replace it when you can")
            if await tokenimport.find(self._db, _digest(secret)) is not None:
                continue
            hash, hint = _digest(secret), hint_of(secret)
            token = NewToken(new_id(self._now), self._username, kind, NAME, hash, hint, self._now)
            self.unit.append(msgspec.structs.replace(catalog.new_token(token), needs="row"))
            self.made.append(f"{kind} token")

    async def add_provider(self, key: str, sealer: Sealer) -> None:
        """Add Replicate with the account's key, and the route that overflows to it, where there is none of either."""
        known = await provider_store.find(self._db, self.account, PROVIDER)
        if known is None:
            settings, now = msgspec.json.encode(ProviderSettings()).decode(), self._now
            sealed, url = sealer.seal(key.encode()), BASE_URLS["replicate"]
            about = new_id(now), self.account, PROVIDER, "replicate", url, sealed, hint_of(key), settings
            self.unit.append(provider_store.putting(ProviderRow(*about, None, None, now, now)))
            self.made.append("provider")
        elif not known.sealed or sealer.open(known.sealed).decode() != key:
            self.notes.append(f"the account has another key for {PROVIDER}, which was kept")
        routes = {row.model: row.policy for row in await route_store.list_of(self._db, self.account)}
        if OF_ACCOUNT not in routes:
            self.unit += route_store.putting(self.account, OF_ACCOUNT, _CLASSIC, self._now, routed=True)
            self.made.append("route")
        elif routes[OF_ACCOUNT] != _CLASSIC:
            self.notes.append("the account has a route of its own, which was kept")

    def taken(self) -> Taken:
        """Return what the unit does."""
        return Taken("imported" if self.made else "known", self._username, tuple(self.made), tuple(self.notes))


async def _known(db: Database, what: str, secret: str, kinds: tuple[str, ...]) -> KnownToken | None:
    """Return the token that has this secret; raises `Unfit` for one that is no use any more, or for something else."""
    found = await tokenimport.find(db, _digest(secret))
    if found is None:
        return None
    if found.revoked_at is not None:
        raise Unfit(f"{what} was revoked here, and stays so")
    if found.kind not in kinds:
        raise Unfit(f"{what} is a token of the kind {found.kind} here already")
    return found


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
