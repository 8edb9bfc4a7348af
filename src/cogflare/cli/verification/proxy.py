"""A TCP proxy that injects faults: one between a worker, or the clients, and a server node.

It forwards bytes from a local port, which stays the same, to a target that may change or be absent. What a fault holds
back is not lost: as on a network, it arrives once the fault is over, unless the connection ended before.
"""

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass, field
from typing import Literal

Direction = Literal["up", "down"]
"""`up`: from those who dial to the target."""

_CHUNK = 64 * 1024
_SLOW_CHUNKS_PER_S = 20
_BACKLOG = 512
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(slots=True, eq=False)
class _Connection:
    """One dialled connection, and the one to the target once there is one."""

    task: "asyncio.Task[None]"
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    def reset(self) -> None:
        """End it with a reset at both sides, held back or not."""
        self.sever()
        self.task.cancel()

    def sever(self) -> None:
        """Reset what is still open."""
        for writer in self.writers:
            taken: socket.socket | None = writer.get_extra_info("socket")
            if taken is not None and not writer.transport.is_closing():
                with contextlib.suppress(OSError):
                    taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            writer.transport.abort()


class Proxy:
    """Listens on `port` of the loopback interface and forwards to the loopback port `target`; None refuses all."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = 0
        self.target: int | None = None
        self._refuses = False
        self._bytes_per_s = 0.0
        self._delay_s = 0.0
        self._open: dict[Direction, asyncio.Event] = {"up": asyncio.Event(), "down": asyncio.Event()}
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None
        self.heal()

    async def start(self) -> None:
        """Begin to listen, on a free port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, limit=_CHUNK, backlog=_BACKLOG)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Reset everything and stop listening."""
        if self._server is not None:
            self._server.close()
        tasks = [connection.task for connection in self._connections]
        self.reset()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        """The base URL for those who dial."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """How many connections there are."""
        return len(self._connections)

    # --- faults -----------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Let nothing through any more, either way, and tell nobody; new connections hang."""
        for gate in self._open.values():
            gate.clear()

    def half_open(self, direction: Direction) -> None:
        """Let nothing through in one direction, and tell nobody."""
        self._open[direction].clear()

    def slow(self, bytes_per_s: float, delay_s: float) -> None:
        """Let so much through per connection and direction, and each piece after a delay."""
        self._bytes_per_s, self._delay_s = bytes_per_s, delay_s

    def refuse(self) -> None:
        """Turn new connections away; those that exist stay."""
        self._refuses = True

    def reset(self) -> None:
        """End all connections with a reset at both sides."""
        for connection in list(self._connections):
            connection.reset()

    def heal(self) -> None:
        """Let everything through again, also what was held back."""
        self._refuses, self._bytes_per_s, self._delay_s = False, 0.0, 0.0
        for gate in self._open.values():
            gate.set()

    # --- forwarding -------------------------------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connection = _Connection(task, [writer])
        self._connections.add(connection)
        try:
            # Whoever closes the proxy, or resets the connection, ends this too.
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._forward(connection, reader, writer)
        finally:
            connection.sever()
            self._connections.discard(connection)

    async def _forward(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if not self._refuses:
            await self._open["up"].wait()
        if self._refuses or self.target is None or writer.transport.is_closing():
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target, limit=_CHUNK)
        connection.writers.append(far_writer)
        if writer.transport.is_closing():
            return
        pumps = [
            asyncio.create_task(self._pump("up", reader, far_writer)),
            asyncio.create_task(self._pump("down", far_reader, writer)),
        ]
        try:
            await asyncio.gather(*pumps)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        for end in connection.writers:
            end.close()
            await end.wait_closed()

    async def _pump(self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Move bytes one way until their end, and pass the end on; raises `OSError` where the connection breaks."""
        while data := await self._read(direction, reader):
            if self._delay_s or self._bytes_per_s:
                pace_s = len(data) / self._bytes_per_s if self._bytes_per_s else 0.0
                await asyncio.sleep(self._delay_s + pace_s)
            await self._open[direction].wait()
            writer.write(data)
            await writer.drain()
        await self._open[direction].wait()
        if writer.can_write_eof():
            writer.write_eof()

    async def _read(self, direction: Direction, reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.read(self._piece())
        except OSError:
            # Nobody hears of a broken connection through a cut either.
            await self._open[direction].wait()
            raise

    def _piece(self) -> int:
        if not self._bytes_per_s:
            return _CHUNK
        return max(1, min(_CHUNK, int(self._bytes_per_s / _SLOW_CHUNKS_PER_S)))
