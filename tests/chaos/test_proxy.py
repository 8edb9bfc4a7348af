"""The fault-injecting proxy between real sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from cogflare.cli.verification.proxy import Proxy
from support.until import until

SOON_S = 10
NOTHING_S = 0.15

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"], scope="module")
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


class Echo:
    """A server that sends back what it gets, and remembers its connections and how they ended."""

    def __init__(self) -> None:
        self.writers: list[asyncio.StreamWriter] = []
        self.got = b""
        self.ends: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        try:
            while data := await reader.read(65536):
                self.got += data
                writer.write(data)
                await writer.drain()
            self.ends.append("end")
        except ConnectionResetError:
            self.ends.append("reset")
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


class Dialled:
    """The dialling end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    def say(self, text: bytes) -> None:
        self.writer.write(text)

    async def hears(self, text: bytes) -> None:
        async with asyncio.timeout(SOON_S):
            assert await self._reader.readexactly(len(text)) == text

    async def hears_nothing(self) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(self._reader.read(1), NOTHING_S)

    async def is_reset(self) -> None:
        async with asyncio.timeout(SOON_S):
            with pytest.raises(ConnectionResetError):
                assert await self._reader.read(1)

    async def is_at_end(self) -> None:
        async with asyncio.timeout(SOON_S):
            assert await self._reader.read() == b""

    async def close(self) -> None:
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()


@pytest.fixture
async def echo() -> Echo:
    return Echo()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[Proxy]:
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    made = Proxy("link-1")
    await made.start()
    made.target = server.sockets[0].getsockname()[1]
    yield made
    await made.close()
    server.close()
    await until(lambda: len(echo.ends) == len(echo.writers))


@pytest.fixture
async def dialled(proxy: Proxy) -> AsyncIterator[Dialled]:
    made = await dial(proxy)
    made.say(b"hello")
    await made.hears(b"hello")
    yield made
    await made.close()


async def dial(proxy: Proxy) -> Dialled:
    return Dialled(*await asyncio.open_connection("127.0.0.1", proxy.port))


async def test_it_forwards_both_ways_and_passes_the_end_on(proxy: Proxy, dialled: Dialled, echo: Echo) -> None:
    much = bytes(3_000_000)
    dialled.say(much)
    await dialled.hears(much)
    dialled.writer.write_eof()
    await dialled.is_at_end()
    await until(lambda: echo.ends == ["end"] and not proxy.connections)


async def test_a_cut_holds_everything_back_and_loses_nothing(proxy: Proxy, dialled: Dialled, echo: Echo) -> None:
    proxy.cut()
    dialled.say(b"held")
    late = await dial(proxy)
    late.say(b"late")
    await dialled.hears_nothing()
    await late.hears_nothing()
    assert (echo.got, len(echo.writers)) == (b"hello", 1)
    proxy.heal()
    await dialled.hears(b"held")
    await late.hears(b"late")
    await late.close()


async def test_through_a_cut_nobody_hears_of_an_end(proxy: Proxy, dialled: Dialled, echo: Echo) -> None:
    proxy.cut()
    dialled.writer.transport.abort()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(until(lambda: echo.ends), NOTHING_S)
    proxy.heal()
    await until(lambda: echo.ends and not proxy.connections)


async def test_a_reset_ends_both_sides_at_once(proxy: Proxy, dialled: Dialled, echo: Echo) -> None:
    proxy.reset()
    await dialled.is_reset()
    await until(lambda: echo.ends == ["reset"] and not proxy.connections)
    again = await dial(proxy)
    again.say(b"again")
    await again.hears(b"again")
    await again.close()


async def test_a_reset_reaches_what_a_cut_holds_back(proxy: Proxy, dialled: Dialled) -> None:
    proxy.cut()
    hanging = await dial(proxy)
    hanging.say(b"never sent")
    await until(lambda: proxy.connections == 2)
    proxy.reset()
    proxy.heal()
    await dialled.is_reset()
    await hanging.is_reset()
    await hanging.close()


async def test_half_open_upwards_lets_the_other_direction_pass(proxy: Proxy, dialled: Dialled, echo: Echo) -> None:
    proxy.half_open("up")
    dialled.say(b"up")
    echo.writers[0].write(b"down")
    await dialled.hears(b"down")
    await dialled.hears_nothing()
    proxy.heal()
    await dialled.hears(b"up")


async def test_half_open_downwards_lets_the_other_direction_pass(proxy: Proxy, dialled: Dialled, echo: Echo) -> None:
    proxy.half_open("down")
    dialled.say(b"up")
    await until(lambda: echo.got == b"helloup")
    await dialled.hears_nothing()
    proxy.heal()
    await dialled.hears(b"up")


async def test_a_slow_link_passes_so_much_in_a_second(proxy: Proxy, dialled: Dialled, echo: Echo) -> None:
    proxy.slow(bytes_per_s=20_000, delay_s=0.0)
    dialled.say(bytes(6_000))
    began = asyncio.get_running_loop().time()
    await until(lambda: len(echo.got) == 6_005)
    assert asyncio.get_running_loop().time() - began >= 0.25
    proxy.heal()
    await dialled.hears(bytes(6_000))


async def test_a_proxy_that_refuses_keeps_what_it_has(proxy: Proxy, dialled: Dialled, echo: Echo) -> None:
    proxy.refuse()
    refused = await dial(proxy)
    await refused.is_reset()
    dialled.say(b"still")
    await dialled.hears(b"still")
    assert len(echo.writers) == 1
    await refused.close()


async def test_without_a_target_everybody_is_refused_until_there_is_one(proxy: Proxy, echo: Echo) -> None:
    target, proxy.target = proxy.target, None
    refused = await dial(proxy)
    await refused.is_reset()
    await refused.close()
    proxy.target = target
    dialled = await dial(proxy)
    dialled.say(b"now")
    await dialled.hears(b"now")
    await dialled.close()


async def test_a_target_that_is_gone_refuses(proxy: Proxy) -> None:
    gone = await asyncio.start_server(Echo().serve, "127.0.0.1", 0)
    proxy.target = gone.sockets[0].getsockname()[1]
    gone.close()
    refused = await dial(proxy)
    await refused.is_reset()
    await refused.close()
