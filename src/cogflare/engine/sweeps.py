"""What is left over, and nobody will come back for: unbound files, bytes of expired ones, old messages, workers.

Each method does a little and says whether there may be more. A removed file goes in an order that no crash can break:
its row says "expired", then its bytes go, then its row.
"""

from typing import Final

import structlog

from cogflare.blobs.base import BlobError, BlobStore
from cogflare.store import deliveries, files, retention, uploads
from cogflare.store.base import Database
from cogflare.store.retention import FlowKey

log = structlog.get_logger()

_HOUR_US: Final = 3_600_000_000
_DAY_US: Final = 24 * _HOUR_US
_FILES: Final = 100
_ROWS: Final = 1000
_PART_S: Final = 86_400.0

UNBOUND_US: Final = _HOUR_US
UPLOADS_US: Final = 60_000_000  # for creates under way that have just seen the file
WORKERS_US: Final = 30 * _DAY_US
DELIVERIES_US: Final = 30 * _DAY_US
LEDGERS_US: Final = 400 * _DAY_US  # so that a month can be held against that of a year ago
RUN_TIMES_US: Final = 90 * _DAY_US


class Sweeps:
    """Removes left-overs; `now` is in microseconds."""

    def __init__(self, db: Database, blobs: BlobStore) -> None:
        self._db = db
        self._blobs = blobs
        self._file = ""
        self._flow: FlowKey = ("", "")

    async def unbound(self, now: int) -> bool:
        """Let files expire whose attempt is over and has not bound them."""
        expired = await files.expire_unbound(self._db, now - UNBOUND_US, _FILES)
        if expired:
            log.info("files that no finish has named expired", files=expired)
        return expired == _FILES

    async def uploads(self, now: int) -> bool:
        """Let files of clients expire that are past their end, and that no prediction is to read any more."""
        expired = await uploads.expire(self._db, now - UPLOADS_US, _FILES)
        if expired:
            log.info("files of clients expired", files=expired)
        return expired == _FILES

    async def expired(self, now: int) -> bool:
        """Remove the bytes of expired files, then their rows; what cannot be removed is tried again another time."""
        found = await files.expired(self._db, self._file, _FILES)
        gone, failure = [], None
        for id in found:
            try:
                await self._blobs.delete(id)
            except BlobError as error:
                failure = error
            else:
                gone.append(id)
        if failure is not None:
            log.warning("expired files not removed", files=len(found) - len(gone), error=str(failure))
        if gone:
            await files.delete_expired(self._db, gone)
        more = len(found) == _FILES
        self._file = found[-1] if more else ""
        return more

    async def parts(self, now: int) -> bool:
        """Remove parts of blobs whose upload broke off."""
        try:
            swept = await self._blobs.sweep(_PART_S)
        except BlobError as error:
            log.warning("parts of files not swept", error=str(error))
        else:
            if swept:
                log.info("parts of files swept", parts=swept)
        return False

    async def workers(self, now: int) -> bool:
        """Forget workers that have not been heard of for a month."""
        forgotten = await retention.forget_gone_workers(self._db, now - WORKERS_US, now, _FILES)
        if forgotten:
            log.info("workers long gone forgotten", workers=forgotten)
        return forgotten == _FILES

    async def deliveries(self, now: int) -> bool:
        """Forget messages to webhooks that were over a month ago."""
        return await deliveries.forget_old(self._db, now - DELIVERIES_US, _FILES) == _FILES

    async def flows(self, now: int) -> bool:
        """Forget idle fairness keys, some of all at a time."""
        last = await retention.prune_flows(self._db, self._flow, _ROWS)
        self._flow = last or ("", "")
        return last is not None

    async def ledgers(self, now: int) -> bool:
        """Forget what was spent and run more than a year ago."""
        return await retention.prune_ledgers(self._db, now - LEDGERS_US, _ROWS)

    async def run_times(self, now: int) -> bool:
        """Forget how long runs took of what has not run for three months."""
        return await retention.prune_run_times(self._db, now - RUN_TIMES_US, _ROWS)
