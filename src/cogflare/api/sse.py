"""Streams of predictions as server-sent events, for whoever knows their URL.

Every event has an id, which is the position after it: `attempt:items:bytes of the log`. A client that comes back with
the last one it saw gets what follows. What a client does not take is left where it is, and nothing waits for it; one
that takes nothing for a while loses its connection, and may come back too.
"""

import asyncio
import re
from collections.abc import Sequence
from typing import Final

import msgspec
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from cogflare.api.context import Api, links_of
from cogflare.api.problems import Problem, bad_request, not_found
from cogflare.api.wire import absolute_files
from cogflare.domain.errors import NotFound
from cogflare.domain.ids import STREAM_LENGTH
from cogflare.domain.phases import Status
from cogflare.engine.feeds import BLOCK_BYTES, End, Part, Place, Reader
from cogflare.engine.streams import Streams

COMMENT_S = 10.0
STALL_S = 30.0
FAREWELL_S = 0.5
CUT = "cogflare.cut"
"""The extension of ASGI by which a server offers to break the connection: `{"abort": <callable>}`."""

_ID: Final = re.compile(r"(\d{1,9}):(\d{1,9}):(\d{1,12})(:done)?", re.ASCII)
_HEADERS: Final = {
    "access-control-allow-origin": "*",
    "cache-control": "no-store",
    "content-type": "text/event-stream",
    "x-accel-buffering": "no",
}
_PREFLIGHT: Final = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "GET, HEAD, OPTIONS",
    "access-control-allow-headers": "Accept, Authorization, Cache-Control, Last-Event-ID",
    "access-control-max-age": "86400",
}
_OVER: Final = {"access-control-allow-origin": "*", "cache-control": "no-store"}
_LINES: Final = re.compile(rb"\r\n|\r|\n")
_text: Final = msgspec.json.Decoder(str)


# --- events -----------------------------------------------------------------------------------------------------------


def event(kind: bytes, place: Place, data: bytes, mark: bytes = b"") -> bytes:
    """Write one event; `mark` is what its id has behind the position."""
    if b"\r" in data or b"\n" in data:
        data = _LINES.sub(b"\ndata: ", data)
    return b"id: %d:%d:%d%b\nevent: %b\ndata: %b\n\n" % (place.attempt, place.items, place.log, mark, kind, data)


def outputs(start: Place, items: Sequence[bytes], base_url: str) -> bytes:
    """Write output items, with the URLs of files under the origin that the client uses."""
    events = []
    for number, item in enumerate(items, start.items + 1):
        place = Place(start.attempt, number, start.log)
        events.append(event(b"output", place, _shown(absolute_files(item, base_url))))
    return b"".join(events)


def ending(place: Place, end: End) -> bytes:
    """Write how a prediction ended."""
    if end.status == Status.SUCCEEDED:
        return event(b"done", place, b"{}", b":done")
    if end.status != Status.FAILED:
        return event(b"done", place, b'{"reason":"canceled"}', b":done")
    detail = msgspec.json.encode({"detail": end.error or "The prediction failed."})
    return event(b"error", place, detail) + event(b"done", place, b'{"reason":"error"}', b":done")


def _shown(item: bytes) -> bytes:
    """Return a text as it is, and any other value as JSON."""
    if item[:1] != b'"':
        return item
    return _text.decode(item).encode() if b"\\" in item else item[1:-1]


def parse_id(text: str) -> tuple[Place, bool]:
    """Read the id of an event: its position, and whether it was the last one; raise `Problem` 400 for other text."""
    found = _ID.fullmatch(text)
    if found is None:
        raise bad_request(
            "Last-Event-ID is not the id of an event of this stream: leave it out to begin anew",
            title="Invalid event id",
        )
    return Place(int(found[1]), int(found[2]), int(found[3])), found[4] is not None


# --- one stream -------------------------------------------------------------------------------------------------------


