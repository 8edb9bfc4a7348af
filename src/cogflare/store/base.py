"""The `Database` seam: named statements in, rows out, one atomic unit a call.

A unit is a plain value: the caller makes every id it writes, so a driver may run it again after a deadlock or a
serialization failure. Nothing outside this package knows which database is behind the seam.

    StoreError
    ├── Conflict          a statement that needs a row found none; its unit changed nothing
    ├── Constraint        a unique, foreign key, check or not-null rule refused a row; its unit changed nothing
    ├── Unavailable       the database cannot be reached or does not answer; the unit did not happen
    ├── Full              the disk or a quota is full; the unit did not happen
    └── SchemaTooNew      the schema was written by a newer version of this program
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec

Value = str | int | float | bytes | bool | None
Row = tuple[Any, ...]
Needs = Literal["any", "row", "row_or_stop"]


class StoreError(Exception):
    """The store could not do what was asked."""


class Conflict(StoreError):
    """A statement that needs a row found none; the unit was rolled back."""

    def __init__(self, statement: str) -> None:
        super().__init__(f"{statement} found no row that it needs")
        self.statement = statement


class Constraint(StoreError):
    """A rule of the schema (unique, foreign key, check, not null) refused a row; the unit was rolled back."""


class Unavailable(StoreError):
    """The database does not answer; the unit did not happen."""


class Full(StoreError):
    """The database cannot grow (disk or quota full); the unit did not happen."""


class SchemaTooNew(StoreError):
    """The database was written by a newer Cogflare; upgrade this program, or restore a backup."""


class Statement(msgspec.Struct, frozen=True):
    """One named query with its parameters.

    `needs`: "any" takes whatever comes; "row" rolls the whole unit back with `Conflict` when the statement returns
    no row; "row_or_stop" then ends the unit early and commits what stands before it (later statements return no
    rows). A statement with `needs` other than "any" must return rows (a SELECT, or a RETURNING clause).
    """

    name: str
    params: Mapping[str, Value]
    needs: Needs = "any"


class Hint(msgspec.Struct, frozen=True):
    """A wake-up for listeners on every node; it may be lost or doubled and never carries truth."""

    channel: str
    payload: str


Listener = Callable[[Hint], None]


class BackupReport(msgspec.Struct, frozen=True):
    """A copy of a database that was checked: its size, its schema version, and how many predictions it has."""

    bytes: int
    schema_version: int
    predictions: int


Progress = Callable[[str, int, int], None]
"""Is told what is being done, how much of it is done, and how much there is."""


class Database(Protocol):
    """Durable storage of rows. Implementations: `store.sqlite.SQLiteDatabase`, `store.postgres.PostgresDatabase`."""

    @property
    def is_shared(self) -> bool:
        """Whether other nodes may write too, so that what this one remembers can be behind."""
        ...

    async def read(self, name: str, /, **params: Value) -> list[Row]:
        """Run one named query on a committed snapshot and return all its rows."""
        ...

    async def write(
        self,
        *statements: Statement,
        hints: Sequence[Hint] = (),
        landed: Statement | None = None,
        yields: bool = False,
    ) -> list[list[Row]]:
        """Run the statements as one atomic unit and return each one's rows once the unit is durable.

        The units that wait are bounded: beyond that `Unavailable` comes at once, and to a unit that `yields` first.

        `hints` go to the listeners of all nodes after the commit. `landed` is a read that returns a row if this very
        unit has been committed; it settles a commit whose answer was lost. Cancelling the caller does not cancel
        the unit. Raises `Conflict`, `Constraint`, `Full` or `Unavailable`; in each case nothing was changed
        (only where the answer to a commit was lost and the database then stays away, `Unavailable` says "may have").
        """
        ...

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` on the event loop for each hint of any node, this one included; returns the way to stop."""
        ...

    async def migrate(self) -> None:
        """Bring the schema to this version; raises `SchemaTooNew`."""
        ...

    async def aclose(self) -> None:
        """Finish the units under way and close; later calls raise `Unavailable`."""
        ...
