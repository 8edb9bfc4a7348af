"""Files of workers of 2022 over HTTP: uploads without a token, and reads under the URLs that were given for them."""

from collections.abc import AsyncIterator
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cogflare.api.context import Api, json_response, links_of
from cogflare.api.files import blob_problem, serve
from cogflare.api.multipart import Multipart, Part
from cogflare.api.problems import (
    conflict,
    file_not_found,
    file_too_large,
    invalid_input,
    not_found,
    too_many_files,
)
from cogflare.api.remote import remote_address
from cogflare.blobs.base import BlobError
from cogflare.domain.errors import NotFound
from cogflare.domain.inputs import FieldProblem
from cogflare.engine.files import TooManyFiles
from cogflare.engine.legacyfiles import LegacyFiles, NotRunning
from cogflare.protocol.messages import Name

_FIELD: Final = "file"
_PARTS: Final = 10
_HEADS_BYTES: Final = 1 << 20


class Handlers:
    """The endpoints of these files."""

    def __init__(self, api: Api, files: LegacyFiles) -> None:
        self._api = api
        self._files = files

    async def receive(self, request: Request) -> Response:
        """PUT and POST /models/{owner}/{name}/files: a form with the part `file`."""
        model = _model(request)
        links = links_of(request, self._api)
        address = remote_address(request.scope, self._api.trusted)
        limit = self._api.files.max_file_bytes
        announced = request.headers.get("content-length", "")
        form = Multipart(request.headers.get("content-type", ""), _within(request.stream(), limit))
        if announced.isdecimal() and (len(announced) > 18 or int(announced) > limit + _HEADS_BYTES):
            raise file_too_large(limit)
        try:
            # Of a stranger who comes at a wrong time nothing is read.
            await self._files.room(model, address)
            part = await _file(form)
            kind = part.content_type or ""
            path = await self._files.receive(model, address, part.filename or _FIELD, kind, form.body())
        except NotRunning:
            raise conflict("No worker of 2022 runs this model now; nothing is taken for it.") from None
        except TooManyFiles as error:
            raise too_many_files(error.limit) from None
        except BlobError as error:
            raise blob_problem(error) from error
        return json_response(msgspec.json.encode({"url": links.base_url + path}))

    async def get(self, request: Request) -> Response:
        """GET and HEAD /models/{owner}/{name}/files/{id}/{filename}: once an output has named the file."""
        _model(request)
        try:
            row = await self._api.files.find(request.path_params["id"], request.path_params["filename"])
        except NotFound:
            raise file_not_found() from None
        return await serve(request, row, self._api.files)


async def _within(stream: AsyncIterator[bytes], limit: int) -> AsyncIterator[bytes]:
    """Pass a body on that is a file of up to `limit` bytes, and what is around it; raises `Problem` 413."""
    left = limit + _HEADS_BYTES
    async for piece in stream:
        left -= len(piece)
        if left < 0:
            raise file_too_large(limit)
        yield piece


async def _file(form: Multipart) -> Part:
    """Read on to the file of a form."""
    for _ in range(_PARTS):
        part = await form.part()
        if part is None:
            break
        if part.name == _FIELD:
            return part
    raise invalid_input([FieldProblem("required", _FIELD, f"{_FIELD} is required")])


def _model(request: Request) -> str:
    asked = request.path_params["owner"], request.path_params["name"]
    try:
        return "/".join(msgspec.convert(asked, tuple[Name, Name]))
    except msgspec.ValidationError:
        raise not_found() from None


def routes(api: Api, files: LegacyFiles) -> list[Route]:
    """Return the routes of these files."""
    handlers = Handlers(api, files)
    path = "/models/{owner}/{name}/files"
    return [
        Route(path, handlers.receive, methods=["PUT", "POST"]),
        Route(f"{path}/{{id}}/{{filename}}", handlers.get, methods=["GET", "HEAD"]),
    ]
