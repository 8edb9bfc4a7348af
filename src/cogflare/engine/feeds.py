"""What streams of predictions show, in memory: one feed a prediction, shared by its readers while there are any.

A feed looks at the attempt that runs on this node, or at what was read from the store; it copies nothing. Readers are
positions in it. Each takes what it has not had yet whenever it can, so that a slow one holds nobody up and costs no
memory. All that changes within a loop turn wakes readers once, and so many a turn.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence

import msgspec
from msgspec import Raw

from cogflare.engine.endings import Result
from cogflare.engine.live import Live
from cogflare.engine.sizes import character_before

BLOCK_BYTES = 256_000  # of outputs or logs that a reader takes at once; more only where one item is larger
EVENT_BYTES = 40  # what each item costs beside its own bytes
_WOKEN_A_TURN = 64
_BLOCKS = 8  # rendered blocks that are kept for other readers at about the same place,
_KEPT_BYTES = 8 << 20  # and their bytes together

_items = msgspec.json.Decoder(list[Raw])


class End(msgspec.Struct, frozen=True):
    """How a prediction ended; for readers of an attempt that was lost: that it runs again from its beginning."""

    status: str
    error: str | None = None


STARTED_OVER = End("failed", "The prediction was interrupted and started over; open the stream anew to read it.")


class Place(msgspec.Struct, frozen=True):
    """How far a stream has been read: so many output items and bytes of the log of an attempt."""

    attempt: int
    items: int
    log: int


class Part(msgspec.Struct, frozen=True):
    """What a reader has not had yet: output items and a piece of the log after `start`, and the end if it was reached.

    Items are JSON text.
    """

    start: Place
    items: Sequence[bytes]
    log: bytes
    end: End | None


class Feed:
    """What is known here of one prediction: an attempt with its output and its log, and how the prediction ended.

    `key` is the stream's permission. `seen` is the state of the stored row that the feed was last filled from.
    """

    def __init__(self, prediction: str, key: str) -> None:
        self.prediction = prediction
        self.key = key
        self.attempt = 0
        self.items: Sequence[bytes] = ()
        self.log: bytes | bytearray = b""
        self.end: End | None = None
        self.is_live = False
        self.seen: tuple[object, ...] = ()
        self.is_looking = False
        self.look_again = False
        self.readers: set[Reader] = set()
        self.waiting: dict[Reader, None] = {}
        self._blocks: dict[Hashable, bytes] = {}

    def show(self, attempt: int, items: Sequence[bytes], log: bytes | bytearray, end: End | None = None) -> None:
        """Take a newer state; one object for `items` and `log` may go on growing."""
        if end is not None or attempt != self.attempt:
            self._blocks.clear()
        self.attempt, self.items, self.log, self.end = attempt, items, log, end

    def rendered(self, key: Hashable, render: Callable[[], bytes]) -> bytes:
        """Return a rendered block; what several readers need at about the same time is rendered once."""
        block = self._blocks.get(key)
        if block is None:
            block = render()
            if len(self._blocks) >= _BLOCKS or sum(map(len, self._blocks.values())) > _KEPT_BYTES:
                self._blocks.clear()
            self._blocks[key] = block
        return block


class Reader:
    """One open stream: a position in a feed. `is_closed` when it is to end although the prediction may go on.

    `closing` is called at that moment, for whoever is busy with what it got.
    """

    def __init__(self, feed: Feed, place: Place | None, *, with_logs: bool) -> None:
        self.feed = feed
        self.is_closed = False
        self.closing: Callable[[], object] | None = None
        self._place = place or Place(0, 0, 0)
        self._with_logs = with_logs
        self._is_nudged = False
        self._future: asyncio.Future[None] | None = None

    async def next(self) -> Part | None:
        """Wait for what is new and return it; None when it was nudged or closed. The part with an end is the last."""
        while not (self._is_nudged or self.is_closed):
            part = self._take()
            if part is not None:
                return part
            self._future = asyncio.get_running_loop().create_future()
            self.feed.waiting[self] = None
            try:
                await self._future
            finally:
                self._future = None
                self.feed.waiting.pop(self, None)
        self._is_nudged = False
        return None

    def nudge(self) -> None:
        """Let `next` return although nothing is new."""
        self._is_nudged = True
        self.wake()

    def close(self) -> None:
        """End the stream."""
        self.is_closed = True
        self.wake()
        if self.closing is not None:
            self.closing()

    def wake(self) -> None:
        """Let `next` look again."""
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    def _take(self) -> Part | None:
        feed, start = self.feed, self._place
        if start.attempt < feed.attempt:
            if start.items or start.log:
                return Part(start, (), b"", STARTED_OVER)
            start = Place(feed.attempt, 0, 0)
        items, log = self._news(start) if start.attempt == feed.attempt else ([], b"")
        self._place = place = Place(start.attempt, start.items + len(items), start.log + len(log))
        is_behind = place.attempt == feed.attempt and self._is_behind(place)
        end = None if is_behind else feed.end
        # Whoever is ahead of what is known here waits until it is reached.
        return Part(start, items, log, end) if items or log or end else None

    def _news(self, start: Place) -> tuple[list[bytes], bytes]:
        feed, size, stop = self.feed, 0, start.items
        while stop < len(feed.items) and size < BLOCK_BYTES:
            size += len(feed.items[stop]) + EVENT_BYTES
            stop += 1
        items = list(feed.items[start.items : stop])
        if not self._with_logs or stop < len(feed.items) or size >= BLOCK_BYTES:
            return items, b""
        return items, bytes(feed.log[start.log : character_before(feed.log, start.log + BLOCK_BYTES)])

    def _is_behind(self, place: Place) -> bool:
        feed = self.feed
        return place.items < len(feed.items) or (self._with_logs and place.log < len(feed.log))


class Feeds:
    """The feeds of this node. `lives` has what runs here; `look` is called for a feed that has to ask the store."""

    def __init__(self, lives: Mapping[str, Live]) -> None:
        self._lives = lives
        self._feeds: dict[str, Feed] = {}
        self._changed: dict[Feed, None] = {}
        self._waking: deque[Reader] = deque()
        self._is_due = False
        self.look: Callable[[Feed], None] = _nobody

    def changed(self, prediction: str) -> None:
        """Note that there is something new about a prediction."""
        feed = self._feeds.get(prediction)
        if feed is not None:
            self.note(feed)

    def note(self, feed: Feed) -> None:
        """Let a feed look at what runs here, and its readers at the feed, once in this loop turn."""
        self._changed[feed] = None
        self._schedule()

    def wake(self, feed: Feed) -> None:
        """Let the readers that wait look again, some of them in each loop turn."""
        if feed.waiting:
            self._waking.extend(feed.waiting)
            feed.waiting.clear()
            self._schedule()

    def ended(self, live: Live, result: Result) -> None:
        """Note how an attempt of this node ended the prediction, unless its worker put the output into the store."""
        feed, ended = self._feeds.get(live.prediction), result.ended
        if feed is not None and (ended.output is not None or result.ending.output_bytes is None):
            is_whole = result.ending.output_items is None
            items = split(ended.output) if is_whole else live.items
            feed.show(live.attempt, items, live.log, End(ended.status, ended.error))
            self.note(feed)

    def follow(self, feed: Feed) -> bool:
        """Let a feed show what runs on this node; False if it does not run here and has not ended."""
        live = self._lives.get(feed.prediction)
        feed.is_live = live is not None and live.attempt >= feed.attempt
        if feed.end is not None:
            return True
        if live is not None and feed.is_live:
            feed.show(live.attempt, live.items, live.log)
        return feed.is_live

    @property
    def readers(self) -> int:
        """How many streams are open."""
        return sum(len(feed.readers) for feed in self._feeds.values())

    def elsewhere(self) -> list[Feed]:
        """Return the feeds that hear of what is new only by the store."""
        return [feed for feed in self._feeds.values() if feed.end is None and not feed.is_live]

    def join(self, prediction: str, key: str, place: Place | None, *, with_logs: bool) -> Reader:
        """Return a new reader; give it up with `leave`."""
        feed = self._feeds.get(prediction)
        if feed is None:
            feed = self._feeds[prediction] = Feed(prediction, key)
            self.note(feed)
        reader = Reader(feed, place, with_logs=with_logs)
        feed.readers.add(reader)
        return reader

    def leave(self, reader: Reader) -> None:
        """Give up a reader; the last one of a feed takes it along."""
        feed = reader.feed
        feed.readers.discard(reader)
        if not feed.readers and self._feeds.get(feed.prediction) is feed:
            del self._feeds[feed.prediction]

    def close(self, feed: Feed) -> None:
        """End all streams of a feed."""
        for reader in feed.readers:
            reader.close()

    def close_all(self) -> None:
        """End all streams of this node."""
        for feed in self._feeds.values():
            self.close(feed)

    def _schedule(self) -> None:
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._is_due = False
        changed, self._changed = self._changed, {}
        for feed in changed:
            if not self.follow(feed):
                self.look(feed)
            self.wake(feed)
        for _ in range(min(_WOKEN_A_TURN, len(self._waking))):
            self._waking.popleft().wake()
        if self._waking:
            self._schedule()


def split(output: bytes | None) -> list[bytes]:
    """Return the items of a whole output: a list's members, one that is no list as it is, and none of null."""
    output = (output or b"null").strip()  # an output that was put by HTTP is stored as it came
    if output == b"null":
        return []
    return [bytes(item) for item in _items.decode(output)] if output.startswith(b"[") else [output]


def _nobody(feed: Feed) -> None:
    """Look for nothing: no stream was opened yet."""
