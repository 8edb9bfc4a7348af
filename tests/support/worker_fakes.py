"""Two neighbours of the agent in its tests: a server (a real socket under a real `ServerEnd`), a model in process."""

import asyncio
import http
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import Raw
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from cogflare.agent.address import ServerAddress
from cogflare.agent.runners.base import (
    Event,
    Finished,
    Job,
    Log,
    LogSink,
    Offer,
    Output,
    RestartRefused,
    RunLost,
    SetupFailed,
    Started,
)
from cogflare.protocol import messages
from cogflare.protocol.codec import ProtocolError, encode
from cogflare.protocol.messages import PING, PONG, Answer, Assign, AttemptKey, Cancel, Finish, Message, Renewed, Resume
from cogflare.protocol.server_end import ServerEnd

TOKEN = "worker-token-1"
PATIENCE_S = 10


@dataclass
class Held:
    """What the fake server knows of an attempt."""

    items: list[Any] = field(default_factory=list)
    log: bytes = b""
    finish: Finish | None = None
    wanted: bool = True


class FakeServer:
    """Accepts one worker at a time; every switch of misbehaviour is a field."""

    def __init__(self) -> None:
        self.heartbeat_s, self.silence_s = 5.0, 15.0
        self.token = TOKEN
        self.status: int | None = None
        self.body = "no\n"
        self.greeting: Callable[[messages.Hello], list[Message]] | None = None
        self.answers, self.is_mute = True, False
        self.end = ServerEnd()
        self.seen: list[Message] = []
        self.hellos: list[messages.Hello] = []
        self.frames: list[str] = []
        self.attempts: dict[AttemptKey, Held] = {}
        self.refused = 0
        self._socket: ServerConnection | None = None
        self._server: Server | None = None
        self._changed = asyncio.Event()

    @property
    def address(self) -> ServerAddress:
        assert self._server is not None
        return ServerAddress(f"http://127.0.0.1:{self.port}")

    port = 0

    async def start(self) -> None:
        self._server = await serve(
            self._link, "127.0.0.1", self.port, process_request=self._check, compression=None, ping_interval=None,
            subprotocols=[messages.SUBPROTOCOL], close_timeout=1,  # type: ignore[list-item]
        )  # fmt: skip
        self.port = next(iter(self._server.sockets)).getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait until the condition holds; it is looked at after every message and link."""
        async with asyncio.timeout(PATIENCE_S):
            while not holds():
                self._changed.clear()
                await self._changed.wait()

    async def send(self, *sent: Message) -> None:
        assert self._socket is not None
        await self._socket.send(encode(sent))

    async def assign(self, prediction: str, input: Any = None, attempt: int = 1, raw: Raw | None = None) -> AttemptKey:
        given = raw if raw is not None else Raw(msgspec.json.encode(input or {}))
        return await self.assign_as(Assign(prediction, attempt, 0, given))

    async def assign_as(self, assign: Assign) -> AttemptKey:
        self.end.take(assign)
        self.attempts[assign.prediction, assign.attempt] = Held()
        await self.send(assign)
        return assign.prediction, assign.attempt

    async def cancel(self, key: AttemptKey) -> None:
        self.end.stop(key)
        await self.send(Cancel(*key))

    async def finished(self, key: AttemptKey) -> Finish:
        await self.until(lambda: key in self.attempts and self.attempts[key].finish)
        finish = self.attempts[key].finish
        assert finish is not None
        return finish

    def drop(self) -> None:
        """Break the link as a pulled cable would, at once."""
        assert self._socket is not None
        self._socket.transport.abort()

    async def close(self, code: int = 1012) -> None:
        assert self._socket is not None
        await self._socket.close(code)

    def kinds(self) -> list[str]:
        return [type(message).__name__ for message in self.seen]

    def _check(self, connection: ServerConnection, request: Request) -> Response | None:
        status = self.status or (None if request.headers.get("Authorization") == f"Bearer {self.token}" else 401)
        if status is None and request.path == messages.LINK_PATH:
            return None
        self.refused += 1
        self._changed.set()
        return connection.respond(http.HTTPStatus(status or 404), self.body)

    async def _link(self, socket: ServerConnection) -> None:
        self.end, self._socket = ServerEnd(), socket
        try:
            async for frame in socket:
                self.frames.append(str(frame))
                if self.is_mute:
                    continue
                if frame == PING:
                    await socket.send(PONG)
                for message in self.end.receive(frame):
                    await self._take(socket, message)
                self._changed.set()
        except ConnectionClosed:
            pass
        except ProtocolError as error:
            self.seen.append(messages.Reject(error.reason))
            await socket.close(error.code)
        finally:
            self._changed.set()

    async def _take(self, socket: ServerConnection, message: Message) -> None:
        self.seen.append(message)
        if isinstance(message, messages.Hello):
            await self._greet(socket, message)
        elif isinstance(message, messages.Output):
            items = self.attempts[message.prediction, message.attempt].items
            assert message.index <= len(items)
            items += [msgspec.json.decode(item) for item in message.items[len(items) - message.index :]]
        elif isinstance(message, messages.Log):
            held = self.attempts[message.prediction, message.attempt]
            held.log += message.text.encode()[len(held.log) - message.offset :]
        elif isinstance(message, messages.Heartbeat):
            await socket.send(encode([Renewed([key for key in message.held if not self._wants(key)])]))
        elif isinstance(message, Finish):
            key = (message.prediction, message.attempt)
            held = self.attempts.setdefault(key, Held())
            verdict: messages.Verdict = "superseded" if held.finish else "committed"
            held.finish = held.finish or message
            if message.slot_free:
                self.end.release(key)
            if self.answers:
                await socket.send(encode([Answer(*key, verdict)]))

    def _wants(self, key: AttemptKey) -> bool:
        held = self.attempts.get(key)
        return held is not None and held.wanted

    async def _greet(self, socket: ServerConnection, hello: messages.Hello) -> None:
        self.hellos.append(hello)
        if self.greeting is not None:
            await socket.send(encode(self.greeting(hello)))
            return
        resumes = []
        for listed in hello.held:
            held = self.attempts.get((listed.prediction, listed.attempt), Held(wanted=False))
            resumes.append(Resume(listed.prediction, listed.attempt, held.wanted, len(held.items), len(held.log)))
        welcome = messages.Welcome(1, len(self.hellos), "n1", "test", self.heartbeat_s, self.silence_s, resumes)
        self.end.welcome(resumes)
        await socket.send(encode([welcome]))


@asynccontextmanager
async def fake_server() -> AsyncIterator[FakeServer]:
    """A fake server that listens."""
    server = FakeServer()
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


class ScriptedRunner:
    """A model whose input says what to do; `hold` waits for `release` or a cancel."""

    def __init__(self, slots: int = 2, schema: dict[str, Any] | None = None) -> None:
        self.offer = Offer(owner="acme", name="m", version="0" * 64, schema=schema, cog_version="0.23.1", slots=slots)
        self.started: list[tuple[str, int]] = []
        self.inputs: list[Any] = []
        self.restarts = self.failing_restarts = 0
        self.is_restartable = True
        self.probes = 0
        self.ailment: str | Exception | None = None
        self.canceled: list[str] = []
        self.release = asyncio.Event()
        self._stops: dict[str, asyncio.Event] = {}
        self._lost = asyncio.Event()
        self._broken = asyncio.Event()

    async def setup(self, log: LogSink) -> Offer:
        return self.offer

    async def run(self, job: Job) -> AsyncGenerator[Event, None]:
        script = msgspec.json.decode(job.input) if isinstance(job.input, Raw) else job.input
        self.started.append((job.id, job.attempt))
        self.inputs.append(script)
        stop = self._stops[job.id] = asyncio.Event()
        yield Started(at=0)
        if "die" in script:
            raise RunLost("the model died")
        if "bug" in script:
            raise KeyError("bug")
        if text := script.get("log"):
            yield Log(text=text)
        items = script.get("items", [])
        for index, item in enumerate(items):
            yield Output(index=index, item=item)
        status = script.get("status", "succeeded")
        if "hold" in script:
            status = await self._hold(stop, script)
        yield Finished(
            status=status,
            output=items or script.get("output"),
            error=script.get("error"),
            metrics={"n": 1},
            predict_time_s=0.5,
        )
        if "linger" in script:
            await self.release.wait()

    async def _hold(self, stop: asyncio.Event, script: dict[str, Any]) -> str:
        waits = {"released": self.release.wait(), "lost": self._lost.wait()}
        if script["hold"] != "stubborn":
            waits["canceled"] = stop.wait()
        tasks = {name: asyncio.ensure_future(wait) for name, wait in waits.items()}
        try:
            await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
            if tasks["lost"].done():
                raise RunLost("the model was killed\nits last words")
            return "succeeded" if tasks["released"].done() else "canceled"
        finally:
            for task in tasks.values():
                task.cancel()

    async def cancel(self, prediction_id: str) -> None:
        self.canceled.append(prediction_id)
        self._stops[prediction_id].set()

    async def restart(self) -> None:
        if not self.is_restartable:
            raise RestartRefused("not ours")
        self._lost.set()
        self._broken.clear()
        await asyncio.sleep(0)
        self.restarts += 1
        if self.restarts <= self.failing_restarts:
            raise SetupFailed("no GPU")
        self._lost = asyncio.Event()

    def break_down(self) -> None:
        self._lost.set()
        self._broken.set()

    async def wait_broken(self) -> str:
        await self._broken.wait()
        return "it crashed"

    async def health(self) -> str | None:
        self.probes += 1
        if isinstance(self.ailment, Exception):
            raise self.ailment
        return self.ailment

    async def close(self) -> None:
        pass
