"""Endpoints of RunPod: the rate limits of each, and whether it has workers.

RunPod takes the workers of an endpoint that is not used away, and goes on to take jobs for it: they wait for ever.
"""

from collections.abc import Mapping
from math import inf
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from cogflare.domain.clock import Clock
from cogflare.providers.pace import Pace

PATIENCE_S: Final = 15.0
LOOK_S: Final = 5.0
_LIMITS: Final = {"run": (6_000, 100), "read": (12_000, 200), "cancel": (600, 10)}  # a minute, and at once


_State = Annotated[str, Meta(pattern=r"^[A-Za-z_]{1,40}\Z")]
_Count = Annotated[int, Meta(ge=0, le=1_000_000)]


class Health(msgspec.Struct, frozen=True):
    """What an endpoint says of its workers; an idle one is `ready`, too."""

    workers: Annotated[dict[_State, _Count], Meta(max_length=20)] = {}

    @property
    def total(self) -> int:
        """All the workers there are, in whatever state."""
        return sum(self.workers.values())

    @property
    def able(self) -> int:
        """Those that could run something now."""
        return max(self._count("idle") + self._count("running"), self._count("ready"))

    @property
    def is_stuck(self) -> bool:
        """Whether no worker can run something, or will soon."""
        return not self.able and not self._count("initializing")

    def words(self, endpoint: str) -> str:
        """Say how it stands."""
        if not self.total:
            return (
                f"the endpoint {endpoint} has no workers, so nothing that is sent there would run: RunPod takes the "
                "workers of an endpoint away that nobody has used for 7 days. Set its max workers to 1 or more again "
                "in RunPod's console; a small request every other day keeps them"
            )
        told = ", ".join(f"{count} {state}" for state, count in self.workers.items() if count and state != "ready")
        if self.is_stuck:
            return (
                f"none of the workers of the endpoint {endpoint} can run anything now ({told}): RunPod has no free GPU "
                "of its kind, or its image does not start"
            )
        return f"the endpoint {endpoint} has workers: {told or f'{self.able} ready'}"

    def _count(self, state: str) -> int:
        return self.workers.get(state, 0)


class Endpoint:
    """One endpoint: `paces` for its calls, what was last seen of its workers, and whether its handler yields."""

    def __init__(self, who: str, clock: Clock) -> None:
        self.paces: Mapping[str, Pace] = {kind: Pace(who, clock, *limit) for kind, limit in _LIMITS.items()}
        self.is_plain = False
        self._now = clock.monotonic
        self._looked_at = -inf
        self._empty_since: float | None = None
        self._empty_until = 0.0

    def wants_look(self) -> bool:
        """Say whether it is time to ask for its health, and let nobody else do so for a moment."""
        if self._now() - self._looked_at < LOOK_S:
            return False
        self._looked_at = self._now()
        return True

    def seen(self, health: Health) -> None:
        """Note its health."""
        self._empty_until = self._now()
        if health.total:
            self._empty_since = None
        elif self._empty_since is None:
            self._empty_since = self._empty_until

    @property
    def empty_s(self) -> float | None:
        """For how long it has been seen without workers, None where it has some."""
        return None if self._empty_since is None else self._empty_until - self._empty_since
