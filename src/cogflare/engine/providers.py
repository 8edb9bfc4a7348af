"""Hosted providers of accounts: what is stored of them, the executors that speak to them, and their pauses.

A key is stored sealed, opened only for its executor, and never shown again. Rows are remembered for a few seconds.
"""

from collections.abc import Callable
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

import msgspec
import structlog
from msgspec import Meta

from cogflare.domain.clock import Clock
from cogflare.domain.errors import NotFound, RequestError
from cogflare.domain.ids import new_id
from cogflare.domain.money import Prices
from cogflare.domain.policy import PRESETS, is_provider_name
from cogflare.engine.secrets import Sealer
from cogflare.providers.base import Denied, Executor, Report
from cogflare.store import providers as store
from cogflare.store.base import Database, Hint
from cogflare.store.predictions import FAR_FUTURE
from cogflare.store.providers import CHANNEL_ROUTES, ProviderRow

Kind = Literal["replicate", "cogflare", "runpod"]
KINDS: Final[tuple[Kind, ...]] = ("replicate", "cogflare", "runpod")
BASE_URLS: Final[dict[str, str]] = {
    "replicate": "https://api.replicate.com/v1",
    "runpod": "https://api.runpod.ai/v2",
}
"""Where the services themselves are; a Cogflare is wherever its owner put it."""
CACHE_S: Final = 5.0
_CACHE_SIZE: Final = 4_096
_RETIRED_S: Final = 3600.0  # after which nobody uses the executor of an older key any more
_MOST_RETIRED: Final = 1_000
_HINT_CHARS: Final = 4
_LOST: Final = "its key was lost with the secret_key of the server; give it again"
_MAX_KEY_CHARS: Final = 4_096
_MAX_URL_CHARS: Final = 2_048

Open = Callable[[str, str, str], Executor]
"""Makes an executor of a kind, a base URL and a key."""

log = structlog.get_logger()


class BadProvider(RequestError):
    """A provider cannot be set up like this; the text says why, and never has the key in it."""


class ProviderSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What an account sets for a provider: its runs at a time, and prices in dollars where it tells no cost."""

    max_concurrent: Annotated[int, Meta(ge=1, le=100_000)] = 20
    price_per_s: Annotated[float, Meta(ge=0, le=1e6)] | None = None
    price_per_run: Annotated[float, Meta(ge=0, le=1e6)] | None = None


class Provider(msgspec.Struct, frozen=True):
    """A provider of an account. The row has its key only sealed."""

    row: ProviderRow
    settings: ProviderSettings

    @property
    def id(self) -> str:
        """Return the id, the same for as long as its account keeps it."""
        return self.row.id

    @property
    def name(self) -> str:
        """Return the name that routes call it by."""
        return self.row.name

    @property
    def prices(self) -> Prices:
        """Return what a run costs there, as far as its account has said it."""
        return Prices(self.settings.price_per_s, self.settings.price_per_run)

    def pause(self, now: int) -> str | None:
        """Say why nothing may be sent there at the moment; None where it may."""
        until = self.row.paused_until
        return None if until is None or until <= now else self.row.pause_reason or "it is paused"

    def __repr__(self) -> str:
        """Show which one it is, and nothing that is sealed."""
        return f"Provider({self.row.account} {self.name}, {self.row.kind} at {self.row.base_url})"


class Providers:
    """Finds, sets up, checks and pauses the providers of accounts."""

    def __init__(self, db: Database, clock: Clock, sealer: Sealer, open_executor: Open) -> None:
        self._db = db
        self._clock = clock
        self._sealer = sealer
        self._open = open_executor
        self._accounts: dict[str, tuple[float, dict[str, Provider]]] = {}
        self._ids: dict[str, tuple[float, Provider]] = {}
        self._executors: dict[str, tuple[tuple[str, str, str], Executor]] = {}
        self._retired: list[tuple[float, Executor]] = []
        db.listen(self._heard)

    async def find(self, account: str, name: str) -> Provider | None:
        """Return the provider of that name."""
        return (await self.all(account)).get(name)

    async def get(self, id: str) -> Provider | None:
        """Return the provider of that id."""
        cached = self._ids.get(id)
        if cached is not None and cached[0] > self._clock.monotonic():
            return cached[1]
        row = await store.get(self._db, id)
        if row is None:
            return None
        found = _provider(row)
        self._remember(found)
        return found

    async def all(self, account: str) -> dict[str, Provider]:
        """Return the providers of an account by name."""
        cached = self._accounts.get(account)
        if cached is not None and cached[0] > self._clock.monotonic():
            return cached[1]
        found = {row.name: _provider(row) for row in await store.list_of(self._db, account)}
        if len(self._accounts) >= _CACHE_SIZE:
            self._accounts.clear()
        self._accounts[account] = (self._clock.monotonic() + CACHE_S, found)
        for provider in found.values():
            self._remember(provider)
        return found

    def executor(self, provider: Provider) -> Executor:
        """Return what speaks to a provider; it stays the same until the provider's key or address changes.

        Raises `Denied` where its key is lost.
        """
        row = provider.row
        if not row.sealed:
            raise Denied(_LOST)
        kept = self._executors.get(row.id)
        if kept is not None and kept[0] == _identity(row):
            return kept[1]
        opened = self._open(row.kind, row.base_url, self._sealer.open(row.sealed).decode())
        self._use(row, opened)
        return opened

    def _use(self, row: ProviderRow, opened: Executor) -> None:
        kept = self._executors.get(row.id)
        if kept is not None:
            # Runs that it has begun may still be followed with it.
            self._retired.append((self._clock.monotonic() + _RETIRED_S, kept[1]))
        self._executors[row.id] = (_identity(row), opened)

    async def put(
        self,
        account: str,
        name: str,
        kind: str,
        base_url: str | None,
        key: str | None,
        settings: ProviderSettings | None = None,
    ) -> tuple[Provider, Report]:
        """Set a provider up, or change it, and check it; one whose check fails is kept all the same.

        `base_url` None: the service's own. `key` None keeps the one there, which goes to no other address. A pause
        ends. Raises `BadProvider`.
        """
        url = _checked(name, kind, base_url)
        known = await store.find(self._db, account, name)
        opened = None
        if key is not None:
            key = checked_key(key)
            if key in url:
                # Addresses are shown and logged.
                raise BadProvider("the base URL has the key in it; give the key by itself")
            opened = self._opened(kind, url, key)
            sealed, hint = self._sealer.seal(key.encode()), hint_of(key)
        elif known is None:
            raise BadProvider("a new provider needs a key")
        elif not known.sealed:
            raise BadProvider(_LOST)
        elif (known.kind, known.base_url) != (kind, url):
            raise BadProvider("the key has to be given again, because it goes to another address than before")
        else:
            sealed, hint = known.sealed, known.hint
        if settings is None:
            settings = ProviderSettings() if known is None else _provider(known).settings
        now = self._clock.wall()
        text = msgspec.json.encode(settings).decode()
        row = ProviderRow(new_id(now), account, name, kind, url, sealed, hint, text, None, None, now, now)
        stored = _provider(await store.put(self._db, row))
        self._forget(account)
        if opened is not None:
            self._use(stored.row, opened)
        await self._close_retired()
        report = await self.check(stored)
        paused = await store.find(self._db, account, name) if report.is_denied else None
        return _provider(paused) if paused else stored, report

    async def check(self, provider: Provider, endpoint: str = "") -> Report:
        """Ask a provider whether its key works: one whose key is refused is paused, and goes on when it works."""
        try:
            report = await self.executor(provider).check(endpoint)
        except Denied as error:
            return Report(False, str(error))
        if report.ok and provider.row.paused_until is not None:
            await self.resume(provider.id)
        elif report.is_denied and provider.pause(self._clock.wall()) is None:
            await self.pause(provider.id, None, report.text)
            self._forget(provider.row.account)
        return report

    async def remove(self, account: str, name: str) -> Literal["removed", "busy"]:
        """Remove a provider and its key; one where predictions run stays. Raises `NotFound`."""
        if not is_provider_name(name):
            raise NotFound
        known = await store.find(self._db, account, name)
        outcome = await store.remove(self._db, account, name)
        if known is None or outcome == "unknown":
            raise NotFound
        if outcome == "busy":
            return "busy"
        self._forget(account)
        kept = self._executors.pop(known.id, None)
        if kept is not None:
            await kept[1].aclose()
        return "removed"

    async def pause(self, id: str, seconds: float | None, reason: str) -> None:
        """Send nothing to a provider for a while; None: until somebody changes it, checks it or ends the pause."""
        now = self._clock.wall()
        until = FAR_FUTURE if seconds is None else now + int(seconds * 1_000_000)
        await store.pause(self._db, id, until, reason, now)
        cached = self._ids.get(id)
        if cached is not None:
            self._forget(cached[1].row.account)
            log.warning("provider paused", provider=cached[1].name, account=cached[1].row.account, reason=reason)

    async def resume(self, id: str) -> None:
        """End the pause of a provider."""
        await store.resume(self._db, id)
        cached = self._ids.get(id)
        if cached is not None:
            self._forget(cached[1].row.account)

    async def aclose(self) -> None:
        """Close all executors."""
        executors = [*(executor for _, executor in self._executors.values()), *(old for _, old in self._retired)]
        self._executors.clear()
        self._retired.clear()
        for executor in executors:
            await executor.aclose()

    def _opened(self, kind: str, url: str, key: str) -> Executor:
        try:
            return self._open(kind, url, key)
        except ValueError as error:
            raise BadProvider(str(error)) from None

    async def _close_retired(self) -> None:
        now = self._clock.monotonic()
        kept = [(at, executor) for at, executor in self._retired if at > now][-_MOST_RETIRED:]
        due = [executor for _, executor in self._retired[: len(self._retired) - len(kept)]]
        self._retired = kept
        for executor in due:
            await executor.aclose()

    def _remember(self, provider: Provider) -> None:
        if len(self._ids) >= _CACHE_SIZE:
            self._ids.clear()
        self._ids[provider.id] = (self._clock.monotonic() + CACHE_S, provider)

    def _forget(self, account: str) -> None:
        self._accounts.pop(account, None)
        for id in [id for id, (_, provider) in self._ids.items() if provider.row.account == account]:
            del self._ids[id]

    def _heard(self, hint: Hint) -> None:
        if hint.channel == CHANNEL_ROUTES:
            self._forget(hint.payload)


def _identity(row: ProviderRow) -> tuple[str, str, str]:
    return row.kind, row.base_url, row.sealed


def check_base_url(text: str) -> str:
    """Return the address of an API in one spelling; raises `BadProvider`."""
    if len(text) > _MAX_URL_CHARS or not text.isprintable() or " " in text or "\\" in text:
        raise BadProvider("the base URL is no http(s) URL")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise BadProvider("the base URL is no http(s) URL") from None
    scheme, host = parts.scheme.lower(), (parts.hostname or "").lower()
    if scheme not in ("http", "https") or not host or port == 0:
        raise BadProvider("the base URL is no http(s) URL")
    if "@" in parts.netloc:
        raise BadProvider("the base URL has a user name in it; a key is given apart")
    if parts.query or parts.fragment or "?" in text or "#" in text:
        raise BadProvider("the base URL has a query or a fragment; it is what stands before /predictions")
    if "%" in host:
        raise BadProvider("the base URL has a % in its host")
    place = f"[{host}]" if ":" in host else host
    if port is not None and port != {"http": 80, "https": 443}[scheme]:
        place = f"{place}:{port}"
    return f"{scheme}://{place}{parts.path.rstrip('/')}"


def _checked(name: str, kind: str, base_url: str | None) -> str:
    """Return the base URL of a provider whose name and kind can be used."""
    if not is_provider_name(name):
        raise BadProvider(
            "the name of a provider is 1 to 63 of the characters a-z 0-9 - _, with a letter or a digit at both ends,"
            f" and none of {', '.join(PRESETS)}"
        )
    if kind not in KINDS:
        raise BadProvider(f"the kind of a provider is one of {', '.join(KINDS)}")
    if base_url is None and kind not in BASE_URLS:
        raise BadProvider(f"a provider of the kind {kind} needs the base URL of its API, such as https://host/v1")
    return check_base_url(base_url if base_url is not None else BASE_URLS[kind])


def hint_of(secret: str) -> str:
    """Return what may be shown of a secret: how it begins, if that is little of it."""
    return secret[:_HINT_CHARS] if len(secret) >= 4 * _HINT_CHARS else ""


def checked_key(key: str) -> str:
    """Return the key without the blanks around it; raises `BadProvider` for what cannot be one."""
    plain = key.strip()
    if not plain or len(plain) > _MAX_KEY_CHARS or not (plain.isascii() and plain.isprintable()) or " " in plain:
        raise BadProvider(f"a key is 1 to {_MAX_KEY_CHARS} printable characters of ASCII, without blanks")
    return plain


def _provider(row: ProviderRow) -> Provider:
    return Provider(row, msgspec.json.decode(row.settings, type=ProviderSettings))
