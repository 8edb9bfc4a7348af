"""Multipart forms as they come in: one part after the other, the bytes of a part in pieces, nothing kept."""

from collections import deque
from collections.abc import AsyncIterator
from typing import Final

import msgspec
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from cogflare.api.problems import Problem, bad_request, unsupported_media_type

_KIND: Final = "multipart/form-data"
_DATA, _PART, _END = range(3)


class Part(msgspec.Struct, frozen=True):
    """The head of a part; `filename` and `content_type` are None where it does not tell them."""

    name: str
    filename: str | None
    content_type: str | None


class Multipart:
    """A form that is being read. Whatever is wrong with it raises `Problem` 400."""

    def __init__(self, content_type: str, stream: AsyncIterator[bytes]) -> None:
        """Raise `Problem` 415 unless the body is a form, and 400 where it does not say what lies between its parts."""
        kind, options = parse_options_header(content_type)
        if kind.decode("latin-1") != _KIND:
            raise unsupported_media_type(content_type.partition(";")[0].strip(), _KIND)
        self._stream = stream
        self._events: deque[tuple[int, bytes | Part]] = deque()
        self._header = b""
        self._headers: dict[str, bytes] = {}
        self._value = b""
        self._is_over = False
        try:
            self._parser = MultipartParser(
                options.get(b"boundary", b""),
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._on_field,
                    "on_header_value": self._on_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_head,
                    "on_part_data": self._on_data,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise _malformed(str(error)) from None
        if not options.get(b"boundary"):
            raise _malformed("its Content-Type has no boundary")

    async def part(self) -> Part | None:
        """Go on to the next part; None where there is none any more. What is left of the last one is passed over."""
        while True:
            while self._events:
                kind, value = self._events.popleft()
                if isinstance(value, Part):
                    return value
                if kind == _END:
                    self._is_over = True
            if self._is_over:
                return None
            await self._read()

    async def body(self) -> AsyncIterator[bytes]:
        """Iterate over the bytes of the part, in pieces."""
        while True:
            while self._events:
                kind, value = self._events[0]
                if kind != _DATA:
                    return
                self._events.popleft()
                assert isinstance(value, bytes)
                yield value
            await self._read()

    async def _read(self) -> None:
        """Take the next chunk of the request apart."""
        try:
            chunk = await anext(self._stream)
        except StopAsyncIteration:
            raise _malformed("it ends too early") from None
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _malformed(str(error)) from None

    def _begin(self) -> None:
        self._headers, self._header, self._value = {}, b"", b""

    def _on_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._header.decode("latin-1").lower()] = self._value
        self._header, self._value = b"", b""

    def _on_head(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition", b""))
        if b"name" not in options:
            raise _malformed("a part of it has no name")
        filename, kind = options.get(b"filename"), self._headers.get("content-type")
        self._events.append(
            (
                _PART,
                Part(
                    options[b"name"].decode(errors="replace"),
                    None if filename is None else _unescaped(filename),
                    None if kind is None else kind.decode("latin-1"),
                ),
            )
        )

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        self._events.append((_DATA, data[start:end]))

    def _on_end(self) -> None:
        self._events.append((_END, b""))


def _unescaped(filename: bytes) -> str:
    """Return a file name as it was before a client wrote it between quotes, in the way of the WHATWG."""
    for escape, meant in ((b"%0A", b"\n"), (b"%0D", b"\r"), (b"%22", b'"')):
        filename = filename.replace(escape, meant)
    return filename.decode(errors="replace")


def _malformed(why: str) -> Problem:
    return bad_request(f"The form cannot be read: {why.rstrip('.')}", title="Malformed form")
