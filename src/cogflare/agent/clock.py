"""The clock of the machine that the agent runs on."""

import time


class SystemClock:
    """Reads the machine's clocks (the `Clock` seam)."""

    def wall(self) -> int:
        """Return microseconds since 1970, UTC."""
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        """Return seconds of a clock that never jumps."""
        return time.monotonic()
