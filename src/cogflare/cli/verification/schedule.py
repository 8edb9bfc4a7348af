"""The schedule of faults: a list that follows from a seed alone, and the one who plays it on a stage.

No target has two faults at once. What keeps a worker from its server (its link, its own suspension, the server, the
database) never adds up to an outage that comes near the grace: a run that happens twice then has no excuse but the
death of its agent or its model.
"""

import asyncio
import random
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from cogflare.cli.verification import faults
from cogflare.cli.verification.faults import Blow
from cogflare.cli.verification.history import Fault, now
from cogflare.cli.verification.proxy import Proxy
from cogflare.cli.verification.stage import Stage

Kind = Literal["kill", "stop", "restart", "reset", "cut", "slow", "half_open", "disk_full", "clock_jump", "db_restart"]

MAX_OUTAGE_S: Final = 10.0
_RECOVERY_S: Final = 2.5
_INSTANT: Final = frozenset({"kill", "restart", "reset", "db_restart"})
_OUTAGES: Final = frozenset({"stop", "restart", "reset", "cut", "slow", "half_open", "disk_full", "db_restart"})
_TRIES: Final = 30
_NEAR: Final = 40  # one fault a second, and none of them is felt for longer


class Ground(msgspec.Struct, frozen=True):
    """What there is to strike."""

    nodes: int = 1
    workers: int = 4
    restarts_database: bool = False
    fills_disk: bool = True


class Strike(msgspec.Struct, frozen=True):
    """One fault of a plan: when it begins, how long it lasts (what is killed stays away so long), and its measure.

    `amount` is what the kind needs: the bytes per second of `slow`, the seconds of `clock_jump`, a number from 0 to 1
    that chooses between the variants of `cut` and `half_open`; else 0.
    """

    at_s: float
    kind: Kind
    target: str
    lasts_s: float
    amount: float

    def __str__(self) -> str:
        return f"{self.at_s:7.2f} s  {self.kind:<10} {self.target:<9} {self.lasts_s:5.2f} s  {self.amount:g}"

    @property
    def ends_s(self) -> float:
        """When it is over and what it struck works again."""
        return self.at_s + self.lasts_s + _RECOVERY_S


_Draw = tuple[Kind, str, int, float, float]  # kind, what, weight, shortest and longest duration

_DRAWS: Final[tuple[_Draw, ...]] = (
    ("kill", "server", 3, 0.1, 2.0),
    ("kill", "worker", 3, 0.1, 4.0),
    ("kill", "model", 4, 0.0, 0.0),
    ("stop", "server", 2, 0.2, 4.0),
    ("stop", "worker", 2, 0.2, 4.0),
    ("stop", "model", 2, 0.2, 4.0),
    ("restart", "server", 2, 0.1, 2.0),
    ("restart", "worker", 1, 0.1, 2.0),
    ("reset", "link", 3, 0.0, 0.0),
    ("cut", "link", 3, 0.5, 6.0),
    ("half_open", "link", 3, 0.5, 6.0),
    ("slow", "link", 2, 0.5, 6.0),
    ("reset", "client", 1, 0.0, 0.0),
    ("cut", "client", 1, 0.2, 2.0),
    ("half_open", "client", 1, 0.2, 2.0),
    ("slow", "client", 1, 0.2, 2.0),
    ("disk_full", "server", 2, 0.2, 3.0),
    ("clock_jump", "server", 2, 0.5, 6.0),
    ("db_restart", "database", 2, 0.0, 0.0),
)


def plan(seed: int, duration_s: float, ground: Ground) -> list[Strike]:
    """Return the faults of a seed, one a second where there is room for one."""
    rng = random.Random(seed)  # noqa: S311 - it is to be the same each time
    draws = [draw for draw in _DRAWS if _is_possible(draw, ground)]
    found: list[Strike] = []
    for second in range(int(duration_s)):
        for _ in range(_TRIES):
            strike = _draw(rng, draws, ground, second)
            if _has_room(strike, found, ground):
                found.append(strike)
                break
    return found


def _is_possible(draw: _Draw, ground: Ground) -> bool:
    if draw[0] == "db_restart":
        return ground.restarts_database
    return draw[0] != "disk_full" or ground.fills_disk


def _draw(rng: random.Random, draws: Sequence[_Draw], ground: Ground, second: int) -> Strike:
    kind, what, _, shortest_s, longest_s = rng.choices(draws, [draw[2] for draw in draws])[0]
    number = rng.randint(1, ground.nodes if what in ("server", "client") else ground.workers)
    at_s = round(second + rng.random() * 0.9, 2)
    # Most are short, and all lengths happen.
    lasts_s = round(shortest_s + (longest_s - shortest_s) * rng.random() ** 2, 2)
    amount = rng.random()
    if kind == "slow":
        amount = round(10 ** (3 + 2 * amount))
    elif kind == "clock_jump":
        amount = round((2 * amount - 1) * 3600)
    elif kind not in ("cut", "half_open"):
        amount = 0.0
    return Strike(at_s, kind, what if what == "database" else f"{what}-{number}", lasts_s, round(amount, 3))


