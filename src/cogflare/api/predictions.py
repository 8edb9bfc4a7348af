"""Predictions over HTTP: create, read, list, cancel. Handlers parse, call the engine once, render.

A create that may have been sent before says so in one of three ways: PUT with an id of the client's own, the header
`Idempotency-Key`, or the count of retries that the Stainless clients send.
"""

from collections.abc import Mapping

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cogflare.api import dialect, problems, requests, wire, wishes
from cogflare.api.context import Api, caller_of, json_response, links_of, read_body
from cogflare.api.problems import Problem
from cogflare.api.wire import Cursor, Form, Links, WirePrediction
from cogflare.domain.ids import HIGHEST_ID, is_id
from cogflare.domain.phases import TERMINAL, Status
from cogflare.engine.explain import Explanations
from cogflare.engine.predictions import Order
from cogflare.engine.repeats import Answer
from cogflare.engine.views import PredictionView
from cogflare.store import inquiries
from cogflare.store.base import Database
from cogflare.store.limits import Filter
from cogflare.store.listing import Query
from cogflare.store.predictions import FAR_FUTURE

PAGE = 100
_events = msgspec.json.Decoder(list[str])
_STATUSES = frozenset(str(status) for status in Status)
_LIVE = frozenset(str(status) for status in Status if status not in TERMINAL)


