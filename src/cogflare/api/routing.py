"""The ASGI application: mounts, authentication before routing, and one place that turns errors into problems.

Clients do not agree on where the API's `/v1` belongs, so `/v1`, `/` and `/v1/v1` are one and the same tree.
"""

import re
from collections.abc import Awaitable, Callable, Sequence

import structlog
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cogflare.api import problems
from cogflare.api.auth import authenticate, authorize
from cogflare.api.context import Api, Bodies
from cogflare.api.files import blob_problem
from cogflare.api.gateway import Gateway
from cogflare.api.legacygateway import Dialled, LegacyGateway, dialled
from cogflare.api.problems import Problem
from cogflare.api.wishes import bad_route
from cogflare.blobs.base import BlobError
from cogflare.domain.errors import (
    BadRoute,
    Forbidden,
    InvalidInput,
    NotFound,
    OverBudget,
    ProviderAway,
    QueueFull,
    RequestError,
    Reused,
    VersionNotFound,
)
from cogflare.domain.ids import STREAM_LENGTH
from cogflare.protocol.messages import LINK_PATH
from cogflare.store.base import Full, StoreError

log = structlog.get_logger()

_DOWNLOAD = r"/files/[0-9a-z]{40}/download(?:/|\Z)"
_OPEN = re.compile(
    rf"/f/|/health|/join(?:/|\Z)|/hooks/|/streams/|/files/[0-9a-z]{{{STREAM_LENGTH}}}\Z|{_DOWNLOAD}", re.ASCII
)
_LEGACY = re.compile(r"/models/[^/]+/[^/]+/files(?:/|\Z)")
_WORKERS = "/worker/"
_MAX_REQUESTS = 25_000  # under way, those that hold their answer back included


class Application:
    """Everything this server answers over HTTP and WebSocket."""

    def __init__(self, api: Api, router: Router, gateway: Gateway, legacy: LegacyGateway | None = None) -> None:
        self._api = api
        self._router = router
        self._gateway = gateway
        self._legacy = legacy
        self._requests = 0
        self.bodies = Bodies()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or socket."""
        path, worker = dialled(_strip(scope["path"]))
        scope["path"] = path
        scope["raw_path"] = path.encode()
        scope["app"] = self
        if scope["type"] == "websocket":
            await self._websocket(path, worker, scope, receive, send)
            return
        watch = _Watch(send)
        self._requests += 1
        try:
            if self._requests > _MAX_REQUESTS:
                raise problems.unavailable(1, "The server has too many requests to answer right now; try again.")
            if not _OPEN.match(path) and not _LEGACY.match(path):
                caller = await authenticate(self._api.accounts, Headers(scope=scope))
                authorize(caller, path.startswith(_WORKERS))
                scope["cogflare.caller"] = caller
            await self._router(scope, receive, watch)
        except ClientDisconnect:
            return
        except Exception as error:
            problem = _problem(error, scope)
            if watch.has_started:
                # Part of an answer is out: breaking the connection is the only honest end.
                raise
            await problem.response()(scope, receive, send)
        finally:
            self._requests -= 1

    async def _websocket(self, path: str, worker: Dialled | None, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if worker is not None and self._legacy is not None:
                await self._legacy.serve(worker, scope, receive, send)
                return
            caller = await authenticate(self._api.accounts, Headers(scope=scope))
            authorize(caller, is_worker_path=True)
            if path != LINK_PATH:
                raise problems.not_found()
            self._gateway.require_spoken(scope)
        except (Problem, StoreError) as error:
            await _deny(_problem(error, scope), scope, receive, send)
            return
        await self._gateway.serve(caller, scope, receive, send)


class _Watch:
    """Remembers whether an answer has begun."""

    __slots__ = ("_send", "has_started")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_started = False

    async def __call__(self, message: Message) -> None:
        self.has_started = True
        await self._send(message)


def _strip(path: str) -> str:
    for _ in range(2):
        if path.startswith("/v1/") or path == "/v1":
            path = path[3:] or "/"
    return path if len(path) == 1 else path.rstrip("/") or "/"


async def _deny(problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a handshake with the problem as its HTTP answer."""
    await receive()
    response = problem.response()
    if "websocket.http.response" in scope.get("extensions", {}):
        await send(
            {"type": "websocket.http.response.start", "status": response.status_code, "headers": response.raw_headers}
        )
        await send({"type": "websocket.http.response.body", "body": response.body})
    else:
        await send({"type": "websocket.close", "code": 4000 + problem.status, "reason": problem.detail[:100]})


def _problem(error: Exception, scope: Scope) -> Problem:
    """Return what a client is told about an error; what is ours is logged."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, RequestError):
        return _refusal(error)
    if isinstance(error, HTTPException):
        return _routing(error, scope)
    if isinstance(error, Full):
        return problems.storage_full()
    if isinstance(error, BlobError):
        return blob_problem(error)
    if isinstance(error, StoreError):
        log.error("the store failed a request", path=scope["path"], error=str(error))
        return problems.unavailable(1, "The server's store does not answer right now; try again.")
    log.error("request failed", path=scope["path"], exc_info=error)
    return problems.internal_error()


def _refusal(error: RequestError) -> Problem:
    if isinstance(error, InvalidInput):
        return problems.invalid_input(error.problems)
    if isinstance(error, VersionNotFound):
        return problems.version_not_permitted()
    if isinstance(error, Forbidden):
        return problems.forbidden()
    if isinstance(error, NotFound):
        return problems.not_found(*error.args)
    if isinstance(error, QueueFull):
        return problems.queue_full(str(error))
    if isinstance(error, BadRoute):
        return bad_route(error.place, str(error))
    if isinstance(error, OverBudget):
        return problems.insufficient_budget(str(error))
    if isinstance(error, ProviderAway):
        return problems.unavailable(error.retry_after_s, str(error))
    if isinstance(error, Reused):
        return problems.reused(str(error))
    return problems.bad_request(str(error))


def _routing(error: HTTPException, scope: Scope) -> Problem:
    if error.status_code == 405:
        # The first route of a path knows only its own methods.
        routes = [route for route in scope["router"].routes if isinstance(route, Route)]
        allowed = {
            name for route in routes if route.matches(scope)[0] is not Match.NONE for name in route.methods or ()
        }
        return problems.method_not_allowed(scope["method"], sorted(allowed))
    return problems.not_found() if error.status_code == 404 else problems.bad_request(error.detail)


def table(routes: Sequence[Route]) -> Router:
    """Return the router of these routes, without Starlette's error handling around each: errors end up in one place."""
    for route in routes:
        route.app = _direct(route.endpoint)
    return Router(routes, redirect_slashes=False, default=_missing)


def _direct(endpoint: Callable[[Request], Awaitable[Response]]) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response = await endpoint(Request(scope, receive, send))
        await response(scope, receive, send)

    return app


async def _missing(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer what no route takes."""
    response: Response = problems.not_found().response()
    await response(scope, receive, send)
