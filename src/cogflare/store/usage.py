"""What workers of one's own have run, and how long runs take: typed functions over named queries."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

import msgspec

from cogflare.store.base import Database, Statement

KEPT_SAMPLES: Final = 64

Used = tuple[str, str, str, int, int]
"""Account, model, day, runs, and their time in microseconds."""
Timed = tuple[str, str, str, str, Sequence[float]]
"""Catalog, model, version, GPU, and run times in seconds, the newest last."""


async def add(db: Database, usage: Sequence[Used], times: Sequence[Timed], now: int) -> None:
    """Add what was run, and the samples of run times, of which the last of each place are kept."""
    merged = [[*key, *sums] for key, sums in _sums(usage).items()]
    places: dict[tuple[str, str, str, str], list[float]] = {}
    for catalog, model, version, gpu, samples in times:
        places.setdefault((catalog, model, version, gpu), []).extend(samples)
    kept = [[*place, samples[-KEPT_SAMPLES:]] for place, samples in places.items()]
    # The rows are shared by all nodes: who holds them holds the lock too, or two would wait for each other.
    statements = [Statement("lock_flows", {})]
    if merged:
        statements.append(Statement("add_usage", {"usage": _text(merged)}))
    if kept:
        statements.append(Statement("add_run_times", {"times": _text(kept), "now": now, "kept": KEPT_SAMPLES}))
    if merged or kept:
        await db.write(*statements)


async def run_times(db: Database, catalog: str, model: str) -> list[tuple[str, str, list[float]]]:
    """Return the last run times of a model in seconds, by version and GPU, the newest last."""
    rows = await db.read("run_times", catalog=catalog, model=model)
    return [(version, gpu, msgspec.json.decode(samples, type=list[float])) for version, gpu, samples in rows]


async def used(db: Database, account: str | None, since_day: str, until_day: str) -> list[tuple[str, str, int, int]]:
    """Return what was run from a day to another, both included: model, day, runs, microseconds. None: all accounts."""
    rows = await db.read("used", account=account, since=since_day, until=until_day)
    return [(model, day, runs, run_us) for model, day, runs, run_us in rows]


def _sums(usage: Sequence[Used]) -> dict[tuple[str, str, str], tuple[int, int]]:
    runs: Counter[tuple[str, str, str]] = Counter()
    times: Counter[tuple[str, str, str]] = Counter()
    for account, model, day, count, run_us in usage:
        runs[account, model, day] += count
        times[account, model, day] += run_us
    return {key: (runs[key], times[key]) for key in runs}


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()
