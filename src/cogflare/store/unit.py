"""A unit on its way through a driver, and the listeners that hear of it: what both drivers share."""

import asyncio
from collections.abc import Callable, Iterable, Sequence

import msgspec

from cogflare.store.base import Hint, Listener, Row
from cogflare.store.sql import Step

MAX_HINT_BYTES = 4096
"""The most bytes of a hint as JSON; it must fit into one message of any transport."""

Rows = list[list[Row]]


class Unit:
    """Steps to run as one, the future its caller waits on, and what became of it.

    `outcome` is None until the driver has decided, then the rows of each step or the error of the unit. It is the
    driver's own until `release`, which runs on the event loop after the commit. `size` is the bytes of its content.
    """

    __slots__ = ("future", "hints", "landed", "outcome", "size", "steps")

    def __init__(
        self, steps: list[Step], hints: Sequence[Hint], landed: Step | None, future: asyncio.Future[Rows]
    ) -> None:
        for hint in hints:
            # Most hints are short: no character takes more than six bytes of JSON.
            if len(hint.channel) + len(hint.payload) > 600 and len(msgspec.json.encode(hint)) > MAX_HINT_BYTES:
                raise ValueError(f"a hint on {hint.channel} is larger than {MAX_HINT_BYTES} bytes")
        self.steps = steps
        self.hints = hints
        self.landed = landed
        self.future = future
        self.size = 0
        self.outcome: Rows | Exception | None = None

    def release(self) -> None:
        """Give the caller its outcome; a caller that was cancelled has left, and the unit stands all the same."""
        if self.future.done():
            return
        if isinstance(self.outcome, Exception):
            self.future.set_exception(self.outcome)
        else:
            assert self.outcome is not None
            self.future.set_result(self.outcome)


def release(units: Iterable[Unit]) -> list[Hint]:
    """Release decided units; return the hints of those that happened, each once."""
    hints: dict[Hint, None] = {}
    for unit in units:
        unit.release()
        if unit.hints and not isinstance(unit.outcome, Exception):
            hints.update(dict.fromkeys(unit.hints))
    return list(hints)


class Listeners:
    """Who wants to hear hints in this process. Used on the event loop only."""

    def __init__(self) -> None:
        self._listeners: dict[object, Listener] = {}

    def add(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` for each hint from now on; returns the way to stop."""
        key = object()
        self._listeners[key] = listener

        def stop() -> None:
            self._listeners.pop(key, None)

        return stop

    def tell(self, hints: Iterable[Hint]) -> None:
        """Pass each hint to every listener; one that raises is reported to the loop and does not harm the others."""
        for hint in hints:
            for listener in list(self._listeners.values()):
                try:
                    listener(hint)
                except Exception as error:
                    context = {"message": f"a listener failed on a hint of {hint.channel}", "exception": error}
                    asyncio.get_running_loop().call_exception_handler(context)
