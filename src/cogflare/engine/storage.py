"""The store as the engine sees it: whether it refuses, said once in the log when that begins and once when it ends.

While nothing can be written no lease can be renewed either. Whoever measures time by what is written has to know.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import structlog

from cogflare.domain.clock import Clock
from cogflare.domain.ids import new_id
from cogflare.store.base import Database, Full, Hint, Listener, Row, Statement, Unavailable, Value

log = structlog.get_logger()

_LOOK_S: Final = 2.0
_SETTLED_S: Final = 1.9  # without a refusal: a full disk still takes a small unit now and then
_PROBE_BYTES: Final = 100_000


class Storage:
    """A `Database` around another one, whose refusals it notes."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._since: float | None = None
        self._refused_at = float("-inf")

    def has_refused(self, since: float) -> bool:
        """Say whether a unit was refused at this time of the monotonic clock, or later."""
        return self._refused_at >= since

    async def tick(self) -> float:
        """While the store refuses, look whether it still does; returns the seconds until the next look."""
        if self._since is not None:
            probe: dict[str, Value] = {"probe": new_id(self._clock.wall())}
            written = Statement("write_probe", {**probe, "content": "x" * _PROBE_BYTES})
            with suppress(Full, Unavailable):
                await self.write(written, Statement("remove_probe", probe))
        return _LOOK_S

    @property
    def is_shared(self) -> bool:
        """Whether other nodes may write too, see `Database`."""
        return self._db.is_shared

    async def read(self, name: str, /, **params: Value) -> list[Row]:
        """Run one named query, see `Database`."""
        try:
            return await self._db.read(name, **params)
        except Unavailable as error:
            self._refused(error)
            raise

    async def write(
        self,
        *statements: Statement,
        hints: Sequence[Hint] = (),
        landed: Statement | None = None,
        yields: bool = False,
    ) -> list[list[Row]]:
        """Run one atomic unit, see `Database`."""
        try:
            rows = await self._db.write(*statements, hints=hints, landed=landed, yields=yields)
        except (Full, Unavailable) as error:
            # A unit that yields may be refused because there are many of them.
            if not yields or isinstance(error, Full):
                self._refused(error)
            raise
        if self._since is not None and any(rows):
            self._worked()
        return rows

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` for each hint, see `Database`."""
        return self._db.listen(listener)

    async def migrate(self) -> None:
        """Bring the schema to this version, see `Database`."""
        await self._db.migrate()

    async def aclose(self) -> None:
        """Close, see `Database`."""
        await self._db.aclose()

    def _refused(self, error: Full | Unavailable) -> None:
        self._refused_at = self._clock.monotonic()
        if self._since is None:
            self._since = self._refused_at
            what = "the disk is full" if isinstance(error, Full) else "the database does not answer"
            log.error(f"{what}: nothing is accepted until that is over; workers go on", error=str(error))

    def _worked(self) -> None:
        now = self._clock.monotonic()
        if self._since is not None and now - self._refused_at >= _SETTLED_S:
            log.warning("the store works again", after_s=round(now - self._since, 1))
            self._since = None
