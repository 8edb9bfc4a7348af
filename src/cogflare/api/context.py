"""What every handler works with: the engine's objects, and what is read from any request or put into any answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from cogflare.api.origin import TrustedProxies, public_base
from cogflare.api.problems import body_too_large, invalid_input, unauthenticated
from cogflare.api.requests import decode_json
from cogflare.api.wire import Links
from cogflare.domain.clock import Clock
from cogflare.domain.inputs import FieldProblem
from cogflare.engine.accounts import Accounts
from cogflare.engine.catalog import Catalog
from cogflare.engine.files import Files
from cogflare.engine.links import Fleet
from cogflare.engine.predictions import Predictions
from cogflare.store.base import Database
from cogflare.store.catalog import Caller

T = TypeVar("T")

CALLER = "cogflare.caller"
"""Where in the ASGI scope the authentication puts the `Caller`."""


@dataclass(frozen=True, slots=True)
class Api:
    """The engine behind the API. `max_body` is the most bytes of a JSON request; `public_url` has been checked."""

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


def caller_of(request: Request) -> Caller:
    """Return who the request's token speaks for; raise `Problem` 401 where nobody was authenticated."""
    caller = request.scope.get(CALLER)
    if not isinstance(caller, Caller):
        raise unauthenticated(token_given=False)
    return caller


def links_of(request: Request, api: Api) -> Links:
    """Return the URLs for the answer to this request."""
    return Links(public_base(request.scope, api.public_url, api.trusted))


async def read_body(request: Request, limit: int) -> bytes:
    """Read the body; raise `Problem` 413 as soon as it is known to exceed `limit` bytes."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and (len(announced) > 18 or int(announced) > limit):
        raise body_too_large(limit)
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > limit:
            raise body_too_large(limit)
        body += chunk
    return bytes(body)


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
