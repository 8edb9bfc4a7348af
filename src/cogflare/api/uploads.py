"""Files of clients over HTTP: upload, list, read, delete, and downloads by signature."""

import re
from collections.abc import AsyncIterable
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cogflare.api import problems, wire
from cogflare.api.context import Api, caller_of, json_response, links_of, read_json
from cogflare.api.files import serve
from cogflare.api.multipart import Multipart, Part
from cogflare.api.requests import decode_json
from cogflare.api.wire import Cursor, Links
from cogflare.domain.errors import NotFound
from cogflare.domain.ids import is_key
from cogflare.domain.inputs import FieldProblem
from cogflare.engine.downloads import Downloads
from cogflare.engine.uploads import PAGE, About, Uploads
from cogflare.store.files import FileRow

_FIELDS_BYTES: Final = 64 << 10  # of everything in a form that is not the file
_PART_BYTES: Final = 64  # as how many each part counts beside its name and value
_HEADS_BYTES: Final = 1 << 20
_NAME_BYTES: Final = 255
_LONGEST_S: Final = 7 * 86_400
_BRACKETS: Final = re.compile(r"metadata((?:\[[^\[\]]*\]){1,8})")
_UNKNOWN: Final = "application/octet-stream"


class WireFile(msgspec.Struct, frozen=True):
    """A file as clients see it; some of them need every member."""

    id: str
    name: str
    content_type: str
    size: int
    etag: str
    checksums: dict[str, str]
    metadata: msgspec.Raw
    created_at: str
    expires_at: str
    urls: dict[str, str]


class LinkOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is asked of a signed URL: for how long it holds."""

    expires_in_s: int = 3600


def render(row: FileRow, links: Links) -> bytes:
    """Write a file as Replicate does."""
    md5, sha256 = row.md5 or "", row.sha256 or ""
    shown = WireFile(
        row.id,
        row.name,
        row.content_type,
        row.size or 0,
        md5,
        {"sha256": sha256, "md5": md5},
        msgspec.Raw((row.metadata or "{}").encode()),
        wire.format_time(row.created_at),
        wire.format_time(row.expires_at or 0),
        {"get": f"{links.base_url}/v1/files/{row.id}"},
    )
    return msgspec.json.encode(shown)


class Form:
    """An upload on its way in: the part `content`, and around it what is said of the file."""

    def __init__(self, multipart: Multipart) -> None:
        self._multipart = multipart
        self._left = _FIELDS_BYTES
        self._name: str | None = None
        self._type: str | None = None
        self._metadata: dict[str, Any] = {}
        self._content = Part("content", None, None)

    async def content(self) -> AsyncIterable[bytes]:
        """Read on to the bytes of the file; raises `Problem` 422 where there are none."""
        while (part := await self._multipart.part()) is not None:
            if part.name == "content":
                self._content = part
                return self._multipart.body()
            await self._field(part)
        raise problems.invalid_input([FieldProblem("required", "content", "content is required")])

    def said(self) -> About:
        """Return what is known of the file so far; fields of their own count more than the head of the content."""
        name = self._content.filename if self._name is None else self._name
        kind = self._content.content_type if self._type is None else self._type
        return About(name or "file", kind or _UNKNOWN, self._metadata)

    async def rest(self) -> About:
        """Read what comes after the bytes."""
        while (part := await self._multipart.part()) is not None:
            if part.name == "content":
                raise problems.invalid_input([FieldProblem("repeated", "content", "content is given twice")])
            await self._field(part)
        return self.said()

    async def _field(self, part: Part) -> None:
        value = await self._read(part)
        if part.name == "filename":
            if len(value) > _NAME_BYTES:
                sentence = f"String length must be less than or equal to {_NAME_BYTES}"
                raise problems.invalid_input([FieldProblem("string_lte", "filename", sentence)])
            self._name = value.decode(errors="replace")
        elif part.name == "type":
            self._type = value.decode(errors="replace")
        elif part.name == "metadata":
            self._metadata |= _object(value)
        elif found := _BRACKETS.fullmatch(part.name):
            _place(self._metadata, found[1][1:-1].split("]["), value.decode(errors="replace"))

    async def _read(self, part: Part) -> bytes:
        self._left -= len(part.name) + _PART_BYTES
        value = bytearray()
        async for piece in self._multipart.body():
            value += piece
            if len(value) > self._left:
                raise problems.fields_too_large(_FIELDS_BYTES)
        self._left -= len(value)
        if self._left < 0:
            raise problems.fields_too_large(_FIELDS_BYTES)
        return bytes(value)


def _object(value: bytes) -> dict[str, Any]:
    """Read metadata in JSON."""
    found = decode_json(value, "metadata") if value.strip() else {}
    if not isinstance(found, dict):
        raise problems.invalid_input([FieldProblem("invalid_type", "metadata", "Invalid type. Expected: object")])
    return found


def _place(metadata: dict[str, Any], path: list[str], value: str) -> None:
    """Put a value where brackets say: `[a][b]` is a member of a member, `[a][]` one more item of a list."""
    at: Any = metadata
    for key, following in zip(path, [*path[1:], None], strict=True):
        if isinstance(at, list):
            at.append(value if following is None else ([] if following == "" else {}))
            at = at[-1]
        elif not isinstance(at, dict):
            raise problems.invalid_input([FieldProblem("invalid_type", "metadata", f"{key} is given twice")])
        elif following is None:
            at[key] = value
        else:
            at = at.setdefault(key, [] if following == "" else {})


class Handlers:
    """The endpoints of uploads."""

    def __init__(self, api: Api, uploads: Uploads, downloads: Downloads) -> None:
        self._api = api
        self._uploads = uploads
        self._downloads = downloads

    async def create(self, request: Request) -> Response:
        """POST /files."""
        limit = self._uploads.max_bytes
        announced = request.headers.get("content-length", "")
        too_long = announced.isdecimal() and (len(announced) > 18 or int(announced) > limit + _HEADS_BYTES)
        form = Form(Multipart(request.headers.get("content-type", ""), aiter(request.stream())))
        if too_long:
            raise problems.file_too_large(limit)
        row = await self._uploads.receive(caller_of(request).account, form)
        links = links_of(request, self._api)
        return json_response(render(row, links), 201, {"location": f"{links.base_url}/v1/files/{row.id}"})

    async def list(self, request: Request) -> Response:
        """GET /files: newest first."""
        cursor = wire.parse_cursor(request.query_params.get("cursor"))
        if cursor is not None and not is_key(cursor.last_id):
            raise problems.invalid_cursor()
        backwards = cursor is not None and cursor.backwards
        edge = None if cursor is None else cursor.last_id
        bounds = {"after": edge} if backwards else {"before": edge}
        rows = await self._uploads.page(caller_of(request).account, **bounds)
        more = len(rows) > PAGE
        if more:
            rows = rows[1:] if backwards else rows[:PAGE]
        links, following, previous = links_of(request, self._api), None, None
        if rows and (more or backwards):
            following = links.page("/v1/files", Cursor(rows[-1].id, False))
        if rows and cursor is not None and (more or not backwards):
            previous = links.page("/v1/files", Cursor(rows[0].id, True))
        return json_response(wire.page([render(row, links) for row in rows], following, previous))

    async def get(self, request: Request) -> Response:
        """GET /files/{id}."""
        return json_response(render(await self._find(request), links_of(request, self._api)))

    async def delete(self, request: Request) -> Response:
        """DELETE /files/{id}."""
        try:
            await self._uploads.delete(caller_of(request).account, request.path_params["id"])
        except NotFound:
            raise problems.file_not_found() from None
        return Response(status_code=204)

    async def sign(self, request: Request) -> Response:
        """POST /files/{id}/download-url."""
        row = await self._find(request)
        has_body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
        order = await read_json(request, LinkOrder, _FIELDS_BYTES) if has_body else LinkOrder()
        if not 1 <= order.expires_in_s <= _LONGEST_S:
            sentence = f"Must be from 1 to {_LONGEST_S}"
            raise problems.invalid_input([FieldProblem("number_lte", "expires_in_s", sentence)])
        caller = caller_of(request)
        signed = await self._downloads.sign(caller.account, caller.username, row, order.expires_in_s)
        expires_at = wire.format_time(signed.expiry_s * 1_000_000)
        answer = {"url": links_of(request, self._api).base_url + signed.path, "expires_at": expires_at}
        return json_response(msgspec.json.encode(answer))

    async def download(self, request: Request) -> Response:
        """GET and HEAD /files/{id}/download: for whoever has a signature."""
        asked = request.query_params
        given = (asked.get("owner", ""), asked.get("expiry", ""), asked.get("signature", ""))
        try:
            row = await self._downloads.find(request.path_params["id"], *given)
        except NotFound:
            raise problems.file_not_found() from None
        return await serve(request, row, self._api.files, is_private=True)

    async def _find(self, request: Request) -> FileRow:
        try:
            return await self._uploads.find(caller_of(request).account, request.path_params["id"])
        except NotFound:
            raise problems.file_not_found() from None


def routes(api: Api, uploads: Uploads, downloads: Downloads) -> list[Route]:
    """Return the routes of uploads."""
    handlers = Handlers(api, uploads, downloads)
    return [
        Route("/files", handlers.create, methods=["POST"]),
        Route("/files", handlers.list, methods=["GET"]),
        Route("/files/{id}", handlers.get, methods=["GET"]),
        Route("/files/{id}", handlers.delete, methods=["DELETE"]),
        Route("/files/{id}/download-url", handlers.sign, methods=["POST"]),
        Route("/files/{id}/download", handlers.download, methods=["GET", "HEAD"]),
        Route("/files/{id}/download/{name}", handlers.download, methods=["GET", "HEAD"]),
    ]
