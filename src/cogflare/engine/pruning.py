"""Ends of retention: the data of ended predictions goes in small bites, and much later their records.

A bite is one unit. It is kept small because all other units of its moment wait for it; what is too large for one bite
is hidden from clients first and then goes part by part.
"""

from collections import deque
from typing import Final

import msgspec
import structlog

from cogflare.store import retention as store
from cogflare.store.base import Database
from cogflare.store.retention import HIDDEN, Prunable

log = structlog.get_logger()

BITE: Final = 200  # predictions
BITE_BYTES: Final = 2_000_000
LEAST_RECORDS_S: Final = 86_400.0
_ROW_BYTES: Final = 1_000  # what it costs to remove a row, in bytes that cost as much


class Terms(msgspec.Struct, frozen=True):
    """For how many seconds after the end of a prediction its data and its record are kept; 0: for ever.

    A record is never gone before its data, nor within a day: so long clients may ask for it by an Idempotency-Key.
    """

    data_s: float = 0.0
    records_s: float = 0.0

    @property
    def whole_s(self) -> float:
        """For how many seconds a record is kept in any case; 0: for ever."""
        return max(self.data_s, self.records_s, LEAST_RECORDS_S) if self.data_s and self.records_s else 0.0


class Pruning:
    """Removes what is past its terms. Each method takes one bite and says whether there was anything to do."""

    def __init__(self, db: Database, terms: Terms) -> None:
        self._db = db
        self._terms = terms
        self._due: deque[Prunable] = deque()
        self._removed = 0

    async def data(self, now: int) -> bool:
        """Remove data of predictions that ended long enough before `now` (microseconds)."""
        if not self._terms.data_s:
            return False
        if not self._due:
            self._due.extend(await store.prunable(self._db, now - int(self._terms.data_s * 1e6), BITE))
        if not self._due:
            if self._removed:
                log.info("data past its retention removed", predictions=self._removed)
                self._removed = 0
            return False
        if _cost(self._due[0]) > BITE_BYTES or self._due[0].data_removed == HIDDEN:
            await self._part(self._due[0])
        else:
            self._removed += await store.remove_data(self._db, self._bite())
        return True

    def _bite(self) -> list[str]:
        """Take the next predictions that fit into one bite."""
        bite, cost = [], 0
        while self._due and self._due[0].data_removed != HIDDEN:
            cost += _cost(self._due[0])
            if cost > BITE_BYTES:
                break
            bite.append(self._due.popleft().id)
        return bite

    async def _part(self, large: Prunable) -> None:
        if large.data_removed != HIDDEN:
            if await store.hide_data(self._db, large.id):
                self._due[0] = msgspec.structs.replace(large, data_removed=HIDDEN)
            else:
                self._due.popleft()
            return
        parts = max(1, BITE_BYTES * large.rows // max(1, _cost(large)))
        if not await store.drop_parts(self._db, large.id, parts):
            self._removed += await store.remove_data(self._db, [large.id])
            self._due.popleft()

    async def records(self, now: int) -> bool:
        """Delete records, with the attempts, of predictions that ended long enough before `now`."""
        if not self._terms.whole_s:
            return False
        found = await store.prunable_records(self._db, now - int(self._terms.whole_s * 1e6), BITE)
        if found:
            await store.delete_records(self._db, found)
            log.info("records past their retention deleted", predictions=len(found))
        return bool(found)

    def forget(self) -> None:
        """Drop what was found so far: the time by which it was found does not count."""
        self._due.clear()


def _cost(prunable: Prunable) -> int:
    return prunable.bytes + _ROW_BYTES * (prunable.rows + 1)
