"""What Replicate's API has no word for: tokens, workers, the attempts of a prediction, health."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cogflare import __version__
from cogflare.api import wire, workers
from cogflare.api.context import Api, caller_of, json_response, links_of, read_json
from cogflare.api.predictions import show
from cogflare.api.problems import conflict, forbidden, invalid_input, not_found
from cogflare.api.wire import Cursor, format_time
from cogflare.domain.ids import is_id
from cogflare.domain.inputs import FieldProblem
from cogflare.domain.scopes import Models
from cogflare.engine import requeues
from cogflare.engine.accounts import NO_LIMITS, Limits
from cogflare.engine.receipts import PROVIDER
from cogflare.engine.requeues import NotRequeued
from cogflare.protocol.messages import Id
from cogflare.store import errands, fleet
from cogflare.store.base import Database
from cogflare.store.catalog import Caller, TokenRow, get_token
from cogflare.store.fleet import AttemptRow, WorkerRow

PAGE: Final = 100
_MAX_TOKEN_BYTES: Final = 16 << 10
_HEALTH: Final = msgspec.json.encode({"status": "ok", "version": __version__})

_encode: Final = msgspec.json.encode


class TokenOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A token to make; without `account` it is for the caller's own.

    That of a worker may be limited to models (`owner/name`, `owner/*`) and to so many connected workers.
    """

    kind: Literal["admin", "api", "worker"]
    name: Annotated[str, Meta(min_length=1, max_length=100, pattern=r"^[^\0]*\Z")]
    account: Annotated[str, Meta(pattern=r"^[0-9A-Za-z][0-9A-Za-z._-]{0,63}\Z")] | None = None
    expires_in_s: Annotated[int, Meta(ge=1, le=100 * 366 * 86_400)] | None = None
    models: Models | None = None
    max_connections: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None


class Handlers:
    """The endpoints of operators."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def health(self, request: Request) -> Response:
        """GET /health, for whoever asks."""
        return json_response(_HEALTH)

    # --- tokens ----------------------------------------------------------------------------------------------------

    async def tokens(self, request: Request) -> Response:
        """GET /tokens: all of them, oldest first, never their secrets."""
        _admin(request)
        found = await self._api.accounts.list(None, _after(request), PAGE + 1)
        return self._page(request, "/v1/tokens", [(row.id, _render_token(row)) for row in found])

    async def create_token(self, request: Request) -> Response:
        """POST /tokens: the answer is the only place where the secret is ever shown."""
        caller = _admin(request)
        order = await read_json(request, TokenOrder, _MAX_TOKEN_BYTES)
        limits = _limits(order)
        expires_at = None if order.expires_in_s is None else self._api.clock.wall() + order.expires_in_s * 1_000_000
        username = order.account or caller.username
        created = await self._api.accounts.create(username, order.kind, order.name, expires_at, limits=limits)
        assert created is not None, "a new secret is new"
        document: dict[str, object] = {
            "id": created.id,
            "kind": created.kind,
            "account": created.account,
            "name": created.name,
            "token": created.secret,
        }
        if created.kind == "worker":
            document |= msgspec.structs.asdict(limits) | {"join": f"{links_of(request, self._api).base_url}/join"}
        return json_response(_encode(document), 201, {"cache-control": "no-store"})

    async def token(self, request: Request) -> Response:
        """GET /tokens/{id}: one of them, and how many workers are connected with it."""
        _admin(request)
        if not is_id(request.path_params["id"]):
            raise not_found()
        return json_response(_render_token(await self._api.accounts.get(request.path_params["id"])))

    async def revoke_token(self, request: Request) -> Response:
        """DELETE /tokens/{id}: from now on it opens nothing, and its links end."""
        _admin(request)
        if not is_id(request.path_params["id"]):
            raise not_found()
        await self._api.accounts.revoke(request.path_params["id"], None)
        return Response(status_code=204)

    # --- workers ---------------------------------------------------------------------------------------------------

    async def workers(self, request: Request) -> Response:
        """GET /workers: those of the caller's account; an admin sees all."""
        caller = caller_of(request)
        seen = None if caller.kind == "admin" else caller.account
        found = await fleet.list_workers(self._api.db, seen, _after(request), PAGE + 1)
        names = {caller.account: caller.username}
        names |= await _usernames(self._api.db, {row.account for row in found} - names.keys())
        return self._page(request, "/v1/workers", [(row.id, self._worker(row, names)) for row in found])

    async def worker(self, request: Request) -> Response:
        """GET /workers/{id}: one of them, and what its token allows."""
        caller, id = caller_of(request), request.path_params["id"]
        row = await fleet.get_worker(self._api.db, id) if _is_worker_id(id) else None
        if row is None or (caller.kind != "admin" and row.account != caller.account):
            raise not_found()
        names = await _usernames(self._api.db, [row.account])
        token = await get_token(self._api.db, row.token)
        return json_response(workers.render_all(row, names[row.account], self._state(row), token))

    def _worker(self, row: WorkerRow, names: Mapping[str, str]) -> bytes:
        return workers.render(row, names[row.account], self._state(row))

    def _state(self, row: WorkerRow) -> str:
        """Return the state of a worker; one that this node has not heard of for a while is away."""
        link = self._api.fleet.links.get(row.id)
        return "away" if link is not None and link.is_away else row.state

    async def drain_worker(self, request: Request) -> Response:
        """POST /workers/{id}/drain: the agent is asked to finish what it holds and to leave."""
        caller, id = caller_of(request), request.path_params["id"]
        rows = await self._api.db.read("find_worker", id=id) if _is_worker_id(id) else []
        if not rows or (caller.kind != "admin" and rows[0][1] != caller.account):
            raise not_found()
        _, _, node, state = rows[0]
        link = self._api.fleet.links.get(id)
        if link is not None:
            link.drain()
            return Response(status_code=202)
        if state == "online" and node != self._api.fleet.node:
            raise conflict(f"The worker is connected to node {node}; ask that node to drain it.")
        raise conflict("The worker is not connected.")

    # --- predictions -----------------------------------------------------------------------------------------------

    async def requeue(self, request: Request) -> Response:
        """POST /predictions/{id}/requeue: a new prediction of one that failed; the same one for the same question."""
        caller, links = caller_of(request), links_of(request, self._api)
        try:
            view, is_new = await requeues.requeue(self._api.predictions, caller, request.path_params["id"])
        except NotRequeued as error:
            raise conflict(str(error)) from None
        shown = await show(self._api.db, view, links)
        return json_response(shown, 201 if is_new else 200, {"location": links.get(view.public_id)})

    async def attempts(self, request: Request) -> Response:
        """GET /predictions/{id}/attempts: the tries of a prediction, first to last."""
        account, prediction = caller_of(request).account, request.path_params["id"]
        found = await self._api.predictions.attempts(account, prediction)
        providers: dict[int, str] = {}
        if any(attempt.holder.startswith(PROVIDER) for attempt in found):
            row = await self._api.predictions.row(account, prediction)
            sent = await errands.for_prediction(self._api.db, row.id)
            providers = {errand.attempt: errand.provider_name for errand in sent}
        return json_response(_encode({"results": [_render_attempt(row, providers) for row in found]}))

    def _page(self, request: Request, path: str, rows: list[tuple[str, bytes]]) -> Response:
        """Answer with up to `PAGE` rows; one more says that another page follows."""
        following = None
        if len(rows) > PAGE:
            following = links_of(request, self._api).page(path, Cursor(rows[PAGE - 1][0]))
        return json_response(wire.page([shown for _, shown in rows[:PAGE]], following, None))


