"""Background work that one link has caused: bounded, so that no worker piles it up faster than the store does it."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

Work = Coroutine[Any, Any, None]


class Pending:
    """Work under way, at most about `limit` pieces at a time."""

    def __init__(self, spawn: "Callable[[Work], asyncio.Task[None]]", limit: int) -> None:
        self._spawn = spawn
        self._limit = limit
        self._count = 0
        self._done = asyncio.Event()

    @property
    def is_full(self) -> bool:
        """Whether no more should be started before some of it is done."""
        return self._count >= self._limit

    def start(self, work: Work) -> None:
        """Do it in the background, and count it until it is done."""
        self._count += 1
        self._spawn(work).add_done_callback(self._finished)

    async def room(self) -> None:
        """Wait until it is not full."""
        while self.is_full:
            self._done.clear()
            await self._done.wait()

    def _finished(self, _task: "asyncio.Task[None]") -> None:
        self._count -= 1
        self._done.set()
