"""What errands stand on: their pace, and what all errands of a node share."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import msgspec
from msgspec import Raw

from cogflare.domain.clock import Clock
from cogflare.domain.policy import Policy
from cogflare.engine.adoption import Spawn
from cogflare.engine.losses import Losses
from cogflare.engine.predictions import Predictions
from cogflare.engine.providers import Provider
from cogflare.engine.sizes import Sizes
from cogflare.protocol.messages import AttemptKey
from cogflare.providers.base import Executor, Unanswered
from cogflare.store.base import Database
from cogflare.store.errands import ErrandRow
from cogflare.store.predictions import PredictionRow

T = TypeVar("T")


class Pace(msgspec.Struct, frozen=True):
    """How often an errand looks, and how long it waits, in seconds.

    `soon_s`: to the first look after the submit, since what is short is over by then. `first_s`: to the next one.
    `find_again_s`: after which a run that was not found is not on its way any more. `lost_s`: without an answer that
    can be used, after which the errand is given up; `unwanted_s`: without an end of a run that nobody wants.
    """

    soon_s: float = 0.05
    first_s: float = 0.3
    slowest_s: float = 5.0
    retry_s: float = 0.5
    retry_most_s: float = 30.0
    find_again_s: float = 10.0
    cancel_again_s: float = 10.0
    gone_s: float = 5.0
    lost_s: float = 900.0
    unwanted_s: float = 3_600.0
    check_s: float = 5.0
    call_s: float = 30.0
    submit_s: float = 90.0

    def bounded(self, pause_s: float | None) -> float:
        """Return for how long nothing is asked of a provider that takes nothing now, by its own word."""
        return self.slowest_s if pause_s is None else min(max(pause_s, self.first_s), 2 * self.retry_most_s)


PACE = Pace()


class Files(Protocol):
    """What copies files: those of outputs into our storage, those of inputs to where the provider reads them."""

    async def outputs(
        self, executor: Executor, holder: str, key: AttemptKey, output: Raw, sizes: Sizes, /
    ) -> tuple[Raw, int]:
        """Return an output with our files in place of the provider's, and how many there are."""
        ...

    async def inputs(self, executor: Executor, row: PredictionRow, text: str, /) -> bytes:
        """Return an input whose files the provider can read."""
        ...

    def forget(self, key: AttemptKey, /) -> None:
        """Drop what is remembered of an attempt that is over."""
        ...


class Rules(Protocol):
    """The routes of accounts."""

    async def effective(self, account: str, model: str, wish: str | None, /) -> Policy | None:
        """Return the policy that a prediction with this wish follows; None: workers only. Raises `BadRoute`."""
        ...


class Payers(Protocol):
    """The providers of accounts."""

    async def get(self, id: str) -> Provider | None:
        """Return the provider of that id."""
        ...

    def executor(self, provider: Provider) -> Executor:
        """Return what speaks to it."""
        ...

    async def pause(self, id: str, seconds: float | None, reason: str) -> None:
        """Send nothing there for a while, or until somebody changes it."""
        ...


@dataclass(frozen=True)
class Means:
    """What all errands of a node share.

    `started` is called when an attempt has begun. `callback` is where a provider may tell of the end of a run, by its
    mark; None where nobody reaches us. `has_other` says whether anybody else may run what a provider has refused.
    """

    db: Database
    clock: Clock
    node: str
    providers: Payers
    routes: Rules
    predictions: Predictions
    losses: Losses
    files: Files
    spawn: Spawn
    started: Callable[[], None]
    sizes: Sizes
    callback: Callable[[str], str | None]
    has_other: Callable[[ErrandRow], Awaitable[bool]]
    pace: Pace = PACE


@dataclass
class Silence:
    """Since when there was no answer, and how many tries there were meanwhile."""

    pace: Pace
    since: float | None = None
    tries: int = 0

    def broken(self) -> None:
        """Note an answer."""
        self.since, self.tries = None, 0

    def again(self, now: float) -> float:
        """Note that there was none; returns the seconds until the next try."""
        self.since = now if self.since is None else self.since
        self.tries += 1
        return min(self.pace.retry_s * 2.0 ** min(self.tries - 1, 10), self.pace.retry_most_s)

    def is_long(self, now: float) -> bool:
        """Say whether nobody waits any longer."""
        return self.since is not None and now - self.since >= self.pace.lost_s


class Settlement(msgspec.Struct, frozen=True):
    """What an errand has come to."""

    cost: int | None
    run_us: int | None = None
    is_refused: bool = False
    is_in_doubt: bool = False


async def within(work: Coroutine[Any, Any, T], limit_s: float) -> T:
    """Return the answer of a provider; raises `Unanswered` where it takes longer."""
    try:
        async with asyncio.timeout(limit_s):
            return await work
    except TimeoutError:
        raise Unanswered(f"no answer within {limit_s:g} s") from None
