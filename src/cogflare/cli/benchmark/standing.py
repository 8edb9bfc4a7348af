"""What a server costs that has nothing to do: memory and processor time while links of workers stand idle.

Read from /proc, so on Linux only.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from cogflare.cli.benchmark.measure import Say
from cogflare.cli.benchmark.stage import Stage, StageError

LINKS = (1_000, 10_000)
_SETTLE_S = 2.0


class Standing(msgspec.Struct, frozen=True):
    """One row of the table: memory of the server (resident), what a link adds to it, and the share of one core."""

    links: int
    memory_mb: float
    kb_per_link: float
    cpu_percent: float


def is_possible() -> bool:
    """Say whether this system tells what a process takes."""
    return Path("/proc/self/statm").exists()


def run(seconds: float, database_url: Callable[[], str | None], say: Say, links: Sequence[int]) -> Iterator[Standing]:
    """Measure an idle server without links, then fresh ones with so many links each."""
    for count in (0, *links):
        say(f"{count:,} idle links")
        with tempfile.TemporaryDirectory() as folder, Stage(Path(folder), database_url()) as stage:
            yield _measure(stage, count, seconds)


def _measure(stage: Stage, links: int, seconds: float) -> Standing:
    stage.call("GET", "/v1/workers")
    time.sleep(_SETTLE_S)
    before = _memory(stage.server_pid)
    crowd = stage.crowd(links) if links else None
    time.sleep(_SETTLE_S)
    used, begun = _cpu_s(stage.server_pid), time.perf_counter()
    time.sleep(seconds)
    percent = (_cpu_s(stage.server_pid) - used) / (time.perf_counter() - begun) * 100
    after = _memory(stage.server_pid)
    if crowd is not None and crowd.poll() is not None:
        raise StageError("an idle link was lost while it was measured")
    return Standing(links, after / 1e6, (after - before) / links / 1e3 if links else 0.0, percent)


def _memory(pid: int) -> int:
    """Return the resident memory of a process in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _cpu_s(pid: int) -> float:
    """Return the processor time that a process has used, in seconds."""
    # The name of the process, in parentheses, may hold anything.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
