"""Webhooks over HTTP: the secret that signs them (Replicate's endpoint, and its rotation), and what became of each."""

import re
from typing import Any, Final, get_args

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cogflare.api import wire
from cogflare.api.context import Api, caller_of, json_response, links_of
from cogflare.api.problems import bad_request, not_found
from cogflare.api.wire import Cursor, format_time
from cogflare.domain.signatures import format_secret
from cogflare.domain.webhooks import Subject
from cogflare.engine import deliverylog
from cogflare.engine.deliverylog import DeliveryLog
from cogflare.engine.secrets import WEBHOOKS, Secrets
from cogflare.store.deliveries import Delivery, Query, Try

PAGE: Final = 100
_STATES: Final = ("pending", "delivered", "failed")
_EVENTS: Final = get_args(Subject)
_ID: Final = re.compile(r"msg_[0-9a-z_]{1,200}", re.ASCII)
_PRIVATE: Final = {"cache-control": "no-store"}

_encode: Final = msgspec.json.encode


class Handlers:
    """The endpoints of webhooks."""

    def __init__(self, api: Api, secrets: Secrets, log: DeliveryLog) -> None:
        self._api = api
        self._secrets = secrets
        self._log = log

    async def secret(self, request: Request) -> Response:
        """GET /webhooks/default/secret: the one in use, made if there is none."""
        found = await self._secrets.look(caller_of(request).account, WEBHOOKS)
        return json_response(_encode({"key": format_secret(found[0].key)}), headers=_PRIVATE)

    async def rotate(self, request: Request) -> Response:
        """POST /webhooks/default/secret/rotate: a new one signs from now on, and the old one along with it."""
        new, *old = await self._secrets.rotate(caller_of(request).account, WEBHOOKS)
        document = {
            "key": format_secret(new.key),
            "created_at": format_time(new.created_at),
            "previous_expires_at": _time(old[0].expires_at) if old else None,
        }
        return json_response(_encode(document), headers=_PRIVATE)

    async def list(self, request: Request) -> Response:
        """GET /webhooks/deliveries: newest first; `state`, `event` and `prediction` filter."""
        params = request.query_params
        cursor = wire.parse_cursor(params.get("cursor"))
        state, event, prediction = params.get("state"), params.get("event"), params.get("prediction")
        if state is not None and state not in _STATES:
            raise bad_request(f"state must be one of: {', '.join(_STATES)}")
        if event is not None and event not in _EVENTS:
            raise bad_request(f"event must be one of: {', '.join(_EVENTS)}")
        before = Query("").before if cursor is None else cursor.last_id
        query = Query(caller_of(request).account, before, state, prediction, PAGE + 1, event)
        found = await self._log.page(query)
        following = None
        if len(found) > PAGE:
            kept = {name: value for name, value in params.items() if name != "cursor"}
            following = links_of(request, self._api).page(
                "/v1/webhooks/deliveries", Cursor(found[PAGE - 1][0].id), kept
            )
        return json_response(wire.page([_encode(_summary(*each)) for each in found[:PAGE]], following, None))

    async def show(self, request: Request) -> Response:
        """GET /webhooks/deliveries/{id}: the request, and what came of each try."""
        shown = await self._log.show(caller_of(request).account, _id(request))
        last = shown.tries[-1] if shown.tries else None
        document = {
            **_summary(shown.delivery, last),
            "request": _request(shown.delivery, shown.request),
            "log": [_try(tried) for tried in shown.tries],
        }
        return json_response(_encode(document))

    async def replay(self, request: Request) -> Response:
        """POST /webhooks/deliveries/{id}/replay: send it once more, under the same id."""
        delivery = await self._log.replay(caller_of(request).account, _id(request))
        return json_response(_encode(_summary(delivery, None)), 202)


def _id(request: Request) -> str:
    id: str = request.path_params["id"]
    if not _ID.fullmatch(id):
        raise not_found()
    return id


def _summary(delivery: Delivery, last: Try | None) -> dict[str, Any]:
    return {
        "id": delivery.id,
        "event": delivery.event,
        "prediction": delivery.prediction,
        "url": delivery.url,
        "state": delivery.state,
        "tries": delivery.tries,
        "status": None if last is None else last.status,
        "error": None if last is None else last.error,
        "created_at": format_time(delivery.created_at),
        "next_try_at": _time(delivery.next_try_at) if delivery.state == "pending" else None,
        "give_up_at": _time(delivery.give_up_at),
        "ended_at": _time(delivery.ended_at),
    }


def _request(delivery: Delivery, sent: deliverylog.Request | None) -> dict[str, Any] | None:
    if sent is None:
        return None
    return {"method": "POST", "url": delivery.url, "headers": sent.headers, "body": sent.body.decode()}


def _try(tried: Try) -> dict[str, Any]:
    return {
        "try": tried.number,
        "at": format_time(tried.at),
        "duration_s": tried.duration_us / 1e6,
        "status": tried.status,
        "error": tried.error,
        "answer": tried.answer,
    }


def _time(us: int | None) -> str | None:
    return None if us is None else format_time(us)


def routes(api: Api, secrets: Secrets, log: DeliveryLog) -> list[Route]:
    """Return the routes of webhooks."""
    handlers = Handlers(api, secrets, log)
    return [
        Route("/webhooks/default/secret", handlers.secret),
        Route("/webhooks/default/secret/rotate", handlers.rotate, methods=["POST"]),
        Route("/webhooks/deliveries", handlers.list),
        Route("/webhooks/deliveries/{id}", handlers.show),
        Route("/webhooks/deliveries/{id}/replay", handlers.replay, methods=["POST"]),
    ]
