"""The WebSocket shell, over real sockets."""

import asyncio
import io
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.server import ServerConnection, serve

from cogflare.agent.address import ServerAddress, tls_advice
from cogflare.agent.console import Console
from cogflare.agent.link import Link, Refused, Timing
from cogflare.protocol.agent_end import AgentEnd
from cogflare.protocol.messages import (
    OLDEST,
    PING,
    PROTOCOL,
    Assign,
    Capacity,
    Drain,
    Heartbeat,
    Log,
    Offer,
    Reject,
    Restarting,
    ServerMessage,
    Welcome,
)
from support.until import until
from support.worker_fakes import TOKEN, FakeServer, fake_server

pytestmark = pytest.mark.anyio

FAST = Timing(first_s=0.01, cap_s=0.02, restarting_s=0.02, refused_cap_s=0.03, steady_s=60, open_s=5, close_s=1)


class Place:
    """Where something listens that is no server of workers."""

    def __init__(self, port: int) -> None:
        self.address = ServerAddress(f"http://127.0.0.1:{port}")


class Rig:
    def __init__(self, server: FakeServer | Place, token: str = TOKEN, timing: Timing = FAST) -> None:
        self.end = AgentEnd("w1", "i1", "n", [Offer("acme", "m", "0" * 64, 2)], {})
        self.out = io.StringIO()
        self.tokens = [token]
        self.got: list[ServerMessage] = []
        self.changed = asyncio.Event()
        console = Console(stream=self.out)
        self.link = Link(self.end, server.address, lambda: self.tokens[0], console, timing=timing)
        self.task = asyncio.create_task(self.link.run(self.handle))

    def handle(self, message: ServerMessage) -> None:
        self.got.append(message)
        self.changed.set()

    async def until(self, kind: type[ServerMessage], count: int = 1) -> None:
        async with asyncio.timeout(10):
            while sum(isinstance(message, kind) for message in self.got) < count:
                self.changed.clear()
                await self.changed.wait()


@asynccontextmanager
async def linked(server: FakeServer | Place, token: str = TOKEN, timing: Timing = FAST) -> AsyncIterator[Rig]:
    rig = Rig(server, token, timing)
    try:
        yield rig
    finally:
        await rig.link.close()
        rig.task.cancel()
        await asyncio.gather(rig.task, return_exceptions=True)


async def test_it_says_hello_and_passes_messages_on() -> None:
    async with fake_server() as server, linked(server) as rig:
        await rig.until(Welcome)
        await server.assign("p")
        await rig.until(Assign)
        assert server.hellos[0].worker == "w1"


async def test_all_that_is_queued_in_one_turn_is_one_frame() -> None:
    async with fake_server() as server, linked(server) as rig:
        await rig.until(Welcome)
        await server.assign("p")
        await rig.until(Assign)
        before = len(server.frames)
        for _ in range(50):
            rig.end.log(("p", 1), "x")
            rig.link.wake()
        await server.until(lambda: sum(isinstance(message, Log) for message in server.seen) == 50)
        assert len(server.frames) == before + 1


async def test_it_comes_back_whatever_ends_the_link() -> None:
    async with fake_server() as server, linked(server) as rig:
        await rig.until(Welcome)
        server.drop()
        await rig.until(Welcome, 2)
        await server.close()
        await rig.until(Welcome, 3)
        await server.send(Restarting())
        await server.close()
        await rig.until(Welcome, 4)
        await server.stop()
        await server.start()
        await rig.until(Welcome, 5)


async def test_a_server_that_is_not_there_yet_is_waited_for() -> None:
    async with fake_server() as server:
        await server.stop()
        async with linked(server) as rig:
            await until(lambda: "cannot reach" in rig.out.getvalue())
            await server.start()
            await rig.until(Welcome)


@pytest.mark.parametrize("status", [401, 403])
async def test_a_token_that_is_refused_at_first_is_final_and_never_shown(status: int) -> None:
    async with fake_server() as server:
        server.status = status
        async with linked(server, token="wrong-token") as rig:
            with pytest.raises(Refused, match="cogflare tokens create") as refused:
                await rig.task
            assert "wrong-token" not in str(refused.value) + rig.out.getvalue()


