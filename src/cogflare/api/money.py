"""Budgets of the caller's account, and what was spent: amounts are dollars."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cogflare.api import requests, wire
from cogflare.api.context import Api, caller_of, json_response, links_of, read_json
from cogflare.api.problems import Problem, bad_request, conflict, not_found
from cogflare.api.wire import Cursor, format_time
from cogflare.domain.ids import is_id
from cogflare.domain.money import MAX_DOLLARS, Period, day_of, dollars, micros
from cogflare.engine.budgets import PERIODS, Budget, Budgets, Scope
from cogflare.engine.costs import BY, By, Costs, Ledger, Line, Saved

PAGE: Final = 100
MOST: Final = 10_000
"""How many budgets an account may have."""
_MAX_BODY: Final = 4 << 10
_TOKENS: Final = 10_000
_DAY_US: Final = 86_400_000_000
_LONGEST_US: Final = 366 * _DAY_US
_NAME: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,99}", re.ASCII)
_BACK: Final = re.compile(r"([0-9]{1,4})([mhd])", re.ASCII)
_UNITS_US: Final = {"m": 60_000_000, "h": 3_600_000_000, "d": _DAY_US}

_encode: Final = msgspec.json.encode


class BudgetOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a PUT: dollars."""

    amount: Annotated[float, Meta(ge=0, le=MAX_DOLLARS)]


class Handlers:
    """The endpoints of money."""

    def __init__(self, api: Api, budgets: Budgets, ledger: Ledger) -> None:
        self._api = api
        self._budgets = budgets
        self._ledger = ledger

    async def list(self, request: Request) -> Response:
        """GET /budgets: each with what is spent of it."""
        cursor = wire.parse_cursor(request.query_params.get("cursor"))
        found = [(_place(each), each) for each in await self._budgets.all(caller_of(request).account)]
        found = sorted(pair for pair in found if cursor is None or pair[0] > cursor.last_id)
        following = None
        if len(found) > PAGE:
            following = links_of(request, self._api).page("/v1/budgets", Cursor(found[PAGE - 1][0]))
        shown = [each for _, each in found[:PAGE]]
        names = await self._names(request, any(each.scope == "token" for each in shown))
        return json_response(wire.page([_encode(_render(each, names)) for each in shown], following, None))

    async def put(self, request: Request) -> Response:
        """PUT /budgets/…/{period}: it counts what was spent in this day or month before, too."""
        place = _of(request)
        order = await read_json(request, BudgetOrder, _MAX_BODY)
        account = caller_of(request).account
        known = await self._budgets.all(account)
        if len(known) >= MOST and all((each.scope, each.ref, each.period) != place for each in known):
            raise conflict(f"An account has up to {MOST} budgets; remove some.")
        budget = await self._budgets.put(account, *place, micros(order.amount))
        names = await self._names(request, budget.scope == "token")
        return json_response(_encode(_render(budget, names)))

    async def remove(self, request: Request) -> Response:
        """DELETE /budgets/…/{period}."""
        await self._budgets.remove(caller_of(request).account, *_of(request))
        return Response(status_code=204)

    async def costs(self, request: Request) -> Response:
        """GET /costs: what was spent since when, by what, and what own workers have saved; days (UTC) count whole."""
        params, now = request.query_params, self._api.clock.wall()
        since = _time(params, "since", now, 30 * _DAY_US)
        until = _time(params, "until", now, 0)
        if not 0 <= since < until or until - since > _LONGEST_US:
            raise bad_request("since has to be before until, and at most 366 days before it")
        by = _by(params.get("by"))
        costs = await self._ledger.costs(caller_of(request).account, since, until, by)
        return json_response(_encode(_render_costs(costs, await self._names(request, "token" in by))))

    async def _names(self, request: Request, are_wanted: bool) -> dict[str, str]:
        """Return the names of the account's tokens by id."""
        if not are_wanted:
            return {}
        tokens = await self._api.accounts.list(caller_of(request).account, "", _TOKENS)
        return {token.id: token.name for token in tokens}


