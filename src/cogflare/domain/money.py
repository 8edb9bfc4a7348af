"""Money and its periods. Amounts are whole millionths of a dollar (micros), days and months are UTC."""

import math
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

import msgspec

Period = Literal["day", "month"]

PER_DOLLAR: Final = 1_000_000
MAX_DOLLARS: Final = 1e9

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Prices(msgspec.Struct, frozen=True):
    """What a provider takes, in dollars: so much a run, and so much a second of it. None: nothing is said."""

    per_s: float | None = None
    per_run: float | None = None

    @property
    def are_known(self) -> bool:
        """Whether there is any price."""
        return self.per_s is not None or self.per_run is not None


def micros(dollars: float) -> int:
    """Return an amount of dollars in micros."""
    return round(dollars * PER_DOLLAR)


def dollars(micros: int) -> float:
    """Return an amount of micros in dollars."""
    return micros / PER_DOLLAR


def shown(micros: int) -> str:
    """Return an amount for people: cents, and more digits where it is less than a dollar, the most below a cent."""
    amount = abs(micros)
    digits = 4 if amount >= 10_000 or micros % 100 == 0 else 6
    if amount >= PER_DOLLAR or micros % 10_000 == 0:
        digits = 2
    return f"${dollars(micros):,.{digits}f}"


def day_of(time: int) -> str:
    """Return the day of a time (microseconds since 1970), as 2026-11-22."""
    return (_EPOCH + timedelta(microseconds=time)).strftime("%Y-%m-%d")


def month_of(time: int) -> str:
    """Return the month of a time (microseconds since 1970), as 2026-11."""
    return day_of(time)[:7]


def since_of(period: Period, time: int) -> str:
    """Return the period that a time is in, as `spending` names it."""
    return day_of(time) if period == "day" else month_of(time)


def cost(hop: Prices, provider: Prices, figure: float | None, run_s: float | None) -> int | None:
    """Return what a run cost, in micros; None: nobody can tell.

    `figure` is the provider's own, in dollars; without it the price table of the hop counts, else the provider's.
    """
    if figure is not None and 0 <= figure <= MAX_DOLLARS:
        return micros(figure)
    return _by_table(hop if hop.are_known else provider, run_s)


def estimate(hop: Prices, provider: Prices, mean_run_s: float | None) -> int | None:
    """Return what a run is going to cost, in micros; None: nobody can tell."""
    return _by_table(hop if hop.are_known else provider, mean_run_s)


def _by_table(prices: Prices, run_s: float | None) -> int | None:
    if not prices.are_known:
        return None
    amount = prices.per_run or 0.0
    if prices.per_s is not None:
        if run_s is None or not math.isfinite(run_s):
            return None
        amount += prices.per_s * max(run_s, 0.0)
    return micros(min(amount, MAX_DOLLARS))
