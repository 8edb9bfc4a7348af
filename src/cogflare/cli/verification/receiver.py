"""A receiver of webhooks that misbehaves by seed: it refuses, redirects, hangs, breaks off, and is away for seconds.

What comes goes into the history with what it was answered; whether it should have come is the checker's business. The
port is the receiver's own all the time: while it is away, nothing else listens there. No fault of a run touches it.
"""

import asyncio
import base64
import hashlib
import hmac
import random
import re
import socket
import struct
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Literal, Self

import msgspec

from cogflare.cli.verification.cases import TERMINAL
from cogflare.cli.verification.history import Recorder, Told, named_files, now

Manner = Literal["good", "slow", "short", "500", "503", "404", "moved", "reset", "torn", "hang"]
"""How a message is met. `short`: a 200 that lacks the end of its body; `torn`: one that ends in its first line."""

_BAD: Final[tuple[Manner, ...]] = ("500", "503", "404", "moved", "reset", "torn", "hang")
_GOOD: Final[tuple[Manner, ...]] = ("good", "good", "good", "slow", "short")
_IS_BAD: Final = 0.3
_ROUGH_TRIES: Final = 1
"""So many tries of one end may be met badly; the next ones are not, so that no run waits for long pauses."""
_SLOW_S: Final = 0.4
_UP_S: Final = (4.0, 12.0)
_DOWN_S: Final = (0.3, 2.0)
_BODY_LIMIT: Final = 8 * 1024 * 1024
_ADDRESS: Final = re.compile(r"/(hook|moved)/([a-z]+)\?tag=([0-9a-z-]+)&x=a%2Fb")
_ANSWERS: Final[dict[Manner, tuple[int, str]]] = {
    "good": (200, "Content-Length: 2\r\n\r\nok"),
    "slow": (204, "\r\n"),
    "short": (200, "Content-Length: 100\r\n\r\nhalf"),
    "500": (500, "Content-Length: 4\r\n\r\noops"),
    "503": (503, "Content-Length: 0\r\nRetry-After: 1\r\n\r\n"),
    "404": (404, "Content-Length: 0\r\nConnection: close\r\n\r\n"),
    "moved": (302, "Content-Length: 0\r\nLocation: {moved}\r\n\r\n"),
}
_TORN: Final = b"HTTP/1.1 20"
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


def manner(seed: int, tag: str, number: int, *, is_end: bool) -> Manner:
    """Return how the message of this number about a prediction is met; those about its end are counted apart."""
    dice = random.Random(f"{seed} {tag} {is_end} {number}")  # noqa: S311 - it is to be the same each time
    is_bad = dice.random() < _IS_BAD and not (is_end and number >= _ROUGH_TRIES)
    return dice.choice(_BAD if is_bad else _GOOD)


