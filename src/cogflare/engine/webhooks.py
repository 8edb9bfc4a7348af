"""One try of a message to a webhook: it is signed and posted, and what came of it is kept and decides what follows.

A 2xx is the only success. Anything else is tried again with growing pauses until the message's time is over; a 410
says that nobody wants it any more.
"""

import asyncio
import random
from collections.abc import Mapping
from typing import Final, Protocol

import msgspec
import structlog

from cogflare.domain.clock import Clock
from cogflare.domain.webhooks import LONGEST_PAUSE_US, pause_us
from cogflare.engine.hosts import Hosts
from cogflare.engine.views import PredictionView
from cogflare.net.base import Answered, OutgoingError
from cogflare.store import deliveries as store
from cogflare.store.base import Database
from cogflare.store.deliveries import Delivery, Try

CUT_OFF: Final = "its server stopped before there was an answer"
MAX_ANSWER: Final = 1_000  # characters that are kept
_LEASE_MARGIN_US: Final = 5_000_000
_AHEAD_US: Final = 60_000_000
_GONE: Final = 410
_OVERLOADED: Final = frozenset({429, 502, 503, 504})

log = structlog.get_logger()


class Poster(Protocol):
    """What sends a request: `net.outgoing.Outgoing`."""

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answered:
        """Send it and return the answer; raises `OutgoingError`."""
        ...


class Signer(Protocol):
    """What signs messages with the secrets of their accounts."""

    async def headers(self, account: str, id: str, timestamp_s: int, body: bytes) -> dict[str, str]:
        """Return the headers of a message."""
        ...


class Render(Protocol):
    """What writes a prediction as webhooks show it, with its URLs under this origin, where one is known."""

    async def __call__(self, view: PredictionView, origin: str | None, /) -> bytes:
        """Return the body."""
        ...


class Terms(msgspec.Struct, frozen=True):
    """How long one try may take, and for how long a message is tried again."""

    timeout_s: float = 10.0
    give_up_s: float = 86_400.0

    def of(self, now: int) -> store.Term:
        """Return the times of a claim made now."""
        until, give_up_at = self.until(now), now + int(self.give_up_s * 1e6)
        return store.Term(now, until, give_up_at, now + 2 * LONGEST_PAUSE_US, max(until, now + _AHEAD_US))

    def until(self, now: int) -> int:
        """Return how long one who tries now has for it."""
        return now + int(self.timeout_s * 1e6) + _LEASE_MARGIN_US


class _Outcome(msgspec.Struct, frozen=True):
    """What came of a request: `error` None is success; `is_up`: the host is well."""

    error: str | None
    is_up: bool = True
    is_final: bool = False
    status: int | None = None
    answer: str | None = None
    retry_after_s: float | None = None


class Courier:
    """Carries messages that were claimed, one try each."""

    def __init__(self, db: Database, clock: Clock, poster: Poster, signer: Signer, hosts: Hosts) -> None:
        self._db = db
        self._clock = clock
        self._poster = poster
        self._signer = signer
        self._hosts = hosts

    async def carry(self, delivery: Delivery, body: bytes) -> bool:
        """Post a message and keep what came of it; returns whether it has arrived."""
        began, at = self._clock.monotonic(), self._clock.wall()
        outcome = await self._post(delivery, body, at)
        self._hosts.note(delivery.host, is_up=outcome.is_up)
        duration_us = max(0, int((self._clock.monotonic() - began) * 1e6))
        tried = Try(delivery.tries, at, duration_us, outcome.status, outcome.error, outcome.answer)
        await self._settle(delivery, outcome, tried)
        return outcome.error is None

    async def carry_once(self, delivery: Delivery, body: bytes) -> None:
        """Post a message that has one try; if it is cut off, that was it."""
        try:
            await self.carry(delivery, body)
        except asyncio.CancelledError:
            await self.refuse(delivery, CUT_OFF)
            raise

    async def refuse(self, delivery: Delivery, error: str) -> None:
        """Give a message up that cannot be sent."""
        tried = Try(delivery.tries, self._clock.wall(), 0, None, error, None)
        await self._settle(delivery, _Outcome(error, is_final=True), tried)

    async def postpone(self, delivery: Delivery, error: str) -> None:
        """Try a message another time that could not be sent now."""
        tried = Try(delivery.tries, self._clock.wall(), 0, None, error, None)
        await self._settle(delivery, _Outcome(error), tried)

    async def release(self, delivery: Delivery, next_try_at: int) -> None:
        """Leave a message to the next who tries."""
        await self._db.write(store.settle(delivery.id, delivery.tries, "pending", next_try_at=next_try_at))

    async def _post(self, delivery: Delivery, body: bytes, at: int) -> _Outcome:
        try:
            signed = await self._signer.headers(delivery.account, delivery.id, at // 1_000_000, body)
            answered = await self._poster.post(delivery.url, {"Content-Type": "application/json", **signed}, body)
        except OutgoingError as error:
            return _Outcome(str(error), is_up=False)
        return _judge(answered)

    async def _settle(self, delivery: Delivery, outcome: _Outcome, tried: Try) -> None:
        now = self._clock.wall()
        give_up_at = delivery.give_up_at if delivery.give_up_at is not None else now
        if outcome.error is None:
            settled = store.settle(delivery.id, delivery.tries, "delivered", ended_at=now)
        elif outcome.is_final or now >= give_up_at:
            settled = store.settle(delivery.id, delivery.tries, "failed", ended_at=now)
            self._say_failed(delivery, outcome)
        else:
            pause = pause_us(delivery.tries, random.random(), outcome.retry_after_s)  # noqa: S311
            settled = store.settle(delivery.id, delivery.tries, "pending", next_try_at=min(now + pause, give_up_at))
        await self._db.write(settled, store.record(delivery.id, tried))

    def _say_failed(self, delivery: Delivery, outcome: _Outcome) -> None:
        if delivery.event == "completed":
            # Where a redirect leads is the client's business: addresses have secrets in them.
            error = outcome.error if outcome.status is None else f"answered {outcome.status}"
            log.warning("a webhook was not delivered", delivery=delivery.id, tries=delivery.tries, error=error)


def _judge(answered: Answered) -> _Outcome:
    status = answered.status
    text = answered.body[: 4 * MAX_ANSWER].decode(errors="replace").replace("\0", " ")[:MAX_ANSWER]
    error: str | None = f"answered {status}"
    if 200 <= status < 300:
        error = None
    elif 300 <= status < 400:
        to = f" to {answered.location[:500]}" if answered.location else ""
        error = f"answered {status}{to}: redirects are not followed; use that address as the webhook"
    return _Outcome(error, status not in _OVERLOADED, status == _GONE, status, text, answered.retry_after_s)
