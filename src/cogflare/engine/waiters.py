"""Who waits for a prediction to end. Waking is a hint: a waiter looks at the store when it wakes, and now and then."""

import asyncio

import msgspec

_MAX_WAITING = 20_000


class Ended(msgspec.Struct, frozen=True):
    """What the node that ended a prediction knows of it, so that waiters there need not read it back.

    Not `complete` where the output lies apart and was never in memory here.
    """

    version: str
    status: str
    completed_at: int
    started_at: int | None
    output: bytes | None
    logs: str
    error: str | None
    metrics: str | None
    complete: bool = True


class Waiter:
    """One place in the queue of those who wait for a prediction. `ended` is what the waker knew, if anything."""

    __slots__ = ("_future", "ended", "is_woken")

    def __init__(self) -> None:
        self._future: asyncio.Future[None] | None = None
        self.ended: Ended | None = None
        self.is_woken = False

    async def wait(self, timeout_s: float) -> bool:
        """Wait to be woken; returns False when the time is over first."""
        if not self.is_woken:
            loop = asyncio.get_running_loop()
            self._future = future = loop.create_future()
            timer = loop.call_later(timeout_s, _resolve, future)
            try:
                await future
            finally:
                timer.cancel()
        return self.is_woken

    def wake(self, ended: Ended | None) -> None:
        """Let `wait` return."""
        self.is_woken = True
        self.ended = self.ended or ended
        if self._future is not None:
            _resolve(self._future)


class Waiters:
    """Those who wait, by prediction."""

    def __init__(self) -> None:
        self._waiters: dict[str, list[Waiter]] = {}
        self._count = 0
        self._is_stopping = False

    def join(self, prediction: str) -> Waiter:
        """Return a new place; give it up with `leave`. Where too many wait already, it is woken at once."""
        waiter = Waiter()
        self._count += 1
        if self._is_stopping or self._count > _MAX_WAITING:
            waiter.wake(None)
        self._waiters.setdefault(prediction, []).append(waiter)
        return waiter

    def leave(self, prediction: str, waiter: Waiter) -> None:
        """Give up a place got by `join`."""
        waiters = self._waiters[prediction]
        waiters.remove(waiter)
        self._count -= 1
        if not waiters:
            del self._waiters[prediction]

    def wake(self, prediction: str, ended: Ended | None = None) -> None:
        """Tell those who wait that the prediction has ended."""
        for waiter in self._waiters.get(prediction, ()):
            waiter.wake(ended)

    def wake_all(self) -> None:
        """Tell everybody to look for themselves: this node is about to stop."""
        self._is_stopping = True
        for prediction in list(self._waiters):
            self.wake(prediction)


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
