"""Forecasts of starts: whether the band holds what then happens, and is no wider than it has to be."""

import heapq
import random
import statistics
import time
from collections.abc import Callable
from typing import Final

import pytest

from cogflare.domain.forecast import MOMENT_S, Forecast, Running, forecast

SERVERS: Final = 4
Source = Callable[[random.Random], float]
KINDS: Final[dict[str, Source]] = {
    "lognormal": lambda source: source.lognormvariate(1.5, 0.5),
    "constant": lambda source: 6.0,
    "bimodal": lambda source: source.uniform(2, 3) if source.random() < 0.6 else source.uniform(9, 12),
}


class Scene:
    """A queue before busy servers, as it stands at one moment, and how it goes on."""

    def __init__(self, seed: int, kinds: list[Source], samples: int, waiting: int) -> None:
        source = random.Random(seed)
        self.times = [[kind(source) for _ in range(samples)] for kind in kinds]
        runs = [source.randrange(len(kinds)) for _ in range(waiting + 60)]
        lasting = [kinds[kind](source) for kind in runs]
        # The first 60 bring the servers into the middle of their work.
        ends = [(0.0, -1)] * SERVERS
        begun = [0.0] * len(runs)
        for number in range(len(runs)):
            begun[number] = ends[0][0]
            heapq.heapreplace(ends, (begun[number] + lasting[number], number))
        now = begun[60 - 1] + 0.001
        held = [number for number in range(60) if begun[number] <= now < begun[number] + lasting[number]]
        self.running = [Running(now - begun[number], self.times[runs[number]]) for number in held]
        self.ahead = [self.times[kind] for kind in runs[60:-1]]
        self.position = waiting
        self.wait_s = begun[-1] - now
        self.free = SERVERS - len(self.running)

    def forecast(self, seed: int) -> Forecast:
        found = forecast(self.position, self.free, self.running, self.ahead, seed=seed)
        assert found is not None
        return found


def told(kinds: list[Source], samples: int, count: int) -> tuple[float, float, float, float]:
    """Return the share of waits inside their bands, and the medians of bands, waits, and errors of the middle."""
    inside, bands, waits, errors = [], [], [], []
    for seed in range(count):
        scene = Scene(seed, kinds, samples, waiting=random.Random(seed).randint(1, 40))
        found = scene.forecast(seed)
        assert 0 <= found.low_s <= found.mid_s <= found.high_s
        inside.append(found.low_s <= scene.wait_s <= found.high_s)
        bands.append(found.high_s - found.low_s)
        waits.append(scene.wait_s)
        errors.append(abs(found.mid_s - scene.wait_s))
    return statistics.mean(inside), statistics.median(bands), statistics.median(waits), statistics.median(errors)


