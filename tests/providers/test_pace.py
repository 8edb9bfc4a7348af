"""Rate limits: turns, pauses, and what does not wait. Time passes when somebody sleeps."""

import pytest

from cogflare.providers.base import Busy
from cogflare.providers.pace import Pace

pytestmark = pytest.mark.anyio


class Time:
    """A clock that only sleepers move."""

    def __init__(self) -> None:
        self.now = 100.0

    def wall(self) -> int:
        return int(self.now * 1e6)

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def time() -> Time:
    return Time()


def pace_of(time: Time, per_minute: int = 600, burst: int = 10) -> Pace:
    return Pace("example.com", time, per_minute, burst, time.sleep)


async def test_a_minute_has_as_many_turns_as_the_limit_says(time: Time) -> None:
    pace, turns = pace_of(time), 0
    while time.now < 160.0:
        await pace.turn()
        turns += 1
    assert 600 <= turns <= 611


async def test_a_few_may_go_at_once_and_then_again_after_a_rest(time: Time) -> None:
    pace = pace_of(time)
    for _ in range(2):
        for _ in range(10):
            await pace.turn()
        before = time.now
        await pace.turn()
        assert time.now == pytest.approx(before + 0.1)
        time.now += 60.0
        assert time.now > before


async def test_nobody_waits_for_long(time: Time) -> None:
    async def no_sleep(seconds: float) -> None:
        pass

    pace = Pace("example.com", time, 600, 10, no_sleep)
    for _ in range(60):
        await pace.turn()
    with pytest.raises(Busy, match=r"example\.com") as busy:
        await pace.turn()
    assert busy.value.retry_after_s is not None
    assert 5 < busy.value.retry_after_s < 6


async def test_a_pause_holds_for_all_and_ends(time: Time) -> None:
    pace = pace_of(time)
    assert pace.close(30.0) == 30.0
    with pytest.raises(Busy) as busy:
        await pace.turn()
    assert busy.value.retry_after_s == pytest.approx(30.0)
    time.now += 30.0
    await pace.turn()
    before = time.now
    await pace.turn()
    assert time.now == pytest.approx(before + 0.1)  # one by one at first


async def test_a_shorter_pause_does_not_cut_a_longer_one_off(time: Time) -> None:
    pace = pace_of(time)
    pace.close(30.0)
    assert pace.close(1.0) == pytest.approx(30.0)
    assert pace.close(None) == pytest.approx(30.0)


async def test_pauses_that_nobody_named_grow_until_a_call_is_taken(time: Time) -> None:
    pace, pauses = pace_of(time), []
    for _ in range(8):
        pauses.append(pace.close(None))
        time.now += pauses[-1]
    assert pauses == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60])
    pace.opened()
    assert pace.close(None) == pytest.approx(1)


async def test_a_pause_is_never_for_ever(time: Time) -> None:
    assert pace_of(time).close(1e9) == 3600.0


async def test_who_waits_for_a_turn_hears_of_a_pause(time: Time) -> None:
    pace = pace_of(time, burst=1)

    async def sleep(seconds: float) -> None:
        pace.close(10.0)

    pace._sleep = sleep
    await pace.turn()
    with pytest.raises(Busy):
        await pace.turn()
