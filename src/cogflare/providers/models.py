"""Models as servers of Replicate's API describe them, and which of their versions a run names.

An official model is run by its name and has no versions of its own to name; any other one needs a version. What was
read is remembered for a moment.
"""

import hashlib
import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Final, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import Meta, Raw

from cogflare.domain.clock import Clock
from cogflare.domain.ids import is_version
from cogflare.net.client import Reply
from cogflare.providers.base import Described, Refused, Terms, Unanswered

_KEPT_S: Final = 60.0
_KEPT: Final = 64
_MAX_SCHEMA: Final = 1 << 20  # bytes
T = TypeVar("T")
NAME: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,99}/[0-9A-Za-z][0-9A-Za-z._-]{0,99}", re.ASCII)

Get = Callable[[str], Awaitable[Reply]]
"""Reads a path; a 404 is an answer, every other refusal a `ProviderError`."""


class Version(msgspec.Struct, frozen=True):
    """A version."""

    id: Annotated[str, Meta(max_length=200)]
    cog_version: Annotated[str, Meta(pattern=r"^[ -~]{0,100}\Z")] | None = None
    openapi_schema: Raw = Raw(b"null")

    @property
    def schema(self) -> bytes | None:
        """Its OpenAPI document, None where there is none."""
        text = bytes(self.openapi_schema)
        return text if text.startswith(b"{") else None


class Model(msgspec.Struct, frozen=True):
    """A model."""

    is_official: bool | None = None
    latest_version: Version | None = None


class Models:
    """Describes models; `origin` tells servers apart, `needs_version` whether a run has to name the version."""

    def __init__(self, get: Get, clock: Clock, origin: str, *, needs_version: bool) -> None:
        self._get = get
        self._now = clock.monotonic
        self._origin = origin
        self._needs_version = needs_version
        self._kept: dict[tuple[str, str | None], tuple[float, Version, str | None]] = {}

    async def describe(self, model: str, version: str | None, terms: Terms) -> Described:
        """Return a model, which the provider may have under another name; raises a `ProviderError`."""
        there, wanted = terms.model or model, version or terms.version
        if NAME.fullmatch(there) is None or NAME.fullmatch(model) is None:
            raise Refused(f"{there[:200]!r} is not the name of a model: owner/name")
        until, found, named = self._kept.get((there, wanted), (0.0, None, None))
        if found is None or until <= self._now():
            seen, named = await self._look(there, wanted)
            found = _bounded(seen, there)
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            self._kept[there, wanted] = self._now() + _KEPT_S, found, named
        owner, _, name = model.partition("/")
        id = found.id if is_version(found.id) else self._made_up(there, found)
        own = Terms(there, named, terms.endpoint, terms.shape)
        return Described(owner, name, id, found.schema, found.cog_version or "", own)

    async def _look(self, model: str, wanted: str | None) -> tuple[Version, str | None]:
        """Return a version, and the id under which it is run: None where that is the model's name."""
        found = await self._read(f"/models/{model}", Model, f"there is no model {model} there")
        latest = found.latest_version
        if found.is_official:
            latest = latest or Version("")
            if wanted in (None, latest.id, self._made_up(model, latest)):
                return latest, None
        if wanted is None:
            if latest is None:
                raise Refused(f"the model {model} has no version there")
            return latest, latest.id if self._needs_version else None
        if latest is not None and wanted in (latest.id, self._made_up(model, latest)):
            return latest, latest.id
        path = f"/models/{model}/versions/{quote(wanted, safe='')}"
        return await self._read(path, Version, f"the model {model} has no version {wanted} there"), wanted

    async def _read(self, path: str, kind: type[T], missing: str) -> T:
        reply = await self._get(path)
        if reply.status == 404:
            raise Refused(missing)
        try:
            reply.body.decode()
            return msgspec.json.decode(reply.body, type=kind)
        except (ValueError, RecursionError) as error:
            raise Unanswered(f"what it says of {path} cannot be read") from error

    def _made_up(self, model: str, version: Version) -> str:
        """Return an id for a version without one: another one whenever its schema changes."""
        return hashlib.sha256(b"\0".join([self._origin.encode(), model.encode(), version.schema or b""])).hexdigest()


def _bounded(version: Version, model: str) -> Version:
    """Return a version without the answer that it came in; raises `Refused` for one that is too large to be kept."""
    schema = version.schema
    if schema is not None and len(schema) > _MAX_SCHEMA:
        raise Refused(f"the schema of {model} has more than {_MAX_SCHEMA >> 20} MiB there")
    return Version(version.id, version.cog_version, Raw(schema or b"null"))
