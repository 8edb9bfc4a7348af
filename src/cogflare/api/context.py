"""What every handler works with: the engine's objects, and what is read from any request or put into any answer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from cogflare.api.origin import TrustedProxies, public_base
from cogflare.api.problems import Problem, body_too_large, invalid_input, unauthenticated, unavailable
from cogflare.api.requests import decode_json
from cogflare.api.wire import Links
from cogflare.domain.clock import Clock
from cogflare.domain.inputs import FieldProblem
from cogflare.engine.accounts import Accounts
from cogflare.engine.catalog import Catalog
from cogflare.engine.files import Files
from cogflare.engine.links import Fleet
from cogflare.engine.predictions import Predictions
from cogflare.engine.repeats import Repeats
from cogflare.net.addresses import PUBLIC, Reach
from cogflare.store.base import Database
from cogflare.store.catalog import Caller

T = TypeVar("T")
_SMALL_BODY = 64 << 10

CALLER = "cogflare.caller"
"""Where in the ASGI scope the authentication puts the `Caller`."""


@dataclass(frozen=True, slots=True)
class Api:
    """The engine behind the API.

    `max_body` is the most bytes of a JSON request, `reach` where webhooks may go; `public_url` has been checked.
    """

    predictions: Predictions
    catalog: Catalog
    accounts: Accounts
    fleet: Fleet
    files: Files
    db: Database
    clock: Clock
    public_url: str | None
    trusted: TrustedProxies
    max_body: int
    repeats: Repeats
    reach: Reach = PUBLIC


def caller_of(request: Request) -> Caller:
    """Return who the request's token speaks for; raise `Problem` 401 where nobody was authenticated."""
    caller = request.scope.get(CALLER)
    if not isinstance(caller, Caller):
        raise unauthenticated(token_given=False)
    return caller


def links_of(request: Request, api: Api) -> Links:
    """Return the URLs for the answer to this request."""
    return Links(public_base(request.scope, api.public_url, api.trusted))


class Bodies:
    """The memory of bodies that are being read: small ones always find room, large ones share `room` bytes."""

    def __init__(self, room: int = 256 << 20) -> None:
        self._left = room

    def take(self, size: int) -> None:
        """Count bytes in; raise `Problem` 503 where they do not find room."""
        if size > self._left:
            raise unavailable(1, "The server is reading too many large requests right now; try again.")
        self._left -= size

    def give(self, size: int) -> None:
        """Count bytes out."""
        self._left += size


async def read_body(request: Request, limit: int, refusal: Callable[[int], Problem] = body_too_large) -> bytes:
    """Read the body; raise `Problem` 413 as soon as it is known to exceed `limit` bytes, 503 without room for it."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and (len(announced) > 18 or int(announced) > limit):
        raise refusal(limit)
    bodies: Bodies = request.app.bodies
    body = bytearray()
    taken = 0
    try:
        async for chunk in request.stream():
            if len(body) + len(chunk) > limit:
                raise refusal(limit)
            body += chunk
            if len(body) > _SMALL_BODY:
                bodies.take(len(body) - taken)
                taken = len(body)
        return bytes(body)
    finally:
        bodies.give(taken)


async def read_json(request: Request, kind: type[T], limit: int) -> T:
    """Read a JSON body as a value of `kind`; raise `Problem` 400, 413, or 422 that names the field."""
    value = decode_json(await read_body(request, limit))
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        reason, _, where = str(error).partition(" - at `$")
        raise invalid_input([FieldProblem("invalid_type", where.strip("`."), reason)]) from None


def json_response(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return JSON text as an answer."""
    return Response(body, status, headers=headers, media_type="application/json")
