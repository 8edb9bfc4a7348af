"""What people read when an address does not answer: the words for what sockets, resolvers and TLS really say."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator

import httpx2
import pytest
from websockets.asyncio.client import connect

from cogflare.agent.unreached import why_unreached

pytestmark = pytest.mark.anyio
Dial = Callable[[str], Awaitable[object]]


async def by_http(address: str) -> object:
    async with httpx2.AsyncClient(timeout=0.3, trust_env=False) as http:
        return await http.get(address)


async def by_blocking_http(address: str) -> object:
    with httpx2.Client(timeout=0.3, trust_env=False) as http:
        return await asyncio.to_thread(http.get, address)


async def by_link(address: str) -> object:
    async with connect(address.replace("http", "ws", 1), open_timeout=0.3, proxy=None) as link:
        return link


DIALS = pytest.mark.parametrize("dial", [by_http, by_blocking_http, by_link])


async def why(dial: Dial, address: str) -> str:
    with pytest.raises((httpx2.HTTPError, OSError)) as failed:
        await dial(address)
    return why_unreached(failed.value)


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A socket that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


@DIALS
async def test_a_name_that_nobody_knows(dial: Dial) -> None:
    assert "its name is not known here (DNS)" in await why(dial, "https://dead.invalid")


@DIALS
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_port_that_nobody_listens_at(dial: Dial, host: str) -> None:
    assert "refused" in await why(dial, f"http://{host}:9")


@DIALS
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_server_that_hangs(dial: Dial, scheme: str, silent: socket.socket) -> None:
    assert "did not answer in time" in await why(dial, f"{scheme}://127.0.0.1:{silent.getsockname()[1]}")


async def _hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.write(b"SSH-2.0-OpenSSH\r\n")
    writer.close()


@pytest.mark.parametrize(
    ("scheme", "word"), [("https", "it does not speak TLS; write http://"), ("http", "does not speak HTTP")]
)
async def test_a_server_that_speaks_something_else(scheme: str, word: str) -> None:
    async with await asyncio.start_server(_hang_up, "127.0.0.1", 0) as other:
        assert word in await why(by_http, f"{scheme}://127.0.0.1:{other.sockets[0].getsockname()[1]}")


async def test_no_error_is_without_a_word() -> None:
    assert why_unreached(httpx2.ReadError("")) == "the connection broke before the answer"
    assert why_unreached(OSError(22, "Invalid argument")) == "[Errno 22] Invalid argument"
    assert why_unreached(OSError("Multiple exceptions: [Errno 111] x, [Errno 111] y")).endswith("the port right?")
    assert "HTTPS_PROXY" in why_unreached(httpx2.ProxyError("403 Forbidden"))
    assert why_unreached(RuntimeError()) == "an error without a word (RuntimeError)"
