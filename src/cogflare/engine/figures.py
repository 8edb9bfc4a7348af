"""What workers do for a model right now, and what waits for them: the figures of decisions, forecasts and reasons.

Predictions that the same workers may run form a group. Its figures are read at once and kept for half a second, so that
thousands of predictions that wait for them ask the store no more often than one does.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Final, Protocol, TypeVar

import msgspec

from cogflare.domain.clock import Clock
from cogflare.domain.forecast import Forecast, Running, forecast
from cogflare.domain.ids import SHARED, model_queue, version_queue
from cogflare.domain.routing import Figures
from cogflare.store import catalog, fleet, routing, usage
from cogflare.store.base import Database
from cogflare.store.routing import OfferedRow

KEPT_S: Final = 0.5
_CURVE_S: Final = 2.0  # a forecast costs some milliseconds, and changes little in this time
_POOLS_S: Final = 5.0
_SETUP_US: Final = 3_600_000_000  # a worker that was not heard of for longer does not set anything up any more
_LOW, _HIGH = 0.06, 0.94  # nine of ten starts are in this band, since doubts about the run times widen it
_MOST: Final = 1_000
_MOST_KINDS: Final = 16
_TURN: Final = 1_000_000  # of virtual time: what a claim charges its flow
_K = TypeVar("_K")
_V = TypeVar("_V")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Wanted(Protocol):
    """What waits, as far as it says who may run it."""

    @property
    def account(self) -> str: ...
    @property
    def catalog(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def pinned(self) -> bool: ...


class Line(msgspec.Struct, frozen=True):
    """A flow that waits in a queue."""

    queue: str
    flow: str
    waiting: int
    virtual_time: int


class Key(msgspec.Struct, frozen=True):
    """Who may run a prediction: the workers of these pools that have the model, in this version if one is given."""

    pools: tuple[str, ...]
    model: str
    version: str | None


class Group(msgspec.Struct, frozen=True, dict=True):
    """What the workers of a group do, and what waits for them.

    `serving` are connected and healthy and offer it, `quarantined` do and are set aside, `unfit` lack what it requires,
    `away` have lost their link, `starting` set their model up; `versions` are those that healthy workers offer in place
    of the one that is wanted.
    `kinds` has learned run times, for each slot's version and GPU those of its own.
    """

    key: Key
    serving: tuple[OfferedRow, ...]
    quarantined: tuple[OfferedRow, ...]
    away: tuple[OfferedRow, ...]
    starting: tuple[OfferedRow, ...]
    versions: tuple[str, ...]
    running: tuple[Running, ...]
    kinds: tuple[tuple[float, ...], ...]
    lines: tuple[Line, ...]
    unfit: tuple[OfferedRow, ...] = ()

    @cached_property
    def workers(self) -> int:
        """Workers that could run it."""
        return len({row.worker for row in self.serving})

    @cached_property
    def slots(self) -> int:
        """Their slots."""
        return sum(row.slots for row in self.serving)

    @cached_property
    def free(self) -> int:
        """Their slots that nothing occupies."""
        return sum(max(row.slots - row.busy, 0) for row in self.serving)

    @cached_property
    def waiting(self) -> int:
        """Entries that wait for them, of all flows."""
        return sum(line.waiting for line in self.lines)

    @cached_property
    def mean_run_s(self) -> float | None:
        """How long a run takes, as far as that is known."""
        samples = [sample for kind in self.kinds for sample in kind]
        return sum(samples) / len(samples) if samples else None

    def place(self, queue: str, flow: str, ahead: int) -> int:
        """Return the place (1: next) of what has so many entries of its own flow before it.

        Others get their turns by virtual time, as claims give them: each flow those that come before its own.
        """
        own = next((line for line in self.lines if (line.queue, line.flow) == (queue, flow)), None)
        if own is None:
            return ahead + 1 + sum(min(line.waiting, ahead + 1) for line in self.lines if line.flow != flow)
        turn = own.virtual_time + ahead * _TURN
        others: dict[str, int] = {}
        for line in self.lines:
            if line is not own and not (line.flow == flow and line.queue in self.queues):
                # At the same virtual time the index goes by the name of the flow.
                first = line.virtual_time - (line.flow < flow)
                turns = max(0, -((first - turn) // _TURN))
                others[line.flow] = max(others.get(line.flow, 0), min(line.waiting, turns))
        return ahead + 1 + sum(others.values())

    @cached_property
    def queues(self) -> tuple[str, ...]:
        """The queues that a prediction of the group waits in."""
        return queues_of(self.key)

    def forecast(self, place: int) -> Forecast | None:
        """Return when what has this place starts; None where that cannot be told."""
        return forecast(place, self.free, self.running, self.kinds, seed=place, low=_LOW, high=_HIGH)


class FleetFigures:
    """Reads the figures of groups."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._pools: dict[tuple[str, str], tuple[float, tuple[str, ...]]] = {}
        self._groups: dict[Key, tuple[float, Group]] = {}
        self._curves: dict[Key, tuple[float, Group, dict[int, Forecast | None]]] = {}

    async def of(self, wanted: Wanted) -> Group:
        """Return the figures of a prediction's group, half a second old at most."""
        key = await self._key(wanted)
        now = self._clock.monotonic()
        kept = self._groups.get(key)
        if kept is not None and kept[0] > now:
            return kept[1]
        group = await self._read(key)
        _keep(self._groups, key, (now + KEPT_S, group))
        return group

    async def ahead(self, group: Group, prediction: str) -> tuple[str, int] | None:
        """Return a queue in which a prediction waits and how many of its own flow come before it; None: in none."""
        found = [(queue, await routing.ahead(self._db, prediction, queue)) for queue in group.queues]
        ready = [(queue, ahead) for queue, ahead in found if ahead is not None]
        return max(ready, key=lambda one: one[1], default=None)

    def figures(self, group: Group, position: int, waited_s: float, now: int) -> Figures:
        """Return what a decision is made on for what has this place; `now` in microseconds."""
        left_s = self._left_s(group, position)
        time = _EPOCH + timedelta(microseconds=now)
        return Figures(
            waited_s,
            None if left_s is None else waited_s + left_s,
            position,
            group.workers,
            group.slots,
            group.free,
            time.hour + time.minute / 60 + time.second / 3600,
            time.isoweekday(),
        )

    def _left_s(self, group: Group, position: int) -> float | None:
        """Return the seconds until the start, between those of places that are kept forecasts of."""
        now = self._clock.monotonic()
        kept = self._curves.get(group.key)
        if kept is None or kept[0] <= now:
            kept = (now + _CURVE_S, group, {})
            _keep(self._curves, group.key, kept)
        _, basis, curve = kept
        lower, upper = _marks(position)
        for place in (lower, upper):
            if place not in curve:
                curve[place] = basis.forecast(place)
        first, last = curve[lower], curve[upper]
        if first is None or last is None:
            return None
        share = 0.0 if upper == lower else (position - lower) / (upper - lower)
        return first.mid_s + (last.mid_s - first.mid_s) * share

    async def _key(self, wanted: Wanted) -> Key:
        if wanted.pinned:
            return Key((wanted.catalog,), wanted.model, wanted.version)
        name = (wanted.account, wanted.model)
        now = self._clock.monotonic()
        kept = self._pools.get(name)
        if kept is None or kept[0] <= now:
            pools = await catalog.catalogs_with(self._db, wanted.account, *_split(wanted.model))
            kept = (now + _POOLS_S, pools or (SHARED,))
            _keep(self._pools, name, kept)
        return Key(kept[1], wanted.model, None)

    async def _read(self, key: Key) -> Group:
        now = self._clock.wall()
        rows = await routing.fleet_of(self._db, key.pools, *_split(key.model))
        unfit = [row for row in rows if row.unmet and row.state == "online"]
        rows = [row for row in rows if not row.unmet]
        healthy = [row for row in rows if row.state == "online" and row.quarantine is None]
        serving = [row for row in healthy if key.version in (None, row.version)]
        wanted = [row for row in rows if key.version in (None, row.version) or row.version == ""]
        beginning = [row for row in wanted if row.state != "online" and _sets_up(row, now)]
        queues = {*queues_of(key)}
        for row in serving:
            queues |= {model_queue(row.account, *_split(key.model)), version_queue(row.account, row.version)}
        times = {pool: await usage.run_times(self._db, pool, key.model) for pool in key.pools}
        learned = {
            (pool, version, gpu): tuple(samples) for pool, found in times.items() for version, gpu, samples in found
        }
        return Group(
            key,
            serving=tuple(serving),
            quarantined=tuple(row for row in wanted if row.quarantine is not None and row not in beginning),
            away=tuple(row for row in wanted if row.state == "away" and row.quarantine is None),
            starting=tuple(beginning),
            versions=tuple(sorted({row.version for row in healthy} - {key.version})) if key.version else (),
            running=tuple(await self._running(serving, sorted(queues), learned, now)),
            kinds=_kinds(serving, learned),
            lines=tuple(Line(*found) for found in await routing.flows(self._db, sorted(queues))),
            unfit=tuple(row for row in unfit if key.version in (None, row.version)),
        )

    async def _running(
        self, serving: Sequence[OfferedRow], queues: Sequence[str], learned: "_Learned", now: int
    ) -> list[Running]:
        """Return the slots that are taken, each with the run times of its own version and GPU."""
        begun: dict[str, list[int]] = {}
        for _, holder, claimed_at, _ in await routing.running(self._db, queues):
            begun.setdefault(holder, []).append(claimed_at)
        found = []
        for row in serving:
            taken = sorted(begun.pop(row.worker, []))
            samples = _samples(row, learned)
            for number in range(min(row.slots, max(row.busy, len(taken)))):
                elapsed_s = max(0.0, (now - taken[number]) / 1_000_000) if number < len(taken) else 0.0
                found.append(Running(elapsed_s, samples))
        return found


