"""A lean HTTP/1.1 load generator: keep-alive connections that each send the next request when the last is answered.

It costs a fraction of what a full client costs, because on a small machine it shares the cores with what it measures.
"""

import asyncio
import re
import time
from collections.abc import Sequence
from typing import cast
from urllib.parse import urlsplit

import msgspec


class Figures(msgspec.Struct, frozen=True):
    """What a load run measured: answers per second, and latencies in milliseconds.

    `arrival` is the way from the client to the worker, where the worker's answer tells it.
    """

    count: int
    per_s: float
    p50_ms: float
    p99_ms: float
    errors: int
    arrival_p50_ms: float = 0.0
    arrival_p99_ms: float = 0.0


STAMP = b"0" * 16
"""In a request's body: replaced by the time of its sending, in microseconds since 1970."""
_ARRIVAL = re.compile(rb'"output":([0-9]+)')


class _Connection(asyncio.Protocol):
    """One connection; `run` sends until the deadline and collects latencies in seconds."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._deadline = 0.0
        self._sent_at = 0.0
        self._pause_s = 0.0
        self.latencies: list[float] = []
        self.arrivals: list[float] = []
        self.errors = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def run(self, deadline: float, pause_s: float) -> None:
        """Begin; stop at the deadline (`time.perf_counter` seconds), waiting `pause_s` between requests."""
        self._deadline, self._pause_s = deadline, pause_s
        self._send()

    def _send(self) -> None:
        assert self._transport is not None
        self._sent_at = time.perf_counter()
        stamped = self._request.replace(STAMP, b"%016d" % (time.time_ns() // 1000), 1)
        self._transport.write(stamped)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        start = self._buffer.find(b"content-length: ", 0, head)
        end = self._buffer.find(b"\r\n", start, head + 2)
        length = int(self._buffer[start + 16 : end]) if start > 0 else 0
        if len(self._buffer) < head + 4 + length:
            return
        now = time.perf_counter()
        self.latencies.append(now - self._sent_at)
        if found := _ARRIVAL.search(self._buffer, head):
            self.arrivals.append(int(found[1]) / 1_000_000)
        if not self._buffer.startswith(b"HTTP/1.1 2"):
            self.errors += 1
        self._buffer.clear()
        if now >= self._deadline:
            self._finish()
        elif self._pause_s:
            asyncio.get_running_loop().call_later(self._pause_s, self._send)
        else:
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.errors += 1
            self.done.set_result(None)

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
        assert self._transport is not None
        self._transport.close()


def request(url: str, token: str, path: str, body: bytes, prefer: str | None = None) -> bytes:
    """Return the bytes of a POST."""
    host = urlsplit(url).netloc
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {host}",
        f"Authorization: Bearer {token}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    if prefer is not None:
        lines.append(f"Prefer: {prefer}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def press(url: str, payload: bytes, connections: int, seconds: float, pause_s: float = 0.0) -> Figures:
    """Send the same request over some connections for some seconds and return what was measured."""
    return await press_all([(url, payload)], connections, seconds, pause_s)


async def press_all(
    targets: Sequence[tuple[str, bytes]], connections: int, seconds: float, pause_s: float = 0.0
) -> Figures:
    """Send a request to each of these servers, over so many connections each, and return what was measured in all."""
    opened = [await _open(url, payload) for url, payload in targets for _ in range(connections)]
    begun = time.perf_counter()
    for connection in opened:
        connection.run(begun + seconds, pause_s)
    await asyncio.gather(*(connection.done for connection in opened))
    elapsed = time.perf_counter() - begun
    latencies = sorted(latency for connection in opened for latency in connection.latencies)
    arrivals = sorted(arrival for connection in opened for arrival in connection.arrivals)
    return Figures(
        len(latencies),
        len(latencies) / elapsed,
        at(latencies, 0.5),
        at(latencies, 0.99),
        sum(connection.errors for connection in opened),
        at(arrivals, 0.5),
        at(arrivals, 0.99),
    )


async def _open(url: str, payload: bytes) -> _Connection:
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    _, connection = await asyncio.get_running_loop().create_connection(lambda: _Connection(payload), host, port)
    return connection


def at(ordered: Sequence[float], quantile: float) -> float:
    """Return a quantile of ordered seconds, in milliseconds."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * quantile))] * 1000 if ordered else 0.0
