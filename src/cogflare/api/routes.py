"""Where predictions of the caller's account may run: the route of a model, and the one of all that have none."""

import re
from typing import Any, Final

import msgspec
from msgspec import Raw
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cogflare.api import wire
from cogflare.api.context import Api, caller_of, json_response, links_of, read_json
from cogflare.api.problems import conflict, not_found
from cogflare.api.wire import Cursor, format_time
from cogflare.api.wishes import bad_route
from cogflare.domain.policy import BadPolicy
from cogflare.engine.routes import Routes
from cogflare.store.routes import RouteRow

PAGE: Final = 100
MOST: Final = 10_000
"""How many routes an account may have."""
_MAX_BODY: Final = 64 << 10
_NAME: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,99}", re.ASCII)

_encode: Final = msgspec.json.encode


class RouteOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a PUT: a list of places, the name of a preset or provider, or either as one line of text."""

    route: Any


class Handlers:
    """The endpoints of routes."""

    def __init__(self, api: Api, policies: Routes) -> None:
        self._api = api
        self._policies = policies

    async def list(self, request: Request) -> Response:
        """GET /routes: the account's own first, then by model."""
        cursor = wire.parse_cursor(request.query_params.get("cursor"))
        rows = sorted(await self._policies.list(caller_of(request).account), key=lambda row: row.model)
        # The account's own has no model, and no cursor leads before it.
        rows = [row for row in rows if cursor is None or row.model > cursor.last_id]
        following = None
        if len(rows) > PAGE:
            following = links_of(request, self._api).page("/v1/routes", Cursor(rows[PAGE - 1].model))
        return json_response(wire.page([_render(row) for row in rows[:PAGE]], following, None))

    async def show(self, request: Request) -> Response:
        """GET /route, GET /models/{owner}/{name}/route: the one that was set for exactly this."""
        return json_response(_render(await self._find(request)))

    async def put(self, request: Request) -> Response:
        """PUT /route, PUT /models/{owner}/{name}/route: it holds for what waits too."""
        account, model = caller_of(request).account, _model(request)
        order = await read_json(request, RouteOrder, _MAX_BODY)
        known = await self._policies.list(account)
        if len(known) >= MOST and all(row.model != model for row in known):
            raise conflict(f"An account has up to {MOST} routes; remove some, or set one for all models.")
        try:
            await self._policies.put(account, model, order.route)
        except BadPolicy as error:
            raise bad_route(error.place, error.text) from None
        return json_response(_render(await self._find(request)))

    async def remove(self, request: Request) -> Response:
        """DELETE /route, DELETE /models/{owner}/{name}/route."""
        if not await self._policies.remove(caller_of(request).account, _model(request)):
            raise not_found()
        return Response(status_code=204)

    async def _find(self, request: Request) -> RouteRow:
        model = _model(request)
        for row in await self._policies.list(caller_of(request).account):
            if row.model == model:
                return row
        raise not_found()


def _model(request: Request) -> str:
    """Return owner/name of the path, "" for the account's route; names that no model has are 404."""
    owner, name = request.path_params.get("owner"), request.path_params.get("name")
    if owner is None or name is None:
        return ""
    if not _NAME.fullmatch(owner) or not _NAME.fullmatch(name):
        raise not_found()
    return f"{owner}/{name}"


def _render(row: RouteRow) -> bytes:
    return _encode(
        {"model": row.model or None, "route": Raw(row.policy.encode()), "changed_at": format_time(row.changed_at)}
    )


def routes(api: Api, policies: Routes) -> list[Route]:
    """Return the routes of routes."""
    handlers = Handlers(api, policies)
    model = "/models/{owner}/{name}/route"
    return [
        Route("/routes", handlers.list),
        *(Route(path, handlers.show) for path in ("/route", model)),
        *(Route(path, handlers.put, methods=["PUT"]) for path in ("/route", model)),
        *(Route(path, handlers.remove, methods=["DELETE"]) for path in ("/route", model)),
    ]
