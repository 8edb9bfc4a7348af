"""The agent's end of the worker link, sans I/O: keeps every attempt until the server has answered for it.

It outlives connections. Local events (`started`, `output`, `log`, `metrics`, `finish`, `slot_free`) are recorded here
and, while a link is open, queued to be sent; after a reconnect `receive(welcome)` queues again what the server does not
have. The shell around it moves frames, runs models and writes the journal. Rule: what the hello listed is settled by
the welcome, so whatever changed between the two is told right after it.

What passes the server's limits on sizes is dropped here too, so that no model fills this process: a little more than
the limit is kept, because that is how the server sees that something is missing.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec
from msgspec import Raw

from cogflare.protocol.codec import Decoder, ProtocolError, frames, server_frames
from cogflare.protocol.messages import (
    MAX_ITEMS,
    MAX_REASON,
    OLDEST,
    PING,
    PONG,
    PROTOCOL,
    AgentMessage,
    Answer,
    Assign,
    AttemptKey,
    Cancel,
    Capacity,
    Finish,
    Goodbye,
    Health,
    Heartbeat,
    Held,
    Hello,
    Inventory,
    Log,
    Machine,
    Metrics,
    Offer,
    Output,
    Reject,
    Renewed,
    Restarting,
    ServerMessage,
    SlotFree,
    Started,
    Welcome,
)

_decoder: Decoder[ServerMessage] = server_frames()
_MAX_UNSENT = 1_000_000  # bytes
_HEAD = 100  # bytes of a message around its data
_UNTOLD = 256 << 20  # bytes of a log or an output, while no server has told its limits
_PIECE = 150_000  # bytes of output items or log in one message; log text may grow sixfold as JSON and must fit a frame


@dataclass(slots=True)
class Kept:
    """All that is known of an attempt until its finish is answered and its slot is free."""

    offer: int
    started_at: float | None = None  # the agent's monotonic clock, seconds
    items: list[Raw] = field(default_factory=list)
    log: bytearray = field(default_factory=bytearray)
    finish: Finish | None = None
    finished_at: float = 0.0
    answered: bool = False
    freed: bool = False
    item_bytes: int = 0


class AgentEnd:
    """State of a worker across its links. No method waits; `now` is the agent's monotonic clock in seconds."""

    def __init__(self, worker: str, instance: str, name: str, offers: list[Offer], agent: dict[str, str]) -> None:
        self.worker = worker
        self.instance = instance
        self.name = name
        self.offers = offers
        self.agent = agent
        self.machine: Machine | None = None
        self.kept: dict[AttemptKey, Kept] = {}
        self.open = False
        self._slots = [offer.slots for offer in offers]
        self._used = [0] * len(offers)
        self._told_slots: list[int] = []
        self._told_held: list[AttemptKey] = []
        self._told_machine: Machine | None = None
        self._outbox: list[AgentMessage] = []
        self._unsent = 0
        self._health: Health | None = None
        self._is_health_told = False
        self._max_log = self._max_output = _UNTOLD

    # --- the link ------------------------------------------------------------------------------------------------

    def connected(self) -> list[str]:
        """Return the frames that open a new link (the hello)."""
        self.disconnected()
        held = [
            Held(prediction, attempt, kept.offer, ended=kept.finish is not None or kept.answered)
            for (prediction, attempt), kept in self.kept.items()
        ]
        self._told_held, self._told_slots = list(self.kept), list(self._slots)
        self._told_machine = self.machine
        pairs = zip(self.offers, self._slots, strict=True)
        offers = [msgspec.structs.replace(offer, slots=slots) for offer, slots in pairs]
        about = self.worker, self.instance, self.name, offers, held, self.agent, self.machine
        return frames([Hello(PROTOCOL, *about, OLDEST)])

    def disconnected(self) -> None:
        """Note that the link is gone; what is recorded from now on waits for the next."""
        self.open = False
        self._outbox.clear()
        self._unsent = 0

    def receive(self, frame: str | bytes, now: float) -> list[ServerMessage]:
        """Return the frame's messages for the shell to act on; raises `ProtocolError`.

        A welcome queues what the server lacks. Whatever way the server said that it does not want an attempt any more,
        it comes out as a `Cancel` while the attempt's slot is taken, and as an `Answer` when the attempt is forgotten.
        """
        if frame == PONG:
            return []
        acts: list[ServerMessage] = []
        for message in _decoder.decode(frame):
            if isinstance(message, Welcome):
                if self.open:
                    raise ProtocolError("a link is welcomed once")
                acts.append(message)
                acts += self._welcome(message, now)
            elif not self.open and not isinstance(message, Reject | Restarting):
                raise ProtocolError("the first message is a welcome")
            elif isinstance(message, Renewed):
                acts += [Cancel(*key) for key in message.unwanted if self._runs(key)]
            elif self._news(message, now):
                acts.append(message)
        return acts

    @property
    def is_full(self) -> bool:
        """Whether so much is queued to be sent that models should wait."""
        return self._unsent > _MAX_UNSENT

    def take_frames(self, limit: int | None = None) -> list[str]:
        """Return the queued messages as frames, oldest first: all, or those up to about `limit` bytes of live data."""
        if not self._outbox:
            return []
        if limit is None or self._unsent <= limit:
            queued, self._outbox = self._outbox, []
            self._unsent = 0
            return frames(queued)
        count = taken = 0
        while count < len(self._outbox) and taken < limit:
            taken += _weight(self._outbox[count])
            count += 1
        queued = self._outbox[:count]
        del self._outbox[:count]
        self._unsent -= taken
        return frames(queued)

    def heartbeat(self) -> str:
        """Return the keep-alive frame: the renewal of what is held, or the constant text of an idle worker."""
        held = list(self.kept)
        return frames([Heartbeat(held)])[0] if held else PING

    def _welcome(self, welcome: Welcome, now: float) -> list[ServerMessage]:
        self.open = True
        self._max_log, self._max_output = welcome.max_log_bytes, welcome.max_output_bytes
        for offer, slots in enumerate(self._slots):
            if slots != self._told_slots[offer]:
                self._send(Capacity(offer, slots))
        if self.machine is not None and self.machine is not self._told_machine:
            self._send(Inventory(self.machine))
        if self._health is not None and not (self._health.ok and self._is_health_told):
            self._tell_health(self._health)
        words = {(resume.prediction, resume.attempt): resume for resume in welcome.held}
        acts: list[ServerMessage] = []
        for key in self._told_held:
            kept, resume = self.kept.get(key), words.get(key)
            if kept is None:
                self._send(SlotFree(*key))  # ended and freed while the hello was on its way
            elif resume is not None and resume.wanted:
                self._resend(key, kept, resume.outputs, resume.log_bytes, now)
            else:
                acts.append(self._drop(key, kept))
        return acts

    def _drop(self, key: AttemptKey, kept: Kept) -> ServerMessage:
        """Take the server's word that the attempt is not wanted: nothing but its slot is outstanding."""
        kept.answered = True
        if not self._settle(key, kept):
            return Cancel(*key)
        self._send(SlotFree(*key))
        return Answer(*key, "unknown")

    def _resend(self, key: AttemptKey, kept: Kept, outputs: int, log_bytes: int, now: float) -> None:
        if kept.started_at is not None:
            self._send(Started(*key, ago_ms=_ms(now - kept.started_at)))
        for index, items in _pieces(kept.items, outputs):
            self._send(Output(*key, index, items))
        for offset, text in _texts(kept.log, log_bytes):
            self._send(Log(*key, offset, text))
        if kept.finish is not None:
            self._send_finish(kept.finish, kept, now)

    def _news(self, message: ServerMessage, now: float) -> bool:
        """Apply a message to the state; returns whether the shell has something to do about it."""
        if isinstance(message, Assign):
            return self._assigned(message, now)
        if isinstance(message, Answer):
            key = (message.prediction, message.attempt)
            kept = self.kept.get(key)
            if kept is None:
                return False
            kept.answered = True
            self._settle(key, kept)
        elif isinstance(message, Cancel):
            return self._runs((message.prediction, message.attempt))
        return True

    def _assigned(self, assign: Assign, now: float) -> bool:
        """Take the attempt, or hand it back as lost (it never started) where there is no room for it."""
        key = (assign.prediction, assign.attempt)
        if key in self.kept:
            return False
        known = assign.offer < len(self.offers)
        self.kept[key] = kept = Kept(assign.offer if known else 0)
        if known and self._used[assign.offer] < self._slots[assign.offer]:
            self._used[assign.offer] += 1
            return True
        reason = "the worker has no free slot" if known else f"the worker made no offer {assign.offer}"
        kept.freed = True
        self.finish(Finish(*key, "lost", error=reason, slot_free=True), now)
        return False

    def _runs(self, key: AttemptKey) -> bool:
        kept = self.kept.get(key)
        return kept is not None and kept.finish is None

    # --- what happens on this machine ----------------------------------------------------------------------------

    def started(self, key: AttemptKey, at: float, now: float) -> None:
        """Record that the model began to run the attempt at the time `at`."""
        self.kept[key].started_at = at
        self._send(Started(*key, ago_ms=_ms(now - at)))

    def output(self, key: AttemptKey, items: list[Raw]) -> int:
        """Record further items of the attempt's output; each is `checked` and at most `MAX_VALUE` bytes.

        Returns how many were taken: what comes after the first that passes a limit is dropped.
        """
        kept = self.kept[key]
        index = len(kept.items)
        for item in items:
            if kept.item_bytes > self._max_output or len(kept.items) > MAX_ITEMS:
                break
            kept.items.append(item)
            kept.item_bytes += len(memoryview(item))
        for start, piece in _pieces(kept.items, index):
            self._send(Output(*key, start, piece))
        return len(kept.items) - index

    def log(self, key: AttemptKey, text: str) -> None:
        """Record further log text of the attempt; what comes after the limit is dropped."""
        kept = self.kept[key]
        offset = len(kept.log)
        if offset > self._max_log:
            return
        # A character or more beyond the limit, of up to four bytes.
        most = self._max_log + 4
        kept.log += text[: most - offset].encode(errors="replace")
        del kept.log[_boundary(kept.log, most) :]
        for start, piece in _texts(kept.log, offset):
            self._send(Log(*key, start, piece))

    def metrics(self, key: AttemptKey, values: dict[str, Raw]) -> None:
        """Report figures of a running attempt; they are not repeated on a new link (the finish has them all)."""
        self._send(Metrics(*key, values))

    def finish(self, finish: Finish, now: float) -> None:
        """Record how the attempt ended; it is sent on every link until the server answers. Counts the log itself."""
        key = (finish.prediction, finish.attempt)
        kept = self.kept[key]
        kept.finish = finish = msgspec.structs.replace(finish, log_bytes=len(kept.log))
        kept.finished_at = now
        if finish.slot_free:
            self._release(kept)
        if not kept.answered:
            self._send_finish(finish, kept, now)
        elif self._settle(key, kept):
            self._send(SlotFree(*key))

    def slot_free(self, key: AttemptKey) -> None:
        """Record that the attempt's slot can run something else; travels in the finish if that is just being sent."""
        kept = self.kept[key]
        self._release(kept)
        last = self._outbox[-1] if self._outbox else None
        if isinstance(last, Finish) and (last.prediction, last.attempt) == key:
            self._outbox[-1] = msgspec.structs.replace(last, slot_free=True)
        else:
            self._send(SlotFree(*key))
        self._settle(key, kept)

    def adopt(self, finish: Finish, items: list[Raw], log: bytes, started_at: float | None, finished_at: float) -> None:
        """Hold an attempt that an earlier agent process on this machine ended, read back from its journal."""
        key = (finish.prediction, finish.attempt)
        size = sum(len(memoryview(item)) for item in items)
        kept = Kept(0, started_at, items, bytearray(log), finish, finished_at, freed=True, item_bytes=size)
        self.kept[key] = kept

    def resume(self, key: AttemptKey, offer: int) -> None:
        """Hold an attempt that an earlier agent process on this machine began and that still runs."""
        self.kept[key] = Kept(offer)
        self._used[offer] += 1

    def resize(self, offer: int, slots: int) -> None:
        """Change the number of slots of an offer (0 to take nothing more)."""
        self._slots[offer] = slots
        self._send(Capacity(offer, slots))

    def report(self, ailment: str | None) -> None:
        """Tell why the model cannot run anything, or (None) that it is well; what is wrong is told on each new link."""
        self._tell_health(Health(ailment is None, (ailment or "")[:MAX_REASON]))

    def _tell_health(self, health: Health) -> None:
        self._health, self._is_health_told = health, self.open
        self._send(health)

    def inventory(self, machine: Machine) -> None:
        """Tell what the worker runs on, as it is now; the next hello says it too."""
        self.machine = machine
        if self.open:
            self._told_machine = machine
        self._send(Inventory(machine))

    def goodbye(self, reason: str) -> None:
        """Give up all that is held: the server may run it elsewhere at once."""
        self._send(Goodbye(reason))

    def busy(self) -> int:
        """Return how many attempts are held."""
        return len(self.kept)

    def has_queued(self) -> bool:
        """Say whether `take_frames` has something to give."""
        return bool(self._outbox)

    def _send(self, message: AgentMessage) -> None:
        if self.open:
            self._outbox.append(message)
            self._unsent += _weight(message)

    def _send_finish(self, finish: Finish, kept: Kept, now: float) -> None:
        self._send(msgspec.structs.replace(finish, ago_ms=_ms(now - kept.finished_at), slot_free=kept.freed))

    def _release(self, kept: Kept) -> None:
        if not kept.freed:
            kept.freed = True
            self._used[kept.offer] -= 1

    def _settle(self, key: AttemptKey, kept: Kept) -> bool:
        """Forget the attempt if nothing about it is outstanding; returns whether it is forgotten."""
        if kept.answered and kept.freed:
            self.kept.pop(key, None)
            return True
        return False