def _has_room(strike: Strike, found: Sequence[Strike], ground: Ground) -> bool:
    near = [other for other in found[-_NEAR:] if other.ends_s > strike.at_s - 2 * MAX_OUTAGE_S]
    if any(other.target == strike.target and other.ends_s > strike.at_s for other in near):
        return False
    return all(
        _outage_s([other for other in [*near, strike] if _keeps_away(other, worker)]) <= MAX_OUTAGE_S
        for worker in range(1, ground.workers + 1)
        if _keeps_away(strike, worker)
    )


def _keeps_away(strike: Strike, worker: int) -> bool:
    """Say whether the fault keeps a worker, wherever it is connected, from its server."""
    what, _, number = strike.target.partition("-")
    if what in ("server", "database"):
        return strike.kind == "kill" or strike.kind in _OUTAGES
    return what in ("link", "worker") and number == str(worker) and strike.kind in _OUTAGES


def _outage_s(strikes: Sequence[Strike]) -> float:
    """Return the longest time without a pause between these faults."""
    longest = begun = ended = 0.0
    for strike in sorted(strikes, key=lambda strike: strike.at_s):
        if strike.at_s > ended:
            begun = strike.at_s
        ended = max(ended, strike.ends_s)
        longest = max(longest, ended - begun)
    return longest


def ground_of(stage: Stage, *, fills_disk: bool) -> Ground:
    """Return what there is to strike on a stage."""
    return Ground(len(stage.nodes), len(stage.workers), stage.restart_database is not None, fills_disk)


def blow(stage: Stage, strike: Strike) -> Blow:
    """Return the fault itself, aimed at its target."""
    what, _, number = strike.target.partition("-")
    index = int(number or 1) - 1
    if what == "database":
        assert stage.restart_database is not None
        return faults.RestartDatabase(stage.restart_database)
    if what in ("link", "client"):
        return _on_link((stage.links if what == "link" else stage.clients)[index], strike)
    if what == "model":
        worker = stage.workers[index]
        return faults.KillModel(worker) if strike.kind == "kill" else faults.Suspend(lambda: worker.model_pid)
    if what == "server" and (aimed := _on_node(stage, index, strike)) is not None:
        return aimed
    process = stage.nodes[index] if what == "server" else stage.workers[index]
    if strike.kind in ("kill", "restart"):
        return (faults.Kill if strike.kind == "kill" else faults.Restart)(process, strike.lasts_s)
    return faults.Suspend(lambda: process.pid)


def _on_link(link: Proxy, strike: Strike) -> Blow:
    match strike.kind:
        case "reset":
            return faults.Reset(link)
        case "cut":
            return faults.Cut(link, forgets=strike.amount < 0.5)
        case "half_open":
            return faults.HalfOpen(link, "up" if strike.amount < 0.5 else "down")
        case _:
            return faults.Slow(link, strike.amount, 0.05)


def _on_node(stage: Stage, index: int, strike: Strike) -> Blow | None:
    node = stage.nodes[index]
    match strike.kind:
        case "disk_full":
            return faults.DiskFull(node)
        case "clock_jump":
            return faults.ClockJump(node, strike.amount)
        case _:
            return None


async def play(stage: Stage, strikes: Sequence[Strike], until: asyncio.Event) -> list[Strike]:
    """Let the faults happen at their times, or until the event is set; then all of them are lifted.

    Returns those that found nothing to strike.
    """
    begun = asyncio.get_running_loop().time()
    missed: list[Strike] = []
    under_way: set[asyncio.Task[None]] = set()
    try:
        for strike in strikes:
            if await _is_set_within(until, begun + strike.at_s - asyncio.get_running_loop().time()):
                break
            task = asyncio.create_task(_play_one(stage, strike, until, missed))
            under_way.add(task)
        await asyncio.gather(*under_way)
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        stage.heal()
    return missed


async def _play_one(stage: Stage, strike: Strike, until: asyncio.Event, missed: list[Strike]) -> None:
    struck, at = blow(stage, strike), now()
    if not struck.strike():
        missed.append(strike)
        return
    try:
        if strike.kind not in _INSTANT:
            await _is_set_within(until, strike.lasts_s)
    finally:
        struck.lift()
        lifted = at if strike.kind in _INSTANT else now()
        stage.recorder.note(Fault(at, lifted, strike.kind, strike.target, f"{strike.lasts_s:g} s, {strike.amount:g}"))


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    if not event.is_set() and seconds > 0:
        try:
            await asyncio.wait_for(event.wait(), seconds)
        except TimeoutError:
            return False
    return event.is_set()
