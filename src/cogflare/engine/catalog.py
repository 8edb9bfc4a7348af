"""Models and versions as an account may use them: what a request means by a name, and what workers bring along.

Targets are cached for a few seconds per account and reference; a registration on this node clears the cache at once.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import UnsetType

from cogflare.domain.clock import Clock
from cogflare.domain.errors import Forbidden, NotFound, VersionNotFound
from cogflare.domain.filefields import file_schema
from cogflare.domain.ids import model_queue, version_queue
from cogflare.domain.inputs import InputValidator, compile_input
from cogflare.domain.schemas import BadSchema, is_file_output, output_kind
from cogflare.engine.requirements import CHANNEL_REQUIREMENTS
from cogflare.protocol.messages import Offer
from cogflare.store import catalog as store
from cogflare.store.base import Database, Hint, Value
from cogflare.store.catalog import Caller, Model, Version

CACHE_S = 5.0
_CACHE_SIZE = 4_096


class Bounds(msgspec.Struct, frozen=True):
    """What holds for predictions of a model whose owner has set nothing else; None: without a limit."""

    run_limit_s: float | None = None
    start_limit_s: float | None = None
    max_queued: int | None = None


NO_BOUNDS = Bounds()


class Target(msgspec.Struct, frozen=True):
    """What a create runs: a model, its version (`pinned`: exactly that one), and the queues that may run it.

    `bounds` are those of the model. `files` is the schema of its input; None where no part of that is a file.
    `shows_files`: whatever is shown of the output is the URL of a file.
    """

    catalog: str
    owner: str
    name: str
    version: str
    pinned: bool
    queues: tuple[str, ...]
    validator: InputValidator
    bounds: Bounds
    files: dict[str, Any] | None = None
    shows_files: bool = False


_Schema = tuple[InputValidator, dict[str, Any] | None, bool]
"""What a target says of a version's schema: `validator`, `files` and `shows_files`."""


class OfferRefused(ValueError):
    """A worker's offer cannot be registered; the text says why."""


