"""When a waiting prediction is going to start: the queue before it, played through many times with run times seen.

The next run time is drawn so that it falls with the same chance between any two neighbours of those seen, below all of
them or above: few samples make wide bands, many make the band that they have. Each game draws its own set first, so
that the doubt about the mean is in the band as well. Long queues are reckoned instead: sums are as good as normal.
"""

import heapq
import math
import random
from collections.abc import Sequence
from statistics import NormalDist
from typing import Final, NamedTuple

import msgspec

GAMES: Final = 240
"""How often a queue is played; fewer where it is long, for its sums scatter less."""
FEWEST_GAMES: Final = 60
MOST_DRAWS: Final = 15_000
LONGEST_PLAYED: Final = 150
MOST_SLOTS: Final = 48
MOST_SAMPLES: Final = 64
MOST_KINDS: Final = 16
MOST_LOOKED_AT: Final = 5_000
MOMENT_S: Final = 0.5
"""What nothing is reckoned finer than: handing a prediction to a worker takes a little."""
_SLACK: Final = 0.03
_NORMAL: Final = NormalDist()


class Running(msgspec.Struct, frozen=True):
    """A slot that is taken: how long its run has lasted, and run times of such runs (seconds; may be empty)."""

    elapsed_s: float
    times: Sequence[float] = ()


class Forecast(msgspec.Struct, frozen=True):
    """Seconds from now until a start: the band it is expected in, and the middle."""

    low_s: float
    mid_s: float
    high_s: float


def forecast(
    position: int,
    free: int,
    running: Sequence[Running],
    ahead: Sequence[Sequence[float]],
    *,
    seed: int,
    low: float = 0.03,
    high: float = 0.97,
) -> Forecast | None:
    """Return when the prediction at `position` (1: next) starts; None where there is nothing to go by.

    Slots are those that run something and `free` ones. `ahead` has run times of those before it, for each one of
    them in their order, or of the kinds of run there are; they are taken in turn. The band is from the quantile `low`
    to `high`.
    """
    before = max(position, 1) - 1
    if before < free:
        return Forecast(0.0, 0.0, MOMENT_S)
    if not running and not free:
        return None
    taken, free, before = _smaller(running, free, before)
    kinds, order = _kinds(ahead)
    if not kinds:
        seen = [time for run in taken for time in run.times[-MOST_SAMPLES:]]
        if not seen:
            return None
        kinds, order = [_Times(seen)], [0]
    known: dict[int, _Times] = {}  # slots of one kind share their times
    slots = []
    for run in taken:
        if run.times and id(run.times) not in known:
            known[id(run.times)] = _Times(run.times)
        slots.append((max(run.elapsed_s, 0.0), known.get(id(run.times), kinds[0])))
    source = random.Random(seed)  # noqa: S311 (a game, no secret)
    scene = _Scene(before, free, slots, kinds, order, source)
    return scene.reckoned(low, high) if before > LONGEST_PLAYED else scene.played(low, high)


def _kinds(ahead: Sequence[Sequence[float]]) -> tuple[list["_Times"], list[int]]:
    """Return the different kinds of run, and which of them come one after the other."""
    kinds: list[_Times] = []
    numbers: dict[int, int] = {}
    order = []
    for times in ahead[:MOST_LOOKED_AT]:
        number = numbers.get(id(times))
        if number is None and times:
            found = _Times(times)
            number = next((number for number, kind in enumerate(kinds) if kind.samples == found.samples), len(kinds))
            if number >= MOST_KINDS:
                break
            kinds[number:] = [found] if number == len(kinds) else kinds[number:]
            numbers[id(times)] = number
        if number is not None:
            order.append(number)
    return kinds, order


