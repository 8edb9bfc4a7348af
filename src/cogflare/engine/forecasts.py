"""When a prediction is going to start, with a band: from the queue before it, or from what its provider took before."""

from collections.abc import Sequence
from statistics import quantiles
from typing import Final

from cogflare.domain.clock import Clock
from cogflare.domain.forecast import Forecast
from cogflare.engine.figures import FleetFigures, Group
from cogflare.store import inquiries, routing
from cogflare.store.base import Database
from cogflare.store.errands import ErrandRow
from cogflare.store.predictions import PredictionRow

_SINCE_US: Final = 7 * 86_400_000_000
_FEWEST: Final = 4
_LOW: Final = 0.05


class Forecasts:
    """Tells when predictions start."""

    def __init__(self, db: Database, clock: Clock, fleet: FleetFigures) -> None:
        self._db = db
        self._clock = clock
        self._fleet = fleet

    async def of_queued(self, row: PredictionRow) -> Forecast | None:
        """Return when a queued prediction starts on workers; None where that cannot be told."""
        group = await self._fleet.of(row)
        place = await self.place(group, row)
        return None if place is None else group.forecast(place)

    async def place(self, group: Group, row: PredictionRow) -> int | None:
        """Return the place (1: next) of a queued prediction among what waits for its workers; None: in no queue."""
        found = await self._fleet.ahead(group, row.id)
        if found is not None:
            return group.place(found[0], row.flow, found[1])
        # What no worker may run waits in a queue of its account alone.
        for entry in await inquiries.entries_of(self._db, row.id):
            ahead = await routing.ahead(self._db, row.id, entry.queue)
            if ahead is not None:
                return ahead + 1
        return None

    async def of_errand(self, errand: ErrandRow) -> Forecast | None:
        """Return when what waits at a provider starts, by what others waited there; None where too few did."""
        now = self._clock.wall()
        waits = await inquiries.provider_waits(self._db, errand.account, errand.provider, errand.model, now - _SINCE_US)
        return rest_of(waits, max(now - errand.created_at, 0) / 1_000_000)


def rest_of(waits: Sequence[float], passed_s: float) -> Forecast | None:
    """Return what is left of a wait of which some has passed, by whole waits that were seen; None: too few."""
    longer = [wait - passed_s for wait in waits if wait > passed_s]
    if len(longer) < _FEWEST:
        return None
    cuts = quantiles(longer, n=round(1 / _LOW), method="inclusive")
    return Forecast(max(cuts[0], 0.0), cuts[len(cuts) // 2], cuts[-1])
