"""How much waits for the writer: a disk that stalls, or a database that is away, must not fill the memory.

First those units are refused that yield: what clients ask for anew, and may ask for again. What workers have to say
about work that is done (finishes, renewals) is refused much later, and they keep it and say it again.
"""

from collections.abc import Iterable, Sequence

import msgspec

from cogflare.store.base import Statement, Unavailable
from cogflare.store.unit import Unit

_CONTENT = ("input", "data", "chunks", "output", "logs", "schema")  # parameters that may be large


class Bounds(msgspec.Struct, frozen=True):
    """The most units that wait or are under way, and the most bytes of their content."""

    units: int = 50_000
    bytes: int = 256 << 20
    yielding_units: int = 10_000
    yielding_bytes: int = 64 << 20


class Load:
    """The units of one database that wait or are under way."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self._bounds = bounds or Bounds()
        self._units = 0
        self._bytes = 0

    def admit(self, statements: Sequence[Statement], yields: bool) -> int:
        """Count a unit in and return its size in bytes; raises `Unavailable` if too much waits already."""
        size = _size(statements)
        bounds = self._bounds
        units, room = bounds.units, bounds.bytes
        if yields:
            units, room = bounds.yielding_units, bounds.yielding_bytes
        # One unit alone may be larger than the bound.
        if self._units >= units or (self._units and self._bytes + size > room):
            raise Unavailable(f"{self._units} units wait for the database already")
        self._units += 1
        self._bytes += size
        return size

    def leave(self, units: Iterable[Unit]) -> None:
        """Count decided units out."""
        for unit in units:
            self._units -= 1
            self._bytes -= unit.size


def _size(statements: Sequence[Statement]) -> int:
    size = 0
    for statement in statements:
        for name in _CONTENT:
            value = statement.params.get(name)
            if isinstance(value, str):
                size += len(value)
    return size
