"""A wall clock that can be made to jump, through a file that another process maps."""

import mmap
import struct
import time
from pathlib import Path

_OFFSET = struct.Struct("=q")


class JumpingClock:
    """The clocks of this machine; `wall` is off by what the file says at that moment. `monotonic` never is."""

    def __init__(self, file: Path) -> None:
        with file.open("rb") as opened:
            self._offset = mmap.mmap(opened.fileno(), _OFFSET.size, access=mmap.ACCESS_READ)

    def wall(self) -> int:
        """Return microseconds since 1970, UTC, and the offset."""
        offset: int = _OFFSET.unpack_from(self._offset)[0]
        return time.time_ns() // 1000 + offset

    def monotonic(self) -> float:
        """Return seconds of a clock that never jumps."""
        return time.monotonic()


def set_offset(file: Path, offset_s: float) -> None:
    """Let the clock of whoever reads this file jump to so many seconds off."""
    with file.open("r+b" if file.exists() else "wb") as opened:
        opened.write(_OFFSET.pack(round(offset_s * 1e6)))
