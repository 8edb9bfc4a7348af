"""What agents send and fetch by HTTP: output files, large results and large inputs of the attempts they hold."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Final

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cogflare import __version__
from cogflare.api.context import Api, caller_of, json_response, read_body, read_json
from cogflare.api.files import blob_problem
from cogflare.api.origin import public_base
from cogflare.api.problems import (
    MEDIA_TYPE,
    Problem,
    bad_request,
    conflict,
    forbidden,
    not_found,
    output_too_large,
    too_many_files,
)
from cogflare.api.requests import decode_json
from cogflare.blobs.base import BlobError, BlobOffset, UploadTarget
from cogflare.domain.ids import is_id
from cogflare.engine.files import NotUploaded, Proof, Sender, Superseded, TooManyFiles
from cogflare.engine.greeting import out_of_scope
from cogflare.protocol.messages import LINK_PATH, MAX_REASON, OLDEST, PROTOCOL, AttemptKey, Count, Id
from cogflare.store import recovery
from cogflare.store.catalog import Caller
from cogflare.store.recovery import Setup, SetupFailure

MAX_RESULT_BYTES: Final = 16 << 20
_MAX_ORDER_BYTES: Final = 64 << 10
_MAX_PROOF_BYTES: Final = 1 << 20
_NAME: Final = "[0-9A-Za-z][0-9A-Za-z._-]{0,99}"
_MODEL: Final = rf"^{_NAME}/{_NAME}\Z"


class FileOrder(msgspec.Struct, frozen=True):
    """A file that an agent is about to send."""

    filename: str
    content_type: str = ""
    size: Count | None = None


class Resumable(msgspec.Struct, frozen=True):
    """Where a file may be sent bit by bit instead: HEAD and PATCH to `url`, then POST to `complete`."""

    url: str
    complete: str


class OrderedFile(msgspec.Struct, frozen=True):
    """The answer to a `FileOrder`. URLs may be relative to the server's base URL."""

    id: str
    reference: str
    upload: UploadTarget
    complete: str | None
    resume: Resumable | None


class SetupReport(msgspec.Struct, frozen=True):
    """Why a worker does not come: its model was not set up. `model` is `owner/name`."""

    name: Annotated[str, Meta(max_length=100)]
    model: Annotated[str, Meta(pattern=_MODEL)]
    reason: str


class SetupNotice(msgspec.Struct, frozen=True):
    """A worker that sets its model up, or (`is_over`) does so no more. `model` is `owner/name`."""

    name: Annotated[str, Meta(max_length=100)]
    model: Annotated[str, Meta(pattern=_MODEL)]
    is_over: bool = False


