"""Output files for whoever knows their URL: ranges, entity tags, and headers under which no file acts as our page."""

import re
from typing import Final
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from cogflare.api.context import Api
from cogflare.api.problems import (
    MEDIA_TYPE,
    Problem,
    file_not_found,
    file_too_large,
    storage_full,
    unavailable,
)
from cogflare.api.ranges import Span, Unsatisfiable, names_tag, parse_range
from cogflare.blobs.base import BlobError, BlobFull, BlobMissing, BlobReader, BlobTooLarge
from cogflare.domain.errors import NotFound
from cogflare.store.files import FileRow

_SHOWN: Final = re.compile(
    r"image/(?!svg)[a-z0-9.+-]+|(?:audio|video)/[a-z0-9.+-]+|text/plain|application/(?:json|pdf)", re.ASCII
)
"""What a browser may show from our origin; everything else is downloaded."""
_COMMON: Final = {
    "access-control-allow-origin": "*",
    "cache-control": "public, max-age=3600",
    "accept-ranges": "bytes",
    "x-content-type-options": "nosniff",
}


class Handlers:
    """The endpoint of output files."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def get(self, request: Request) -> Response:
        """GET and HEAD /f/{id}/{name}."""
        try:
            row = await self._api.files.find(request.path_params["id"], request.path_params["name"])
        except NotFound:
            raise file_not_found() from None
        size = row.size or 0
        tag = f'"{row.sha256}"'
        headers = {**_COMMON, "etag": tag}
        if names_tag(request.headers.get("if-none-match"), tag):
            return Response(status_code=304, headers=headers)
        headers |= _content_headers(row)
        try:
            span = _span(request, size, tag)
        except Unsatisfiable:
            return _unsatisfiable(size)
        whole = Span(0, size)
        shown = span or whole
        headers["content-length"] = str(shown.end - shown.start)
        if span is not None:
            headers["content-range"] = f"bytes {span.start}-{span.end - 1}/{size}"
        status = 200 if span is None else 206
        if request.method == "HEAD":
            return Response(status_code=status, headers=headers)
        try:
            reader = await self._api.files.open(row, shown.start, shown.end)
        except BlobError as error:
            raise blob_problem(error) from error
        return _BlobResponse(reader, status, headers)


class _BlobResponse(StreamingResponse):
    """Streams an open blob and closes it, however the request ends."""

    def __init__(self, reader: BlobReader, status: int, headers: dict[str, str]) -> None:
        super().__init__(reader, status, headers)
        self._reader = reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._reader.aclose()


def blob_problem(error: BlobError) -> Problem:
    """Return what a client is told when the blob store fails."""
    match error:
        case BlobMissing():
            return file_not_found()
        case BlobTooLarge():
            return file_too_large(error.limit)
        case BlobFull():
            return storage_full()
    return unavailable(5, "The server's file storage does not answer right now; try again.")


def _span(request: Request, size: int, tag: str) -> Span | None:
    """Return the range to serve; a range that was asked for other bytes than these is passed over."""
    if request.method == "HEAD" or request.headers.get("if-range", tag) != tag:
        return None
    return parse_range(request.headers.get("range"), size)


def _unsatisfiable(size: int) -> Response:
    problem = Problem(416, "The range is outside of the file.", title="Range not satisfiable")
    headers = {"access-control-allow-origin": "*", "content-range": f"bytes */{size}"}
    return Response(problem.body(), 416, headers, MEDIA_TYPE)


def _content_headers(row: FileRow) -> dict[str, str]:
    is_shown = _SHOWN.fullmatch(row.content_type.partition(";")[0]) is not None
    kind = "inline" if is_shown else "attachment"
    plain = re.sub(r"[^ !#-\[\]-~]", "_", row.name)
    headers = {
        "content-type": row.content_type,
        "content-disposition": f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{quote(row.name, safe='')}",
    }
    if not is_shown:
        headers["content-security-policy"] = "sandbox"
    return headers


def routes(api: Api) -> list[Route]:
    """Return the routes of output files."""
    handlers = Handlers(api)
    return [Route("/f/{id}/{name}", handlers.get, methods=["GET", "HEAD"])]
