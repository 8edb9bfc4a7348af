"""URLs that try to reach inside: each is refused with a clear error, and no socket of this process connects anywhere.

A listener stands on every address of this machine. That the table can fail is shown by the last tests, which take the
guard's limits away: the same URLs then arrive.
"""

import asyncio
import re
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from cogflare.api.problems import Problem
from cogflare.api.requests import parse_prediction
from cogflare.net.addresses import PUBLIC, Reach
from cogflare.net.base import OutgoingError
from cogflare.net.outgoing import Outgoing
from cogflare.net.resolver import Resolver
from support.web import serving

pytestmark = pytest.mark.anyio

EVERYWHERE = Reach.of(["0.0.0.0/0", "::/0"])
INSIDE, FORM, NAME = "internal network", "(?s)Does not match format 'uri'", "user name"

EARLY = {
    # This machine, in every way to write it.
    "http://127.0.0.1:{port}/": INSIDE,
    "http://127.1:{port}/": INSIDE,
    "http://127.255.255.254:{port}/": INSIDE,
    "http://2130706433:{port}/": INSIDE,
    "http://0x7f000001:{port}/": INSIDE,
    "http://0x7f.0x0.0x0.0x1:{port}/": INSIDE,
    "http://017700000001:{port}/": INSIDE,
    "http://0177.0.0.1:{port}/": INSIDE,
    "http://127.0.0.1.:{port}/": INSIDE,
    "http://127。0。0。1:{port}/": INSIDE,
    "http://１２７.0.0.1:{port}/": INSIDE,
    "http://①②⑦.0.0.1:{port}/": INSIDE,
    "http://%31%32%37.0.0.1:{port}/": FORM,
    "http://localhost:{port}/": INSIDE,
    "http://LOCALHOST.:{port}/": INSIDE,
    "http://any.localhost:{port}/": INSIDE,
    "http://0.0.0.0:{port}/": INSIDE,
    "http://0:{port}/": INSIDE,
    "http://[::]:{port}/": INSIDE,
    "http://[::1]:{port}/": INSIDE,
    "http://[0:0:0:0:0:0:0:1]:{port}/": INSIDE,
    "http://[::127.0.0.1]:{port}/": INSIDE,
    "http://[::ffff:127.0.0.1]:{port}/": INSIDE,
    "http://[::ffff:7f00:1]:{port}/": INSIDE,
    "http://[::ffff:0:127.0.0.1]:{port}/": INSIDE,
    "https://127.0.0.1:{port}/": INSIDE,
    "HTTP://127.0.0.1:{port}/?http://example.com": INSIDE,
    # Addresses that lead to this machine or its network by way of a gateway.
    "http://[64:ff9b::7f00:1]:{port}/": INSIDE,
    "http://[64:ff9b:1::7f00:1]:{port}/": INSIDE,
    "http://[64:ff9b::a9fe:a9fe]/": INSIDE,
    "http://[2002:7f00:1::]:{port}/": INSIDE,
    "http://[2001:0:53aa:64c:0:0:80ff:fffe]:{port}/": INSIDE,
    # Networks inside, and the metadata services of clouds.
    "http://169.254.169.254/latest/meta-data/": INSIDE,
    "http://0xa9fea9fe/latest/meta-data/": INSIDE,
    "http://2852039166/": INSIDE,
    "http://[::ffff:169.254.169.254]/": INSIDE,
    "http://[fd00:ec2::254]/": INSIDE,
    "http://100.100.100.200/": INSIDE,
    "http://10.0.0.1/": INSIDE,
    "http://172.16.0.1/": INSIDE,
    "http://192.168.0.1/": INSIDE,
    "http://192.168.1/": INSIDE,
    "http://[fc00::1]/": INSIDE,
    "http://[fe80::1]:{port}/": INSIDE,
    "http://[fe80::1%25lo]:{port}/": FORM,
    "http://[fec0::1]/": INSIDE,
    "http://224.0.0.1/": INSIDE,
    "http://[ff02::1]/": INSIDE,
    "http://255.255.255.255/": INSIDE,
    # What looks like one address and is another, and what is none of ours.
    "http://example.com@127.0.0.1:{port}/": NAME,
    "http://example.com:80@127.0.0.1:{port}/": NAME,
    "http://@127.0.0.1:{port}/": NAME,
    "http://127.0.0.1:{port}\\@example.com/": FORM,
    "http://example.com\\@127.0.0.1:{port}/": FORM,
    "http://127.0.0.1:{port}#@example.com/": INSIDE,
    "http:127.0.0.1:{port}/": FORM,
    "http:///127.0.0.1:{port}/": FORM,
    "//127.0.0.1:{port}/": FORM,
    "http://127.0.0.1 :{port}/": FORM,
    "http://127.0.0.1:{port}/\r\nX-Injected: 1": FORM,
    "ftp://127.0.0.1:{port}/": FORM,
    "file:///etc/passwd": FORM,
    "gopher://127.0.0.1:{port}/_x": FORM,
    "unix:///run/docker.sock": FORM,
    "http+unix://%2Frun%2Fdocker.sock/": FORM,
    "javascript:alert(1)": FORM,
    "data:text/plain,x": FORM,
    "dict://127.0.0.1:{port}/": FORM,
}
"""URLs that a create refuses at once."""

