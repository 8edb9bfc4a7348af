"""Who waits for a prediction to end. Waking is a hint: a waiter looks at the store when it wakes, and now and then."""

import asyncio

import msgspec


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


class Waiters:
    """Futures by prediction; each resolves with what is known of the end, or None if the store has to be asked."""

    def __init__(self) -> None:
        self._futures: dict[str, asyncio.Future[Ended | None]] = {}
        self._counts: dict[str, int] = {}

    def join(self, prediction: str) -> asyncio.Future[Ended | None]:
        """Return the future of this prediction's end; pair each call with `leave`."""
        self._counts[prediction] = self._counts.get(prediction, 0) + 1
        future = self._futures.get(prediction)
        if future is None:
            future = self._futures[prediction] = asyncio.get_running_loop().create_future()
        return future

    def leave(self, prediction: str) -> None:
        """Give up a place got by `join`."""
        left = self._counts[prediction] - 1
        if left:
            self._counts[prediction] = left
            return
        del self._counts[prediction]
        self._futures.pop(prediction).cancel()

    def wake(self, prediction: str, ended: Ended | None = None) -> None:
        """Tell those who wait that the prediction has ended."""
        future = self._futures.get(prediction)
        if future is not None and not future.done():
            future.set_result(ended)

    def wake_all(self) -> None:
        """Tell everybody to look for themselves: this node is about to stop."""
        for prediction in list(self._futures):
            self.wake(prediction)
