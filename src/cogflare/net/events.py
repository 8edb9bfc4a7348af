"""Server-sent events as they come in: sans-I/O, bounded, bytes in and the kinds of events out.

Whoever listens here wants to know that something happened, and looks for itself at what; of the data only the beginning
is kept.
"""

from collections.abc import Iterator
from typing import Final

import msgspec

_MAX_LINE: Final = 4096


class ServerEvent(msgspec.Struct, frozen=True):
    """One event; `data` is the beginning of its first line, `id` the last id that was set."""

    kind: str
    data: str
    id: str


class ServerEvents:
    """Takes the bytes of a stream in pieces of any size."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._kind = ""
        self._data: str | None = None
        self._id = ""

    def feed(self, chunk: bytes) -> Iterator[ServerEvent]:
        """Yield the events that are complete with this piece."""
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            self._keep(line)
            whole = bytes(self._line).removesuffix(b"\r").decode(errors="replace")
            self._line.clear()
            if whole:
                self._take(whole)
            elif self._data is not None:
                yield ServerEvent(self._kind or "message", self._data, self._id)
                self._kind, self._data = "", None
        self._keep(rest)

    def _keep(self, piece: bytes) -> None:
        self._line += piece[: max(0, _MAX_LINE - len(self._line))]

    def _take(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._kind = value
        elif name == "id":
            self._id = value
        elif name == "data" and self._data is None:
            self._data = value
