"""The memory of messages that are on their way in over the sockets of workers of 2022, of all of a node together.

Such a message may be large, and its sender slow. So there has to be room for all of a message before it is read, and a
socket for which there is none is not read from meanwhile: whoever has room needs nothing of anybody else, and nobody
waits in a circle. A token gets part of the room at most, so it shuts out nobody but itself; where many tokens wait, the
one that holds least comes first. What has not come in a fair time gives way, with its socket, once others wait for it.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

import structlog

HEARD: Final = "cogflare.heard"
"""Where in the extensions of an ASGI scope stands what is to be called once a message has been dealt with."""
SMALL: Final = 64 << 10
"""Bytes for which every socket has room of its own."""

_ROOM: Final = 256 << 20
_SHARE: Final = 128 << 20  # of it, for the sockets of one token
_FAIR_S: Final = 10.0  # for a message to come in when others wait,
_FAIR_RATE: Final = 512 << 10  # and a second for each so many bytes of it that have come,
_LONGEST_S: Final = 60.0  # but no more than this
_LOOK_S: Final = 1.0

log = structlog.get_logger()


class Place:
    """What one socket holds of the room.

    `resume` has it read from again, `cut` ends it, and `here` tells how many bytes of the message that comes have come.
    """

    def __init__(
        self,
        room: "Room",
        owner: str,
        resume: Callable[[], object],
        cut: Callable[[], object],
        here: Callable[[], int],
    ) -> None:
        self._room = room
        self.owner = owner
        self.resume = resume
        self.cut = cut
        self.here = here
        self.coming = 0
        self.since = 0.0
        self.wanted = 0
        self._come: deque[int] = deque()

    @property
    def is_waiting(self) -> bool:
        """Whether there is no room yet for what comes next, so that nothing is to be read."""
        return self.wanted > 0

    @property
    def is_expecting(self) -> bool:
        """Whether it has, or waits for, room for the message that comes."""
        return self.coming + self.wanted > 0

    def expect(self, size: int) -> bool:
        """Take room for the message that comes; False: wait for `resume`."""
        if size > SMALL:
            self.wanted = size
            self._room.admit(self)
        return not self.is_waiting

    def come(self) -> None:
        """Note that all of the message is there; what was read at once may hold one that still waited for room."""
        self._come.append(self.coming)
        self.coming = 0
        if self.is_waiting:
            self._room.forget(self)
            self.resume()

    def heard(self) -> None:
        """Give the room of the first message back that is there."""
        self._room.give(self, self._come.popleft() if self._come else 0)

    def leave(self) -> None:
        """Give everything back: the socket is gone."""
        size, self.coming = self.coming + sum(self._come), 0
        self._come.clear()
        if self.is_waiting:
            self._room.forget(self)
        self._room.give(self, size)


class Room:
    """The room of a node: `size` bytes, of which one owner gets up to `share`."""

    def __init__(self, size: int = _ROOM, share: int = _SHARE, fair_s: float = _FAIR_S) -> None:
        self._size = size
        self._share = share
        self._fair_s = fair_s
        self._held: Counter[str] = Counter()
        self._coming: set[Place] = set()
        self._waiting: dict[str, deque[Place]] = {}
        self._look: asyncio.TimerHandle | None = None

    @property
    def held(self) -> int:
        """How many bytes are taken."""
        return self._held.total()

    def admit(self, place: Place) -> None:
        """Give a place what it wants, now or when there is room."""
        self._waiting.setdefault(place.owner, deque()).append(place)
        self._let_in()
        if self._waiting and self._look is None:
            self._look = asyncio.get_running_loop().call_later(_LOOK_S, self._hurry)

    def forget(self, place: Place) -> None:
        """Let a place not wait any more."""
        place.wanted = 0
        line = self._waiting[place.owner]
        line.remove(place)
        if not line:
            del self._waiting[place.owner]
        self._let_in()

    def give(self, place: Place, size: int) -> None:
        """Take bytes back."""
        self._held[place.owner] -= size
        if self._held[place.owner] <= 0:
            del self._held[place.owner]
        if not place.coming:
            self._coming.discard(place)
        self._let_in()

    def _let_in(self) -> None:
        """Serve who waits; what is too large for now holds up those behind it."""
        while (place := self._next()) is not None and self.held + place.wanted <= self._size:
            line = self._waiting[place.owner]
            line.popleft()
            if not line:
                del self._waiting[place.owner]
            self._held[place.owner] += place.wanted
            place.coming, place.wanted = place.coming + place.wanted, 0
            place.since = asyncio.get_running_loop().time()
            self._coming.add(place)
            place.resume()

    def _next(self) -> Place | None:
        """Return who comes next: of an owner who waits longest, and of those the one whose owner holds least."""
        first = (line[0] for line in self._waiting.values())
        able = (place for place in first if not self._is_greedy(place))
        return min(able, key=lambda place: self._held[place.owner], default=None)

    def _is_greedy(self, place: Place) -> bool:
        return self._held[place.owner] + place.wanted > self._share

    def _hurry(self) -> None:
        """Cut off who is late and in the way, those first whose owners hold most; look again while anybody waits."""
        self._look = None
        now = asyncio.get_running_loop().time()
        late = [place for place in self._coming if self._is_late(place, now)]
        late.sort(key=lambda place: (-self._held[place.owner], place.since))
        for place in late:
            if not self._waiting:
                break
            if self._is_in_the_way(place):
                log.warning("a frame of a worker of 2022 was late, and gave way", here=place.here(), of=place.coming)
                place.cut()
                place.leave()
        if self._waiting and self._look is None:
            self._look = asyncio.get_running_loop().call_later(_LOOK_S, self._hurry)

    def _is_late(self, place: Place, now: float) -> bool:
        return place.coming > 0 and now - place.since >= min(self._fair_s + place.here() / _FAIR_RATE, _LONGEST_S)

    def _is_in_the_way(self, place: Place) -> bool:
        """Say whether anybody waits for what `place` holds: of its own owner, or of one that holds no more."""
        line = self._waiting.get(place.owner)
        if line and self._is_greedy(line[0]):
            return True
        other = self._next()
        return other is not None and self._held[place.owner] >= self._held[other.owner]
