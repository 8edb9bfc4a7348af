"""Models that only a provider has: what it says of them, and their place in the account's catalog.

What a provider said is remembered for a while, a no included, and asked for by one at a time.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import msgspec
import structlog
from msgspec import UNSET, Raw

from cogflare.domain.clock import Clock
from cogflare.domain.errors import BadRoute, NotFound, ProviderAway, VersionNotFound
from cogflare.domain.ids import is_version
from cogflare.domain.policy import Hop
from cogflare.engine.catalog import Catalog, OfferRefused, Target
from cogflare.engine.providers import Provider, Providers
from cogflare.engine.routes import Routes
from cogflare.protocol.messages import Offer
from cogflare.providers.base import Busy, Denied, Described, ProviderError, Refused, Terms, Unanswered

KNOWN_S: Final = 300.0
REFUSED_S: Final = 60.0
_AWAY_S: Final = 5.0
_MODELS: Final = 20  # that are asked about for one bare version id
_MOST_AWAY_S: Final = 60.0
_CACHE_SIZE: Final = 4_096
_MOST_ANSWERS: Final = 256  # a schema is up to 1 MiB
_ABSENT: Final = "the model has another version there"

_Key = tuple[str, str, str, str | None, Terms]

log = structlog.get_logger()


class Discovery:
    """Asks providers for models, and makes them known to the catalog."""

    def __init__(self, clock: Clock, catalog: Catalog, routes: Routes, providers: Providers) -> None:
        self._clock = clock
        self._catalog = catalog
        self._routes = routes
        self._providers = providers
        self._answers: dict[_Key, tuple[float, Described | ProviderError]] = {}
        self._asking: dict[_Key, asyncio.Task[Described]] = {}
        self._adopted: set[tuple[str, str, str]] = set()

    async def target(self, account: str, model: str | None, version: str | None, wish: str | None) -> Target:
        """Return what a create runs; a model or version that the catalog lacks is looked for at its route's providers.

        Raises `NotFound` or `VersionNotFound`, `BadRoute` where a provider cannot be used at all, and `ProviderAway`.
        """
        try:
            return await self._catalog.target(account, model=model, version=version)
        except (NotFound, VersionNotFound):
            if model is None:
                if version is None or not await self._is_of_a_route(account, version, wish):
                    raise
                return await self._catalog.target(account, model=None, version=version)
            rule = await self._routes.rule(account, model, wish)
            if rule is None or not rule.policy.providers:
                raise
            refusals = await self._find(account, model, version, rule.policy.providers)
            if refusals is not None and version is None:
                raise NotFound(f"No worker of yours has {model}, and no provider of its route: {refusals}") from None
            if refusals is not None:
                raise
        return await self._catalog.target(account, model=model, version=version)

    async def _is_of_a_route(self, account: str, version: str, wish: str | None) -> bool:
        """Look for a bare version id among the models that have routes: no provider finds one without its model."""
        for model in (await self._routes.routed(account))[:_MODELS]:
            rule = await self._routes.rule(account, model, wish)
            if rule is None:
                continue
            with suppress(ProviderAway, BadRoute):
                if await self._find(account, model, version, rule.policy.providers) is None:
                    return True
        return False

    async def _find(self, account: str, model: str, version: str | None, hops: Sequence[Hop]) -> str | None:
        """Register a model as the first provider of a route has it; where none does, return what they say."""
        away: ProviderAway | BadRoute | None = None
        refusals = []
        for hop in hops:
            provider = await self._providers.find(account, hop.name)
            if provider is None:
                refusals.append(f"{hop.name}: there is no such provider")
                continue
            paused = provider.pause(self._clock.wall())
            if paused is not None:
                away = away or ProviderAway(f"{hop.name}, which may have {model}, is paused: {paused}")
                continue
            try:
                described = await self.describe(provider, hop, model, version)
            except Refused as error:
                refusals.append(f"{hop.name}: {error}")
            except Denied as error:
                away = away or BadRoute("", f"{hop.name}: {error}")
            except ProviderError as error:
                retry_s = error.retry_after_s if isinstance(error, Busy) else None
                away = away or ProviderAway(f"{hop.name}, which may have {model}: {error}", retry_s or _AWAY_S)
            else:
                if await self._adopt(account, model, described):
                    return None
                refusals.append("a shared model stays what it is")
        if away is not None:
            raise away
        return "; ".join(refusals)

    async def describe(self, provider: Provider, hop: Hop, model: str, version: str | None) -> Described:
        """Return a model as a provider has it: in this version, or (None) the one that its route names, or the newest.

        Raises a `ProviderError`; one that does not take the key is paused.
        """
        key = _key(provider, hop, model, version)
        known = self._known(key)
        if isinstance(known, ProviderError):
            raise known.with_traceback(None)
        if known is not None:
            return known
        asking = self._asking.get(key)
        if asking is None:
            asking = self._asking[key] = asyncio.ensure_future(self._ask(key, provider, version or hop.version))
            asking.add_done_callback(lambda task: self._asked(key, task))
        return await asyncio.shield(asking)

    def refusal(self, provider: Provider, hop: Hop, model: str, version: str | None) -> ProviderError | None:
        """Return what `describe` would raise, as far as it is known without asking."""
        known = self._known(_key(provider, hop, model, version))
        return known if isinstance(known, ProviderError) else None

    async def version_of(self, account: str, model: str, described: Described) -> str | None:
        """Return the version as which an unpinned run there is shown: what runs there, made known if it is new."""
        key = (account, model, described.version)
        try:
            if key not in self._adopted:
                if not await self._adopt(account, model, described):
                    return None
                if len(self._adopted) >= _CACHE_SIZE:
                    self._adopted.clear()
                self._adopted.add(key)
            return described.version
        except BadRoute as error:
            log.warning("a provider's version is not registered", model=model, error=str(error))
            return None

    async def _ask(self, key: _Key, provider: Provider, version: str | None) -> Described:
        _, _, model, pinned, words = key
        try:
            described = await self._providers.executor(provider).describe(model, version, words)
            if not is_version(described.version):
                raise Refused(f"{provider.name} names no version of {model}")
            if pinned is not None and described.version != pinned:
                raise Refused(_ABSENT)
        except ProviderError as error:
            self._keep(key, _kept_s(error), error)
            if isinstance(error, Denied):
                await self._providers.pause(provider.id, None, str(error))
            raise
        except Exception as error:
            # What waits for others must not stand still because of it.
            log.exception("a provider's answer cannot be used", provider=provider.name, model=model)
            away = Unanswered("its answer cannot be used")
            self._keep(key, _AWAY_S, away)
            raise away from error
        self._keep(key, KNOWN_S, described)
        return described

    def _asked(self, key: _Key, task: asyncio.Task[Described]) -> None:
        self._asking.pop(key, None)
        if not task.cancelled():
            task.exception()  # who asked has it; nobody may be left

    def _known(self, key: _Key) -> Described | ProviderError | None:
        known = self._answers.get(key)
        return None if known is None or known[0] <= self._clock.monotonic() else known[1]

    def _keep(self, key: _Key, seconds: float, answer: Described | ProviderError) -> None:
        if len(self._answers) >= _MOST_ANSWERS:
            self._answers.clear()
        self._answers[key] = (self._clock.monotonic() + seconds, answer)

    async def _adopt(self, account: str, model: str, described: Described) -> bool:
        owner, _, name = model.partition("/")
        schema = UNSET if described.schema is None else Raw(described.schema)
        offer = Offer(owner, name, described.version, 0, schema, described.cog_version)
        try:
            return await self._catalog.adopt(account, offer, self._clock.wall())
        except (OfferRefused, msgspec.DecodeError, RecursionError) as error:
            raise BadRoute("", f"{model} of the provider cannot be used: {error}") from error


def _key(provider: Provider, hop: Hop, model: str, version: str | None) -> _Key:
    words = Terms(hop.model or model, hop.version, hop.endpoint or "", hop.shape or "plain")
    return provider.id, f"{provider.row.base_url} {provider.row.sealed}", model, version, words


def _kept_s(error: ProviderError) -> float:
    """Return for how long an answer that was none counts."""
    if isinstance(error, Refused):
        return REFUSED_S
    asked_s = error.retry_after_s if isinstance(error, Busy) else None
    return min(_AWAY_S if asked_s is None else asked_s, _MOST_AWAY_S)
