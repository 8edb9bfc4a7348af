"""Server-sent events as the HTML standard reads them."""

from collections.abc import Iterator
from typing import NamedTuple


class Event(NamedTuple):
    """One event; `id` is the last one that was set when it came."""

    kind: str
    data: str
    id: str


class Parser:
    """Takes the text of a stream bit by bit."""

    def __init__(self) -> None:
        self._text = ""
        self._kind = ""
        self._data: list[str] = []
        self.last_id = ""
        self.comments: list[str] = []

    def feed(self, text: str) -> Iterator[Event]:
        """Yield the events that are complete with this text."""
        self._text += text
        assert "\r" not in self._text
        while "\n" in self._text:
            line, _, self._text = self._text.partition("\n")
            if line:
                self._take(line)
            elif self._data:
                yield Event(self._kind or "message", "\n".join(self._data), self.last_id)
                self._kind, self._data = "", []

    def _take(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._kind = value
        elif name == "id":
            self.last_id = value
        else:
            assert not name, line
            self.comments.append(value)


def events_of(text: str) -> list[Event]:
    """Return the events of a whole stream."""
    return list(Parser().feed(text))
