"""Why a prediction is where it is, what became of it in figures, and what providers say of their own accord."""

import re
from typing import Final, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cogflare.api.context import caller_of, json_response
from cogflare.engine.receipts import Receipts

_MARK: Final = re.compile(r"[0-9A-Za-z_-]{8,100}", re.ASCII)
_encode: Final = msgspec.json.encode


class Ear(Protocol):
    """What runs at providers."""

    def heard(self, mark: str) -> None:
        """Look at the run of this mark soon; one that is not known here is passed over."""
        ...


class Handlers:
    """The endpoints beside a prediction."""

    def __init__(self, receipts: Receipts, ear: Ear) -> None:
        self._receipts = receipts
        self._ear = ear

    async def receipt(self, request: Request) -> Response:
        """GET /predictions/{id}/receipt: route and reason, attempts, seconds, bytes, cost."""
        receipt = await self._receipts.receipt(caller_of(request).account, request.path_params["id"])
        return json_response(_encode(receipt))

    async def hook(self, request: Request) -> Response:
        """POST /hooks/{mark}: a provider says that something happened; what did is asked there, not read here."""
        mark = request.path_params["mark"]
        if _MARK.fullmatch(mark):
            self._ear.heard(mark)
        return Response(status_code=204)


def routes(receipts: Receipts, ear: Ear) -> list[Route]:
    """Return the routes beside predictions."""
    handlers = Handlers(receipts, ear)
    return [
        Route("/predictions/{id}/receipt", handlers.receipt),
        Route("/hooks/{mark}", handlers.hook, methods=["POST"]),
    ]