async def test_a_token_that_is_refused_later_is_tried_again_and_read_anew() -> None:
    async with fake_server() as server, linked(server) as rig:
        await rig.until(Welcome)
        server.token = "rotated"
        server.drop()
        await server.until(lambda: server.refused >= 2)
        rig.tokens[0] = "rotated"
        await rig.until(Welcome, 2)


@pytest.mark.parametrize("status", [404, 500, 502, 503])
async def test_other_answers_are_not_final(status: int) -> None:
    async with fake_server() as server:
        server.status = status
        async with linked(server) as rig:
            await server.until(lambda: server.refused >= 2)
            server.status = None
            await rig.until(Welcome)
            assert f"answered {status}" in rig.out.getvalue()


async def test_a_reject_is_final_unless_it_says_otherwise() -> None:
    async with fake_server() as server:
        server.greeting = lambda hello: [Reject("too many workers", retry=True)]
        async with linked(server) as rig:
            await server.until(lambda: len(server.hellos) >= 2)
            server.greeting = lambda hello: [Reject("this worker was removed")]
            with pytest.raises(Refused, match="this worker was removed"):
                await rig.task


async def test_a_server_that_breaks_the_protocol_is_left_and_tried_again() -> None:
    async with fake_server() as server:
        server.greeting = lambda hello: [Drain()]
        async with linked(server) as rig:
            await server.until(lambda: len(server.hellos) >= 2)
            server.greeting = None
            await rig.until(Welcome)
            assert "broke the protocol" in rig.out.getvalue()


async def test_a_server_that_does_not_welcome_is_left() -> None:
    async with fake_server() as server:
        server.greeting = lambda hello: []
        timing = Timing(first_s=0.01, cap_s=0.02, open_s=0.05, close_s=1)
        async with linked(server, timing=timing) as rig:
            await server.until(lambda: len(server.hellos) >= 2)
            assert "did not answer the hello" in rig.out.getvalue()


async def test_an_idle_worker_pings_and_a_busy_one_renews() -> None:
    async with fake_server() as server:
        server.heartbeat_s = 0.01
        async with linked(server) as rig:
            await server.until(lambda: server.frames.count(PING) >= 2)
            await server.assign("p")
            await server.until(lambda: any(isinstance(message, Heartbeat) for message in server.seen))
            assert Heartbeat([("p", 1)]) in server.seen
            assert rig.out.getvalue() == ""


async def test_a_silent_server_is_left() -> None:
    async with fake_server() as server:
        server.heartbeat_s, server.silence_s = 0.01, 0.05
        async with linked(server) as rig:
            await rig.until(Welcome)
            server.is_mute = True
            await until(lambda: "not connected" in rig.out.getvalue())
            server.is_mute = False
            await rig.until(Welcome, 2)


async def test_what_happened_while_the_link_was_away_arrives() -> None:
    async with fake_server() as server, linked(server) as rig:
        await rig.until(Welcome)
        await server.stop()
        rig.end.resize(0, 1)
        rig.link.wake()
        await server.start()
        await rig.until(Welcome, 2)
        assert server.hellos[-1].offers[0].slots == 1


async def test_closing_sends_what_is_queued() -> None:
    async with fake_server() as server, linked(server) as rig:
        await rig.until(Welcome)
        rig.end.resize(0, 0)
        rig.end.goodbye("drained")
        await rig.link.close()
        async with asyncio.timeout(5):
            await rig.task
        await server.until(lambda: server.kinds()[-2:] == ["Capacity", "Goodbye"])
        assert Capacity(0, 0) in server.seen


