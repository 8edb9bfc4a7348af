"""Keeping to the rate limits of a provider: so many calls a minute, and none while it wants to be left alone."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from cogflare.domain.clock import Clock
from cogflare.providers.base import Busy

_LONGEST_TURN_S: Final = 5.0
_FIRST_CLOSE_S: Final = 1.0
_LAST_CLOSE_S: Final = 60.0
_LONGEST_CLOSE_S: Final = 3600.0

Sleep = Callable[[float], Awaitable[None]]


class Pace:
    """The calls of one kind under one key, of all tasks together.

    A few may come at once, then they take turns. What would have to wait for long is `Busy`, and so is everything while
    the provider has closed.
    """

    def __init__(self, who: str, clock: Clock, per_minute: int, burst: int, sleep: Sleep = asyncio.sleep) -> None:
        self._who = who
        self._now = clock.monotonic
        self._gap_s = 60.0 / per_minute
        self._credit_s = burst * self._gap_s
        self._sleep = sleep
        self._turn = 0.0
        self._closed_until = 0.0
        self._close_s = _FIRST_CLOSE_S

    async def turn(self) -> None:
        """Wait for a turn; raises `Busy` with the time until there is one."""
        self._refuse_closed()
        now = self._now()
        turn = max(self._turn, now - self._credit_s + self._gap_s)
        wait_s = turn - now
        if wait_s > _LONGEST_TURN_S:
            raise Busy(f"more calls wait for {self._who} than its rate limit lets through", wait_s)
        self._turn = turn + self._gap_s
        if wait_s > 0:
            await self._sleep(wait_s)
            self._refuse_closed()

    def close(self, retry_after_s: float | None) -> float:
        """Let nothing through for as long as the provider said, else for longer each time; returns for how long."""
        now = self._now()
        if retry_after_s is None:
            if now < self._closed_until:
                return self._closed_until - now
            retry_after_s, self._close_s = self._close_s, min(2 * self._close_s, _LAST_CLOSE_S)
        self._closed_until = max(self._closed_until, now + min(retry_after_s, _LONGEST_CLOSE_S))
        # Whoever waits goes one by one then: the provider may take fewer than it does at other times.
        self._turn = max(self._turn, self._closed_until)
        return self._closed_until - now

    def opened(self) -> None:
        """Note that a call was taken."""
        self._close_s = _FIRST_CLOSE_S

    def _refuse_closed(self) -> None:
        left_s = self._closed_until - self._now()
        if left_s > 0:
            raise Busy(f"{self._who} asked for a pause", left_s)