class Handlers:
    """The endpoints of agents."""

    def __init__(self, api: Api, max_result_bytes: int) -> None:
        self._api = api
        self._max_result_bytes = max_result_bytes

    async def link(self, request: Request) -> Response:
        """GET /worker/v1/link without a WebSocket: whether a worker that offers `?model=owner/name` may come."""
        if model := request.query_params.get("model"):
            await self._require_scope(caller_of(request), request.headers.get("cogflare-worker", ""), model)
        document = {
            "detail": "Workers connect here by WebSocket.",
            "status": 426,
            "title": "Upgrade required",
            "server": __version__,
            "protocol": {"oldest": OLDEST, "newest": PROTOCOL},
        }
        return Response(msgspec.json.encode(document), 426, {"upgrade": "websocket"}, MEDIA_TYPE)

    async def announce(self, request: Request) -> Response:
        """POST /worker/v1/attempts/{prediction}/{attempt}/files."""
        sender, key = _sender(request), _attempt(request)
        order = await read_json(request, FileOrder, _MAX_ORDER_BYTES)
        with _refusals():
            ticket = await self._api.files.announce(sender, key, order.filename, order.content_type, order.size)
        # Relative, so that it begins at the URL that the agent dialled and not at the one that clients use.
        own = f"worker/v1/files/{ticket.id}"
        complete = f"{own}/complete"
        if ticket.upload is None:
            answer = OrderedFile(ticket.id, ticket.reference, UploadTarget(own), None, Resumable(own, complete))
        else:
            answer = OrderedFile(ticket.id, ticket.reference, ticket.upload, complete, None)
        return json_response(msgspec.json.encode(answer), 201)

    async def receive(self, request: Request) -> Response:
        """PUT /worker/v1/files/{id}: the bytes of an announced file."""
        sender = _sender(request)
        size = _number(request, "content-length")
        with _refusals():
            await self._api.files.receive(sender, request.path_params["id"], request.stream(), size)
        return Response(status_code=204)

    async def offset(self, request: Request) -> Response:
        """HEAD /worker/v1/files/{id}: where a file that is sent bit by bit goes on."""
        sender = _sender(request)
        with _refusals():
            offset = await self._api.files.offset(sender, request.path_params["id"])
        return Response(status_code=204, headers={**_offset(offset), "cache-control": "no-store"})

    async def append(self, request: Request) -> Response:
        """PATCH /worker/v1/files/{id}: the next bytes of a file, from `Upload-Offset` on."""
        sender, offset = _sender(request), _number(request, "upload-offset")
        if offset is None:
            raise bad_request("Upload-Offset must say where in the file these bytes begin", title="Invalid header")
        size = _number(request, "content-length")
        with _refusals():
            reached = await self._api.files.append(sender, request.path_params["id"], offset, request.stream(), size)
        return Response(status_code=204, headers=_offset(reached))

    async def complete(self, request: Request) -> Response:
        """POST /worker/v1/files/{id}/complete: all bytes were sent."""
        sender = _sender(request)
        proof = await read_json(request, Proof, _MAX_PROOF_BYTES)
        with _refusals():
            await self._api.files.confirm(sender, request.path_params["id"], proof)
        return Response(status_code=204)

    async def put_result(self, request: Request) -> Response:
        """PUT /worker/v1/attempts/{prediction}/{attempt}/result: an output that does not fit a frame."""
        sender, key = _sender(request), _attempt(request)
        body = await read_body(request, self._max_result_bytes, output_too_large)
        decode_json(body)
        with _refusals():
            await self._api.files.put_result(sender, key, body.decode())
        return Response(status_code=204)

    async def get_input(self, request: Request) -> Response:
        """GET /worker/v1/attempts/{prediction}/{attempt}/input: an input that does not fit a frame, or has files."""
        sender, key = _sender(request), _attempt(request)
        with _refusals():
            await self._api.files.require_held(sender, key)
        # Not under the URL that clients use: a worker may reach the server by another one.
        origin = public_base(request.scope, None, self._api.trusted)
        text = await self._api.predictions.input_of(*key, sender.worker, origin)
        return json_response(text.encode())

    async def setup_failed(self, request: Request) -> Response:
        """POST /worker/v1/setup-failures: a worker that will not open a link, because its model was not set up."""
        sender, caller = _sender(request), caller_of(request)
        report = await read_json(request, SetupReport, _MAX_ORDER_BYTES)
        await self._require_scope(caller, sender.worker, report.model)
        failure = SetupFailure(
            sender.worker,
            caller.account,
            caller.token,
            _plain(report.name),
            _unknown_offer(report.model),
            f"the model was not set up: {_plain(report.reason)}"[:MAX_REASON],
            self._api.clock.wall(),
        )
        if not await recovery.note_setup_failure(self._api.db, failure):
            raise forbidden("This worker id belongs to another account.")
        return Response(status_code=204)

    async def set_up(self, request: Request) -> Response:
        """POST /worker/v1/setups: a worker that begins to set its model up, or was stopped while it did."""
        sender, caller = _sender(request), caller_of(request)
        notice = await read_json(request, SetupNotice, _MAX_ORDER_BYTES)
        await self._require_scope(caller, sender.worker, notice.model)
        if notice.is_over:
            await recovery.note_setup_over(self._api.db, sender.worker, caller.account)
            return Response(status_code=204)
        about = sender.worker, caller.account, caller.token, _plain(notice.name), _unknown_offer(notice.model)
        if not await recovery.note_setup(self._api.db, Setup(*about, self._api.clock.wall())):
            raise forbidden("This worker id belongs to another account.")
        return Response(status_code=204)

    async def _require_scope(self, caller: Caller, worker: str, model: str) -> None:
        """Keep a limited token to its models; raises a 403 `Problem`."""
        reason = await out_of_scope(self._api.db, caller, worker, [model])
        if reason is not None:
            raise forbidden(f"{reason[:1].upper()}{reason[1:]}.")