NAMES = {
    "loopback.example": ["127.0.0.1"],
    "six.example": ["::1"],
    "mapped.example": ["::ffff:127.0.0.1"],
    "any.example": ["0.0.0.0"],
    "metadata.example": ["169.254.169.254"],
    "private.example": ["10.0.0.7", "fd00::7"],
    "zone.example": ["fe80::1%1"],
    "gateway.example": ["64:ff9b::7f00:1"],
    "xn--bcher-kva.example": ["127.0.0.1"],
    "127.0.0.1.example": ["127.0.0.1"],
}
"""Names whose addresses are inside, which is seen when they are connected to."""

HERE = [url for url in EARLY if ":{port}/" in url and EARLY[url] == INSIDE]


class Listener:
    """Sockets on this machine, and the attempts of this process to connect anywhere."""

    def __init__(self) -> None:
        self.four = socket.create_server(("0.0.0.0", 0))
        self.port = self.four.getsockname()[1]
        self.all = [self.four]
        if socket.has_dualstack_ipv6():
            self.all.append(socket.create_server(("::", self.port), family=socket.AF_INET6))
        for listener in self.all:
            listener.setblocking(False)
        self.attempts: list[object] = []

    def arrivals(self) -> int:
        """Return how many connections have come since the last look."""
        count = 0
        for listener in self.all:
            try:
                while True:
                    listener.accept()[0].close()
                    count += 1
            except BlockingIOError:
                continue
        return count


_watched: list[Listener] = []


def _audit(event: str, arguments: Any) -> None:
    if event == "socket.connect" and _watched:
        _watched[-1].attempts.append(arguments[1])


sys.addaudithook(_audit)  # it stays, and looks away outside of these tests


@pytest.fixture
def listener() -> Iterator[Listener]:
    listening = Listener()
    _watched.append(listening)
    yield listening
    _watched.remove(listening)
    for each in listening.all:
        each.close()


async def _resolve(host: str) -> list[str]:
    """Answer as a hostile name server would; what is no name goes to the system's resolver, as always."""
    return NAMES[host] if host in NAMES else await Resolver()(host)


@asynccontextmanager
async def sending(reach: Reach = PUBLIC, timeout_s: float = 5.0) -> AsyncIterator[Outgoing]:
    outgoing = Outgoing(reach, timeout_s, resolve=_resolve)
    yield outgoing
    await outgoing.aclose()


def create(url: str, reach: Reach = PUBLIC, field: str = "webhook") -> None:
    parse_prediction(msgspec.json.encode({"input": {}, field: url}), versioned=False, reach=reach)


@pytest.mark.parametrize("url", EARLY)
async def test_a_create_refuses_it_and_nothing_would_be_sent_to_it(listener: Listener, url: str) -> None:
    hostile = url.replace("{port}", str(listener.port))
    for field in ("webhook", "webhook_completed"):
        with pytest.raises(Problem) as refused:
            create(hostile, field=field)
        assert refused.value.status == 422
        assert re.search(EARLY[url], refused.value.detail), refused.value.detail
        assert f"- {field}: " in refused.value.detail
    async with sending() as outgoing:
        with pytest.raises(OutgoingError) as failed:
            await outgoing.post(hostile, {}, b"secret")
    assert len(str(failed.value)) > 20
    assert (listener.attempts, listener.arrivals()) == ([], 0)


