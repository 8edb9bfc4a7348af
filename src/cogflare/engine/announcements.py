"""Messages about predictions that go on: from the node that holds their live data, sent once, never ahead of the store.

What a message shows is committed. While one is under way the newest state waits, and outputs and logs together go at
most once per half a second. A message has its row before it is sent: the row keeps it from overtaking, or being
overtaken by, another about the same prediction, on any node.
"""

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec

from cogflare.domain.clock import Clock
from cogflare.domain.phases import Status
from cogflare.domain.webhooks import Event, lane_of, wanted_events
from cogflare.engine.hosts import Hosts
from cogflare.engine.live import Live, view_live
from cogflare.engine.service import Tasks
from cogflare.engine.views import PredictionView, load_parts, view
from cogflare.engine.webhooks import Courier, Render, Terms
from cogflare.store import deliveries as store
from cogflare.store import predictions
from cogflare.store.base import Database
from cogflare.store.deliveries import News, Told
from cogflare.store.predictions import PredictionRow

EVERY_S: Final = 0.5
ROOM: Final = 64 << 20  # bytes of live data in messages under way, together; one more is sent in any case
LOOK_S: Final = 0.1
_IDLE_S: Final = 0.5


@dataclass(eq=False)
class _Watch:
    """What was told of an attempt: its start, so many items and bytes of its log. `at`: when the latter last were."""

    live: Live
    host: str
    events: frozenset[str]
    is_loaded: bool = False
    is_busy: bool = False
    started: bool = False
    items: int = 0
    log_bytes: int = 0
    at: float = float("-inf")
    not_before: float = float("-inf")

    def load(self, told: Sequence[Told], now: int, monotonic: float) -> None:
        """Go on after what was told before this node held the attempt."""
        self.is_loaded = True
        self.started = self.started or any(one.event == "start" for one in told)
        shown = [one for one in told if one.event != "start"]
        if shown:
            self.at = monotonic - max(0, now - max(one.created_at for one in shown)) / 1e6
        if self.live.attempt == 1:
            self.items = max((one.items or 0 for one in shown), default=0)
            self.log_bytes = max((one.log_bytes or 0 for one in shown), default=0)

    def news(self) -> Event | None:
        """Return what there is to tell."""
        if "start" in self.events and not self.started:
            return "start"
        if "output" in self.events and self.live.committed_items > self.items:
            return "output"
        return "logs" if "logs" in self.events and self.live.committed_log > self.log_bytes else None

    def is_free(self, event: Event, now: float) -> bool:
        """Say whether this may be told now: nothing is under way, or was told, or could not be, just now."""
        is_early = now < self.not_before or (event != "start" and now < self.at + EVERY_S)
        return self.is_loaded and not self.is_busy and not is_early

    def tell(self, news: News, now: float) -> None:
        """Note that this is told."""
        if news.event == "start":
            self.started = True
        else:
            self.items, self.log_bytes, self.at = news.items, news.log_bytes, now


class _Order(NamedTuple):
    """A message that is to be sent."""

    watch: _Watch
    news: News
    body: bytes


