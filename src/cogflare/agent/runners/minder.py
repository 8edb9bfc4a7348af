"""The parent of a Cog server: ends it, with all that it has started, when no agent has cared for it for a while.

    agent ──holds the write end of──▶ cord (a FIFO) ◀──reads── minder ──▶ guard ──▶ Cog server ──▶ model

The minder leads the process group that they all are in, so that one SIGTERM reaches them. While an agent holds the cord
it only waits. When the cord is cut it gives the next agent `keep_s` seconds to pick it up, then ends everything; when
it is sent `END` it does so at once. The guard, parent of the server, ends everything as soon as the minder has ended in
whatever way; the minder does when the guard has, or the server: a model that is at work does not notice by itself that
its server has died.

Everything is every process below them, in whatever session or group it is. On Linux what has lost its parent becomes a
child of the guard, or without a guard of the minder, and not of the system; elsewhere it is the process group.

It runs as a script without the rest of Cogflare: `python -I -S minder.py KEEP_S PROGRAM ARGUMENT…`, with the read end
of the cord as standard input.
"""

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

try:
    import ctypes
except ImportError:  # this Python was built without libffi
    ctypes = None  # type: ignore[assignment]

END = getattr(signal, "SIGUSR1", signal.SIGTERM)  # there is no minder where there is no SIGUSR1

_LOOK_S = 0.1
_GONE_S, _KILL_AGAIN_S = 2.0, 0.001
_PR_SET_CHILD_SUBREAPER = 36


def main(keep_s: float, command: list[str]) -> None:
    """Run the command until it ends, then end as it did."""
    # The group's SIGTERM is for the server. A handler, unlike SIG_IGN, is not handed on to it.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    signal.signal(END, lambda *_: _end(-signal.SIGKILL))
    # Whoever started the agent may have blocked or ignored these, and that is handed on.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [END, signal.SIGCHLD])
    _take_orphans()
    guard, told = _post_guard(command)
    status = _wait(keep_s, told)
    if status is None:
        _end(-signal.SIGKILL)
    if not status:
        status = b"%d" % os.waitstatus_to_exitcode(os.waitpid(guard, 0)[1])
        if int(status) < 0:  # it was killed before it could see to the group
            _kill_below()
            os.killpg(0, signal.SIGKILL)
    _end(int(status))


def _wait(keep_s: float, told: int) -> bytes | None:
    """Wait for the server's exit status, b"" when the guard has ended; None: nobody has held the cord for so long."""
    events = select.poll()
    events.register(told, select.POLLIN)
    events.register(0, 0)  # the end of the last writer is told without being asked for
    while True:
        events.poll()
        deadline = time.monotonic() + keep_s
        while ready := dict(events.poll(0)):
            if told in ready:
                return os.read(told, 16)
            if time.monotonic() >= deadline:
                return None
            time.sleep(_LOOK_S)


def _post_guard(command: list[str]) -> tuple[int, int]:
    """Fork the guard; return its id, and the read end of a pipe by which it tells the server's exit status."""
    told, tell = os.pipe()
    life, _alive = os.pipe()
    guard = os.fork()
    if not guard:
        os.close(told)
        os.close(_alive)  # the minder has the only one
        _guard(command, tell, life)
    os.close(tell)
    os.close(life)
    return guard, told


def _guard(command: list[str], tell: int, life: int) -> None:
    """Run the command and reap what is left to this process, until the minder has ended."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    _take_orphans()
    server = subprocess.Popen(command)  # noqa: S603

    def reap(*_: object) -> None:
        with suppress(OSError):  # no child is left, or no minder
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == server.pid:
                    os.write(tell, b"%d" % os.waitstatus_to_exitcode(ended[1]))

    signal.signal(signal.SIGCHLD, reap)
    reap()
    os.read(life, 1)
    _kill_below()
    os.killpg(0, signal.SIGKILL)


def _take_orphans() -> None:
    """Become the parent of every process below this one that loses its own."""
    if sys.platform == "linux" and ctypes is not None:
        with suppress(OSError, AttributeError):  # a Python without a loader
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end(status: int) -> None:
    """End everything, then this process with that status, or by the signal of a negative one."""
    _kill_below()
    if status < 0:
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def _kill_below() -> None:
    """Kill all processes below this one, and wait until they are gone; a driver may hold one up."""
    deadline, pause_s = time.monotonic() + _GONE_S, _KILL_AGAIN_S
    while (below := _below()) and time.monotonic() < deadline:
        for pid in below:
            with suppress(OSError):  # gone by itself, or somebody else's
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LOOK_S)


def _below() -> list[int]:
    """The processes below this one; none where the system does not tell."""
    children: dict[int, list[int]] = {}
    with suppress(OSError):
        for name in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError, IndexError), open(f"/proc/{name}/stat", "rb") as stat:
                # The fields after the name, which is in brackets: state, parent.
                parent = int(stat.read().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    found = list(children.get(os.getpid(), []))
    for pid in found:  # it grows meanwhile
        found += children.get(pid, [])
    return found


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])
