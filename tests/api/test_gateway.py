"""The socket end of a link: what may be read of it, and what waits for one that does not read."""

import asyncio

import pytest
from starlette.types import Message

from cogflare.api.gateway import _BURST, _MAX_WAITING, _MAX_WAITING_ALL, _RATE, Backlog, Budget, Socket

pytestmark = pytest.mark.anyio


class Peer:
    """An agent that reads only while its gate is open."""

    def __init__(self, backlog: Backlog) -> None:
        self.gate = asyncio.Event()
        self.got: list[Message] = []
        self.is_cut = False
        self.socket = Socket(self._send, self._cut, backlog)
        self.pump = asyncio.create_task(self.socket.pump())

    async def _send(self, message: Message) -> None:
        await self.gate.wait()
        self.got.append(message)

    def _cut(self) -> None:
        self.is_cut = True

    async def everything(self) -> list[Message]:
        """Open the gate and return all that comes."""
        self.gate.set()
        async with asyncio.timeout(5):
            await self.pump
        return self.got


async def test_an_agent_that_reads_gets_all_of_it_in_order() -> None:
    backlog = Backlog()
    peer = Peer(backlog)
    peer.socket.send([str(number) for number in range(1000)])
    assert backlog.bytes > 1000
    peer.socket.close(1000, "done")
    *frames, close = await peer.everything()
    assert [frame["text"] for frame in frames] == [str(number) for number in range(1000)]
    assert close["code"] == 1000
    assert backlog.bytes == 0


async def test_an_agent_that_never_reads_is_cut_off() -> None:
    backlog = Backlog()
    peer = Peer(backlog)
    await asyncio.sleep(0)
    for _ in range(_MAX_WAITING // 1_000_000 + 1):
        peer.socket.send(["x" * 1_000_000])
    assert backlog.bytes == 0, "what waited is forgotten"
    peer.socket.send(["more"])
    [close] = await peer.everything()
    assert (close["type"], close["code"]) == ("websocket.close", 1008)


async def test_many_small_frames_count_with_the_memory_that_they_take() -> None:
    peer = Peer(Backlog())
    for _ in range(100):
        peer.socket.send(["pong"] * 1000)
    [close] = await peer.everything()
    assert close["code"] == 1008


async def test_when_all_together_have_too_much_waiting_the_large_ones_go() -> None:
    backlog = Backlog()
    backlog.bytes = _MAX_WAITING_ALL
    large, small = Peer(backlog), Peer(backlog)
    assert large.socket.room() == 0
    large.socket.send(["x" * 100_000])
    small.socket.send(["x"])
    assert [message["type"] for message in await large.everything()] == ["websocket.close"]
    small.socket.close(1000, "done")
    assert [message["type"] for message in await small.everything()] == ["websocket.send", "websocket.close"]
    assert backlog.bytes == _MAX_WAITING_ALL


async def test_inputs_are_sent_only_while_there_is_room() -> None:
    peer = Peer(Backlog())
    assert peer.socket.room() > 2_000_000
    peer.socket.send(["x" * 900_000] * 5)
    assert peer.socket.room() < 0
    peer.pump.cancel()


async def test_a_budget_costs_no_time_until_it_is_used_up() -> None:
    budget = Budget()
    assert [budget.spend(_BURST // 4) for _ in range(4)] == [0.0] * 4
    assert budget.spend(_RATE) == pytest.approx(1.0, abs=0.1)
    assert budget.spend(_RATE) == pytest.approx(2.0, abs=0.1)
