"""One reader of a stream: it follows a prediction through broken connections, each time from where it was.

What it was shown, all in all, goes into the history as one event. It breaks off by itself too, now and then.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Final, Protocol

import httpx2
import msgspec

from cogflare.cli.verification.history import Streamed, now

SILENCE_S: Final = 15.0
"""A connection that is silent for longer is given up: a server says something every ten seconds."""
_CONNECT_S: Final = 3.0
_PAUSE_S: Final = 0.2
_BUSY: Final = frozenset({429, 500, 502, 503, 504, 507})
_STAYS: Final = (0, 1, 3, 8)
"""After so many events it may break off."""


class ServerEvent(msgspec.Struct, frozen=True):
    """One event of a stream."""

    id: str | None
    name: str
    data: str


class Parser:
    """Takes bytes of a stream as they come, and returns the events that are whole."""

    def __init__(self) -> None:
        self._left = b""

    def feed(self, data: bytes) -> Iterator[ServerEvent]:
        """Yield what these bytes complete."""
        *blocks, self._left = (self._left + data).split(b"\n\n")
        for block in blocks:
            pairs = [line.partition(":")[::2] for line in block.decode().split("\n") if not line.startswith(":")]
            fields = {name: value.removeprefix(" ") for name, value in pairs}
            if fields:
                told = "\n".join(value.removeprefix(" ") for name, value in pairs if name == "data")
                yield ServerEvent(fields.get("id"), fields.get("event", "message"), told)


class Opener(Protocol):
    """What opens a stream at any node."""

    def __call__(
        self, path: str, headers: Mapping[str, str], timeout: httpx2.Timeout, /
    ) -> AbstractAsyncContextManager[httpx2.Response]:
        """Send the request."""
        ...


class _Detail(msgspec.Struct, frozen=True):
    detail: str = ""


class _Reason(msgspec.Struct, frozen=True):
    reason: str = ""


class Reader:
    """Follows one stream, whose URL has this path; with its logs where that asks for them."""

    def __init__(self, open_: Opener, path: str, dice: random.Random) -> None:
        self._open = open_
        self._path = path
        self._dice = dice
        self._place: str | None = None
        self._items: list[str] = []
        self._logs = "" if path.endswith("logs=true") else None
        self._error: str | None = None
        self._done: str | None = None
        self._refusal: str | None = None
        self._connections = 0

    async def follow(self, client: str, prediction: str, limit_s: float) -> Streamed:
        """Read until the stream ends, or time is up; return what was shown."""
        asked_at = now()
        end = asyncio.get_running_loop().time() + limit_s
        while self._done is None and self._refusal is None and asyncio.get_running_loop().time() < end:
            try:
                async with asyncio.timeout_at(end):
                    await self._connect()
            except (httpx2.TransportError, TimeoutError):
                await asyncio.sleep(_PAUSE_S)
        told = (self._items, self._logs, self._error, self._done, self._refusal)
        return Streamed(now(), asked_at, client, prediction, *told, max(self._connections - 1, 0))

    async def _connect(self) -> None:
        """Read one connection to its end."""
        headers = {"accept": "text/event-stream"}
        if self._place is not None:
            headers["last-event-id"] = self._place
        stay = self._dice.choice(_STAYS) if self._dice.random() < 0.3 else None
        async with self._open(self._path, headers, httpx2.Timeout(SILENCE_S, connect=_CONNECT_S)) as answer:
            if answer.status_code in _BUSY:
                await asyncio.sleep(_PAUSE_S)
                return
            kind = answer.headers.get("content-type", "")
            if not answer.is_success or not kind.startswith("text/event-stream"):
                await answer.aread()
                self._refusal = f"{answer.status_code} {kind} {answer.text[:200]}"
                return
            self._connections += 1
            async with aclosing(_events(answer.aiter_bytes())) as events:
                async for event in events:
                    self._take(event)
                    stay = None if stay is None else stay - 1
                    if self._done is not None or (stay is not None and stay < 0):
                        return

    def _take(self, event: ServerEvent) -> None:
        if event.id is None:
            self._refusal = f"an event without an id: {event}"
            return
        self._place = event.id
        match event.name:
            case "output":
                self._items.append(event.data)
            case "logs" if self._logs is not None:
                self._logs += event.data
            case "error":
                self._error = msgspec.json.decode(event.data, type=_Detail).detail
            case "done":
                self._done = msgspec.json.decode(event.data, type=_Reason).reason
            case _:
                self._refusal = f"an event nobody asked for: {event}"


async def _events(raw: AsyncIterator[bytes]) -> AsyncGenerator[ServerEvent, None]:
    parser = Parser()
    async for data in raw:
        for event in parser.feed(data):
            yield event
