"""Predictions over HTTP: create, read, list, cancel. Handlers parse, call the engine once, render."""

from collections.abc import Mapping

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cogflare.api import problems, requests, wire
from cogflare.api.context import Api, caller_of, json_response, links_of, read_body
from cogflare.api.wire import Cursor, Form, Links, WirePrediction
from cogflare.domain.ids import HIGHEST_ID, is_id
from cogflare.domain.phases import Status
from cogflare.engine.predictions import Order
from cogflare.engine.views import PredictionView
from cogflare.store.predictions import Query

PAGE = 100
_events = msgspec.json.Decoder(list[str])
_STATUSES = frozenset(str(status) for status in Status)


def render(view: PredictionView, links: Links, form: Form = "get") -> bytes:
    """Write a prediction as Replicate does, with every URL under the origin the client uses."""
    output = None if view.output is None else msgspec.Raw(wire.absolute_files(view.output, links.base_url))
    return wire.render_prediction(
        WirePrediction(
            id=view.id,
            model=view.model,
            version=view.version,
            input=view.input,
            status=view.status,  # type: ignore[arg-type]
            created_at=view.created_at,
            urls=links.prediction(view.id),
            output=output,
            logs=view.logs,
            error=view.error,
            data_removed=view.data_removed,
            started_at=view.started_at,
            completed_at=view.completed_at,
            deadline=view.deadline,
            metrics=None if view.metrics is None else msgspec.Raw(view.metrics.encode()),
            webhook=view.webhook,
            webhook_events_filter=None if view.webhook_events is None else _events.decode(view.webhook_events),
        ),
        form,
    )


class Handlers:
    """The endpoints of predictions."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def create(self, request: Request) -> Response:
        """POST /predictions: `version` is an id, `owner/name:id` or `owner/name`."""
        body = requests.parse_prediction(await read_body(request, self._api.max_body), versioned=True)
        assert body.version is not None
        reference = requests.parse_reference(body.version)
        model = f"{reference.owner}/{reference.name}" if reference.owner else None
        return await self._create(request, body, model, reference.id)

    async def create_for_model(self, request: Request) -> Response:
        """POST /models/{owner}/{name}/predictions: whatever version its workers offer."""
        body = requests.parse_prediction(await read_body(request, self._api.max_body), versioned=False)
        owner, name = request.path_params["owner"], request.path_params["name"]
        return await self._create(request, body, f"{owner}/{name}", None)

    async def create_for_reference(self, request: Request) -> Response:
        """POST /models/{version id}/predictions: what litellm sends for `owner/name:version`."""
        body = requests.parse_prediction(await read_body(request, self._api.max_body), versioned=False)
        return await self._create(request, body, None, request.path_params["version"])

    async def _create(
        self, request: Request, body: requests.PredictionBody, model: str | None, version: str | None
    ) -> Response:
        links = links_of(request, self._api)
        prefer = request.headers.get("prefer")
        hold_s = requests.parse_prefer(prefer)
        events = body.webhook_events_filter
        order = Order(
            body.input,
            body.values,
            model,
            version,
            body.webhook,
            None if events is None else msgspec.json.encode(events).decode(),
        )
        view = await self._api.predictions.create(caller_of(request), order, hold_s)
        headers = {"location": links.get(view.id)}
        if hold_s is not None:
            headers["preference-applied"] = requests.preference_applied(prefer) or "wait"
        return json_response(render(view, links, "get" if view.is_ended else "create"), 201, headers)

    async def get(self, request: Request) -> Response:
        """GET /predictions/{id}."""
        view = await self._api.predictions.get(caller_of(request).account, request.path_params["id"])
        return json_response(render(view, links_of(request, self._api)))

    async def cancel(self, request: Request) -> Response:
        """POST /predictions/{id}/cancel; one that has ended is returned as it is."""
        view = await self._api.predictions.cancel(caller_of(request).account, request.path_params["id"])
        return json_response(render(view, links_of(request, self._api)))

    async def list(self, request: Request) -> Response:
        """GET /predictions: newest first; filters `created_after`, `created_before`, `status`, `model`."""
        params = request.query_params
        cursor = wire.parse_cursor(params.get("cursor"))
        query = _query(caller_of(request).account, params, cursor)
        views = await self._api.predictions.page(query)
        links = links_of(request, self._api)
        backwards = cursor is not None and cursor.backwards
        more = len(views) > PAGE
        if more:
            views = views[1:] if backwards else views[:PAGE]
        kept = {name: value for name, value in params.items() if name != "cursor"}
        following = previous = None
        if views and (more or backwards):
            following = links.page("/v1/predictions", Cursor(views[-1].id, False), kept)
        if views and cursor is not None and (more or not backwards):
            previous = links.page("/v1/predictions", Cursor(views[0].id, True), kept)
        return json_response(wire.page([render(view, links) for view in views], following, previous))


def _query(account: str, params: Mapping[str, str], cursor: Cursor | None) -> Query:
    status, model = params.get("status"), params.get("model")
    if status is not None and status not in _STATUSES:
        raise problems.bad_request(f"status must be one of: {', '.join(sorted(_STATUSES))}")
    if cursor is not None and not is_id(cursor.last_id):
        raise problems.invalid_cursor()
    after, before = params.get("created_after"), params.get("created_before")
    filters = {
        "status": status,
        "model": model,
        "created_from": requests.parse_time(after, "created_after") if after else 0,
        "limit": PAGE + 1,
    }
    if before:
        filters["created_to"] = requests.parse_time(before, "created_before")
    if cursor is None:
        return Query(account, before=HIGHEST_ID, **filters)  # type: ignore[arg-type]
    if cursor.backwards:
        return Query(account, after=cursor.last_id, **filters)  # type: ignore[arg-type]
    return Query(account, before=cursor.last_id, **filters)  # type: ignore[arg-type]


def routes(api: Api) -> list[Route]:
    """Return the routes of predictions, the hottest first."""
    handlers = Handlers(api)
    return [
        Route("/predictions", handlers.create, methods=["POST"]),
        Route("/predictions/{id}", handlers.get, methods=["GET"]),
        Route("/models/{owner}/{name}/predictions", handlers.create_for_model, methods=["POST"]),
        Route("/predictions", handlers.list, methods=["GET"]),
        Route("/predictions/{id}/cancel", handlers.cancel, methods=["POST"]),
        Route("/models/{version}/predictions", handlers.create_for_reference, methods=["POST"]),
    ]
