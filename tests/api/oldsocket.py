"""The socket of a worker of 2022 at a node: the test itself says what the worker says, and when."""

import asyncio
import json
from typing import Any

from starlette.types import Message

from api.node import Node

MODEL = "ada/noop"


class OldSocket:
    """One connection. `jobs` are the predictions that came over it, `closed` how the server has ended it."""

    def __init__(
        self,
        node: Node,
        secret: str,
        *,
        session: str = "session-1",
        model: str = MODEL,
        remote: str = "127.0.0.1",
    ) -> None:
        self._node = node
        self._scope: dict[str, Any] = {
            "type": "websocket",
            "path": f"/v1/models/{model}/websocket/{secret}",
            "query_string": f"session_id={session}".encode() if session else b"",
            "headers": [(b"host", b"api.example.net")],
            "scheme": "wss",
            "client": (remote, 1),
            "subprotocols": [],
            "extensions": {"websocket.http.response": {}},
        }
        self._incoming: asyncio.Queue[Message] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._answered = asyncio.Event()
        self.jobs: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.refusal: tuple[int, str] | None = None
        self.closed: tuple[int, str] | None = None

    @property
    def path(self) -> str:
        """The path as the application leaves it for whoever logs it."""
        return f"{self._scope['path']} {self._scope['raw_path']}"

    async def open(self) -> "OldSocket":
        """Dial; returns when the server has accepted or refused it."""
        self._incoming.put_nowait({"type": "websocket.connect"})
        self._task = asyncio.create_task(self._node.app(self._scope, self._incoming.get, self._send))
        await asyncio.wait_for(self._answered.wait(), 5)
        return self

    async def say(self, prediction: str, status: str = "processing", **fields: Any) -> None:
        """Send a frame."""
        self.send(json.dumps({"id": prediction, "status": status, "output": None, "logs": [], **fields}))
        await asyncio.sleep(0)

    def send(self, frame: str | bytes) -> None:
        """Send a message of text, or of bytes."""
        self._incoming.put_nowait({"type": "websocket.receive", "text" if isinstance(frame, str) else "bytes": frame})

    async def next(self) -> dict[str, Any]:
        """Return the next job."""
        return await asyncio.wait_for(self.jobs.get(), 5)

    async def begin(self) -> str:
        """Take the next job and say that it has begun; return its id once that is stored."""
        job = await self.next()
        await self.say(job["id"])
        await started(self._node, job["id"])
        return str(job["id"])

    async def drop(self) -> None:
        """Lose the connection."""
        self._incoming.put_nowait({"type": "websocket.disconnect", "code": 1006})
        await self.over()

    @property
    def is_over(self) -> bool:
        """Whether the server is done with the connection."""
        return self._task is not None and self._task.done()

    async def over(self) -> None:
        """Wait until the server is done with the connection."""
        assert self._task is not None
        await asyncio.wait_for(self._task, 15)

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "websocket.send":
            self.jobs.put_nowait(json.loads(message["text"]))
        elif kind == "websocket.close":
            self.closed = (message["code"], message["reason"])
        elif kind == "websocket.http.response.start":
            self.refusal = (message["status"], "")
        elif kind == "websocket.http.response.body":
            assert self.refusal is not None
            self.refusal = (self.refusal[0], message["body"].decode())
            self._answered.set()
        else:
            self._answered.set()


async def started(node: Node, prediction: str) -> None:
    """Wait until the start of a prediction is stored."""
    async with asyncio.timeout(5):
        while (await node.call("GET", f"/v1/predictions/{prediction}")).json()["status"] != "processing":
            await asyncio.sleep(0.01)


async def ended(node: Node, prediction: str) -> dict[str, Any]:
    """Wait for the end of a prediction and return it."""
    async with asyncio.timeout(10):
        while True:
            shown: dict[str, Any] = (await node.call("GET", f"/v1/predictions/{prediction}")).json()
            if shown["status"] not in ("starting", "processing"):
                return shown
            await asyncio.sleep(0.01)


async def attempts(node: Node, prediction: str) -> list[str | None]:
    """Return how the attempts of a prediction ended."""
    shown = (await node.call("GET", f"/v1/predictions/{prediction}/attempts")).json()["results"]
    return [attempt["outcome"] for attempt in shown]