@pytest.mark.parametrize(
    ("given", "link", "base"),
    [
        ("http://h:80/", "ws://h:80/worker/v1/link", "http://h:80"),
        ("https://h/p/", "wss://h/p/worker/v1/link", "https://h/p"),
        ("wss://h", "wss://h/worker/v1/link", "https://h"),
        ("h.example", "wss://h.example/worker/v1/link", "https://h.example"),
        ("ws://[::1]:9", "ws://[::1]:9/worker/v1/link", "http://[::1]:9"),
        ("localhost:8000", "ws://localhost:8000/worker/v1/link", "http://localhost:8000"),
    ],
)
async def test_addresses(given: str, link: str, base: str) -> None:
    address = ServerAddress(given)
    assert (address.link, address.base) == (link, base)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (
            "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate (_ssl.c:1)",
            "SSL_CERT_FILE",
        ),
        ("[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1)", "http://"),
    ],
)
async def test_errors_of_tls_come_with_advice(error: str, advice: str) -> None:
    assert advice in (tls_advice(error) or "")
    assert tls_advice("Connection refused") is None


UNDIALLED = [
    "http://h:0",
    "http://h:99999",
    "http://h:x",
    "http://[::1",
    "http://a..b",
    "http://a b",
    "https://u:secret@h:x",
]


@pytest.mark.parametrize(
    "given", ["ftp://h", "http://", "https://h/?q", "https://u:p@h", "", "https://h#f", *UNDIALLED]
)
async def test_what_is_no_address(given: str) -> None:
    with pytest.raises(ValueError, match="not the address of a server") as refused:
        ServerAddress(given)
    assert "secret" not in str(refused.value)


async def test_own_origin() -> None:
    address = ServerAddress("https://h.example/base")
    assert address.is_own("https://h.example:443/x")
    assert not address.is_own("http://h.example/x")
    assert not address.is_own("https://h.example:444/x")
    assert not address.is_own("https://h.example.evil/x")
    assert not address.is_own("data:x")
    assert address.resolve("/f/1") == "https://h.example/f/1"
    assert address.resolve("f/1") == "https://h.example/base/f/1"
    assert address.resolve("https://s3.example/k") == "https://s3.example/k"


async def test_who_is_told_when_to_come_back_waits_so_long() -> None:
    async with fake_server() as server:
        server.greeting = lambda hello: [Reject("no room", retry=True, after_s=0.4)]
        async with linked(server) as rig:
            await server.until(lambda: len(server.hellos) >= 2)
            pauses = re.findall(r"no room; next try in ([0-9.]+) s", rig.out.getvalue())
            assert pauses
            assert all(0.2 <= float(pause) <= 0.4 for pause in pauses)


async def test_a_welcome_in_another_protocol_is_final_and_says_who_is_too_old() -> None:
    async with fake_server() as server:
        server.greeting = lambda hello: [Welcome(PROTOCOL + 1, 1, "node", "9.9", 5, 15)]
        async with linked(server) as rig:
            with pytest.raises(Refused, match=r"this worker .* is too old for the server \(cogflare 9.9, protocol 2\)"):
                await rig.task
            assert server.hellos[0].oldest == OLDEST


async def test_a_server_that_knows_none_of_its_protocols_is_final() -> None:
    async with fake_server() as server:
        server.status, server.body = 426, '{"detail":"This server speaks cogflare.v9 with workers."}'
        async with linked(server) as rig:
            with pytest.raises(Refused, match=r"speaks cogflare\.v9"):
                await rig.task


async def test_what_never_answers_like_a_server_is_asked_about() -> None:
    async def chat(socket: ServerConnection) -> None:
        async for _ in socket:
            await socket.send("welcome to the chat")

    stranger = await serve(chat, "127.0.0.1", 0)
    async with linked(Place(next(iter(stranger.sockets)).getsockname()[1])) as rig:
        await until(lambda: rig.out.getvalue().count("is this the address of a Cogflare server?") >= 2)
        assert not rig.task.done()
    stranger.close()
    await stranger.wait_closed()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", b"220 mail ESMTP\r\n"])
async def test_what_speaks_no_websocket_is_asked_about(answer: bytes) -> None:
    async def speak(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()
        writer.close()

    stranger = await asyncio.start_server(speak, "127.0.0.1", 0)
    async with linked(Place(stranger.sockets[0].getsockname()[1])) as rig:
        await until(lambda: rig.out.getvalue().count("Cogflare server") >= 2)
        assert not rig.task.done()
    stranger.close()
    await stranger.wait_closed()
