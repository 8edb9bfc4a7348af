"""How many requests may be under way to each host that receives webhooks, so that no host takes the places of others.

A host may take several places while there are enough; when they run low, one. A host that does not answer gets one try
at a time, with pauses that grow, and all such hosts together get a part of the places. A host counts for each account
by itself, and no account has all places.
"""

from collections import Counter
from typing import Final

from cogflare.domain.clock import Clock
from cogflare.domain.webhooks import account_of

PLACES: Final = 128
PLACES_A_HOST: Final = 8
PLACES_AN_ACCOUNT: Final = 96
PROBES: Final = 32
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
_REMEMBERED: Final = 10_000


class Hosts:
    """The places of one node, and which hosts are down."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._taken: dict[str, int] = {}
        self._accounts: Counter[str] = Counter()
        self._total = 0
        self._down: dict[str, tuple[int, float]] = {}

    @property
    def total(self) -> int:
        """How many requests are under way."""
        return self._total

    @property
    def is_open(self) -> bool:
        """Whether there is a place for anybody."""
        return self._total < PLACES

    def is_resting(self, host: str) -> bool:
        """Say whether a host is down and nothing is under way to it."""
        return host in self._down and host not in self._taken

    def room(self, host: str) -> int:
        """Return how many more requests may go to this host now."""
        taken = self._taken.get(host, 0)
        left = min(PLACES - self._total, PLACES_AN_ACCOUNT - self._accounts[account_of(host)])
        if left <= 0:
            return 0
        if host in self._down:
            is_resting = self._clock.monotonic() < self._down[host][1]
            return 0 if taken or is_resting or self._probes() >= PROBES else 1
        most = PLACES_A_HOST if self._total < PLACES // 2 else 1
        return max(0, min(most - taken, left))

    def take(self, host: str, count: int = 1) -> None:
        """Count requests in."""
        if count:
            self._taken[host] = self._taken.get(host, 0) + count
            self._accounts[account_of(host)] += count
            self._total += count

    def give(self, host: str, count: int = 1) -> None:
        """Count requests out."""
        left = self._taken[host] - count
        self._total -= count
        if left:
            self._taken[host] = left
        else:
            del self._taken[host]
        account = account_of(host)
        self._accounts[account] -= count
        if not self._accounts[account]:
            del self._accounts[account]

    def note(self, host: str, *, is_up: bool) -> None:
        """Note whether a host has answered."""
        if is_up:
            self._down.pop(host, None)
            return
        failures = self._down.get(host, (0, 0.0))[0] + 1
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(failures - 1, 20))
        now = self._clock.monotonic()
        self._down[host] = (failures, now + pause_s)
        if len(self._down) > _REMEMBERED:
            self._down = {down: rest for down, rest in self._down.items() if rest[1] > now}

    def _probes(self) -> int:
        return sum(count for host, count in self._taken.items() if host in self._down)