class Announcements:
    """Tells webhooks of what runs on this node. `landed` hears of each host that a message has gone to."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        courier: Courier,
        hosts: Hosts,
        render: Render,
        terms: Terms,
        flights: Tasks,
        lives: Mapping[str, Live],
        landed: Callable[[Iterable[str]], None],
    ) -> None:
        self._db = db
        self._clock = clock
        self._courier = courier
        self._hosts = hosts
        self._render = render
        self._terms = terms
        self._flights = flights
        self._lives = lives
        self._landed = landed
        self._watches: dict[str, _Watch] = {}
        self._dirty: dict[str, None] = {}
        self._is_sending = False
        self._sizes: dict[_Watch, int] = {}

    def committed(self, live: Live) -> None:
        """Note that something of an attempt with a webhook is durable."""
        assert live.hook is not None
        watch = self._watches.get(live.prediction)
        if watch is None or watch.live is not live:
            events = wanted_events(live.hook.events)
            self._watches[live.prediction] = _Watch(live, lane_of(live.account, live.hook.url), events)
        self._dirty[live.prediction] = None
        self._send_soon()

    async def tick(self) -> float:
        """Send what had to wait; returns the seconds until the next look."""
        for prediction, watch in list(self._watches.items()):
            if self._lives.get(prediction) is not watch.live and not watch.is_busy:
                del self._watches[prediction]
                self._dirty.pop(prediction, None)
        self._send_soon()
        return LOOK_S if self._dirty else _IDLE_S

    def _send_soon(self) -> None:
        if self._dirty and not self._is_sending:
            self._is_sending = True
            self._flights.spawn(self._send())

    async def _send(self) -> None:
        """Send what is due, all in one unit; what has to wait stays for a later look."""
        try:
            await self._load()
            due = self._due()
            try:
                orders = [await self._order(watch, event) for watch, event in due]
                sent = await self._write([order.news for order in orders])
            except BaseException:
                for watch, _ in due:
                    self._rest(watch)
                raise
        finally:
            self._is_sending = False
        now = self._clock.monotonic()
        for order in orders:
            if order.news.id in sent:
                order.watch.tell(order.news, now)
                self._flights.spawn(self._fly(order, sent[order.news.id]))
            else:
                # It has ended, or another message about it is under way.
                order.watch.not_before = now + EVERY_S
                self._rest(order.watch)

    async def _load(self) -> None:
        for watch in [self._watches[prediction] for prediction in self._dirty]:
            if not watch.is_loaded:
                told = await store.told(self._db, watch.live.prediction)
                watch.load(told, self._clock.wall(), self._clock.monotonic())

    def _due(self) -> list[tuple[_Watch, Event]]:
        """Take places for what may be told now."""
        now = self._clock.monotonic()
        due: list[tuple[_Watch, Event]] = []
        for prediction in list(self._dirty):
            watch = self._watches[prediction]
            event = watch.news()
            if event is None or watch.live.ending or self._lives.get(prediction) is not watch.live:
                del self._dirty[prediction]
            elif watch.is_free(event, now) and self._hosts.room(watch.host) and sum(self._sizes.values()) < ROOM:
                watch.is_busy = True
                self._hosts.take(watch.host)
                self._sizes[watch] = watch.live.size
                due.append((watch, event))
        return due

    async def _order(self, watch: _Watch, event: Event) -> _Order:
        """Return a message about an attempt as far as it is committed, and its body."""
        live = watch.live
        assert live.hook is not None
        if live.base is None:
            row = await predictions.get(self._db, live.prediction)
            assert row is not None
            live.base = view(row, await load_parts(self._db, [row]))
        items, log_bytes = live.committed_items, live.committed_log
        shown = msgspec.structs.replace(
            view_live(live.base, live),
            output=b"[" + b",".join(live.items[:items]) + b"]" if items else None,
            logs=live.log[:log_bytes].decode(errors="replace"),
        )
        id = _message_id(live.prediction, live.created_at, self._clock.wall())
        news = News(id, live.prediction, live.attempt, event, watch.host, items, log_bytes)
        return _Order(watch, news, await self._render(shown, live.hook.origin))

    async def _write(self, news: Sequence[News]) -> dict[str, int]:
        """Write the rows of messages; returns the ids of those that are to be sent, with the time of this."""
        if not news:
            return {}
        now = self._clock.wall()
        ids = await store.announce(self._db, news, now, self._terms.until(now))
        return dict.fromkeys(ids, now)

    async def _fly(self, order: _Order, now: int) -> None:
        watch, live, news = order.watch, order.watch.live, order.news
        assert live.hook is not None
        delivery = news.delivery(live.account, live.hook.url, now, self._terms.until(now))
        try:
            await self._courier.carry_once(delivery, order.body)
        finally:
            self._rest(watch)
            # First those who wait for this place with what must arrive.
            self._landed([watch.host])
            self._send_soon()

    def _rest(self, watch: _Watch) -> None:
        watch.is_busy = False
        self._hosts.give(watch.host)
        del self._sizes[watch]


def _message_id(prediction: str, created_at: int, now: int) -> str:
    """Return the id of a message that is not about the end: by its time, and by lot since clocks are set back."""
    return f"msg_{prediction}_{max(0, now - created_at) // 1000:08x}{secrets.token_hex(2)}"


def untold(
    row: PredictionRow, shown: PredictionView, told: Sequence[Told], now: int
) -> list[tuple[News, PredictionView]]:
    """Return what is still to be told of a prediction that has ended, before its end is: the start, and its output.

    An output or a log is passed over where something was told in the last half second, or all of it already.
    """
    events = wanted_events(row.webhook_events)
    if row.started_at is None or row.webhook is None or row.data_removed:
        return []
    host, earlier = lane_of(row.account, row.webhook), [one for one in told if one.event != "start"]
    going = msgspec.structs.replace(shown, status=Status.PROCESSING, completed_at=None, error=None, metrics=None)
    found: list[tuple[News, PredictionView]] = []

    def add(event: Event, view: PredictionView, items: int, log_bytes: int) -> None:
        id = _message_id(row.id, row.created_at, now + 1000 * len(found))
        found.append((News(id, row.id, row.attempt, event, host, items, log_bytes), view))

    if "start" in events and len(earlier) == len(told):
        add("start", msgspec.structs.replace(going, output=None, logs=""), 0, 0)
    if any(now - EVERY_S * 1e6 < one.created_at <= now for one in earlier):
        return found
    items = max((one.items or 0 for one in earlier), default=0)
    log_bytes = max((one.log_bytes or 0 for one in earlier), default=0)
    was_told = any(one.event == "output" for one in earlier)
    is_new = not was_told if row.output_items is None else row.output_items > items
    if "output" in events and shown.output is not None and is_new:
        add("output", going, row.output_items or 0, row.log_bytes)
    elif "logs" in events and row.log_bytes > log_bytes:
        add("logs", going, row.output_items or 0, row.log_bytes)
    return found
