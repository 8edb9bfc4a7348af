"""Tokens of the first Cogflare, brought in by an admin. Their secrets come in a body and are in no answer."""

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cogflare.api.context import caller_of, json_response, read_json
from cogflare.api.problems import forbidden
from cogflare.engine.tokenimport import TokenImport

MOST: Final = 100
"""Entries of one request: each is a unit of its own."""
_MAX_BODY: Final = 1 << 20


class Entry(msgspec.Struct, frozen=True):
    """An entry as the key-value store had it: `value` is an object, or its JSON text. `account`: whose it becomes."""

    key: str
    value: Any
    account: Annotated[str, Meta(pattern=r"^[0-9A-Za-z][0-9A-Za-z._-]{0,63}\Z")] | None = None


class ImportOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Entries to take; with `check` Replicate is asked about each key, and a `dry_run` changes nothing."""

    entries: Annotated[list[Entry], Meta(max_length=MOST)]
    check: bool = False
    dry_run: bool = False


class Handlers:
    """The endpoint of the import."""

    def __init__(self, tokens: TokenImport) -> None:
        self._tokens = tokens

    async def take(self, request: Request) -> Response:
        """POST /tokens/import: each entry is taken as a whole or not at all, and the answer says which."""
        if caller_of(request).kind != "admin":
            raise forbidden("This takes an admin token.")
        order = await read_json(request, ImportOrder, _MAX_BODY)
        options = {"check": order.check, "is_rehearsal": order.dry_run}
        results = [await self._tokens.take(one.key, one.value, one.account, **options) for one in order.entries]
        return json_response(msgspec.json.encode({"results": results}), headers={"cache-control": "no-store"})


def routes(tokens: TokenImport) -> list[Route]:
    """Return the route of the import."""
    return [Route("/tokens/import", Handlers(tokens).take, methods=["POST"])]