def _number(request: Request, header: str) -> int | None:
    """Return the size or place that a header tells."""
    told = request.headers.get(header, "")
    return int(told) if told.isascii() and told.isdecimal() and len(told) <= 15 else None


def _offset(offset: int) -> dict[str, str]:
    return {"upload-offset": str(offset)}


def _plain(text: str) -> str:
    return text.replace("\0", " ")


def _unknown_offer(model: str) -> str:
    """Return what a worker offers whose model has not been set up."""
    owner, _, name = model.partition("/")
    return msgspec.json.encode([{"owner": owner, "name": name, "version": "", "slots": 0}]).decode()


def _sender(request: Request) -> Sender:
    """Return who sends this; that the worker is this account's is seen by the attempt it has to hold."""
    caller = caller_of(request)
    if caller.kind != "worker":
        raise forbidden("This is not a worker token.")
    worker = request.headers.get("cogflare-worker", "")
    try:
        return Sender(caller.account, msgspec.convert(worker, Id), caller.models)
    except msgspec.ValidationError:
        raise bad_request("Cogflare-Worker must be the id of the worker", title="Invalid header") from None


def _attempt(request: Request) -> AttemptKey:
    prediction, attempt = request.path_params["prediction"], request.path_params["attempt"]
    if not (is_id(prediction) and attempt.isascii() and attempt.isdecimal() and len(attempt) <= 9):
        raise not_found()
    return prediction, int(attempt)


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what the engine refuses here into problems."""
    try:
        yield
    except Superseded:
        raise conflict("The attempt is over; nothing more of it is wanted.") from None
    except TooManyFiles as error:
        raise too_many_files(error.limit) from None
    except NotUploaded:
        raise Problem(409, "The file storage does not have these bytes.", headers=_offset(0)) from None
    except BlobOffset as error:
        raise Problem(409, f"The file goes on at byte {error.size}.", headers=_offset(error.size)) from None
    except BlobError as error:
        raise blob_problem(error) from error


def routes(api: Api, max_result_bytes: int = MAX_RESULT_BYTES) -> list[Route]:
    """Return the routes of agents."""
    handlers = Handlers(api, max_result_bytes)
    attempt = "/worker/v1/attempts/{prediction}/{attempt}"
    return [
        Route(LINK_PATH, handlers.link),
        Route(f"{attempt}/files", handlers.announce, methods=["POST"]),
        Route("/worker/v1/files/{id}", handlers.offset, methods=["HEAD"]),
        Route("/worker/v1/files/{id}", handlers.receive, methods=["PUT"]),
        Route("/worker/v1/files/{id}", handlers.append, methods=["PATCH"]),
        Route("/worker/v1/files/{id}/complete", handlers.complete, methods=["POST"]),
        Route(f"{attempt}/result", handlers.put_result, methods=["PUT"]),
        Route(f"{attempt}/input", handlers.get_input),
        Route("/worker/v1/setup-failures", handlers.setup_failed, methods=["POST"]),
        Route("/worker/v1/setups", handlers.set_up, methods=["POST"]),
    ]
