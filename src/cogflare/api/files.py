"""Files for whoever knows their URL: ranges, entity tags, and headers under which no file acts as our page.

Where the storage hands files out itself, a GET is sent on to it.
"""

from typing import Final

import structlog
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
from cogflare.domain.downloads import disposition, is_shown
from cogflare.domain.errors import NotFound
from cogflare.engine.files import Files
from cogflare.store.files import FileRow

log = structlog.get_logger()

_COMMON: Final = {
    "access-control-allow-origin": "*",
    "cache-control": "public, max-age=3600",
    "accept-ranges": "bytes",
    "x-content-type-options": "nosniff",
}
_SENT_ON: Final = {"access-control-allow-origin": "*", "cache-control": "private, no-store"}


class Handlers:
    """The endpoint of files that belong to a prediction."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def get(self, request: Request) -> Response:
        """GET and HEAD /f/{id}/{name}."""
        try:
            row = await self._api.files.find(request.path_params["id"], request.path_params["name"])
        except NotFound:
            raise file_not_found() from None
        return await serve(request, row, self._api.files)


async def serve(request: Request, row: FileRow, files: Files, *, is_private: bool = False) -> Response:
    """Answer a GET or HEAD of a file; what `is_private` stays out of shared caches."""
    size = row.size or 0
    tag = f'"{row.sha256}"'
    headers = {**_COMMON, "etag": tag}
    if is_private:
        headers["cache-control"] = "private, max-age=3600"
    if names_tag(request.headers.get("if-none-match"), tag):
        return Response(status_code=304, headers=headers)
    headers |= _content_headers(row)
    try:
        span = _span(request, size, tag)
    except Unsatisfiable:
        return _unsatisfiable(size)
    shown = span or Span(0, size)
    headers["content-length"] = str(shown.end - shown.start)
    if span is not None:
        headers["content-range"] = f"bytes {span.start}-{span.end - 1}/{size}"
    status = 200 if span is None else 206
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    try:
        if _follows(request) and (elsewhere := await files.link(row)) is not None:
            return Response(status_code=302, headers={**_SENT_ON, "location": elsewhere})
        reader = await files.open(row, shown.start, shown.end)
    except BlobError as error:
        raise blob_problem(error) from error
    return _BlobResponse(reader, status, headers)


def _follows(request: Request) -> bool:
    """Say whether the client goes where it is sent; Replicate's first one for Python takes a redirect for a failure."""
    return not request.headers.get("user-agent", "").startswith("replicate-python/")


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
    log.warning("the storage of files failed", error=str(error))
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
    headers = {"content-type": row.content_type, "content-disposition": disposition(row.name, row.content_type)}
    if not is_shown(row.content_type):
        headers["content-security-policy"] = "sandbox"
    return headers


def routes(api: Api) -> list[Route]:
    """Return the routes of files that belong to a prediction."""
    handlers = Handlers(api)
    return [Route("/f/{id}/{name}", handlers.get, methods=["GET", "HEAD"])]
