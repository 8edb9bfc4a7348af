"""Providers of the caller's account: what runs predictions elsewhere, with the account's own key.

A key comes in once, in the body of a PUT, and goes to the address it came with. It is never part of an answer: what is
shown of it is how it begins.
"""

import re
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cogflare.api import wire
from cogflare.api.context import Api, caller_of, json_response, read_json
from cogflare.api.problems import bad_request, conflict, invalid_input, not_found
from cogflare.api.requests import address_problem
from cogflare.api.wire import format_time
from cogflare.domain.inputs import FieldProblem
from cogflare.engine.providers import BadProvider, Provider, Providers, ProviderSettings
from cogflare.providers.base import Report
from cogflare.store import errands
from cogflare.store.predictions import FAR_FUTURE

MOST: Final = 100
"""How many providers an account may have."""
_MAX_BODY: Final = 16 << 10
_ENDPOINT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", re.ASCII)
_PRIVATE: Final = {"cache-control": "no-store"}
_Price = Annotated[float, Meta(ge=0, le=10_000)]

_encode: Final = msgspec.json.encode


class ProviderOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a PUT; without `key` the provider keeps the one it has, if its address stays the same."""

    kind: Literal["replicate", "cogflare", "runpod"]
    base_url: str | None = None
    key: str | None = None
    max_concurrent: Annotated[int, Meta(ge=1, le=1000)] = 20
    price_per_s: _Price | None = None
    price_per_run: _Price | None = None


class Handlers:
    """The endpoints of providers."""

    def __init__(self, api: Api, providers: Providers) -> None:
        self._api = api
        self._providers = providers

    async def list(self, request: Request) -> Response:
        """GET /providers: all of them, by name."""
        account = caller_of(request).account
        found = await self._providers.all(account)
        counts = await errands.open_counts(self._api.db, account)
        shown = [_encode(self._render(found[name], counts.get(found[name].row.id, 0))) for name in sorted(found)]
        return json_response(wire.page(shown, None, None))

    async def show(self, request: Request) -> Response:
        """GET /providers/{name}."""
        return json_response(_encode(await self._shown(await self._find(request))))

    async def put(self, request: Request) -> Response:
        """PUT /providers/{name}: made or changed, and asked at once whether the key works."""
        account, name = caller_of(request).account, request.path_params["name"]
        order = await read_json(request, ProviderOrder, _MAX_BODY)
        problem = order.base_url and address_problem("base_url", order.base_url, self._api.reach)
        if problem:
            raise invalid_input([problem])
        known = await self._providers.all(account)
        if name not in known and len(known) >= MOST:
            raise conflict(f"An account has up to {MOST} providers; remove one that you do not need.")
        settings = ProviderSettings(order.max_concurrent, order.price_per_s, order.price_per_run)
        try:
            provider, report = await self._providers.put(account, name, order.kind, order.base_url, order.key, settings)
        except BadProvider as error:
            raise invalid_input([FieldProblem("invalid_provider", "", str(error))]) from None
        document = {**await self._shown(provider), "check": _checked(report)}
        return json_response(_encode(document), 200 if name in known else 201, _PRIVATE)

    async def check(self, request: Request) -> Response:
        """POST /providers/{name}/check: ask it now, about an `endpoint` if named; a good answer ends a pause."""
        endpoint = request.query_params.get("endpoint", "")
        if endpoint and not _ENDPOINT.fullmatch(endpoint):
            raise bad_request("endpoint must be the id of an endpoint: letters, digits, - and _, up to 100")
        provider = await self._find(request)
        report = await self._providers.check(provider, endpoint)
        document = {**await self._shown(await self._find(request)), "check": _checked(report)}
        return json_response(_encode(document))

    async def remove(self, request: Request) -> Response:
        """DELETE /providers/{name}: its key is forgotten; not while anything may run there."""
        if await self._providers.remove(caller_of(request).account, request.path_params["name"]) == "busy":
            raise conflict("Predictions are running there; cancel them, or try again when they have ended.")
        return Response(status_code=204)

    async def _find(self, request: Request) -> Provider:
        provider = await self._providers.find(caller_of(request).account, request.path_params["name"])
        if provider is None:
            raise not_found()
        return provider

    async def _shown(self, provider: Provider) -> dict[str, Any]:
        counts = await errands.open_counts(self._api.db, provider.row.account)
        return self._render(provider, counts.get(provider.row.id, 0))

    def _render(self, provider: Provider, running: int) -> dict[str, Any]:
        row, now = provider.row, self._api.clock.wall()
        return {
            "name": row.name,
            "kind": row.kind,
            "base_url": row.base_url,
            "key_hint": row.hint,
            "max_concurrent": provider.settings.max_concurrent,
            "price_per_s": provider.settings.price_per_s,
            "price_per_run": provider.settings.price_per_run,
            "running": running,
            "paused": _pause(row.paused_until, row.pause_reason, now),
            "created_at": format_time(row.created_at),
            "changed_at": format_time(row.changed_at),
        }


def _pause(until: int | None, reason: str | None, now: int) -> dict[str, Any] | None:
    if until is None or until <= now:
        return None
    return {"reason": reason, "until": None if until >= FAR_FUTURE else format_time(until)}


def _checked(report: Report) -> dict[str, Any]:
    return msgspec.structs.asdict(report)


def routes(api: Api, providers: Providers) -> list[Route]:
    """Return the routes of providers."""
    handlers = Handlers(api, providers)
    return [
        Route("/providers", handlers.list),
        Route("/providers/{name}", handlers.show),
        Route("/providers/{name}", handlers.put, methods=["PUT"]),
        Route("/providers/{name}", handlers.remove, methods=["DELETE"]),
        Route("/providers/{name}/check", handlers.check, methods=["POST"]),
    ]
