"""The WebSocket end of the links of workers of 2022, whose address says everything: model, token and session.

A token in an address must not get anywhere else, so it is taken out of the path before anything can tell of that.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs, urlsplit

import msgspec
import structlog
from starlette.types import Receive, Scope, Send

from cogflare.api.auth import authorize
from cogflare.api.context import Api
from cogflare.api.gateway import Backlog, Budget, Socket
from cogflare.api.incoming import HEARD
from cogflare.api.origin import public_base
from cogflare.api.problems import forbidden, not_found, unauthenticated, unavailable
from cogflare.api.remote import remote_address
from cogflare.engine.legacylink import Refused, Session
from cogflare.engine.legacyruns import Comer, Surroundings
from cogflare.protocol.legacy import MAX_VALUES, nameless_id, worker_id
from cogflare.protocol.messages import Name
from cogflare.store.catalog import Caller

log = structlog.get_logger()

_PATH: Final = re.compile(r"(?P<head>/models/(?P<owner>[^/]+)/(?P<name>[^/]+)/websockets?/)(?P<secret>.+)", re.DOTALL)
_MARK: Final = "/websocket"
_HIDDEN: Final = "[secret]"
_MAX_SECRET: Final = 512
_SHOWN: Final = 8  # characters of a session
_MESSAGE: Final = 400  # as how many bytes a message counts beside its text,
_VALUE: Final = 20  # and a value in it, unless they are so many that nobody looks at them
_RETRY_S: Final = 30.0


class Dialled(NamedTuple):
    """What the path of a link says."""

    owner: str
    name: str
    secret: str


def dialled(path: str) -> tuple[str, Dialled | None]:
    """Return the path as it may be told, and what it says if it is that of a link."""
    found = _PATH.search(path) if _MARK in path else None
    if found is None:
        return path, None
    told = path[: found.end("head")] + _HIDDEN
    is_link = found.start() == 0 and "/" not in found["secret"]
    return told, Dialled(found["owner"], found["name"], found["secret"]) if is_link else None


class _Served(NamedTuple):
    """What ends the socket of a session, and whether all of it is over."""

    cut: "asyncio.Future[None]"
    is_over: asyncio.Event


class LegacyGateway:
    """Serves the sockets of workers of 2022; there is one at a time for each session."""

    def __init__(self, api: Api, around: Surroundings) -> None:
        self._api = api
        self._around = around
        self._backlog = Backlog()
        self._served: dict[str, _Served] = {}

    async def serve(self, address: Dialled, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a socket until it ends; raises `Problem` or a `StoreError` for one that is not to be accepted."""
        comer = self._comer(await self._caller(address.secret), address, scope)
        while (earlier := self._served.get(comer.worker)) is not None:
            # It may be long dead, and would not answer a close.
            _end(earlier.cut)
            await earlier.is_over.wait()
        served = self._served[comer.worker] = _Served(asyncio.get_running_loop().create_future(), asyncio.Event())
        socket = Socket(send, partial(_end, served.cut), self._backlog)
        try:
            session = await Session.dial(self._around, self._api.fleet, comer, socket)
            try:
                await _opened(session)
                await receive()
                await send({"type": "websocket.accept"})
                await _carry(session, socket, served.cut, Inlet(scope, receive))
            finally:
                socket.drop()
                await session.closed()
        finally:
            del self._served[comer.worker]
            served.is_over.set()

    async def _caller(self, secret: str) -> Caller:
        caller = await self._api.accounts.caller(secret) if len(secret) <= _MAX_SECRET else None
        if caller is None:
            raise unauthenticated(token_given=True)
        authorize(caller, is_worker_path=True)
        return caller

    def _comer(self, caller: Caller, address: Dialled, scope: Scope) -> Comer:
        try:
            owner, name = msgspec.convert((address.owner, address.name), tuple[Name, Name])
        except msgspec.ValidationError:
            raise not_found() from None
        asked = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        session = asked.get("session_id", [""])[0]
        remote = remote_address(scope, self._api.trusted)
        worker = worker_id(caller.account, f"{owner}/{name}", session)
        if not session:
            worker = self._nameless(caller, f"{owner}/{name}", remote)
        return Comer(caller, worker, owner, name, session[:_SHOWN], self._origin(scope), remote)

    def _nameless(self, caller: Caller, model: str, remote: str) -> str:
        """Return the first worker without a session that has no socket here.

        Nothing tells one that comes back from another one of the same token and address; two never are the same at a
        time, on this node or on two.
        """
        place = f"{self._around.ground.node} {remote}"
        ids = (nameless_id(caller.account, model, caller.token, place, number) for number in count())
        return next(id for id in ids if id not in self._served)

    def _origin(self, scope: Scope) -> str:
        """Return what the worker dialled; where that is the public name, with the scheme that clients see."""
        base, public = public_base(scope, None, self._api.trusted), self._api.public_url
        return public if public is not None and urlsplit(public).hostname == urlsplit(base).hostname else base


def _end(over: "asyncio.Future[None]") -> None:
    if not over.done():
        over.set_result(None)


async def _opened(session: Session) -> None:
    try:
        await session.open()
    except Refused as refusal:
        raise (unavailable(_RETRY_S, str(refusal)) if refusal.may_pass else forbidden(str(refusal))) from None


async def _carry(session: Session, socket: Socket, over: "asyncio.Future[None]", inlet: "Inlet") -> None:
    """Move frames until one end of the socket is done."""
    pump = asyncio.create_task(socket.pump())
    reading = asyncio.create_task(_read(session, inlet))
    try:
        await asyncio.wait((reading, pump, over), return_when=asyncio.FIRST_COMPLETED)
        if pump.done() and not reading.done():
            # The close is sent; the peer may still answer it.
            await asyncio.wait((reading, over), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (reading, pump, over):
            task.cancel()
        failure, *_ = await asyncio.gather(reading, pump, return_exceptions=True)
        if isinstance(failure, Exception):
            log.error("socket of a worker of 2022 failed", exc_info=failure)


class Inlet:
    """What comes in over a socket; the room of a frame is given back when it has been heard."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        self._heard = scope.get("extensions", {}).get(HEARD, {}).get("heard", lambda: None)

    async def next(self, hear: Callable[[str | bytes], Awaitable[None]]) -> int | None:
        """Have the next frame heard; returns as how many bytes it counts, None at the end."""
        message: dict[str, Any] = dict(await self._receive())
        if message["type"] != "websocket.receive":
            return None
        text = message.get("text")
        frame = text if text is not None else message.get("bytes") or b""
        try:
            await hear(frame)
        finally:
            self._heard()
        values = frame.count(",") if isinstance(frame, str) else frame.count(b",")
        return len(frame) + _MESSAGE + min(values, MAX_VALUES) * _VALUE


async def _read(session: Session, inlet: Inlet) -> None:
    budget = Budget()
    while (size := await inlet.next(session.hear)) is not None:
        if (pause_s := budget.spend(size)) > 0:
            await asyncio.sleep(pause_s)
