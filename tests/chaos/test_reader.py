"""The reader of streams: it resumes where it was, and keeps what it was shown apart from what is half."""

import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import httpx2
import pytest

from cogflare.cli.verification.reader import Parser, Reader, ServerEvent

pytestmark = pytest.mark.anyio

HI = b": hi\n\n"


class Steady(random.Random):
    """Dice that never break off."""

    def random(self) -> float:
        return 1.0


class Server:
    """Answers each connection with the next of these bytes, and breaks it then."""

    def __init__(self, connections: Sequence[bytes | httpx2.Response]) -> None:
        self.asked: list[str | None] = []
        self._connections = [*connections]

    @asynccontextmanager
    async def open(
        self, path: str, headers: Mapping[str, str], timeout: httpx2.Timeout
    ) -> AsyncIterator[httpx2.Response]:
        self.asked.append(headers.get("last-event-id"))
        answer = self._connections.pop(0)
        if isinstance(answer, bytes):
            yield httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=_broken(answer))
        else:
            yield answer


async def _broken(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 7):
        yield data[start : start + 7]
    if b"event: done" not in data:
        raise httpx2.ReadError("reset")


def event(id: str, name: str, data: str) -> bytes:
    lines = "".join(f"data: {line}\n" for line in data.split("\n"))
    return f"id: {id}\nevent: {name}\n{lines}\n".encode()


def test_events_are_what_they_are_however_the_bytes_come() -> None:
    data = HI + event("1:1:0", "output", " a\n\nb: ") + b":\n\nid:2\ndata:x\n\n" + b"id: 3\nev"
    expected = [ServerEvent("1:1:0", "output", " a\n\nb: "), ServerEvent("2", "message", "x")]
    for size in (1, 5, 1000):
        parser = Parser()
        pieces = [data[start : start + size] for start in range(0, len(data), size)]
        assert [one for piece in pieces for one in parser.feed(piece)] == expected


async def test_a_reader_goes_on_where_it_was_and_drops_what_was_half() -> None:
    server = Server(
        [
            HI + event("1:1:0", "output", "a ") + event("1:2:0", "output", "b ")[:-5],
            httpx2.Response(503),
            HI + event("1:2:0", "output", "b ") + event("1:2:0", "error", '{"detail":"no"}'),
            HI + event("1:2:0:done", "done", '{"reason":"error"}'),
        ]
    )
    shown = await Reader(server.open, "/v1/streams/x", Steady()).follow("one/1", "p", 20)
    assert server.asked == [None, "1:1:0", "1:1:0", "1:2:0"]
    assert (shown.items, shown.logs, shown.error, shown.done, shown.refusal) == (
        ["a ", "b "],
        None,
        "no",
        "error",
        None,
    )
    assert shown.breaks == 2


async def test_a_reader_of_logs_keeps_them_whole() -> None:
    server = Server([HI + event("1:0:2", "logs", "l\n") + event("1:0:4", "logs", "m\n") + event("1:0:4", "done", "{}")])
    shown = await Reader(server.open, "/v1/streams/x?logs=true", Steady()).follow("one/1", "p", 20)
    assert (shown.logs, shown.done) == ("l\nm\n", "")


@pytest.mark.parametrize(
    ("answer", "refusal"),
    [
        (httpx2.Response(404, json={"detail": "gone"}), '404 application/json {"detail":"gone"}'),
        (HI + event("1:0:2", "logs", "l\n"), "an event nobody asked for"),
        (HI + b"event: output\ndata: x\n\n", "an event without an id"),
    ],
)
async def test_a_reader_notes_what_is_no_stream(answer: bytes | httpx2.Response, refusal: str) -> None:
    shown = await Reader(Server([answer]).open, "/v1/streams/x", Steady()).follow("one/1", "p", 20)
    assert shown.done is None
    assert refusal in (shown.refusal or "")


async def test_a_reader_gives_up_when_its_time_is_over() -> None:
    server = Server([HI + event("1:1:0", "output", "a")] * 20)
    shown = await Reader(server.open, "/v1/streams/x", Steady()).follow("one/1", "p", 0.5)
    assert (shown.items[0], shown.done, shown.refusal) == ("a", None, None)


async def test_a_reader_that_breaks_off_by_itself_misses_nothing() -> None:
    class Restless(random.Random):
        def random(self) -> float:
            return 0.0

    events = [event(f"1:{n}:0", "output", f"{n} ") for n in range(1, 6)]

    class Whole(Server):
        @asynccontextmanager
        async def open(
            self, path: str, headers: Mapping[str, str], timeout: httpx2.Timeout
        ) -> AsyncIterator[httpx2.Response]:
            place = headers.get("last-event-id")
            start = 0 if place is None else int(place.split(":")[1])
            data = HI + b"".join(events[start:]) + event("1:5:0:done", "done", "{}")
            yield httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=_broken(data))

    shown = await Reader(Whole([]).open, "/v1/streams/x", Restless(1)).follow("one/1", "p", 20)
    assert (shown.items, shown.done) == (["1 ", "2 ", "3 ", "4 ", "5 "], "")
    assert shown.breaks > 0