def _of(request: Request) -> tuple[Scope, str, Period]:
    """Return whose budget the path names, and of which period; raise `Problem` 400 or 404."""
    params = request.path_params
    period: Period = params["period"]
    if period not in PERIODS:
        raise bad_request(f"The period of a budget is one of: {', '.join(PERIODS)}")
    if "token" in params:
        if not is_id(params["token"]):
            raise not_found()
        return "token", params["token"], period
    if "owner" in params:
        if not _NAME.fullmatch(params["owner"]) or not _NAME.fullmatch(params["name"]):
            raise not_found()
        return "model", f"{params['owner']}/{params['name']}", period
    return "account", "", period


def _place(budget: Budget) -> str:
    """Return the name under which a budget is listed; a cursor may be it."""
    return f"{budget.scope}:{budget.ref}:{budget.period}"


def _render(budget: Budget, names: Mapping[str, str]) -> dict[str, Any]:
    return {
        "scope": budget.scope,
        "ref": budget.ref or None,
        "name": names.get(budget.ref) if budget.scope == "token" else None,
        "period": budget.period,
        "amount": dollars(budget.amount),
        "spent": dollars(budget.spent - budget.reserved),
        "reserved": dollars(budget.reserved),
        "left": dollars(max(0, budget.amount - budget.spent)),
        "since": budget.since,
        "changed_at": format_time(budget.changed_at),
    }


def _time(params: Mapping[str, str], name: str, now: int, default_us: int) -> int:
    """Read a time: an RFC 3339 date-time, or so long ago (`7d`)."""
    text = params.get(name)
    if not text:
        return now - default_us
    found = _BACK.fullmatch(text)
    if found is not None:
        return now - int(found[1]) * _UNITS_US[found[2]]
    try:
        return requests.parse_time(text, name)
    except Problem:
        said = f"{name} must be so long ago (90m, 12h, 7d), or an RFC 3339 date-time such as 2026-01-02T03:04:05Z"
        raise bad_request(said) from None


def _by(text: str | None) -> list[By]:
    names = [name for name in (text or "").split(",") if name]
    for name in names:
        if name not in BY or names.count(name) > 1:
            raise bad_request(f"by takes some of {', '.join(BY)}, each once, with commas between them")
    return [name for name in BY if name in names]


def _render_costs(costs: Costs, names: Mapping[str, str]) -> dict[str, Any]:
    priced = [saved.amount for saved in costs.saved if saved.amount is not None]
    return {
        "since": day_of(costs.since),
        "until": day_of(costs.until - 1),
        "results": [_render_line(line, names) for line in costs.lines],
        "total": _render_line(costs.total, names),
        "saved": {
            "runs": sum(saved.runs for saved in costs.saved),
            "unpriced": sum(saved.runs for saved in costs.saved if saved.amount is None),
            "run_s": sum(saved.run_us for saved in costs.saved) / 1e6,
            "amount": dollars(sum(priced)) if priced else None,
            "models": [_render_saved(saved) for saved in costs.saved],
        },
    }


def _render_line(line: Line, names: Mapping[str, str]) -> dict[str, Any]:
    by: dict[str, Any] = {str(name): value for name, value in line.names.items()}
    if "token" in by:
        by["token_name"] = names.get(by["token"])
    return {
        **by,
        "runs": line.runs,
        "unknown": line.unknown,
        "in_doubt": line.in_doubt,
        "run_s": line.run_us / 1e6,
        "cost": dollars(line.cost),
    }


def _render_saved(saved: Saved) -> dict[str, Any]:
    return {
        "model": saved.model,
        "runs": saved.runs,
        "run_s": saved.run_us / 1e6,
        "amount": None if saved.amount is None else dollars(saved.amount),
    }


def routes(api: Api, budgets: Budgets, ledger: Ledger) -> list[Route]:
    """Return the routes of money."""
    handlers = Handlers(api, budgets, ledger)
    places = [f"/budgets/{whose}/{{period}}" for whose in ("account", "token/{token}", "model/{owner}/{name}")]
    return [
        Route("/costs", handlers.costs),
        Route("/budgets", handlers.list),
        *(Route(place, handlers.put, methods=["PUT"]) for place in places),
        *(Route(place, handlers.remove, methods=["DELETE"]) for place in places),
    ]
