"""A client of a stream, on the ASGI side of the application: it sees what was sent as soon as it was sent."""

import asyncio
from types import TracebackType
from typing import Any, Self

from starlette.types import ASGIApp, Message

from support.events import Event, Parser

DEADLINE_S = 10.0


class Listener:
    """One open stream. It can stall, also after some text: then it takes nothing, as a client with full buffers."""

    def __init__(
        self, app: ASGIApp, url: str, last_id: str = "", stall_after: bytes | None = None, **scope: Any
    ) -> None:
        path, _, query = url.partition("://")[2].partition("/")[2].partition("?")
        headers = [(b"host", b"api.example.net"), *([(b"last-event-id", last_id.encode())] if last_id else [])]
        self._scope = {
            "type": "http", "method": "GET", "path": f"/{path}", "query_string": query.encode(), "headers": headers,
            "scheme": "https", "client": ("127.0.0.1", 1), **scope,
        }  # fmt: skip
        self._app = app
        self._stall_after = stall_after
        self._gone = asyncio.Event()
        self._flows = asyncio.Event()
        self._flows.set()
        self._new = asyncio.Event()
        self.parser = Parser()
        self.events: list[Event] = []
        self.status = 0
        self.headers: dict[str, str] = {}
        self.is_complete = False
        self.largest = 0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._serve())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()
        await asyncio.wait_for(self._task, DEADLINE_S)

    def leave(self) -> None:
        """Break the connection."""
        self._gone.set()
        self._flows.set()

    def stall(self) -> None:
        """Take nothing more."""
        self._flows.clear()

    async def until(self, count: int) -> list[Event]:
        """Wait for so many events in all."""
        async with asyncio.timeout(DEADLINE_S):
            while len(self.events) < count:
                self._new.clear()
                await self._new.wait()
        return self.events

    async def all(self) -> list[Event]:
        """Wait for the end of the answer."""
        await asyncio.wait_for(asyncio.shield(self._task), DEADLINE_S)
        return self.events

    async def _serve(self) -> None:
        await self._app(self._scope, self._receive, self._send)

    async def _receive(self) -> Message:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        await self._flows.wait()
        if self._gone.is_set():
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            body = message.get("body", b"")
            self.largest = max(self.largest, len(body))
            self.events += self.parser.feed(body.decode())
            self.is_complete = not message.get("more_body", False)
            if self._stall_after is not None and self._stall_after in body:
                self.stall()
        self._new.set()
