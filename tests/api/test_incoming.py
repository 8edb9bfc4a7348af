"""The room of messages of workers of 2022 that are on their way in: who gets it, who waits, and who gives way."""

import asyncio

import pytest

from cogflare.api.incoming import SMALL, Place, Room

pytestmark = pytest.mark.anyio
BIG = SMALL * 2


class Sender:
    """A socket: what was done to it."""

    def __init__(self, room: Room, owner: str) -> None:
        self.place = Place(room, owner, self._resume, self._cut, lambda: self.here)
        self.resumed = self.here = 0
        self.is_cut = asyncio.Event()

    def _resume(self) -> None:
        self.resumed += 1

    def _cut(self) -> None:
        self.is_cut.set()
        self.place.leave()

    def whole(self) -> None:
        """Have the message come, and heard."""
        self.place.come()
        self.place.heard()


async def test_small_messages_take_nothing() -> None:
    room = Room(0, 0)
    sender = Sender(room, "ada")
    assert sender.place.expect(SMALL)
    sender.whole()
    assert room.held == 0


async def test_who_finds_no_room_is_let_in_when_a_message_was_heard() -> None:
    room = Room(BIG, BIG)
    first, second = Sender(room, "ada"), Sender(room, "eve")
    assert first.place.expect(BIG)
    assert not second.place.expect(BIG)
    first.place.come()
    assert second.place.is_waiting, "what is there takes room until it was heard"
    first.place.heard()
    assert (second.place.is_waiting, second.resumed, room.held) == (False, 1, BIG)
    second.whole()
    assert room.held == 0


async def test_a_token_gets_part_of_the_room() -> None:
    room = Room(2 * BIG, BIG)
    greedy = [Sender(room, "eve") for _ in range(50)]
    assert [sender.place.expect(BIG) for sender in greedy].count(True) == 1
    assert Sender(room, "ada").place.expect(BIG)
    assert room.held == 2 * BIG


async def test_who_holds_least_comes_first() -> None:
    room = Room(2 * BIG, 2 * BIG)
    holders = [Sender(room, "eve") for _ in range(2)]
    assert all(sender.place.expect(BIG) for sender in holders)
    more, other = Sender(room, "eve"), Sender(room, "ada")
    assert not more.place.expect(BIG)
    assert not other.place.expect(BIG)
    holders[0].whole()
    assert (more.place.is_waiting, other.place.is_waiting) == (True, False)


async def test_a_large_one_is_not_overtaken_for_ever() -> None:
    room = Room(2 * BIG, 2 * BIG)
    one, large, small = Sender(room, "ada"), Sender(room, "eve"), Sender(room, "eve")
    assert one.place.expect(BIG)
    assert not large.place.expect(2 * BIG)
    assert not small.place.expect(BIG)
    one.whole()
    assert (large.place.is_waiting, small.place.is_waiting) == (False, True)


async def test_the_own_small_ones_do_not_overtake_it_either() -> None:
    room = Room(4 * BIG, 2 * BIG)
    one, large, small = Sender(room, "eve"), Sender(room, "eve"), Sender(room, "eve")
    assert one.place.expect(BIG)
    assert not large.place.expect(2 * BIG)
    assert not small.place.expect(BIG)
    one.whole()
    assert (large.place.is_waiting, small.place.is_waiting) == (False, True)


async def test_what_is_there_before_it_was_let_in_waits_no_more() -> None:
    room = Room(BIG, BIG, 0)
    first, second, third = (Sender(room, name) for name in ("ada", "eve", "bob"))
    assert first.place.expect(BIG)
    assert not second.place.expect(BIG)
    assert not third.place.expect(BIG)
    second.place.come()
    assert (second.place.is_waiting, second.resumed) == (False, 1)
    first.whole()
    assert not third.place.is_waiting, "nothing is kept for what has come"
    second.place.heard()
    assert room.held == BIG


async def test_who_leaves_gives_everything_back() -> None:
    room = Room(BIG, BIG)
    first, second, third = (Sender(room, name) for name in ("ada", "eve", "bob"))
    assert first.place.expect(BIG)
    assert not second.place.expect(BIG)
    assert not third.place.expect(BIG)
    second.place.leave()
    first.place.leave()
    assert not third.place.is_waiting
    third.place.come()
    third.place.leave()
    third.place.heard()
    assert room.held == 0


async def test_one_that_stalls_gives_way_to_another_token() -> None:
    room = Room(BIG, BIG, 0)
    stalled, other = Sender(room, "eve"), Sender(room, "ada")
    assert stalled.place.expect(BIG)
    assert not other.place.expect(BIG)
    await asyncio.wait_for(stalled.is_cut.wait(), 5)
    assert not other.place.is_waiting


async def test_many_that_stall_give_way_at_once() -> None:
    """As many of them as are in the way of one, and no more."""
    room = Room(20 * BIG, 20 * BIG, 0)
    stalled = [Sender(room, "eve") for _ in range(20)]
    assert all(sender.place.expect(BIG) for sender in stalled)
    other = Sender(room, "ada")
    assert not other.place.expect(8 * BIG)
    room._hurry()
    assert not other.place.is_waiting
    assert [sender.is_cut.is_set() for sender in stalled] == [True] * 8 + [False] * 12


async def test_one_that_comes_on_has_longer_than_one_that_stalls() -> None:
    room = Room(2 * BIG, BIG, 0)
    coming, stalled, other = (Sender(room, name) for name in ("ada", "eve", "bob"))
    coming.here = BIG << 10
    assert coming.place.expect(BIG)
    assert stalled.place.expect(BIG)
    assert not other.place.expect(BIG)
    await asyncio.wait_for(stalled.is_cut.wait(), 5)
    assert not coming.is_cut.is_set()
    assert not other.place.is_waiting


async def test_a_greedy_token_waits_for_itself_alone() -> None:
    """Nobody is cut off for one whose own sockets take all of its share; one of those is."""
    room = Room(3 * BIG, BIG, 0)
    slow, stalled, greedy = Sender(room, "ada"), Sender(room, "eve"), Sender(room, "eve")
    assert slow.place.expect(BIG)
    assert stalled.place.expect(BIG)
    assert not greedy.place.expect(BIG)
    await asyncio.wait_for(stalled.is_cut.wait(), 5)
    assert not slow.is_cut.is_set()
    assert not greedy.place.is_waiting


async def test_what_is_there_is_never_cut_off() -> None:
    room = Room(BIG, BIG, 0)
    first, second = Sender(room, "eve"), Sender(room, "ada")
    assert first.place.expect(BIG)
    first.place.come()
    assert not second.place.expect(BIG)
    room._hurry()
    assert not first.is_cut.is_set()
    first.place.heard()
    assert not second.place.is_waiting


async def test_nothing_is_looked_at_when_nobody_waits() -> None:
    room = Room(BIG, BIG, 0)
    slow = Sender(room, "ada")
    assert slow.place.expect(BIG)
    assert room._look is None
