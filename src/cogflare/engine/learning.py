"""What own workers run, and how long it takes: collected in memory at each finish, written every two seconds.

It stands on the path of every finish, so it only notes facts; whose model a version is, and on which GPU it ran, is
read once for all of them when they are written. What was collected since the last write is lost with the process.
"""

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from cogflare.domain.clock import Clock
from cogflare.domain.money import day_of
from cogflare.engine.live import Live
from cogflare.protocol.messages import Finish
from cogflare.store import fleet, usage
from cogflare.store.base import Database, StoreError
from cogflare.store.fleet import Offering

FLUSH_S = 2.0
SAMPLES = 64  # run times that are kept of one version on one kind of GPU
_MOST = 20_000  # workers and versions between two writes
_LONGEST_S = 10.0**7


@dataclass(slots=True)
class _Tally:
    """What a worker ran of a version for an account."""

    runs: int = 0
    run_us: int = 0
    samples: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))


class Learning:
    """Learns run times, and counts what own workers run."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._tallies: dict[tuple[str, str, str], _Tally] = {}

    def finished(self, live: Live, finish: Finish | None) -> None:
        """Note that a run has ended, or (no `finish`) was stopped. Of those that succeeded the time is learned."""
        run_ms, now = None if finish is None else finish.run_ms, self._clock.monotonic()
        if run_ms is not None:
            run_s = min(max(run_ms / 1000, 0.0), _LONGEST_S)
        elif live.begun_at is not None:
            run_s = max(now - live.begun_at, 0.0)
        else:
            return
        key = (live.account, live.version, live.holder.worker)
        tally = self._tallies.get(key)
        if tally is None:
            if len(self._tallies) >= _MOST:
                return
            tally = self._tallies[key] = _Tally()
        tally.runs += 1
        tally.run_us += int(run_s * 1_000_000)
        if finish is not None and finish.status == "succeeded":
            # Its input came and its files went while it held the slot: who waits behind it waits for that too.
            tally.samples.append(round(max(run_s, now - live.assigned_at), 4))

    async def tick(self) -> float:
        """Write what was collected; returns the seconds until the next time."""
        await self.flush()
        return FLUSH_S

    async def stop(self) -> None:
        """Write the last of it, if the store takes it. Twice is harmless."""
        with suppress(StoreError):
            await self.flush()

    async def flush(self) -> None:
        """Write what was collected; what the store refuses is collected on."""
        if not self._tallies:
            return
        tallies, self._tallies = self._tallies, {}
        try:
            offerings = await fleet.offerings(self._db, sorted({worker for _, _, worker in tallies}))
            now = self._clock.wall()
            await usage.add(self._db, *_sums(tallies, offerings, day_of(now)), now)
        except StoreError:
            self._take_back(tallies)
            raise

    def _take_back(self, tallies: dict[tuple[str, str, str], _Tally]) -> None:
        for key, earlier in tallies.items():
            later = self._tallies.get(key)
            if later is not None:
                earlier.runs += later.runs
                earlier.run_us += later.run_us
                earlier.samples.extend(later.samples)
        self._tallies = {**self._tallies, **tallies}


_Usage = list[tuple[str, str, str, int, int]]
_Times = list[tuple[str, str, str, str, Sequence[float]]]


def _sums(
    tallies: dict[tuple[str, str, str], _Tally], offerings: dict[str, Offering], day: str
) -> tuple[_Usage, _Times]:
    """Return usage by (account, model, day) and samples by (catalog, model, version, GPU)."""
    used: dict[tuple[str, str], list[int]] = {}
    times: dict[tuple[str, str, str, str], deque[float]] = {}
    for (account, version, worker), tally in tallies.items():
        offering = offerings.get(worker)
        model = None if offering is None else offering.models.get(version)
        if offering is None or model is None:
            continue  # a provider; or a worker that was forgotten, or offers something else by now
        sums = used.setdefault((account, model), [0, 0])
        sums[0] += tally.runs
        sums[1] += tally.run_us
        if tally.samples:
            key = (offering.account, model, version, offering.gpu)
            times.setdefault(key, deque(maxlen=SAMPLES)).extend(tally.samples)
    return (
        [(account, model, day, runs, run_us) for (account, model), (runs, run_us) in used.items()],
        [(*key, list(samples)) for key, samples in times.items()],
    )