def _admin(request: Request) -> Caller:
    caller = caller_of(request)
    if caller.kind != "admin":
        raise forbidden("This takes an admin token.")
    return caller


def _limits(order: TokenOrder) -> Limits:
    """Return what the token is limited to; raises a 422 `Problem` where it is not a worker's."""
    limits = Limits(order.models, order.max_connections)
    if order.kind != "worker" and limits != NO_LIMITS:
        field = "models" if order.models is not None else "max_connections"
        raise invalid_input([FieldProblem("not_allowed", field, "only worker tokens are limited so")])
    return limits


def _after(request: Request) -> str:
    cursor = wire.parse_cursor(request.query_params.get("cursor"))
    return "" if cursor is None else cursor.last_id


def _is_worker_id(id: str) -> bool:
    try:
        msgspec.convert(id, Id)
    except msgspec.ValidationError:
        return False
    return True


async def _usernames(db: Database, accounts: Iterable[str]) -> dict[str, str]:
    """Return the names of these accounts by id."""
    names = {}
    for account in accounts:
        for id, username, _, _ in await db.read("get_account", id=account):
            names[id] = username
    return names


def _render_token(row: TokenRow) -> bytes:
    return _encode(
        {
            "id": row.id,
            "kind": row.kind,
            "account": row.username,
            "name": row.name,
            "hint": row.hint,
            "created_at": format_time(row.created_at),
            "expires_at": _time(row.expires_at),
            "revoked_at": _time(row.revoked_at),
            "models": row.models,
            "max_connections": row.max_connections,
        }
        | ({} if row.connections is None else {"connections": row.connections})
    )


def _render_attempt(row: AttemptRow, providers: Mapping[int, str]) -> dict[str, object]:
    return {
        "attempt": row.attempt,
        "worker": None if row.holder.startswith(PROVIDER) else row.holder,
        "provider": providers.get(row.attempt),
        "claimed_at": format_time(row.claimed_at),
        "started_at": _time(row.started_at),
        "ended_at": _time(row.ended_at),
        "outcome": row.outcome,
        "reason": row.reason,
        "slot_freed_at": _time(row.slot_freed_at),
    }


def _time(us: int | None) -> str | None:
    return None if us is None else format_time(us)


def routes(api: Api) -> list[Route]:
    """Return the routes of operators."""
    handlers = Handlers(api)
    return [
        Route("/health", handlers.health),
        Route("/tokens", handlers.tokens),
        Route("/tokens", handlers.create_token, methods=["POST"]),
        Route("/tokens/{id}", handlers.token),
        Route("/tokens/{id}", handlers.revoke_token, methods=["DELETE"]),
        Route("/workers", handlers.workers),
        Route("/workers/{id}", handlers.worker),
        Route("/workers/{id}/drain", handlers.drain_worker, methods=["POST"]),
        Route("/predictions/{id}/attempts", handlers.attempts),
        Route("/predictions/{id}/requeue", handlers.requeue, methods=["POST"]),
    ]