def is_signed(secret: str, headers: Mapping[str, str], body: bytes) -> bool:
    """Whether one of the signatures of a message is made with this secret, as Standard Webhooks has it."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    message, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not message or not timestamp.isdigit():
        return False
    mac = hmac.digest(key, f"{message}.{timestamp}.".encode() + body, hashlib.sha256)
    return f"v1,{base64.b64encode(mac).decode()}" in headers.get("webhook-signature", "").split(" ")


class Request(msgspec.Struct, frozen=True):
    """What came over a connection, and when its first byte did."""

    begun_at: int
    line: str
    headers: dict[str, str]
    body: bytes


class Receiver:
    """One host of webhooks: a port of the loopback interface. A context; `secrets` are those of the accounts."""

    def __init__(self, name: str, seed: int, recorder: Recorder, secrets: Mapping[str, str]) -> None:
        self.name = name
        self._seed = seed
        self._recorder = recorder
        self._secrets = secrets
        self._came: Counter[tuple[str, bool]] = Counter()
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._place = _bound(0)
        self._server: asyncio.Server | None = None
        self._moods: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._come()
        self._moods = asyncio.create_task(self._come_and_go())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.mend()
        self._go()
        await asyncio.gather(*self._connections, return_exceptions=True)
        self._place.close()

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._place.getsockname()[1]
        return port

    def address(self, account: str, tag: str, room: str = "hook") -> str:
        """Return the webhook of a prediction."""
        return f"http://127.0.0.1:{self.port}/{room}/{account}?tag={tag}&x=a%2Fb"

    async def mend(self) -> None:
        """Be there from now on, and take whatever comes."""
        if self._moods is not None:
            self._moods.cancel()
            with suppress(asyncio.CancelledError):
                await self._moods
            self._moods = None
        if self._server is None:
            await self._come()

    # --- being there ------------------------------------------------------------------------------------------------

    async def _come_and_go(self) -> None:
        dice = random.Random(f"{self._seed} {self.name}")  # noqa: S311 - it is to be the same each time
        while True:
            await asyncio.sleep(dice.uniform(*_UP_S))
            self._go()
            await asyncio.sleep(dice.uniform(*_DOWN_S))
            await self._come()

    async def _come(self) -> None:
        # Known before the first pause, in which it may be told to go.
        self._server = await asyncio.start_server(self._accept, sock=_bound(self.port), start_serving=False)
        await self._server.start_serving()

    def _go(self) -> None:
        """Stop listening and reset every connection."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task, writer in self._connections.items():
            _reset(writer)
            task.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        try:
            with suppress(OSError, EOFError, asyncio.CancelledError):
                while (request := await _read(reader)) is not None and await self._meet(request, reader, writer):
                    pass
        finally:
            del self._connections[task]
            writer.close()

    # --- what comes -------------------------------------------------------------------------------------------------

    async def _meet(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer a message, or not, and note it; return whether the connection goes on."""
        verb, _, rest = request.line.partition(" ")
        address = _ADDRESS.fullmatch(rest.rpartition(" ")[0])
        room, account, tag = address.groups() if address is not None and verb == "POST" else ("", "", "")
        shown = _decoded(request.body)
        is_end = shown.get("status") in TERMINAL
        met: Manner = "404" if not tag else "good"
        if tag and self._moods is not None:
            met = manner(self._seed, tag, self._came[tag, is_end], is_end=is_end)
            self._came[tag, is_end] += 1
        code = None
        try:
            code = await self._answer(met, self.address(account, tag, "moved"), reader, writer)
        finally:
            secret = self._secrets.get(account)
            told = Told(
                at=now(),
                begun_at=request.begun_at,
                receiver=self.name,
                message=request.headers.get("webhook-id", ""),
                is_signed=secret is not None and is_signed(secret, request.headers, request.body),
                tag=tag,
                prediction=str(shown.get("id")),
                status=str(shown.get("status")),
                output=named_files(shown.get("output")),
                logs=shown.get("logs"),
                error=shown.get("error"),
                code=code,
                is_moved=room == "moved",
            )
            self._recorder.note(told)
        return code is not None and met not in ("short", "404")

    async def _answer(
        self, met: Manner, moved: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> int | None:
        if met == "hang":
            # Until the sender gives up.
            await reader.read(1)
            return None
        if met == "reset":
            _reset(writer)
            return None
        if met == "torn":
            writer.write(_TORN)
            await writer.drain()
            return None
        if met == "slow":
            await asyncio.sleep(_SLOW_S)
        code, rest = _ANSWERS[met]
        writer.write(f"HTTP/1.1 {code} X\r\n{rest.format(moved=moved)}".encode())
        await writer.drain()
        return code


async def _read(reader: asyncio.StreamReader) -> Request | None:
    """Return the next request of a connection, None at its end; raises `EOFError` where it ends within one."""
    first = await reader.read(1)
    if not first:
        return None
    begun_at = now()
    line, *lines = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (text.partition(":") for text in lines if text)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    size = int(headers.get("content-length", "0"))
    body = await reader.readexactly(min(size, _BODY_LIMIT))
    return Request(begun_at, line, headers, body)


def _decoded(body: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _bound(port: int) -> socket.socket:
    """Return a socket that holds a port, beside others that do; only one that listens is heard of."""
    place = socket.socket()
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        place.setsockopt(socket.SOL_SOCKET, option, 1)
    place.bind(("127.0.0.1", port))
    return place


def _reset(writer: asyncio.StreamWriter) -> None:
    taken: socket.socket | None = writer.get_extra_info("socket")
    if taken is not None and not writer.transport.is_closing():
        with suppress(OSError):
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()
