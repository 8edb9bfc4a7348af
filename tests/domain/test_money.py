"""Amounts, periods, and what a run costs."""

import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogflare.domain.money import Prices, cost, day_of, dollars, estimate, micros, month_of, shown, since_of

NOTHING = Prices()
BY_TIME = Prices(per_s=0.001)
BY_RUN = Prices(per_run=0.02)
BOTH = Prices(per_s=0.001, per_run=0.02)


@given(st.integers(0, 10**15))
def test_amounts_go_to_dollars_and_back(amount: int) -> None:
    assert micros(dollars(amount)) == amount


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "$0.00"),
        (5_000_000, "$5.00"),
        (1_234_567_890, "$1,234.57"),
        (250_000, "$0.25"),
        (750_368, "$0.7504"),
        (1_500, "$0.0015"),
        (725, "$0.000725"),
        (1, "$0.000001"),
    ],
)
def test_amounts_for_people(amount: int, text: str) -> None:
    assert shown(amount) == text


def test_days_and_months() -> None:
    last = int(datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC).timestamp()) * 1_000_000 + 999_999
    assert (day_of(last), month_of(last)) == ("2026-11-30", "2026-11")
    assert (day_of(last + 1), month_of(last + 1)) == ("2026-12-01", "2026-12")
    assert (since_of("day", last), since_of("month", last)) == ("2026-11-30", "2026-11")


@pytest.mark.parametrize(
    ("hop", "provider", "figure", "run_s", "amount"),
    [
        (BOTH, BOTH, 0.5, 10.0, 500_000),
        (BOTH, BOTH, 0.0, 10.0, 0),
        (BY_TIME, BY_RUN, None, 10.0, 10_000),
        (BY_RUN, BY_TIME, None, 10.0, 20_000),
        (BOTH, NOTHING, None, 10.0, 30_000),
        (NOTHING, BY_TIME, None, 10.0, 10_000),
        (NOTHING, BY_RUN, None, None, 20_000),
        (BY_TIME, NOTHING, None, None, None),
        (BOTH, NOTHING, None, None, None),
        (NOTHING, NOTHING, None, 10.0, None),
        (Prices(per_run=0.0), BY_RUN, None, 10.0, 0),
        (NOTHING, NOTHING, -1.0, 10.0, None),
        (BY_RUN, NOTHING, math.nan, 10.0, 20_000),
        (BY_RUN, NOTHING, math.inf, 10.0, 20_000),
        (BY_TIME, NOTHING, None, -5.0, 0),
        (BY_TIME, NOTHING, None, math.inf, None),
        (BY_TIME, NOTHING, None, math.nan, None),
    ],
)
def test_the_cost_of_a_run(
    hop: Prices, provider: Prices, figure: float | None, run_s: float | None, amount: int | None
) -> None:
    assert cost(hop, provider, figure, run_s) == amount
    if figure is None:
        assert estimate(hop, provider, run_s) == amount
