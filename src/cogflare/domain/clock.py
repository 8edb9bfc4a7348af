"""The clock seam: the core asks it for time, so that tests and other hosts can give another one."""

from typing import Protocol


class Clock(Protocol):
    """Two readings: `wall` for records, `monotonic` for every duration."""

    def wall(self) -> int:
        """Return microseconds since 1970, UTC."""
        ...

    def monotonic(self) -> float:
        """Return seconds of a clock that never jumps."""
        ...
