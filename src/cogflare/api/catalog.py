"""The caller's account, models and versions over HTTP, as Replicate shows them."""

import re
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cogflare.api import wire
from cogflare.api.context import Api, caller_of, json_response, links_of, read_json
from cogflare.api.problems import forbidden, invalid_cursor, invalid_input, not_found
from cogflare.api.wire import Cursor, Links, WireAccount, WireLimits, WireModel, WireVersion
from cogflare.domain.errors import Forbidden
from cogflare.domain.ids import SHARED, is_version
from cogflare.domain.inputs import FieldProblem
from cogflare.domain.requirements import Requirements
from cogflare.store.base import Value
from cogflare.store.catalog import Model, Version

PAGE: Final = 25
_NAME: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,99}", re.ASCII)
_COG_VERSION: Final = "0.16.0"
_ANY_SCHEMA: Final = Raw(
    b'{"openapi":"3.0.2","info":{"title":"Cog","version":"0.1.0"},"paths":{},"components":{"schemas":{'
    b'"Input":{"title":"Input","type":"object","properties":{}},"Output":{"title":"Output"}}}}'
)
"""Stands for a model that came without a schema, because clients fall over a null."""


_MAX_CHANGES: Final = 64 * 1024
_Limit = Annotated[float, Meta(ge=0, le=31_536_000)]


class _Changes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a PATCH. Durations in seconds, 0 for ever."""

    description: Annotated[str, Meta(max_length=2_000)] | UnsetType | None = UNSET
    run_limit_s: _Limit | UnsetType | None = UNSET
    start_limit_s: _Limit | UnsetType | None = UNSET
    max_queued: Annotated[int, Meta(ge=1, le=1_000_000_000)] | UnsetType | None = UNSET
    rerun: bool | UnsetType = UNSET
    requirements: Requirements | UnsetType | None = UNSET


class Handlers:
    """The endpoints of the catalog. What sorts a list is accepted and passed over: lists are by name."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def account(self, request: Request) -> Response:
        """GET /account."""
        caller = caller_of(request)
        account = WireAccount(
            username=caller.username,
            type="organization" if caller.account_kind == "organization" else "user",
            name=caller.name,
        )
        return json_response(wire.render_account(account))

    async def models(self, request: Request) -> Response:
        """GET /models: all that the caller may use, by owner and name."""
        cursor = wire.parse_cursor(request.query_params.get("cursor"))
        after = ("", "")
        if cursor is not None:
            owner, _, name = cursor.last_id.partition("/")
            after = (owner, name)
        found = await self._api.catalog.models(caller_of(request).account, after, PAGE + 1)
        shown, links = found[:PAGE], links_of(request, self._api)
        following = None
        if len(found) > PAGE:
            last = Cursor(f"{shown[-1].owner}/{shown[-1].name}")
            following = links.page("/v1/models", last, _kept(request))
        return json_response(wire.page([_render_model(model, links) for model in shown], following, None))

    async def model(self, request: Request) -> Response:
        """GET /models/{owner}/{name}."""
        model = await self._api.catalog.model(caller_of(request).account, *_names(request))
        return json_response(_render_model(model, links_of(request, self._api)))

    async def change(self, request: Request) -> Response:
        """PATCH /models/{owner}/{name}: what its owner may set; null goes back to the server's default."""
        owner, name = _names(request)
        changes = await read_json(request, _Changes, _MAX_CHANGES)
        given = msgspec.structs.asdict(changes)
        columns = {field: _column(value) for field, value in given.items() if value is not UNSET}
        if "\0" in (changes.description or ""):
            raise invalid_input([FieldProblem("format", "description", "Must not contain NUL")])
        try:
            model = await self._api.catalog.change(caller_of(request), owner, name, columns)
        except Forbidden:
            raise forbidden("This model belongs to the account `shared`; changing it takes an admin token.") from None
        return json_response(_render_model(model, links_of(request, self._api)))

    async def versions(self, request: Request) -> Response:
        """GET /models/{owner}/{name}/versions, newest first."""
        owner, name = _names(request)
        offset = _offset(wire.parse_cursor(request.query_params.get("cursor")))
        found = await self._api.catalog.versions(caller_of(request).account, owner, name, offset, PAGE + 1)
        following = None
        if len(found) > PAGE:
            path = f"/v1/models/{owner}/{name}/versions"
            following = links_of(request, self._api).page(path, Cursor(str(offset + PAGE)), _kept(request))
        shown = [wire.render_version(_version(version)) for version in found[:PAGE]]
        return json_response(wire.page(shown, following, None))

    async def version(self, request: Request) -> Response:
        """GET /models/{owner}/{name}/versions/{version}; `undefined`, which LangChain sends, is the latest."""
        account, (owner, name), id = caller_of(request).account, _names(request), request.path_params["version"]
        if id == "undefined":
            latest = (await self._api.catalog.model(account, owner, name)).latest
            if latest is None:
                raise not_found()
            return json_response(wire.render_version(_version(latest)))
        if not is_version(id):
            raise not_found()
        found = await self._api.catalog.version(account, owner, name, id)
        return json_response(wire.render_version(_version(found)))


def _column(value: Any) -> Value:
    """Return how what was given is stored; requirements that ask for nothing are none."""
    if isinstance(value, Requirements):
        return msgspec.json.encode(value).decode() if value else None
    return int(value) if isinstance(value, bool) else value


def _names(request: Request) -> tuple[str, str]:
    owner, name = request.path_params["owner"], request.path_params["name"]
    if not (_NAME.fullmatch(owner) and _NAME.fullmatch(name)):
        raise not_found()
    return owner, name


def _offset(cursor: Cursor | None) -> int:
    if cursor is None:
        return 0
    if not cursor.last_id.isdecimal() or len(cursor.last_id) > 9:
        raise invalid_cursor()
    return int(cursor.last_id)


def _kept(request: Request) -> dict[str, str]:
    return {name: value for name, value in request.query_params.items() if name != "cursor"}


def _render_model(model: Model, links: Links) -> bytes:
    return wire.render_model(
        WireModel(
            owner=model.owner,
            name=model.name,
            url=links.model(model.owner, model.name),
            visibility="public" if model.account == SHARED else "private",
            created_at=model.created_at,
            run_count=model.run_count,
            description=model.description,
            latest_version=None if model.latest is None else _version(model.latest),
            limits=WireLimits(model.run_limit_s, model.start_limit_s, model.max_queued, model.rerun),
            requirements=None if model.requirements is None else Raw(model.requirements.encode()),
        )
    )


def _version(version: Version) -> WireVersion:
    return WireVersion(
        id=version.id,
        created_at=version.created_at,
        openapi_schema=_ANY_SCHEMA if version.schema is None else Raw(version.schema.encode()),
        cog_version=version.cog_version or _COG_VERSION,
    )


def routes(api: Api) -> list[Route]:
    """Return the routes of the catalog."""
    handlers = Handlers(api)
    return [
        Route("/account", handlers.account),
        Route("/models", handlers.models),
        Route("/models/{owner}/{name}", handlers.model),
        Route("/models/{owner}/{name}", handlers.change, methods=["PATCH"]),
        Route("/models/{owner}/{name}/versions", handlers.versions),
        Route("/models/{owner}/{name}/versions/{version}", handlers.version),
    ]