class EventStream(Response):
    """Sends what a reader gets until the prediction has ended, the client is gone or does not read, or a stop."""

    def __init__(self, streams: Streams, reader: Reader, base_url: str) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._streams = streams
        self._reader = reader
        self._base_url = base_url
        self._now = asyncio.get_running_loop().time
        self._sending: float | None = None
        self._sent = self._now()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the stream."""
        self._send = send
        gone = asyncio.create_task(self._until_gone(receive))
        try:
            async with asyncio.timeout(None) as self._limit:
                await self._serve(gone)
        except TimeoutError:
            if CUT in scope.get("extensions", {}):
                scope["extensions"][CUT]["abort"]()
                await asyncio.wait((gone,), timeout=1)
        finally:
            gone.cancel()
            self._streams.leave(self._reader)

    async def _serve(self, gone: "asyncio.Task[None]") -> None:
        self._watch()
        self._reader.closing = self._closing
        try:
            await self._send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._put(b": hi\n\n")
            await self._run()
            if not gone.done():
                self._sending = self._now()
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._reader.closing = None
            self._timer.cancel()

    async def _run(self) -> None:
        end = None
        while end is None:
            part = await self._reader.next()
            if part is not None:
                end = part.end
                await self._put(self._written(part))
            elif self._reader.is_closed:
                await self._put(b": come back with the id of the last event\n\n")
                return
            else:
                await self._put(b": still here\n\n")

    def _written(self, part: Part) -> bytes:
        start, texts = part.start, []
        if part.items:
            key = start, len(part.items), self._base_url
            texts.append(self._reader.feed.rendered(key, lambda: outputs(start, part.items, self._base_url)))
        place = Place(start.attempt, start.items + len(part.items), start.log + len(part.log))
        if part.log:
            texts.append(event(b"logs", place, part.log.decode(errors="replace").encode()))
        if part.end is not None:
            texts.append(ending(place, part.end))
        return texts[0] if len(texts) == 1 else b"".join(texts)

    async def _put(self, data: bytes) -> None:
        """Send bytes, piece by piece; as soon as one piece is taken the client counts as one that reads."""
        for at in range(0, len(data), BLOCK_BYTES):
            self._sending = self._now()
            piece = data if len(data) <= BLOCK_BYTES else data[at : at + BLOCK_BYTES]
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        self._sending, self._sent = None, self._now()

    def _watch(self) -> None:
        """Have a comment sent where nothing else was for a while, and end a stream that nobody reads."""
        now = self._now()
        due = self._sent + COMMENT_S if self._sending is None else self._sending + STALL_S
        if now >= due:
            if self._sending is not None:
                self._end_at(now)
                return
            self._reader.nudge()
            due = now + COMMENT_S
        self._timer = asyncio.get_running_loop().call_at(due, self._watch)

    def _closing(self) -> None:
        """Let a stop of the server wait only a moment for a client that does not read."""
        self._end_at(self._now() + FAREWELL_S)

    def _end_at(self, due: float) -> None:
        if not self._limit.expired():
            self._limit.reschedule(due)

    async def _until_gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._reader.close()


# --- requests ---------------------------------------------------------------------------------------------------------


class Handlers:
    """The endpoint of streams. It asks for no token: the URL is the permission."""

    def __init__(self, api: Api, streams: Streams) -> None:
        self._api = api
        self._streams = streams

    async def get(self, request: Request) -> Response:
        """GET /streams/{token}; `logs=true` sends logs too, `last_event_id` is for those who cannot set the header."""
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=_PREFLIGHT)
        try:
            return await self._open(request)
        except NotFound:
            problem = not_found()
        except Problem as refused:
            problem = refused
        problem.headers |= _OVER
        raise problem

    async def _open(self, request: Request) -> Response:
        params = request.query_params
        logs = params.get("logs", "false")
        if logs not in ("true", "false"):
            raise bad_request("logs must be true or false")
        last = request.headers.get("last-event-id") or params.get("last_event_id")
        place, is_over = parse_id(last) if last else (None, False)
        base_url = links_of(request, self._api).base_url
        reader = await self._streams.open(request.path_params["token"], place, with_logs=logs == "true")
        if is_over or request.method == "HEAD":
            self._streams.leave(reader)
            # This answer keeps a browser from coming back again and again for what it has.
            return Response(status_code=204, headers=_OVER) if is_over else Response(headers=_HEADERS)
        return EventStream(self._streams, reader, base_url)


class _TokenConvertor(StringConvertor):
    """What may be a stream's token, and is too long for the id of a file."""

    regex = rf"[0-9a-z]{{{STREAM_LENGTH}}}"


register_url_convertor("stream", _TokenConvertor())


def routes(api: Api, streams: Streams) -> list[Route]:
    """Return the routes of streams; the one of files comes before that of a client's file."""
    handlers = Handlers(api, streams)
    return [
        Route("/streams/{token}", handlers.get, methods=["GET", "OPTIONS"]),
        Route("/files/{token:stream}", handlers.get, methods=["GET", "OPTIONS"]),
    ]
