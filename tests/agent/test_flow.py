"""A model that says more than the link takes: it has to wait, the agent stays small, and its heartbeats get through."""

import asyncio
import io
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from msgspec import Raw

from cogflare.agent.address import ServerAddress
from cogflare.agent.agent import Agent
from cogflare.agent.console import Console
from cogflare.agent.journal import Journal
from cogflare.agent.link import Link, Timing
from cogflare.agent.main import agent_end
from cogflare.agent.runners.base import Event, Finished, Job, Log, Output, Started
from cogflare.protocol.messages import Heartbeat, Message, Welcome
from support.until import until
from support.worker_fakes import TOKEN, FakeServer, ScriptedRunner, fake_server

from .test_agent import FakeCarrier, FakeInputs

pytestmark = pytest.mark.anyio

TIMING = Timing(first_s=0.01, cap_s=0.02, restarting_s=0.02, close_s=1)
NETWORK = 1_000_000  # bytes a second
PIECE = "flood " * 5_000


class FloodingRunner(ScriptedRunner):
    """A model that talks without end, and notes how much was taken of it."""

    def __init__(self) -> None:
        super().__init__()
        self.said = 0
        self.over = asyncio.Event()

    async def run(self, job: Job) -> AsyncGenerator[Event, None]:
        """Log or yield until it is over."""
        yield Started(at=0)
        number = 0
        while not self.over.is_set():
            yield Log(PIECE) if job.input == Raw(b'{"kind":"log"}') else Output(number, PIECE)
            number += 1
            self.said += len(PIECE)
            await asyncio.sleep(0)
        yield Finished(status="succeeded")


def welcome(server: FakeServer, limit: int) -> None:
    """Have the server set no limits that matter here, and hear often of its worker."""

    def greet(_: object) -> list[Message]:
        server.end.welcome([])
        return [Welcome(1, 1, "n1", "test", 0.2, 15, [], limit, limit)]

    server.greeting = greet


@asynccontextmanager
async def slow_network(port: int) -> AsyncIterator[int]:
    """A proxy that passes on so many bytes a second of what agents send."""
    writers: list[asyncio.StreamWriter] = []

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rate: float) -> None:
        with suppress(OSError):
            while data := await reader.read(16_384):
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(len(data) / rate)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        writers.extend((writer, back))
        await asyncio.gather(pipe(reader, back, NETWORK), pipe(there, writer, 1e12))

    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    proxy = await asyncio.start_server(serve, sock=listener, limit=16_384)
    try:
        yield listener.getsockname()[1]
    finally:
        proxy.close()
        for writer in writers:
            writer.close()


@asynccontextmanager
async def flooding(folder: Path, port: int) -> AsyncIterator[tuple[FloodingRunner, Agent]]:
    """Run an agent with such a model."""
    runner, console = FloodingRunner(), Console(False, io.StringIO())
    end = agent_end(runner.offer, "w1", "i1", "test", console)
    link = Link(end, ServerAddress(f"http://127.0.0.1:{port}"), lambda: TOKEN, console, timing=TIMING)
    journal = Journal(folder, lambda _: None)
    agent = Agent(runner, end, link, journal, FakeCarrier(), FakeInputs(), console=console)
    task = asyncio.create_task(agent.run())
    try:
        yield runner, agent
    finally:
        runner.over.set()
        agent.stop()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("kind", ["log", "output"])
async def test_heartbeats_get_through_a_flood_on_a_slow_network(tmp_path: Path, kind: str) -> None:
    async with fake_server() as server, slow_network(server.port) as port:
        welcome(server, 1 << 30)
        async with flooding(tmp_path, port) as (runner, _):
            await server.until(lambda: server.hellos)
            await server.assign("p", {"kind": kind})
            began = last = time.monotonic()
            gaps, beats = [], 0
            while time.monotonic() - began < 4:
                await asyncio.sleep(0.02)
                heard = server.kinds().count(Heartbeat.__name__)
                if heard > beats:
                    now = time.monotonic()
                    gaps.append(now - last)
                    beats, last = heard, now
            assert beats >= 3
            assert max(gaps) < 2
            assert runner.said < 4 * NETWORK + 4_000_000, "the model waits"


async def test_without_a_link_a_model_runs_on_and_what_it_says_is_bounded(tmp_path: Path) -> None:
    async with fake_server() as server:
        welcome(server, 200_000)
        async with flooding(tmp_path, server.port) as (runner, agent):
            await server.until(lambda: server.hellos)
            key = await server.assign("p", {"kind": "log"})
            await until(lambda: runner.said > 100_000)
            await server.stop()
            await until(lambda: runner.said > 20_000_000)
            assert len(agent._end.kept[key].log) == 200_004
            await server.start()
            runner.over.set()