def _smaller(running: Sequence[Running], free: int, before: int) -> tuple[Sequence[Running], int, int]:
    """Scale a crowd of slots and what waits for them down alike: the wait stays the same."""
    scale = (len(running) + free) / MOST_SLOTS
    if scale <= 1:
        return running, free, before
    count = max(min(round(len(running) / scale), MOST_SLOTS), 0 if free else 1)
    taken = [running[index * len(running) // count] for index in range(count)]
    return taken, min(round(free / scale), round(before / scale)), round(before / scale)


class _Times:
    """Run times seen, sorted, and how far others may lie beyond them; `weight`: how many they count for."""

    __slots__ = ("below", "mean", "samples", "spread", "variance", "weight")

    def __init__(self, times: Sequence[float]) -> None:
        known = [min(max(time, 0.0), 1e9) for time in times if not math.isnan(time)][-MOST_SAMPLES:]
        self.samples = sorted(known) or [0.0]
        count = len(self.samples)
        self.weight = max(count - 2, 1)
        self.mean = sum(self.samples) / count
        doubt = self.mean * (0.3 / count + 0.005)
        self.variance = sum((time - self.mean) ** 2 for time in self.samples) / count + doubt**2
        top = max(1, count // 5)
        base = self.samples[-top - 1] if count > top else self.samples[0]
        excess = sum(time - base for time in self.samples[-top:]) / top
        self.spread = max(excess if count > 1 else 0.0, doubt)
        self.below = max(self.samples[0] - doubt, 0.0)

    def draw(self, source: random.Random, elapsed_s: float = 0.0) -> float:
        """Draw a run time that is longer than `elapsed_s`; what has outlasted all seen may still last as long again."""
        samples = self.samples
        if elapsed_s < self.below:
            at = source.random() * (len(samples) + 1)
            if at < 1:
                return self.below + (samples[0] - self.below) * at
            return self._between(int(at) - 1, at % 1, source)
        first = next((index for index, time in enumerate(samples) if time > elapsed_s), len(samples))
        if first == len(samples):
            return elapsed_s + source.expovariate(1.0) * (self.spread + (elapsed_s - samples[-1]))
        # Half of the gap that it is in counts, as it may have passed any part of it.
        at = source.random() * (len(samples) - first + 0.5) - 0.5
        if at < 0:
            return elapsed_s + (samples[first] - elapsed_s) * source.random()
        return self._between(first + int(at), at % 1, source)

    def _between(self, index: int, share: float, source: random.Random) -> float:
        """Return a time between the sample of this index and the next, or beyond the last."""
        if index >= len(self.samples) - 1:
            return self.samples[-1] + source.expovariate(1.0) * self.spread
        return self.samples[index] + (self.samples[index + 1] - self.samples[index]) * share

    def redrawn(self, source: random.Random, count: int) -> list[float]:
        """Draw a set of times like this one, and then `count` times out of it."""
        return source.choices([self.draw(source) for _ in range(min(self.weight, count))], k=count)


class _Scene(NamedTuple):
    """What waits, by number, and the slots it waits for: free ones, and those that run something for so long."""

    before: int
    free: int
    slots: Sequence[tuple[float, _Times]]
    kinds: Sequence[_Times]
    order: Sequence[int]
    source: random.Random

    def played(self, low: float, high: float) -> Forecast:
        """Play the queue many times."""
        games = min(GAMES, max(FEWEST_GAMES, MOST_DRAWS // (self.before + len(self.slots) + 1)))
        order = [self.order[index % len(self.order)] for index in range(self.before)]
        shares = [order.count(number) for number in range(len(self.kinds))]
        starts = sorted(self._game(order, shares) for _ in range(games))
        return _widened(_quantile(starts, low), _quantile(starts, 0.5), _quantile(starts, high))

    def _game(self, order: Sequence[int], shares: Sequence[int]) -> float:
        """Play the queue once; return when the next one after all of it starts."""
        ends = [0.0] * self.free + [times.draw(self.source, elapsed_s) - elapsed_s for elapsed_s, times in self.slots]
        heapq.heapify(ends)
        drawn = [iter(times.redrawn(self.source, share)) for times, share in zip(self.kinds, shares, strict=True)]
        for number in order:
            heapq.heapreplace(ends, ends[0] + next(drawn[number]))
        return ends[0]

    def reckoned(self, low: float, high: float) -> Forecast:
        """Reckon the queue: the slots share its work, less what they still have to do when the last has started."""
        count = self.free + len(self.slots)
        rests = [times.draw(self.source, elapsed_s) - elapsed_s for elapsed_s, times in self.slots for _ in range(4)]
        work = sum(rests) / 4
        variance = sum(times.variance for _, times in self.slots)
        mean = square = 0.0
        for number, times in enumerate(self.kinds):
            portion = self.order.count(number) / len(self.order)
            share = portion * self.before
            work += share * times.mean
            variance += share * times.variance * (1 + share / times.weight)
            mean += portion * times.mean
            square += portion * (times.variance + times.mean**2)
        left = square / (2 * mean) if mean > 0 else 0.0
        middle = max(work - (count - 1) * left, 0.0) / count
        width = math.sqrt(variance) / count
        return _widened(middle + width * _NORMAL.inv_cdf(low), middle, middle + width * _NORMAL.inv_cdf(high))


def _quantile(ordered: Sequence[float], share: float) -> float:
    at = share * (len(ordered) - 1)
    lower, upper = ordered[math.floor(at)], ordered[math.ceil(at)]
    return lower + (upper - lower) * (at % 1)


def _widened(low_s: float, mid_s: float, high_s: float) -> Forecast:
    """Leave room for what is not played: the way to the worker and back."""
    low_s = max(low_s * (1 - _SLACK) - MOMENT_S / 2, 0.0)
    return Forecast(low_s, max(mid_s, low_s), max(high_s, mid_s) * (1 + _SLACK) + MOMENT_S)
