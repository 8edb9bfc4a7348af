"""The role that delivers what the outbox holds: any node does so for all, each message for one try at a time.

The store is the truth, looked at now and then; a hint makes the look sooner. While one message about a prediction is
under way, the others about it wait.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from typing import Final

import structlog

from cogflare.domain.clock import Clock
from cogflare.domain.webhooks import wanted_events
from cogflare.engine.announcements import untold
from cogflare.engine.hosts import Hosts
from cogflare.engine.service import Tasks
from cogflare.engine.views import PredictionView, load_parts, view, view_begun, view_created
from cogflare.engine.webhooks import CUT_OFF, Courier, Render, Terms
from cogflare.store import deliveries as store
from cogflare.store import predictions
from cogflare.store.base import Database, Hint, StoreError
from cogflare.store.deliveries import CHANNEL_DELIVERY, Delivery
from cogflare.store.predictions import PredictionRow

log = structlog.get_logger()

LOOK_S: Final = 0.5
REST_S: Final = 0.1
_SET_BACK_S: Final = 1.0
_WARY_LOOKS: Final = 4
_WARY_S: Final = 5.0
_HOSTS: Final = 200  # seen by one read
_READS: Final = 5
_TURNS: Final = 1_000  # of hosts, whenever a place is free
_LARGE: Final = 8  # messages whose parts lie apart, in memory at once
_SECOND_US: Final = 1_000_000


class Deliveries:
    """Delivers messages to webhooks. `flights` are tasks apart from others: a stop has little patience with them."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        courier: Courier,
        hosts: Hosts,
        render: Render,
        terms: Terms,
        flights: Tasks,
    ) -> None:
        self._db = db
        self._clock = clock
        self._courier = courier
        self._hosts = hosts
        self._render = render
        self._terms = terms
        self._flights = flights
        # In the order of their turns: one that had its turn and has more goes to the end.
        self._hinted: dict[str, None] = {}
        self._is_due = self._is_looking = self._is_stopping = False
        self._after = ""
        self._offset, self._wary_looks, self._wary_at = float("inf"), 0, 0.0
        self._large = asyncio.Semaphore(_LARGE)
        db.listen(self._heard)

    async def tick(self) -> float:
        """Look which hosts have something that is due; returns the seconds until the next look."""
        if not self._is_stopping:
            await self._scan()
        return REST_S if self._after else LOOK_S

    async def stop(self, limit_s: float) -> None:
        """Wait for what is under way, and leave the rest to the next who looks."""
        self._is_stopping = True
        await self._flights.settle(limit_s)

    async def settle(self) -> None:
        """Wait until nothing is under way."""
        await self._flights.settle(60)

    # --- looking ---------------------------------------------------------------------------------------------------

    def _heard(self, hint: Hint) -> None:
        if hint.channel == CHANNEL_DELIVERY:
            self.look_at([hint.payload])

    def look_at(self, hosts: Iterable[str]) -> None:
        """See soon whether these hosts have something that is due."""
        self._hinted.update(dict.fromkeys(hosts))
        if self._hinted and not self._is_looking and not self._is_stopping:
            self._is_looking = True
            self._flights.spawn(self._look())

    async def _scan(self) -> None:
        """Go through some of the hosts, in a round."""
        term = self._terms.of(self._clock.wall())
        latest = self._latest(term)
        for _ in range(_READS):
            found = await store.waiting(self._db, self._after, _HOSTS)
            self._after = found[-1].host if len(found) == _HOSTS else ""
            late = [waiting.host for waiting in found if waiting.last > latest]
            if late:
                await store.hurry(self._db, late, term)
            self.look_at((*late, *(waiting.host for waiting in found if waiting.first <= term.now)))
            if not self._after:
                return

    def _latest(self, term: store.Term) -> int:
        """Return beyond what a look at the rows tells whether they wait for a time that the clock was set back from.

        Some looks after a start, and after this node's clock was set back, that is all that waits.
        """
        now = self._clock.monotonic()
        offset = term.now / 1e6 - now
        if offset < self._offset - _SET_BACK_S:
            self._wary_looks, self._wary_at = _WARY_LOOKS, now
        self._offset = offset
        if not self._wary_looks or now < self._wary_at:
            return term.latest
        self._wary_looks, self._wary_at = self._wary_looks - 1, now + _WARY_S
        return term.ahead

    async def _look(self) -> None:
        """Claim what is due of the hosts to look at, as far as there is room, until there is no more of them."""
        try:
            while not self._is_stopping and (limits := self._limits()):
                await self._claim(limits)
        finally:
            self._is_looking = False

    def _limits(self) -> dict[str, int]:
        """Take the places that hosts may have, of some hosts in turn; one without room has another turn.

        One that is down and rests has none: there may be many of them, and the store tells of it again.
        """
        limits: dict[str, int] = {}
        for host in list(islice(self._hinted, _TURNS)):
            if not self._hosts.is_open:
                break
            del self._hinted[host]
            room = self._hosts.room(host)
            if room:
                self._hosts.take(host, room)
                limits[host] = room
            elif not self._hosts.is_resting(host):
                self._hinted[host] = None
        return limits

    async def _claim(self, limits: dict[str, int]) -> None:
        claimed: list[Delivery] = []
        try:
            claimed = await store.claim(self._db, limits, self._terms.of(self._clock.wall()))
        finally:
            counts = Counter(delivery.host for delivery in claimed)
            for host, limit in limits.items():
                self._hosts.give(host, limit - counts[host])
        self._hinted.update((host, None) for host, limit in limits.items() if counts[host] == limit)
        busy: set[str] = set()
        for delivery in claimed:
            self._flights.spawn(self._fly(delivery, delivery.prediction in busy))
            busy.add(delivery.prediction)

    # --- one message -----------------------------------------------------------------------------------------------

    async def _fly(self, delivery: Delivery, is_second: bool) -> None:
        """Use the try and the place that were taken for a message; `is_second`: another about its prediction flies."""
        try:
            if is_second:
                await self._courier.release(delivery, self._clock.wall() + _SECOND_US)
            else:
                await self._deliver(delivery)
        except StoreError:
            raise
        except Exception:
            log.exception("a webhook could not be sent", delivery=delivery.id)
            await self._courier.postpone(delivery, "an error of the server that sends it")
        except asyncio.CancelledError:
            # It may have arrived; rather twice than never.
            await self._courier.release(delivery, self._clock.wall())
            raise
        finally:
            self._hosts.give(delivery.host)
            self.look_at(())

    async def _deliver(self, delivery: Delivery) -> None:
        row = await predictions.get(self._db, delivery.prediction)
        if row is None:
            await self._courier.refuse(delivery, "the record of the prediction has been removed")
        elif not _is_large(row):
            await self._send(delivery, row)
        else:
            async with self._large:
                if await store.extend(self._db, delivery, self._terms.until(self._clock.wall())):
                    await self._send(delivery, row)

    async def _send(self, delivery: Delivery, row: PredictionRow) -> None:
        shown = view(row, await load_parts(self._db, [row]))
        if delivery.event == "created":
            await self._courier.carry(delivery, await self._render(view_created(shown), row.webhook_origin))
        elif delivery.event != "completed":
            await self._deliver_again(delivery, row, shown)
        elif await self._tell_rest(delivery, row, shown):
            if "completed" in wanted_events(row.webhook_events):
                await self._courier.carry(delivery, await self._render(shown, row.webhook_origin))
            else:
                await store.drop(self._db, delivery)

    async def _deliver_again(self, delivery: Delivery, row: PredictionRow, shown: PredictionView) -> None:
        """Send a message once more that was sent once: as somebody has asked, and with what is the case now.

        Where nobody has asked, whoever sent it has not said what came of it. Bots of 2022 see each status all the same.
        """
        is_cut_off = delivery.give_up_at == delivery.created_at
        if is_cut_off and row.dialect is not None and delivery.event == "start":
            await self._courier.carry(delivery, await self._render(view_begun(shown), row.webhook_origin))
        elif is_cut_off:
            await self._courier.refuse(delivery, CUT_OFF)
        else:
            await self._courier.carry(delivery, await self._render(shown, row.webhook_origin))

    async def _tell_rest(self, holder: Delivery, row: PredictionRow, shown: PredictionView) -> bool:
        """Send what is to be told before the end; False if others have taken the message about the end over.

        Only the first who tries does: the end may have arrived since, though nobody knows.
        """
        if holder.tries > 1 or wanted_events(row.webhook_events) == {"completed"}:
            return True
        rest = untold(row, shown, await store.told(self._db, row.id), self._clock.wall())
        for news, going in rest:
            now = self._clock.wall()
            until = self._terms.until(now)
            if not await store.announce_late(self._db, news, holder, now, until):
                return False
            delivery = news.delivery(row.account, holder.url, now, until)
            await self._courier.carry_once(delivery, await self._render(going, row.webhook_origin))
        return not rest or await store.extend(self._db, holder, self._terms.until(self._clock.wall()))


def _is_large(row: PredictionRow) -> bool:
    """Say whether parts of the prediction lie apart from its row."""
    has_output = bool(row.output_items or row.output_bytes)
    return not row.data_removed and (row.input is None or (row.output is None and has_output))