class Catalog:
    """Reads and registers models; the single place that turns references into targets.

    `bounds` are the server's own.
    """

    def __init__(self, db: Database, clock: Clock, bounds: Bounds = NO_BOUNDS) -> None:
        self._db = db
        self._clock = clock
        self._bounds = bounds
        self._targets: dict[tuple[str, str, str | None], tuple[float, Target]] = {}
        self._schemas: dict[tuple[str, str, str, str], _Schema] = {}
        self._registered: set[tuple[str, str, str, str]] = set()

    async def target(self, account: str, *, model: str | None, version: str | None) -> Target:
        """Return what `owner/name`, a version id, or both together mean for this account.

        Raises `NotFound` for an unknown model, `VersionNotFound` for an unknown version.
        """
        key = (account, model or "", version)
        cached = self._targets.get(key)
        now = self._clock.monotonic()
        if cached is not None and cached[0] > now:
            return cached[1]
        found = await (self._latest(account, model or "") if version is None else self._pinned(account, model, version))
        if len(self._targets) >= _CACHE_SIZE:
            self._targets.clear()
        self._targets[key] = (now + CACHE_S, found)
        return found

    async def model(self, account: str, owner: str, name: str) -> Model:
        """Return a model; raises `NotFound`."""
        model = await store.find_model(self._db, account, owner, name)
        if model is None:
            raise NotFound
        return model

    async def change(self, caller: Caller, owner: str, name: str, changes: Mapping[str, Value]) -> Model:
        """Change what the owner of a model may set; None goes back to the server's own.

        Shared models are an admin's to change. Raises `NotFound` or `Forbidden`.
        """
        model = await self.model(caller.account, owner, name)
        if model.account != caller.account and caller.kind != "admin":
            raise Forbidden
        hints = [Hint(CHANNEL_REQUIREMENTS, f"{owner}/{name}")] if "requirements" in changes else []
        if not await store.set_model(self._db, model.account, owner, name, changes, hints):
            raise NotFound
        self._targets.clear()
        return await self.model(caller.account, owner, name)

    async def models(self, account: str, after: tuple[str, str], limit: int) -> list[Model]:
        """Return a page of the models that this account may use, by owner and name."""
        return await store.list_models(self._db, account, after, limit)

    async def versions(self, account: str, owner: str, name: str, offset: int, limit: int) -> list[Version]:
        """Return a page of a model's versions, newest first; raises `NotFound`."""
        return await store.list_versions(self._db, await self.model(account, owner, name), offset, limit)

    async def version(self, account: str, owner: str, name: str, version: str) -> Version:
        """Return a version of a model; raises `NotFound`."""
        found = await store.find_version(self._db, account, version, owner, name)
        if found is None:
            raise NotFound
        return found

    async def register(self, account: str, offers: Sequence[Offer], now: int) -> None:
        """Register what a worker offers, if it is new; raises `OfferRefused` for a schema that has no meaning."""
        for offer in offers:
            key = (account, offer.owner, offer.name, offer.version)
            if key in self._registered:
                continue
            await self._db.write(*store.register(_version(account, offer, now)))
            if len(self._registered) >= _CACHE_SIZE:
                self._registered.clear()
            self._registered.add(key)
            self._targets.clear()

    async def adopt(self, account: str, offer: Offer, now: int) -> bool:
        """Register a version that a provider has, as the latest only of a model that is new; False for shared models.

        What is shared stays what it is: a model of the account's own would stand before it. Raises `OfferRefused`.
        """
        version = _version(account, offer, now)
        known = await store.find_model(self._db, account, offer.owner, offer.name)
        if known is not None and known.account != account:
            return False
        if known is not None and known.latest is not None:
            version = msgspec.structs.replace(version, created_at=min(now, known.latest.created_at - 1))
        await self._db.write(*store.register(version))
        self._targets.clear()
        return True

    async def _latest(self, account: str, model: str) -> Target:
        owner, _, name = model.partition("/")
        found = await self.model(account, owner, name)
        if found.latest is None:
            raise NotFound
        catalogs = await store.catalogs_with(self._db, account, owner, name)
        queues = tuple(model_queue(catalog, owner, name) for catalog in catalogs)
        return self._target(found.latest, found, queues, pinned=False)

    async def _pinned(self, account: str, model: str | None, version: str) -> Target:
        owner, _, name = model.partition("/") if model else (None, "", None)
        found = await store.find_version(self._db, account, version, owner, name)
        if found is None:
            raise VersionNotFound
        of = await store.find_model(self._db, found.account, found.owner, found.name)
        return self._target(found, of, (version_queue(found.account, version),), pinned=True)

    def _target(self, version: Version, model: Model | None, queues: tuple[str, ...], *, pinned: bool) -> Target:
        key = (version.account, version.owner, version.name, version.id)
        validator, file_fields, shows_files = self._schema(version)
        return Target(*key, pinned, queues, validator, self._bounds_of(model), file_fields, shows_files)

    def _bounds_of(self, model: Model | None) -> Bounds:
        if model is None:
            return self._bounds
        run, start, most = model.run_limit_s, model.start_limit_s, model.max_queued
        return Bounds(
            self._bounds.run_limit_s if run is None else run or None,
            self._bounds.start_limit_s if start is None else start or None,
            self._bounds.max_queued if most is None else most,
        )

    def _schema(self, version: Version) -> _Schema:
        key = (version.account, version.owner, version.name, version.id)
        known = self._schemas.get(key)
        if known is None:
            document = msgspec.json.decode(version.schema) if version.schema else {}
            known = compile_input(document), file_schema(document), is_file_output(document)
            if len(self._schemas) >= _CACHE_SIZE:
                self._schemas.clear()
            self._schemas[key] = known
        return known


def _version(account: str, offer: Offer, now: int) -> Version:
    document = {} if isinstance(offer.schema, UnsetType) else msgspec.json.decode(offer.schema)
    try:
        compile_input(document)
        kind = output_kind(document)
    except BadSchema as error:
        raise OfferRefused(f"the schema of {offer.owner}/{offer.name} cannot be used: {error}") from error
    schema = None if isinstance(offer.schema, UnsetType) else bytes(offer.schema).decode()
    return Version(account, offer.owner, offer.name, offer.version, offer.cog_version, schema, kind, now)