_Learned = dict[tuple[str, str, str], tuple[float, ...]]


def queues_of(key: Key) -> tuple[str, ...]:
    """Return the queues that a prediction of this group waits in."""
    if key.version is not None:
        return tuple(version_queue(pool, key.version) for pool in key.pools)
    return tuple(model_queue(pool, *_split(key.model)) for pool in key.pools)


def _samples(row: OfferedRow, learned: _Learned) -> tuple[float, ...]:
    """Return the run times of an offer; those of the same version elsewhere, or of others, where it has none yet."""
    own = learned.get((row.account, row.version, fleet.gpu_of(row.agent)))
    if own:
        return own
    same = [samples for (_, version, _), samples in learned.items() if version == row.version]
    return _mixed(same or learned.values())


def _kinds(serving: Sequence[OfferedRow], learned: _Learned) -> tuple[tuple[float, ...], ...]:
    """Return the run times of what waits, as the slots are going to share it."""
    counts: dict[tuple[float, ...], int] = {}
    for row in serving:
        samples = _samples(row, learned)
        if samples:
            counts[samples] = counts.get(samples, 0) + row.slots
    if not counts:
        mixed = _mixed(learned.values())
        return (mixed,) if mixed else ()
    scale = max(1.0, sum(counts.values()) / _MOST_KINDS)
    return tuple(samples for samples, slots in counts.items() for _ in range(max(1, round(slots / scale))))


def _mixed(kinds: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(sample for samples in kinds for sample in samples)


def _sets_up(row: OfferedRow, now: int) -> bool:
    return row.setup_since is not None and now - row.setup_since < _SETUP_US


def _marks(place: int) -> tuple[int, int]:
    """Return the places around this one that forecasts are kept of: the first, then steps of about a third."""
    lower = 1
    while (upper := lower + max(1, lower // 3)) <= place:
        lower = upper
    return (lower, lower) if lower == place else (lower, upper)


def _split(model: str) -> tuple[str, str]:
    owner, _, name = model.partition("/")
    return owner, name


def _keep(kept: dict[_K, _V], key: _K, value: _V) -> None:
    if len(kept) >= _MOST:
        kept.clear()
    kept[key] = value
