"""Forecasts hold: what was told five seconds after a creation, against when it started.

Hours of a small fleet are played by a clock that the test moves, through the real engine and store.
"""

import heapq
import itertools
import random
import statistics
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cogflare.domain.ids import model_queue, version_queue
from cogflare.engine import service
from cogflare.engine.figures import Group, Key, Line
from cogflare.engine.forecasts import rest_of
from cogflare.store.base import Database
from cogflare.store.open import open_database
from cogflare.store.routing import OfferedRow
from engine.asked import Asked
from engine.rig import MovableClock, RigWorker

pytestmark = pytest.mark.anyio

TOLD_S = 5.0
MODELS = {"ada/fast": (3.0, 0.25), "ada/noop": (9.0, 0.45), "ada/slow": (25.0, 0.3)}
"""Their run times: the median, and how far the logarithms scatter."""
WORKERS = ("ada/fast", "ada/noop", "ada/noop", "ada/slow")
LOAD = 1.05  # a fleet that is asked for a little more than it can do
WARM = 60
COUNT = 420


class StandingClock(MovableClock):
    """A clock that moves only when it is told to."""

    def wall(self) -> int:
        return 1_800_000_000_000_000 + int(self.wall_ahead_s * 1_000_000)

    def monotonic(self) -> float:
        return 1_000.0 + self.ahead_s


class Day:
    """Predictions come at random, workers take their time, and each that still waits is told when it starts."""

    def __init__(self, rig: Asked, workers: list[tuple[RigWorker, str]], seed: int) -> None:
        self.rig = rig
        self.workers = workers
        self.source = random.Random(seed)
        self.numbers = itertools.count()
        self.events: list[tuple[float, int, str, Any]] = []
        self.now = 0.0
        self.created: dict[str, float] = {}
        self.waited: dict[str, float] = {}
        self.bands: dict[str, tuple[float, float]] = {}
        self.untold = 0

    def at(self, time: float, kind: str, about: Any) -> None:
        heapq.heappush(self.events, (time, next(self.numbers), kind, about))

    def arrivals(self) -> None:
        """Let each model be asked for as often as its workers can just take."""
        for model, (median_s, scatter) in MODELS.items():
            mean_s = median_s * (1 + scatter**2 / 2)
            gap_s = mean_s / WORKERS.count(model) / LOAD
            time = 0.0
            for _ in range(COUNT // len(MODELS)):
                time += self.source.expovariate(1 / gap_s)
                self.at(time, "create", model)

    async def play(self) -> None:
        caller = await self.rig.caller("ada")
        self.arrivals()
        while self.events:
            time, _, kind, about = heapq.heappop(self.events)
            self.rig.pass_by(time - self.now)
            self.now = time
            if kind == "create":
                id = (await self.rig.create(caller, about)).id
                self.created[id] = time
                self.at(time + TOLD_S, "tell", id)
            elif kind == "tell":
                await self.tell(caller.account, about)
            else:
                worker, key = about
                assert await worker.finish(key) == "committed"
            await self.rig.settle()
            await self.take()

    async def tell(self, account: str, id: str) -> None:
        if id in self.waited:
            return
        await self.rig.learning.flush()
        found = await self.rig.explanations.explain(account, id)
        assert found.code in ("all_busy", "behind_n"), found
        if found.eta is None:
            self.untold += 1
        elif len(self.waited) > WARM:
            self.bands[id] = (TOLD_S + found.eta.low_s, TOLD_S + found.eta.high_s)

    async def take(self) -> None:
        """Let the workers begin what they were given."""
        for worker, model in self.workers:
            while not worker.assigned.empty():
                work = worker.assigned.get_nowait()
                key = await worker.start(work)
                self.waited[work.prediction] = self.now - self.created[work.prediction]
                median_s, scatter = MODELS[model]
                self.at(self.now + median_s * self.source.lognormvariate(0, scatter), "finish", (worker, key))


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[Database]:
    opened = open_database(f"sqlite:///{tmp_path}/day.db")
    await opened.migrate()
    yield opened
    await opened.aclose()


@pytest.mark.parametrize("seed", [1, 2])
async def test_nine_of_ten_waits_end_in_the_band_that_was_told(
    sqlite: Database, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "START_S", 0.0)  # of the test's own time
    rig = Asked(sqlite, StandingClock())
    workers = [(await rig.offer(model, name=f"w{number}"), model) for number, model in enumerate(WORKERS)]
    day = Day(rig, workers, seed)
    await day.play()
    assert len(day.waited) == COUNT, "each of them ran"
    assert len(day.bands) > 100
    assert day.untold < WARM, "once something is known, all are told"
    inside = sum(low <= day.waited[id] <= high for id, (low, high) in day.bands.items()) / len(day.bands)
    band_s = statistics.median(high - low for low, high in day.bands.values())
    wait_s = statistics.median(day.waited[id] for id in day.bands)
    print(f"{len(day.bands)} told, {inside:.1%} inside, median band {band_s:.1f} s, median wait {wait_s:.1f} s")
    assert inside >= 0.9
    assert band_s <= wait_s


# --- places -----------------------------------------------------------------------------------------------------------


def _group(*lines: Line) -> Group:
    worker = OfferedRow("w", "shared", "online", None, "v1", 2, 2, "{}", None)
    return Group(Key(("shared",), "o/m", None), (worker,), (), (), (), (), (), (), lines)


QUEUE, VERSION_QUEUE = model_queue("shared", "o", "m"), version_queue("shared", "v1")
TURN = 1_000_000


@pytest.mark.parametrize(
    ("lines", "ahead", "place"),
    [
        ([Line(QUEUE, "b", 1, 0)], 0, 1),
        ([Line(QUEUE, "b", 5, 0)], 4, 5),
        ([Line(QUEUE, "b", 1, 0), Line(QUEUE, "c", 50, 0)], 0, 1),
        ([Line(QUEUE, "b", 1, 0), Line(QUEUE, "a", 50, 0)], 0, 2),
        ([Line(QUEUE, "b", 4, 0), Line(QUEUE, "c", 50, 0)], 3, 7),
        ([Line(QUEUE, "b", 4, 0), Line(QUEUE, "c", 2, 0)], 3, 6),
        ([Line(QUEUE, "b", 1, 3 * TURN), Line(QUEUE, "c", 50, 0)], 0, 4),
        ([Line(QUEUE, "b", 1, 0), Line(QUEUE, "c", 50, 9 * TURN)], 0, 1),
        ([Line(QUEUE, "b", 3, 0), Line(VERSION_QUEUE, "c", 50, 0)], 2, 5),
        ([Line(QUEUE, "c", 2, 0)], 0, 2),
    ],
)
def test_the_place_is_the_own_turn_and_those_of_others_before_it(lines: list[Line], ahead: int, place: int) -> None:
    assert _group(*lines).place(QUEUE, "b", ahead) == place


def test_what_is_left_of_a_wait() -> None:
    waits = [float(seconds) for seconds in range(10, 110)]
    found = rest_of(waits, 9.0)
    assert found is not None
    assert found.mid_s == pytest.approx(50.5, abs=1)
    assert found.low_s < 10
    assert found.high_s > 90
    late = rest_of(waits, 100.0)
    assert late is not None
    assert late.high_s <= 9.0
    assert rest_of(waits, 107.0) is None
    assert rest_of([], 0.0) is None