def _weight(message: AgentMessage) -> int:
    """Return about how many bytes of live data a message carries."""
    if isinstance(message, Log):
        return len(message.text) + _HEAD
    if isinstance(message, Output):
        return sum(len(memoryview(item)) for item in message.items) + _HEAD
    return _HEAD


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))


def _pieces(items: list[Raw], start: int) -> Iterable[tuple[int, list[Raw]]]:
    """Cut items from `start` on into runs that fit a message."""
    piece: list[Raw] = []
    size = 0
    for index in range(start, len(items)):
        length = len(bytes(items[index]))
        if piece and size + length > _PIECE:
            yield index - len(piece), piece
            piece, size = [], 0
        piece.append(items[index])
        size += length
    if piece:
        yield len(items) - len(piece), piece


def _texts(log: bytearray, start: int) -> Iterable[tuple[int, str]]:
    """Cut a log from `start` on into texts that fit a message; a cut never splits a character."""
    start = _boundary(log, start)
    while start < len(log):
        end = _boundary(log, start + _PIECE)
        yield start, log[start:end].decode()
        start = end


def _boundary(log: bytearray, at: int) -> int:
    """Return the last place up to `at` where a character begins."""
    while 0 < at < len(log) and log[at] & 0xC0 == 0x80:
        at -= 1
    return min(at, len(log))
