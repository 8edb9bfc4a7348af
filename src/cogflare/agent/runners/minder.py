"""The parent of a Cog server: ends it, with all its children, when no agent has cared for it for a while.

    agent ──holds the write end of──▶ cord (a FIFO) ◀──reads── minder ──parent of──▶ Cog server ──▶ model
                                                                  └────parent of──▶ guard

The minder leads the process group that they all are in, so that one signal reaches them. While an agent holds the cord
it only waits. When the cord is cut it gives the next agent `keep_s` seconds to pick it up, then kills the group. The
guard kills the group as soon as the minder has ended in whatever way: a model that is at work does not notice by itself
that its server has died.

It runs as a script without the rest of Cogflare: `python -I -S minder.py KEEP_S PROGRAM ARGUMENT…`, with the read end
of the cord as standard input.
"""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

_LOOK_S = 0.1


def main(keep_s: float, command: list[str]) -> None:
    """Run the command until it ends, then end as it did."""
    # The group's SIGTERM is for the server. A handler, unlike SIG_IGN, is not handed on to it.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    _post_guard()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603
    threading.Thread(target=_watch_cord, args=(keep_s,), daemon=True).start()
    status = child.wait()
    if status < 0:
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


def _post_guard() -> None:
    """Fork the guard; the pipe that it reads has its only writer in the minder."""
    reader, _writer = os.pipe()
    if os.fork():
        os.close(reader)
        return
    os.close(_writer)
    os.close(0)
    os.read(reader, 1)
    os.killpg(0, signal.SIGKILL)


def _watch_cord(keep_s: float) -> None:
    cord = select.poll()
    cord.register(0, 0)  # the end of the last writer is told without being asked for
    while True:
        cord.poll()
        deadline = time.monotonic() + keep_s
        while cord.poll(0):
            if time.monotonic() >= deadline:
                os.killpg(0, signal.SIGKILL)
            time.sleep(_LOOK_S)


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])
