"""The hint link: one connection that hears the hints of other nodes and tells them ours.

Hints never travel inside a transaction that writes: a NOTIFY there makes all commits of the cluster wait for each
other. What is told while the server is away may be lost, and so may what others tell then.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress

import msgspec

from cogflare.store.base import Hint
from cogflare.store.postgres.server import Connection, Server, pause

_CHANNEL = "cogflare_hints"
_GATHER_S = 0.002
_MAX_PAYLOAD_BYTES = 7900
_MAX_WAITING = 10_000


class _Message(msgspec.Struct, frozen=True):
    node: str
    hints: list[Hint]


_decoder = msgspec.json.Decoder(_Message)


class HintLink:
    """Runs until its task is cancelled. `tell` is called with the hints of other nodes."""

    def __init__(self, server: Server, node: str, tell: Callable[[list[Hint]], None]) -> None:
        self._server = server
        self._node = node
        self._tell = tell
        self._waiting: dict[Hint, None] = {}
        self._wake = asyncio.Event()

    def send(self, hints: Iterable[Hint]) -> None:
        """Tell the other nodes soon; the same hint twice within a moment goes out once."""
        if len(self._waiting) < _MAX_WAITING:
            self._waiting.update(dict.fromkeys(hints))
            self._wake.set()

    async def run(self) -> None:
        while True:
            connection: Connection | None = None
            try:
                connection = await self._server.connect(f"cogflare hints {self._node}")
                await self._serve(connection)
            except Exception:
                # Hints may be lost. An outage that matters is told to those who read and write.
                await pause(0.1, 0.5)
            finally:
                if connection is not None:
                    connection.terminate()

    async def _serve(self, connection: Connection) -> None:
        """Hear and tell until the connection ends."""
        connection.add_termination_listener(lambda _: self._wake.set())
        await connection.add_listener(_CHANNEL, self._heard)
        while not connection.is_closed():
            if self._waiting:
                await asyncio.sleep(_GATHER_S)
                waiting, self._waiting = self._waiting, {}
                for payload in _pack(self._node, waiting):
                    await connection.execute("SELECT pg_notify($1, $2)", _CHANNEL, payload)
            else:
                self._wake.clear()
                await self._wake.wait()

    def _heard(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        with suppress(msgspec.DecodeError):
            message = _decoder.decode(str(payload))
            if message.node != self._node:
                self._tell(message.hints)


def _pack(node: str, hints: Iterable[Hint]) -> list[str]:
    """Return as few payloads as PostgreSQL's limit on the size of one allows."""
    groups: list[list[Hint]] = [[]]
    room = _MAX_PAYLOAD_BYTES
    for hint in hints:
        size = len(msgspec.json.encode(hint)) + 1
        if size > room - 100 and groups[-1]:
            groups.append([])
            room = _MAX_PAYLOAD_BYTES
        groups[-1].append(hint)
        room -= size
    return [msgspec.json.encode(_Message(node, group)).decode() for group in groups]