@pytest.mark.parametrize("name", NAMES)
async def test_a_name_for_an_inside_address_is_refused_when_it_is_looked_up(listener: Listener, name: str) -> None:
    url = f"http://{name}:{listener.port}/"
    create(url)
    async with sending() as outgoing:
        with pytest.raises(OutgoingError, match=rf"^{name}:\d+ is an address of an internal network; the operator can"):
            await outgoing.post(url, {}, b"secret")
    assert (listener.attempts, listener.arrivals()) == ([], 0)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_inside_leads_nowhere(listener: Listener, status: int) -> None:
    async def move(request: Request) -> Response:
        return RedirectResponse(f"http://127.0.0.1:{listener.port}/", status)

    app = Starlette(routes=[Route("/", move, methods=["POST"])])
    async with serving(app) as web, sending(EVERYWHERE) as outgoing:
        answer = await outgoing.post(web, {}, b"secret")
    assert (answer.status, answer.location) == (status, f"http://127.0.0.1:{listener.port}/")
    assert listener.arrivals() == 0


class _Turncoat:
    """A name whose answer is another one each time."""

    def __init__(self, *answers: list[str]) -> None:
        self._answers = iter(answers)
        self.asked = 0

    async def __call__(self, host: str) -> list[str]:
        self.asked += 1
        return next(self._answers)


async def test_a_name_that_changes_after_the_look_is_not_looked_up_again(listener: Listener) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    # 127.0.0.2 stands for an address of the internet here: it is the only one that may be reached.
    reach, turncoat = Reach.of(["127.0.0.2/32"]), _Turncoat(["127.0.0.2"], ["127.0.0.1"], ["127.0.0.1", "127.0.0.2"])
    async with await asyncio.start_server(answer, "127.0.0.2", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with socket.create_server(("127.0.0.1", port)) as trap:
            trap.setblocking(False)
            outgoing = Outgoing(reach, resolve=turncoat)
            url = f"http://rebind.example:{port}/"
            assert (await outgoing.post(url, {}, b"x")).status == 200
            assert turncoat.asked == 1
            with pytest.raises(OutgoingError, match="internal network"):
                await outgoing.post(url, {}, b"x")
            assert (await outgoing.post(url, {}, b"x")).status == 200
            assert turncoat.asked == 3
            await outgoing.aclose()
            assert {address[0] for address in listener.attempts} == {"127.0.0.2"}  # type: ignore[index]
            with pytest.raises(BlockingIOError):
                trap.accept()


async def test_what_an_operator_allows_is_sent(listener: Listener) -> None:
    loopback = Reach.of(["127.0.0.0/8"])
    for url in ("http://127.0.0.1:{port}/", "http://localhost:{port}/", "http://[::ffff:127.0.0.1]:{port}/"):
        create(url.replace("{port}", str(listener.port)), loopback)
    for url in ("http://169.254.169.254/", "http://[::1]/", "http://0.0.0.0/"):
        with pytest.raises(Problem):
            create(url, loopback)
    async with sending(loopback, 0.2) as outgoing:
        with pytest.raises(OutgoingError, match="did not answer"):
            await outgoing.post(f"http://loopback.example:{listener.port}/", {}, b"x")
        with pytest.raises(OutgoingError, match="internal network"):
            await outgoing.post(f"http://six.example:{listener.port}/", {}, b"x")
    assert listener.arrivals() == 1


async def test_without_the_guard_they_would_arrive(listener: Listener) -> None:
    arrived = 0
    async with sending(EVERYWHERE, 0.1) as outgoing:
        for url in HERE:
            try:
                await outgoing.post(url.replace("{port}", str(listener.port)), {}, b"x")
            except OutgoingError:
                arrived += listener.arrivals() > 0
    assert arrived >= 15, f"{arrived} of {len(HERE)}"


def test_the_table_is_as_long_as_promised() -> None:
    assert len(EARLY) + len(NAMES) >= 40
