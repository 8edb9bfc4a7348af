"""How long a token takes from the model to those who read its stream: to one, and to many of whom one never reads."""

import asyncio
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import uvloop

from cogflare.cli.benchmark.load import at
from cogflare.cli.benchmark.measure import Measured, Say
from cogflare.cli.benchmark.noop import OWNER, STREAM
from cogflare.cli.benchmark.stage import Stage

READERS = 200
TOKENS = 2_000
_SAMPLED = 20  # readers whose tokens are timed, since the load generator shares the machine
_PATH = f"/v1/models/{OWNER}/{STREAM}/predictions"
_SENT = re.compile(rb"\ndata: ([0-9]{16})")
_WAIT_S = 120.0


class _Reader(asyncio.Protocol):
    """One open stream: counts its tokens and, if it is `timed`, how old each is; a `stalled` one never reads."""

    def __init__(self, request: bytes, *, is_timed: bool, is_stalled: bool) -> None:
        self._request = request
        self._is_timed = is_timed
        self._is_stalled = is_stalled
        self._tail = b""
        self.tokens = 0
        self.ages: list[tuple[int, int]] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._request)
        if self._is_stalled:
            self.transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        now, data = time.time_ns() // 1000, self._tail + data
        whole, mark, self._tail = data.rpartition(b"\n\n")
        whole += mark
        self.tokens += whole.count(b"\nevent: output\n")
        if self._is_timed:
            self.ages += [(int(sent), now) for sent in _SENT.findall(whole)]
        if b"\nevent: done\n" in whole and not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


def run(seconds: float, database_url: Callable[[], str | None], say: Say) -> Iterator[Measured]:
    """Measure a fresh server with one reader of a slow stream, then with many of a fast one."""
    say("a token to the reader of a stream")
    with tempfile.TemporaryDirectory() as folder, Stage(Path(folder), database_url()) as stage:
        stage.worker(1, model=STREAM)
        items = max(20, int(seconds / 0.02))
        yield _measured("a token to the reader of its stream", stage, 1, 0, items, 0.02)
        say(f"{TOKENS:,} tokens to {READERS} readers")
        name = f"{TOKENS:,} tokens to {READERS} readers, one of whom never reads"
        yield _measured(name, stage, READERS - 1, 1, TOKENS, seconds / TOKENS)


def _measured(name: str, stage: Stage, readers: int, stalled: int, items: int, item_s: float) -> Measured:
    script = {"input": {"items": items, "item_s": item_s, "is_stamped": True}}
    url = stage.call("POST", _PATH, json=script).json()["urls"]["stream"]
    begun = time.perf_counter()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        read, opened_at = runner.run(_read(url, readers, stalled))
    elapsed = time.perf_counter() - begun
    # What was sent before all had come is replayed to them, and says nothing.
    ages = sorted((now - sent) / 1e6 for reader in read for sent, now in reader.ages if sent > opened_at)
    tokens = sum(reader.tokens for reader in read)
    return Measured(name, tokens / elapsed, at(ages, 0.5), at(ages, 0.99), readers * items - tokens)


async def _read(url: str, readers: int, stalled: int) -> tuple[Sequence[_Reader], int]:
    """Read a stream to its end; returns its readers, and when the last of them had come (microseconds since 1970)."""
    where = urlsplit(url)
    request = f"GET {where.path} HTTP/1.1\r\nHost: {where.netloc}\r\n\r\n".encode()
    connect = asyncio.get_running_loop().create_connection
    opened: list[_Reader] = []
    for number in range(readers + stalled):
        is_timed, is_stalled = number < min(_SAMPLED, readers), number >= readers
        make = partial(_Reader, request, is_timed=is_timed, is_stalled=is_stalled)
        _, reader = await connect(make, where.hostname or "127.0.0.1", where.port or 80)
        opened.append(reader)
    opened_at = time.time_ns() // 1000
    read = opened[:readers]
    await asyncio.wait_for(asyncio.gather(*(reader.done for reader in read)), _WAIT_S)
    for reader in opened:
        reader.transport.abort()
    return read, opened_at
