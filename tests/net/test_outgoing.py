"""Requests to strangers: what comes back, and what never goes out."""

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from cogflare.net.addresses import Reach
from cogflare.net.base import OutgoingError
from cogflare.net.outgoing import Outgoing
from cogflare.net.resolver import Resolver
from support.certificates import make_certificate
from support.web import serving

pytestmark = pytest.mark.anyio

HERE = Reach.of(["127.0.0.0/8"])


class Receiver:
    """A web server that keeps what it is sent."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.targets: list[bytes] = []
        self.peers: set[object] = set()
        self.app = Starlette(routes=[Route("/{path:path}", self.take, methods=["POST"])])

    async def take(self, request: Request) -> Response:
        self.bodies.append(await request.body())
        self.headers.append(dict(request.headers))
        self.targets.append(request.scope["raw_path"] + b"?" + request.scope["query_string"])
        self.peers.add(request.client)
        match request.path_params["path"]:
            case "moved":
                return RedirectResponse("http://127.0.0.1:1/there", 301)
            case "busy":
                return Response("later", 503, {"Retry-After": "120"})
            case "until":
                date = {"Date": "Wed, 21 Oct 2015 07:28:00 GMT"}
                return Response("later", 503, {"Retry-After": "Wed, 21 Oct 2015 07:29:30 GMT", **date})
            case "never":
                await asyncio.sleep(60)
            case "endless":
                return StreamingResponse(_drip(0.0, b"x" * 8192))
            case "drip":
                return StreamingResponse(_drip(0.05, b"x"))
        return Response("thanks", 200)


async def _drip(pause_s: float, chunk: bytes) -> AsyncIterator[bytes]:
    while True:
        yield chunk
        await asyncio.sleep(pause_s)


@asynccontextmanager
async def sending(
    reach: Reach = HERE, timeout_s: float = 5.0, verify: ssl.SSLContext | None = None
) -> AsyncIterator[Outgoing]:
    outgoing = Outgoing(reach, timeout_s, verify=verify)
    yield outgoing
    await outgoing.aclose()


@pytest.fixture
async def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
async def web(receiver: Receiver) -> AsyncIterator[str]:
    async with serving(receiver.app) as url:
        yield url


async def test_what_is_sent_arrives_as_it_is(receiver: Receiver, web: str) -> None:
    async with sending() as outgoing:
        answer = await outgoing.post(
            f"{web}/hook%20a?x=1&y=%2F#part", {"webhook-id": "msg_1", "Content-Type": "application/json"}, b'{"a": 1}'
        )
    assert (answer.status, answer.body) == (200, b"thanks")
    assert receiver.bodies == [b'{"a": 1}']
    assert receiver.targets == [b"/hook%20a?x=1&y=%2F"]
    headers = receiver.headers[0]
    assert headers["webhook-id"] == "msg_1"
    assert headers["content-type"] == "application/json"
    assert headers["content-length"] == "8"
    assert headers["user-agent"].startswith("cogflare/")
    assert "authorization" not in headers


async def test_a_connection_is_used_again(receiver: Receiver, web: str) -> None:
    async with sending() as outgoing:
        for _ in range(5):
            await outgoing.post(web, {}, b"")
    assert len(receiver.peers) == 1


async def test_a_redirect_is_an_answer_and_is_not_followed(receiver: Receiver, web: str) -> None:
    async with sending() as outgoing:
        answer = await outgoing.post(f"{web}/moved", {}, b"x")
    assert (answer.status, answer.location) == (301, "http://127.0.0.1:1/there")
    assert len(receiver.bodies) == 1


async def test_how_long_a_receiver_wants_to_be_left_alone(web: str) -> None:
    async with sending() as outgoing:
        pauses = [(await outgoing.post(f"{web}/{path}", {}, b"")).retry_after_s for path in ("busy", "until", "ok")]
    assert pauses == [120.0, 90.0, None]


async def test_an_endless_answer_is_read_up_to_its_limit(web: str) -> None:
    async with sending() as outgoing:
        assert len((await outgoing.post(f"{web}/endless", {}, b"")).body) == 64 << 10
        assert (await outgoing.post(web, {}, b"")).status == 200


async def test_the_time_is_limited_as_a_whole(web: str) -> None:
    async with sending(timeout_s=0.3) as outgoing:
        with pytest.raises(OutgoingError, match=r"^127\.0\.0\.1:\d+ did not answer within 0\.3 s$"):
            await outgoing.post(f"{web}/never?key=s3cret", {}, b"")


async def test_a_status_counts_though_its_body_never_ends(web: str) -> None:
    async with sending(timeout_s=0.3) as outgoing:
        answer = await outgoing.post(f"{web}/drip", {}, b"")
        assert (answer.status, set(answer.body)) == (200, {ord("x")})
        assert (await outgoing.post(web, {}, b"")).status == 200


async def test_a_status_counts_though_its_body_breaks_off() -> None:
    async def torn(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 202 Accepted\r\nContent-Length: 100\r\n\r\nhalf")
        writer.close()

    async with sending() as outgoing, await asyncio.start_server(torn, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        answer = await outgoing.post(f"http://127.0.0.1:{port}/", {}, b"")
    assert (answer.status, answer.body) == (202, b"half")


async def test_proxies_of_the_environment_do_not_apply(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with sending() as outgoing:
        assert (await outgoing.post(web, {}, b"")).status == 200


async def test_nobody_listens(web: str) -> None:
    async with sending() as outgoing:
        with pytest.raises(OutgoingError, match=r"no connection to 127\.0\.0\.1:1: refused"):
            await outgoing.post("http://127.0.0.1:1/x?key=s3cret", {}, b"")


async def test_a_name_that_is_none() -> None:
    async with sending() as outgoing:
        with pytest.raises(OutgoingError, match=r"the name of nothing\.invalid cannot be resolved"):
            await outgoing.post("http://nothing.invalid/x?key=s3cret", {}, b"")


async def test_who_breaks_off() -> None:
    async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async with sending() as outgoing, await asyncio.start_server(broken, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(OutgoingError, match="broke the connection off"):
            await outgoing.post(f"http://127.0.0.1:{port}/", {}, b"")


async def test_tls_is_checked_and_its_errors_are_told(receiver: Receiver, web: str, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    async with serving(receiver.app, certificate) as url:
        async with sending(verify=ssl.create_default_context(cafile=str(certificate[0]))) as outgoing:
            assert (await outgoing.post(url, {}, b"")).status == 200
        async with sending() as outgoing:
            with pytest.raises(OutgoingError, match=r"the certificate of .* is not trusted \(self.signed"):
                await outgoing.post(url, {}, b"")
            with pytest.raises(OutgoingError, match="does not speak TLS as it should"):
                await outgoing.post(web.replace("http:", "https:"), {}, b"")
    assert len(receiver.bodies) == 1


async def test_names_that_are_not_answered_hold_up_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    real, done = socket.getaddrinfo, threading.Event()
    asked: list[str] = []

    def slow(host: str, *arguments: Any, **options: Any) -> Any:
        asked.append(host)
        if host.endswith(".slow.example"):
            done.wait(30)
            raise OSError("no answer")
        return real(host, *arguments, **options)

    monkeypatch.setattr("cogflare.net.resolver.socket.getaddrinfo", slow)
    resolver = Resolver()
    stuck = [asyncio.create_task(resolver(f"{number % 100}.slow.example")) for number in range(300)]
    try:
        async with asyncio.timeout(5):
            while len(asked) < 100:
                await asyncio.sleep(0.001)
            for task in stuck[:50]:
                task.cancel()
            assert await resolver("127.0.0.1") == ["127.0.0.1"]
            assert await asyncio.to_thread(str, "the loop's own threads are free")
    finally:
        done.set()
    outcomes = await asyncio.gather(*stuck, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes[50:]} == {OSError}
    assert len(asked) == 101
    with pytest.raises(OSError, match="no answer"):
        await resolver("1.slow.example")
    assert len(asked) == 102


async def test_a_machine_without_threads_left_gets_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = Resolver()
    with monkeypatch.context() as exhausted:
        exhausted.setattr(threading.Thread, "start", _refuse)
        with pytest.raises(OSError, match="no threads"):
            await resolver("127.0.0.1")
    assert await resolver("127.0.0.1") == ["127.0.0.1"]


def _refuse(thread: threading.Thread) -> None:
    raise RuntimeError("no threads")
