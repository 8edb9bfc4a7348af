"""The faults of the harness, each an object that strikes and is lifted. None of them knows when: the schedule does."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from cogflare.cli.verification.clock import set_offset
from cogflare.cli.verification.process import Process
from cogflare.cli.verification.proxy import Direction, Proxy
from cogflare.cli.verification.stage import Node, Worker, limit_files

_BLOCK = 64 * 1024


class Blow(Protocol):
    """A fault that can strike once. `lift` is harmless where it did not strike, or what it struck is gone."""

    def strike(self) -> bool:
        """Let it happen; False if there is nothing to strike at the moment."""
        ...

    def lift(self) -> None:
        """End it."""
        ...


class Kill:
    """kill -9 of a server or an agent, which is started again after `rest_s`."""

    def __init__(self, process: Process, rest_s: float) -> None:
        self._process = process
        self._rest_s = rest_s

    def strike(self) -> bool:
        """Kill it."""
        return self._process.is_up and self._process.kill(self._rest_s)

    def lift(self) -> None:
        """Nothing to do: the stage starts it again."""


class KillModel:
    """kill -9 of a worker's model, which its agent starts again."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def strike(self) -> bool:
        """Kill it."""
        return self._worker.is_up and self._worker.signal_model(signal.SIGKILL)

    def lift(self) -> None:
        """Nothing to do: the agent starts it again."""


class Restart:
    """A stop in order of a server, or of an agent (once all it holds has ended), and a start after `rest_s`."""

    def __init__(self, process: Process, rest_s: float) -> None:
        self._process = process
        self._rest_s = rest_s

    def strike(self) -> bool:
        """Ask it to stop."""
        return self._process.is_up and self._process.restart(self._rest_s)

    def lift(self) -> None:
        """Nothing to do: the stage starts it again."""


class Suspend:
    """SIGSTOP of a process, then SIGCONT: a laptop's lid, a machine out of memory. `pid` tells which process."""

    def __init__(self, pid: Callable[[], int | None]) -> None:
        self._pid = pid
        self._stopped: int | None = None

    def strike(self) -> bool:
        """Stop it where it is."""
        pid = self._pid()
        if pid is None:
            return False
        try:
            os.kill(pid, signal.SIGSTOP)
        except ProcessLookupError:
            return False
        self._stopped = pid
        return True

    def lift(self) -> None:
        """Let it go on, if it is still that one."""
        if self._stopped is not None and self._pid() == self._stopped:
            try:
                os.kill(self._stopped, signal.SIGCONT)
            except ProcessLookupError:
                return


class Reset:
    """All connections of a link end with a reset."""

    def __init__(self, link: Proxy) -> None:
        self._link = link

    def strike(self) -> bool:
        """Reset them."""
        self._link.reset()
        return True

    def lift(self) -> None:
        """Nothing to do: whoever wants to may dial again."""


class Cut:
    """Nothing passes a link and nobody hears of it; one that `forgets`, as a router does, knows no connection after."""

    def __init__(self, link: Proxy, forgets: bool) -> None:
        self._link = link
        self._forgets = forgets

    def strike(self) -> bool:
        """Cut it."""
        self._link.cut()
        return True

    def lift(self) -> None:
        """Let everything pass again."""
        if self._forgets:
            self._link.reset()
        self._link.heal()


class HalfOpen:
    """Nothing passes a link in one direction."""

    def __init__(self, link: Proxy, direction: Direction) -> None:
        self._link = link
        self._direction = direction

    def strike(self) -> bool:
        """Close that direction."""
        self._link.half_open(self._direction)
        return True

    def lift(self) -> None:
        """Let everything pass again."""
        self._link.heal()


class Slow:
    """A link passes little, and late."""

    def __init__(self, link: Proxy, bytes_per_s: float, delay_s: float) -> None:
        self._link = link
        self._rates = bytes_per_s, delay_s

    def strike(self) -> bool:
        """Slow it down."""
        self._link.slow(*self._rates)
        return True

    def lift(self) -> None:
        """Let everything pass as it comes."""
        self._link.heal()


class DiskFull:
    """A server can write no file past `size` bytes: the system says EFBIG instead of ENOSPC. Linux only."""

    def __init__(self, node: Node, size: int = 0) -> None:
        self._node = node
        self._size = size
        self._limited: int | None = None

    def strike(self) -> bool:
        """Take the room away."""
        self._limited = self._node.pid if self._node.is_up else None
        if self._limited is None:
            return False
        limit_files(self._limited, self._size)
        return True

    def lift(self) -> None:
        """Give the room back."""
        if self._limited is not None and self._node.pid == self._limited:
            limit_files(self._limited, None)


class Ballast:
    """A file that fills the disk of a folder to the last block; only for a disk of its own."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "ballast"

    def strike(self) -> bool:
        """Fill the disk."""
        with self._file.open("wb", buffering=0) as ballast:
            for size in (_BLOCK, 512):
                try:
                    while ballast.write(bytes(size)) == size:
                        pass
                except OSError:
                    continue
        return True

    def lift(self) -> None:
        """Give the room back."""
        self._file.unlink(missing_ok=True)


class ClockJump:
    """The wall clock of a node is so many seconds off, and back again when it is lifted."""

    def __init__(self, node: Node, offset_s: float) -> None:
        self._node = node
        self._offset_s = offset_s

    def strike(self) -> bool:
        """Let it jump."""
        set_offset(self._node.offset_file, self._offset_s)
        return True

    def lift(self) -> None:
        """Let it jump back."""
        set_offset(self._node.offset_file, 0)


class RestartDatabase:
    """The database goes, and comes back, while it is called."""

    def __init__(self, restart: Callable[[], None]) -> None:
        self._restart = restart

    def strike(self) -> bool:
        """Restart it."""
        self._restart()
        return True

    def lift(self) -> None:
        """Nothing to do: it is there again."""