def render(view: PredictionView, links: Links, form: Form = "get") -> bytes:
    """Write a prediction as Replicate does, with every URL under the origin the client uses."""
    output = None if view.output is None else msgspec.Raw(wire.absolute_files(view.output, links.base_url))
    return wire.render_prediction(
        WirePrediction(
            id=view.public_id,
            model=view.model,
            version=view.version,
            input=msgspec.Raw(wire.absolute_files(bytes(view.input), links.base_url)),
            status=view.status,  # type: ignore[arg-type]
            created_at=view.created_at,
            urls=links.prediction(view.public_id, view.stream_token),
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


async def show(db: Database, view: PredictionView, links: Links, form: Form = "get") -> bytes:
    """Write a prediction in the dialect of the client that made it."""
    if view.dialect is None:
        return render(view, links, form)
    is_new = dialect.status_of(view) == "creating"
    return dialect.render(view, links, None if is_new else await inquiries.ran_where(db, view.id))


class Handlers:
    """The endpoints of predictions."""

    def __init__(self, api: Api, explanations: Explanations | None) -> None:
        self._api = api
        self._explanations = explanations

    async def create(self, request: Request) -> Response:
        """POST /predictions: `version` is an id, `owner/name:id` or `owner/name`."""
        return await self._create(request, *await self._body(request))

    async def put(self, request: Request) -> Response:
        """PUT /predictions/{id}: create under an id of the client's own, once."""
        client_id = requests.parse_client_id(request.path_params["id"])
        return await self._create(request, *await self._body(request), client_id)

    async def put_for_model(self, request: Request) -> Response:
        """PUT /models/{owner}/{name}/predictions/{id}."""
        client_id = requests.parse_client_id(request.path_params["id"])
        body = await self._parsed(request)
        owner, name = request.path_params["owner"], request.path_params["name"]
        return await self._create(request, body, f"{owner}/{name}", None, client_id)

    async def create_for_model(self, request: Request) -> Response:
        """POST /models/{owner}/{name}/predictions: whatever version its workers offer."""
        body = await self._parsed(request)
        owner, name = request.path_params["owner"], request.path_params["name"]
        return await self._create(request, body, f"{owner}/{name}", None)

    async def create_for_reference(self, request: Request) -> Response:
        """POST /models/{version id}/predictions: what litellm sends for `owner/name:version`."""
        body = await self._parsed(request)
        return await self._create(request, body, None, request.path_params["version"])

    async def _body(self, request: Request) -> tuple[requests.PredictionBody, str | None, str | None]:
        """Read the body of a create that says itself what to run: (body, model, version)."""
        text, reach = await read_body(request, self._api.max_body), self._api.reach
        if dialect.HEADER in request.headers and dialect.is_spoken(request.headers, text):
            return dialect.parse(text, reach)
        try:
            body = requests.parse_prediction(text, versioned=True, reach=reach)
        except Problem:
            # Nothing that Replicate's dialect takes is looked at a second time.
            if not dialect.is_spoken(request.headers, text):
                raise
            return dialect.parse(text, reach)
        assert body.version is not None
        reference = requests.parse_reference(body.version)
        return body, f"{reference.owner}/{reference.name}" if reference.owner else None, reference.id

    async def _parsed(self, request: Request) -> requests.PredictionBody:
        body = await read_body(request, self._api.max_body)
        return requests.parse_prediction(body, versioned=False, reach=self._api.reach)

    async def _create(
        self,
        request: Request,
        body: requests.PredictionBody,
        model: str | None,
        version: str | None,
        client_id: str | None = None,
    ) -> Response:
        links = links_of(request, self._api)
        prefer = request.headers.get("prefer")
        hold_s = requests.parse_prefer(prefer)
        events, cancel_after = (
            body.webhook_events_filter,
            requests.parse_cancel_after(request.headers.get("cancel-after")),
        )
        if cancel_after is None and body.dialect is not None:
            cancel_after = dialect.GIVE_UP_US
        order = Order(
            body.input,
            body.values,
            model,
            version,
            body.webhook,
            None if events is None else msgspec.json.encode(events).decode(),
            cancel_after,
            webhook_origin=links.base_url,
            route=body.route or wishes.parse_wish_header(request.headers.get("cogflare-route")),
            hops=wishes.parse_hops(request.headers.get("cogflare-hops")),
            dialect=body.dialect,
        )
        answer = await self._accept(request, order, client_id, hold_s)
        view = answer.view
        headers = {"location": links.get(view.public_id)}
        if hold_s is not None:
            headers["preference-applied"] = requests.preference_applied(prefer) or "wait"
        if not answer.is_new:
            headers["idempotent-replayed"] = "true"
        is_fresh = answer.is_new or hold_s is not None
        form: Form = "create" if is_fresh and not view.is_ended else "get"
        is_made = body.dialect is None and (answer.is_new or client_id is None)
        return json_response(await show(self._api.db, view, links, form), 201 if is_made else 200, headers)

    async def _accept(self, request: Request, order: Order, client_id: str | None, hold_s: float | None) -> Answer:
        """Create a prediction, or find the one that this request made when it was sent before."""
        caller, repeats = caller_of(request), self._api.repeats
        if client_id is not None:
            return await repeats.named(caller, order, client_id, hold_s)
        key = requests.parse_idempotency_key(request.headers.get("idempotency-key"))
        if key is not None:
            return await repeats.keyed(caller, order, key, hold_s)
        number = requests.parse_retry_count(request.headers.get("x-stainless-retry-count"))
        if number is not None:
            return await repeats.retried(caller, order, number, hold_s)
        return Answer(await self._api.predictions.create(caller, order, hold_s), True)

    async def get(self, request: Request) -> Response:
        """GET /predictions/{id}; with `explain=1` the answer also says why it is where it is."""
        account, prediction = caller_of(request).account, request.path_params["id"]
        view = await self._api.predictions.get(account, prediction)
        body = await show(self._api.db, view, links_of(request, self._api))
        wanted = bool(request.scope["query_string"]) and _is_asked(request.query_params, "explain")
        if wanted and self._explanations is not None:
            explanation = msgspec.json.encode(await self._explanations.explain(account, prediction))
            body = b'%b,"explanation":%b}' % (body[:-1], explanation)
        return json_response(body)

    async def cancel(self, request: Request) -> Response:
        """POST /predictions/{id}/cancel; one that has ended is returned as it is."""
        view = await self._api.predictions.cancel(caller_of(request).account, request.path_params["id"])
        return json_response(await show(self._api.db, view, links_of(request, self._api)))

    async def cancel_matching(self, request: Request) -> Response:
        """POST /predictions/cancel: whatever the parameters name, up to 1,000 a call."""
        wanted = _filter(caller_of(request).account, request.query_params)
        canceled, more = await self._api.predictions.cancel_matching(wanted)
        return json_response(msgspec.json.encode({"canceled": canceled, "more": more}))

    async def list(self, request: Request) -> Response:
        """GET /predictions: newest first; `created_after`, `created_before`, `status`, `model`, `struck_out` filter."""
        params = request.query_params
        cursor = wire.parse_cursor(params.get("cursor"))
        query = _query(caller_of(request).account, params, cursor)
        page = await self._api.predictions.page(query)
        views = page.views
        links = links_of(request, self._api)
        backwards = cursor is not None and cursor.backwards
        more = page.is_cut or len(views) > PAGE
        if len(views) > PAGE:
            views = views[1:] if backwards else views[:PAGE]
        kept = {name: value for name, value in params.items() if name != "cursor"}
        following = previous = None
        if views and (more or backwards):
            following = links.page("/v1/predictions", Cursor(views[-1].id, False), kept)
        if views and cursor is not None and (more or not backwards):
            previous = links.page("/v1/predictions", Cursor(views[0].id, True), kept)
        shown = [await show(self._api.db, view, links) for view in views]
        return json_response(wire.page(shown, following, previous))


def _is_asked(params: Mapping[str, str], name: str) -> bool:
    """Read a parameter that asks for more, and asks for nothing where it is absent."""
    value = params.get(name, "0")
    if value not in ("0", "1", "false", "true"):
        raise problems.bad_request(f"{name} must be 1 or 0")
    return value in ("1", "true")


def _is_set(params: Mapping[str, str], name: str) -> bool:
    """Read a parameter that is true or false, and false where it is absent."""
    value = params.get(name, "false")
    if value not in ("true", "false"):
        raise problems.bad_request(f"{name} must be true or false")
    return value == "true"


def _model(params: Mapping[str, str]) -> str | None:
    """Read the name of a model; one that no store can look for is refused."""
    model = params.get("model")
    if model is not None and "\0" in model:
        raise problems.bad_request("model must be owner/name")
    return model


def _query(account: str, params: Mapping[str, str], cursor: Cursor | None) -> Query:
    status, model = params.get("status"), _model(params)
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
        "struck_out": _is_set(params, "struck_out"),
    }
    if before:
        filters["created_to"] = requests.parse_time(before, "created_before")
    if cursor is None:
        return Query(account, before=HIGHEST_ID, **filters)  # type: ignore[arg-type]
    if cursor.backwards:
        return Query(account, after=cursor.last_id, **filters)  # type: ignore[arg-type]
    return Query(account, before=cursor.last_id, **filters)  # type: ignore[arg-type]


def _filter(account: str, params: Mapping[str, str]) -> Filter:
    """Read what to cancel; strict, because a filter that was passed over would cancel more than was meant."""
    unknown = params.keys() - {"status", "model", "created_after", "created_before", "all"}
    if unknown:
        raise problems.bad_request(f"There is no filter {', '.join(sorted(unknown))}; nothing was canceled")
    if not params or params.get("all", "true") != "true":
        raise problems.bad_request("Say what to cancel: status, model, created_after, created_before, or all=true")
    status, after, before = params.get("status"), params.get("created_after"), params.get("created_before")
    if status is not None and status not in _LIVE:
        raise problems.bad_request(f"status must be one of: {', '.join(sorted(_LIVE))}; nothing was canceled")
    return Filter(
        account,
        status,
        _model(params),
        0 if after is None else requests.parse_time(after, "created_after"),
        FAR_FUTURE if before is None else requests.parse_time(before, "created_before"),
    )


def routes(api: Api, explanations: Explanations | None = None) -> list[Route]:
    """Return the routes of predictions, the hottest first; without `explanations` nothing is explained."""
    handlers = Handlers(api, explanations)
    return [
        Route("/predictions", handlers.create, methods=["POST"]),
        Route("/predictions/{id}", handlers.get, methods=["GET"]),
        Route("/models/{owner}/{name}/predictions", handlers.create_for_model, methods=["POST"]),
        Route("/predictions", handlers.list, methods=["GET"]),
        Route("/predictions/{id}/cancel", handlers.cancel, methods=["POST"]),
        Route("/predictions/{id}", handlers.put, methods=["PUT"]),
        Route("/models/{owner}/{name}/predictions/{id}", handlers.put_for_model, methods=["PUT"]),
        Route("/predictions/cancel", handlers.cancel_matching, methods=["POST"]),
        Route("/models/{version}/predictions", handlers.create_for_reference, methods=["POST"]),
    ]
