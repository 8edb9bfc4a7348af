"""Streams of a real server over real sockets: across kills and restarts, to many readers, and past one that stalls."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
import uvicorn
from msgspec import Raw

from api.node import Node
from cogflare.api import sse
from cogflare.cli.httpsocket import HttpSocket
from cogflare.store.base import Database
from support.events import Event, Parser, events_of
from support.processes import DEADLINE_S, Server, Stage, until
from support.scripted_worker import item, line

READERS = 200
TOKENS = 2_000


class Follower(threading.Thread):
    """A client that reads a stream to its end, and comes back with the last id after each break."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self.events: list[Event] = []
        self.breaks = 0
        self.start()

    def run(self) -> None:
        """Read until the end has come."""
        last = ""
        while not (self.events and self.events[-1].kind == "done"):
            headers = {"last-event-id": last} if last else {}
            with contextlib.suppress(httpx2.TransportError), httpx2.stream("GET", self._url, headers=headers) as answer:
                assert answer.status_code == 200
                parser = Parser()
                for text in answer.iter_text():
                    self.events += parser.feed(text)
                    last = self.events[-1].id if self.events else last
            self.breaks += 1

    def has(self, count: int) -> bool:
        """Say whether so many events have come."""
        return len(self.events) >= count


def texts(events: list[Event], kind: str = "output") -> list[str]:
    return [event.data for event in events if event.kind == kind]


def stream_of(server: Server, prediction: str) -> str:
    url: str = server.get(prediction)["urls"]["stream"]
    return url


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_each_token_comes_once_and_in_order_across_restarts(stage: Stage, end: str) -> None:
    server = stage.server()
    stage.scripted(server, "text").connected()
    prediction = server.create("me/text", seconds=4, items=400, log=40)
    url = stream_of(server, prediction)
    plain, with_logs = Follower(url), Follower(f"{url}?logs=true")
    for _ in range(2):
        wanted = len(plain.events) + 20
        until(partial(plain.has, wanted), "events")
        until(partial(with_logs.has, wanted), "events and logs")
        if end == "kill":
            server.kill9()
        else:
            assert server.stop() == 0
        server.start()
    for follower in (plain, with_logs):
        follower.join(DEADLINE_S)
        assert not follower.is_alive()
        assert follower.breaks >= 3
        assert texts(follower.events) == [item(index) for index in range(400)]
        assert texts(follower.events, "done") == ["{}"]
    assert "".join(texts(with_logs.events, "logs")) == "".join(line(index) for index in range(40))
    assert texts(plain.events, "logs") == []
    assert stage.runs() == {prediction: 1}
    late = events_of(httpx2.get(url).text)
    assert late == plain.events


async def drink(client: httpx2.AsyncClient, url: str) -> bytes:
    """Read a whole stream."""
    async with client.stream("GET", url) as answer:
        return b"".join([piece async for piece in answer.aiter_raw()])


def resident_mb(pid: int) -> float:
    fields = dict(row.split(":", 1) for row in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


@contextlib.asynccontextmanager
async def stalled(url: str) -> AsyncIterator[asyncio.StreamReader]:
    """Open a stream and read nothing of it."""
    where = urlsplit(url)
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, (where.hostname, where.port))
    reader, writer = await asyncio.open_connection(sock=raw, limit=1)
    writer.write(f"GET {where.path} HTTP/1.1\r\nHost: {where.netloc}\r\n\r\n".encode())
    try:
        yield reader
    finally:
        writer.transport.abort()


@pytest.mark.anyio
async def test_two_hundred_readers_and_one_that_stalls(stage: Stage) -> None:
    server = stage.server()
    stage.scripted(server, "text").connected()
    assert server.process is not None
    prediction = server.create("me/text", seconds=5, items=TOKENS)
    url = stream_of(server, prediction)
    limits = httpx2.Limits(max_connections=READERS)
    async with httpx2.AsyncClient(limits=limits, timeout=60, trust_env=False) as client, stalled(url):
        before = resident_mb(server.process.pid)
        readers = [asyncio.create_task(drink(client, url)) for _ in range(READERS - 1)]
        bodies = await asyncio.wait_for(asyncio.gather(*readers), 60)
        assert resident_mb(server.process.pid) - before < 40
    assert len({body.replace(b": still here\n\n", b"") for body in bodies}) == 1
    events = events_of(bodies[0].decode())
    assert texts(events) == [item(index) for index in range(TOKENS)]
    assert events[-1].kind == "done"


@contextlib.asynccontextmanager
async def served(node: Node) -> AsyncIterator[str]:
    """Serve a node on a real socket, with the connections of `cogflare serve`; yields its URL."""
    config = uvicorn.Config(node.app, http=HttpSocket, lifespan="off", log_level="warning", access_log=False, port=0)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve([listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving


@pytest.mark.anyio
async def test_a_reader_that_stalls_is_bounded_and_cut_off(
    store: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "STALL_S", 4.0)
    monkeypatch.setattr(sse, "COMMENT_S", 0.5)
    node = Node(store, tmp_path)
    worker, assigned = await node.running()
    key = assigned.prediction, assigned.attempt
    shown = (await node.call("GET", f"/v1/predictions/{assigned.prediction}")).json()
    async with served(node) as base:
        url = base + urlsplit(shown["urls"]["stream"]).path
        async with stalled(url) as reader, httpx2.AsyncClient(trust_env=False, timeout=None) as client:
            other = asyncio.create_task(drink(client, url))
            for _ in range(150):
                worker.end.output(key, [Raw(b'"' + b"x" * 100_000 + b'"')])
                await worker.pump()
                await asyncio.sleep(0)
            # The other one goes on while this one holds on to what the kernel has taken for it.
            async with asyncio.timeout(20):
                while node.streams.readers > 1:
                    await asyncio.sleep(0.05)
            assert not other.done()
            await worker.finish(key, None, items=150)
            events = events_of((await other).decode())
            assert len(events) == 151
            taken = b""
            with contextlib.suppress(ConnectionError):
                while piece := await asyncio.wait_for(reader.read(1 << 20), 10):
                    taken += piece
            assert len(taken) < 10_000_000
    await node.http.aclose()
    await node.settle()