@pytest.mark.parametrize("samples", [12, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_the_band_holds_the_waits_of_one_model(kind: str, samples: int) -> None:
    share, band, wait, error = told([KINDS[kind]], samples, 160)
    assert share >= 0.9
    assert band <= wait
    assert error <= wait / 4


@pytest.mark.parametrize("samples", [12, 64])
def test_the_band_holds_the_waits_of_three_models_on_four_workers(samples: int) -> None:
    share, band, wait, error = told(list(KINDS.values()), samples, 160)
    assert share >= 0.9
    assert band <= wait
    assert error <= wait / 4


def test_few_samples_make_wide_bands() -> None:
    few, many = (told([KINDS["lognormal"]], samples, 100) for samples in (2, 64))
    assert few[0] >= 0.8
    assert few[1] > 1.3 * many[1]


@pytest.mark.parametrize("waiting", [250, 1000])
def test_long_queues_are_reckoned(waiting: int) -> None:
    scenes = [Scene(seed, [KINDS["bimodal"]], 64, waiting) for seed in range(60)]
    found = [(scene.wait_s, scene.forecast(seed)) for seed, scene in enumerate(scenes)]
    assert statistics.mean(one.low_s <= wait <= one.high_s for wait, one in found) >= 0.9
    assert statistics.median(one.high_s - one.low_s for _, one in found) <= statistics.median(wait for wait, _ in found)


def test_what_is_played_and_what_is_reckoned_agree() -> None:
    running, times = [Running(1.0, [4.0, 6.0] * 16)] * SERVERS, [[4.0, 6.0] * 16]
    played = forecast(151, 0, running, times, seed=1)
    reckoned = forecast(152, 0, running, times, seed=1)
    assert played is not None
    assert reckoned is not None
    for one, other in zip(*map(_figures, (played, reckoned)), strict=True):
        assert one == pytest.approx(other, rel=0.05)


def _figures(found: Forecast) -> tuple[float, float, float]:
    return found.low_s, found.mid_s, found.high_s


@pytest.mark.parametrize(
    ("position", "servers"), [(1_000_000, 4), (152, 4), (151, 4), (151, 100), (40, 3_000), (10**6, 10**4)]
)
def test_the_work_is_bounded(position: int, servers: int) -> None:
    times = [float(number) for number in range(1, 1001)]
    running = [Running(number % 7, list(times[:64])) for number in range(servers)]
    begun = time.process_time()
    assert forecast(position, 0, running, [times], seed=1) is not None
    assert time.process_time() - begun < 0.5


def test_many_slots_end_soon_one_after_the_other() -> None:
    times = [10.0 + number / 10 for number in range(64)]
    running = [Running(number / 100, times) for number in range(1_000)]
    first, last = (forecast(position, 0, running, [times], seed=1) for position in (1, 1_000))
    assert first is not None
    assert last is not None
    assert first.mid_s < 4
    assert 9 < last.mid_s < 18


def test_a_free_slot_is_taken_at_once() -> None:
    assert forecast(1, 1, [], [], seed=1) == Forecast(0.0, 0.0, MOMENT_S)
    assert forecast(3, 3, [Running(1.0)], [], seed=1) == Forecast(0.0, 0.0, MOMENT_S)


@pytest.mark.parametrize(
    ("position", "free", "running", "ahead"),
    [
        (1, 0, [], [[1.0]]),
        (1, 0, [Running(1.0)], []),
        (1, 0, [Running(1.0, [])], [[]]),
        (3, 2, [], []),
    ],
)
def test_nothing_to_go_by(position: int, free: int, running: list[Running], ahead: list[list[float]]) -> None:
    assert forecast(position, free, running, ahead, seed=1) is None


@pytest.mark.parametrize(
    ("running", "ahead"),
    [([Running(1.0)], [[5.0] * 20]), ([Running(1.0, [5.0] * 20)], []), ([Running(1.0, [5.0] * 20)], [[5.0] * 20])],
)
def test_times_are_taken_from_where_there_are_some(running: list[Running], ahead: list[list[float]]) -> None:
    found = forecast(2, 0, running, ahead, seed=1)
    assert found is not None
    assert found.mid_s == pytest.approx(9.0, rel=0.05)


def test_what_has_outlasted_all_seen_ends_the_later_the_longer_it_has_lasted() -> None:
    times = [5.0] * 20
    soon, later, much_later = (forecast(1, 0, [Running(age, times)], [times], seed=1) for age in (5.1, 10.0, 500.0))
    assert soon is not None
    assert later is not None
    assert much_later is not None
    assert soon.high_s < 2 < later.high_s < 30 < much_later.high_s


def test_the_same_seed_says_the_same() -> None:
    scene = Scene(1, list(KINDS.values()), 20, 9)
    assert scene.forecast(5) == scene.forecast(5) != scene.forecast(6)


@pytest.mark.parametrize("times", [[0.0], [0.0] * 64, [float("nan"), 2.0], [float("inf"), 2.0], [-1.0, 2.0], [1e300]])
def test_strange_times_do_no_harm(times: list[float]) -> None:
    for position in (1, 5, 500):
        found = forecast(position, 0, [Running(-1.0, times)], [times], seed=1)
        assert found is not None
        assert 0 <= found.low_s <= found.mid_s <= found.high_s < float("inf")
