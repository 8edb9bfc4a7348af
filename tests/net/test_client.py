"""Calls of providers' interfaces: what comes back of them, how long they take, and streams of events."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from cogflare.net.addresses import Reach
from cogflare.net.base import OutgoingError
from cogflare.net.client import Client, Site, TooLarge, Unsent
from cogflare.net.events import ServerEvent, ServerEvents
from cogflare.net.sockets import Sockets
from support.web import serving

pytestmark = pytest.mark.anyio

HERE = Reach.of(["127.0.0.0/8"])
KEY = "key_0123456789"


class Web:
    """A server that notes who asks, and for what."""

    def __init__(self) -> None:
        self.peers: set[object] = set()
        self.requests: list[Request] = []
        self.app = Starlette(routes=[Route("/{path:path}", self.take, methods=["GET", "POST"])])

    async def take(self, request: Request) -> Response:
        self.peers.add(request.client)
        self.requests.append(request)
        match request.path_params["path"]:
            case "slow":
                await asyncio.sleep(60)
            case "endless":
                return StreamingResponse(_drip())
            case "large":
                return StreamingResponse(iter([b"x" * (1 << 20)] * 65))
            case "events":
                return StreamingResponse(iter([b"id: 7\ndata: a\n\n"]), media_type="text/event-stream")
        return Response(b'{"ok": true}', 200, {"X-Echo": KEY, "Retry-After": "3"})


async def _drip() -> AsyncIterator[bytes]:
    while True:
        yield b"x"
        await asyncio.sleep(0.02)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def web() -> Web:
    return Web()


@pytest.fixture
async def site(stack: AsyncExitStack, web: Web) -> Site:
    url = await stack.enter_async_context(serving(web.app))
    client = Client(HERE)
    stack.push_async_callback(client.aclose)
    return client.site(f"{url}/", KEY)


async def test_an_answer_comes_back_without_the_key(site: Site, web: Web) -> None:
    reply = await site.call("POST", "/a?b=c", b"{}", {"X-More": "1"})
    assert (reply.status, reply.body, reply.retry_after_s, reply.is_good) == (200, b'{"ok": true}', 3.0, True)
    assert reply.headers["x-echo"] == "[key]"
    sent = web.requests[0]
    assert (sent.headers["authorization"], sent.headers["x-more"]) == (f"Bearer {KEY}", "1")
    assert sent.headers["content-type"] == "application/json"
    await site.call("GET", "/health", is_anonymous=True)
    assert "authorization" not in web.requests[1].headers


async def test_a_connection_is_used_again(site: Site, web: Web) -> None:
    for _ in range(4):
        await site.call("GET", "/")
    assert len(web.peers) == 1


@pytest.mark.parametrize("path", ["/slow", "/endless"])
async def test_a_call_has_an_end(site: Site, path: str) -> None:
    with pytest.raises(OutgoingError, match="answer") as failed:
        await site.call("GET", path, timeout_s=0.3)
    assert not isinstance(failed.value, Unsent)
    assert (await site.call("GET", "/")).is_good


async def test_an_answer_may_be_too_large(site: Site) -> None:
    with pytest.raises(TooLarge):
        await site.call("GET", "/large")


async def test_events_are_read_where_there_are_any(site: Site) -> None:
    assert [event async for event in site.events(f"{site.base}/events")] == [ServerEvent("message", "a", "7")]
    with pytest.raises(OutgoingError, match="no stream"):
        assert [event async for event in site.events(f"{site.base}/")]


async def test_what_was_not_sent_is_told_apart(stack: AsyncExitStack) -> None:
    client = Client(HERE)
    stack.push_async_callback(client.aclose)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = listener.getsockname()[1]
    for base in (f"http://127.0.0.1:{closed}", "http://10.0.0.1", "http://name.invalid"):
        with pytest.raises(Unsent) as failed:
            await client.site(base, KEY).call("GET", "/secret?x=1")
        assert "secret" not in str(failed.value)


async def test_a_connection_that_breaks_may_have_been_heard(stack: AsyncExitStack) -> None:
    client = Client(HERE)
    stack.push_async_callback(client.aclose)

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    server = await stack.enter_async_context(await asyncio.start_server(hang_up, "127.0.0.1", 0))
    with pytest.raises(OutgoingError, match="broke the connection off") as failed:
        await client.site(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", KEY).call("POST", "/", b"{}")
    assert not isinstance(failed.value, Unsent)


def test_a_connection_that_is_gone_is_known_as_such() -> None:
    async def look(port: int) -> tuple[bool, bool]:
        stream = await Sockets().connect_tcp("127.0.0.1", port)
        before = bool(stream.get_extra_info("is_readable"))
        stream._inner._stream._transport.abort()  # type: ignore[attr-defined]
        await asyncio.sleep(0.01)
        return before, bool(stream.get_extra_info("is_readable"))

    # On the server's own loop, where the library below falls over such a connection.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert uvloop.run(look(listener.getsockname()[1])) == (False, True)


TEXT = b": hi\n\nid: 1:0\nevent: output\ndata: a\ndata: b\n\nevent: done\r\ndata: {}\r\n\r\n\ndata\n\nevent: none\n\n"


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_events_in_pieces_of_any_size(size: int) -> None:
    events = ServerEvents()
    found = [event for begin in range(0, len(TEXT), size) for event in events.feed(TEXT[begin : begin + size])]
    assert found == [
        ServerEvent("output", "a", "1:0"),
        ServerEvent("done", "{}", "1:0"),
        ServerEvent("message", "", "1:0"),
    ]


def test_long_lines_are_not_kept() -> None:
    events = ServerEvents()
    found = [event for _ in range(100) for event in events.feed(b"x" * 100_000)]
    found += events.feed(b"\ndata: " + b"y" * 100_000 + b"\n\n")
    assert [len(event.data) for event in found] == [4096 - len("data: ")]
