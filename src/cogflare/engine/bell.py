"""How others reach a task: a rest that ends early when somebody rings, and work that somebody may break off."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

HINT_S: Final = 0.25  # the least time from one look to the next that a hint asks for

T = TypeVar("T")


class Bell:
    """What one task rests on. Rings that come while it does not rest end the next rest."""

    def __init__(self) -> None:
        self._is_rung = False
        self._is_hinted = False
        self._future: asyncio.Future[None] | None = None

    def ring(self) -> None:
        """End the rest at once."""
        self._is_rung = True
        self._wake()

    def hint(self) -> None:
        """End the rest soon."""
        self._is_hinted = True
        self._wake()

    async def rest(self, pause_s: float) -> None:
        """Wait for so long, or until it rings."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while not self._is_rung:
            left_s = begun + (min(HINT_S, pause_s) if self._is_hinted else pause_s) - loop.time()
            if left_s <= 0:
                break
            self._future = future = loop.create_future()
            timer = loop.call_later(left_s, _resolve, future)
            try:
                await future
            finally:
                timer.cancel()
                self._future = None
        self._is_rung = self._is_hinted = False

    def _wake(self) -> None:
        if self._future is not None:
            _resolve(self._future)


class Broken(Exception):
    """The work was broken off."""


class Breakable:
    """Work of one task that another may break off."""

    def __init__(self) -> None:
        self._task: asyncio.Future[Any] | None = None
        self._is_broken = False

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work; raises `Broken` when it was broken off."""
        self._is_broken = False
        self._task = task = asyncio.ensure_future(work)
        try:
            return await task
        except asyncio.CancelledError:
            this = asyncio.current_task()
            if self._is_broken and not (this is not None and this.cancelling()):
                raise Broken from None
            raise
        finally:
            self._task = None

    def break_off(self) -> None:
        """End the work under way, if there is any."""
        if self._task is not None and self._task.cancel():
            self._is_broken = True


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
