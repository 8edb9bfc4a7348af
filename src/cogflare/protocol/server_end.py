"""The server's end of one worker link, sans I/O: frames in, accepted messages out; what it may send is checked here.

It owns who holds which attempt on this link and how many slots are free. A frame about an attempt that this link does
not hold changes nothing: it is dropped here, save a finish, which only the store can answer.

    new ──hello──▶ greeting ──welcome()──▶ open ──goodbye/close──▶ closed
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from cogflare.protocol.codec import Decoder, ProtocolError, agent_frames
from cogflare.protocol.messages import (
    PING,
    AgentMessage,
    Assign,
    AttemptKey,
    Capacity,
    Finish,
    Goodbye,
    Health,
    Heartbeat,
    Hello,
    Inventory,
    Resume,
    SlotFree,
    Started,
)

_decoder: Decoder[AgentMessage] = agent_frames()


class LinkState(Enum):
    """Where a link stands."""

    NEW = "new"
    GREETING = "greeting"
    OPEN = "open"
    CLOSED = "closed"


@dataclass(slots=True)
class Occupant:
    """An attempt that occupies a slot of `offer`; `running` until its finish is seen or it is canceled."""

    offer: int
    running: bool = True


class ServerEnd:
    """State of one link. All methods are synchronous and do no I/O."""

    def __init__(self) -> None:
        self.state = LinkState.NEW
        self.occupants: dict[AttemptKey, Occupant] = {}
        self._slots: list[int] = []
        self._used: list[int] = []

    def receive(self, frame: str | bytes) -> list[AgentMessage]:
        """Return the frame's messages that count, in order. A keep-alive returns nothing. Raises `ProtocolError`."""
        if frame == PING:
            return []
        accepted = []
        for message in _decoder.decode(frame):
            if self._accepts(message):
                accepted.append(message)
        return accepted

    def _accepts(self, message: AgentMessage) -> bool:
        if type(message) is Hello:
            self._hello(message)
            return True
        if self.state is not LinkState.OPEN:
            if self.state is LinkState.CLOSED:
                return False
            raise ProtocolError("the first message is a hello, and the next waits for its welcome")
        kind = type(message)
        if kind is Finish:
            occupant = self.occupants.get((message.prediction, message.attempt))  # type: ignore[union-attr]
            if occupant is not None:
                occupant.running = False
            return True
        if kind is SlotFree:
            return self.release((message.prediction, message.attempt))  # type: ignore[union-attr]
        if kind in (Heartbeat, Health, Inventory):
            return True
        if kind is Capacity:
            return self._resize(message)  # type: ignore[arg-type]
        if kind is Goodbye:
            self.state = LinkState.CLOSED
            return True
        return self._runs(message)  # type: ignore[arg-type]

    def _hello(self, hello: Hello) -> None:
        if self.state is not LinkState.NEW:
            raise ProtocolError("a link says hello once")
        self.state = LinkState.GREETING
        self._slots = [offer.slots for offer in hello.offers]
        self._used = [0] * len(hello.offers)
        for held in hello.held:
            if held.offer >= len(hello.offers):
                raise ProtocolError(f"attempt of {held.prediction} is on an offer that was not made")
            key = (held.prediction, held.attempt)
            if key not in self.occupants:
                # One that ended meanwhile too: what it said before its finish is still to be sent again.
                self.occupants[key] = Occupant(held.offer)
                self._used[held.offer] += 1

    def _resize(self, message: Capacity) -> bool:
        if message.offer >= len(self._slots):
            raise ProtocolError(f"offer {message.offer} was not made")
        self._slots[message.offer] = message.slots
        return True

    def _runs(self, message: Started) -> bool:
        occupant = self.occupants.get((message.prediction, message.attempt))
        return occupant is not None and occupant.running

    def welcome(self, held: Iterable[Resume]) -> None:
        """Open the link after reconciliation; attempts that are not wanted keep their slot until it is free."""
        self.state = LinkState.OPEN
        for resume in held:
            if not resume.wanted:
                self.stop((resume.prediction, resume.attempt))

    def free(self, offer: int) -> int:
        """Return how many predictions could be assigned to this offer now."""
        if self.state is not LinkState.OPEN:
            return 0
        return max(0, self._slots[offer] - self._used[offer])

    def take(self, assign: Assign) -> None:
        """Note that this assignment is sent; raises `ValueError` without a free slot."""
        if self.free(assign.offer) < 1:
            raise ValueError(f"offer {assign.offer} has no free slot")
        self.occupants[assign.prediction, assign.attempt] = Occupant(assign.offer)
        self._used[assign.offer] += 1

    def release(self, key: AttemptKey) -> bool:
        """Give the attempt's slot back; returns whether it held one."""
        occupant = self.occupants.pop(key, None)
        if occupant is None:
            return False
        self._used[occupant.offer] -= 1
        return True

    def stop(self, key: AttemptKey) -> bool:
        """Note that the attempt is no longer wanted; returns whether it was running here."""
        occupant = self.occupants.get(key)
        if occupant is None or not occupant.running:
            return False
        occupant.running = False
        return True

    def offer_of(self, key: AttemptKey) -> int | None:
        """Return the offer whose slot the attempt occupies, if it does."""
        occupant = self.occupants.get(key)
        return None if occupant is None else occupant.offer

    def running(self) -> list[AttemptKey]:
        """Return the attempts that still run here."""
        return [key for key, occupant in self.occupants.items() if occupant.running]
