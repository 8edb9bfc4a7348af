"""The end of a container that nobody cares for: removes it when no agent has held its cord for a while.

    agent ──holds the write end of──▶ cord (a FIFO) ◀──reads── warden ──DELETE──▶ Docker ──▶ container

A container does not die with the agent that made it. When the cord is cut the warden gives the next agent `keep_s`
seconds to pick it up, then removes the container. It asks over the daemon's Unix socket and tries again while the
daemon does not answer. A byte through the cord says that the container is gone. A warden that is ended, as a service
manager does with all of a service, leaves the container to the next agent, which knows it by its label.

It runs as a script without the rest of Cogflare: `python -I -S warden.py KEEP_S SOCKET CONTAINER CORD`, with the read
end of the cord as standard input. What was started forks and ends at once: the warden is nobody's child.
"""

import http.client
import os
import select
import socket
import sys
import time
from contextlib import suppress

_LOOK_S = 0.1
_TRIES = 60
_PAUSE_S = 5.0
_ANSWER_S = 120.0


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("docker", timeout=_ANSWER_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_ANSWER_S)
        self.sock.connect(self._path)


def main(keep_s: float, path: str, container: str, cord: str) -> None:
    """Wait until nobody holds the cord for so long, then remove the container."""
    if os.fork() or not _is_abandoned(keep_s):
        return
    for _ in range(_TRIES):
        if _remove(path, container):
            with suppress(OSError):
                os.unlink(cord)
                os.rmdir(os.path.dirname(cord))
            return
        time.sleep(_PAUSE_S)


def _is_abandoned(keep_s: float) -> bool:
    """Wait until nobody has held the cord for so long, or until the container is said to be gone; return which."""
    cord = select.poll()
    cord.register(0, select.POLLIN)  # the end of the last writer is told without being asked for
    while True:
        cord.poll()
        deadline = time.monotonic() + keep_s
        while state := dict(cord.poll(0)).get(0, 0):
            if state & select.POLLIN and os.read(0, 1):
                return False
            if time.monotonic() >= deadline:
                return True
            time.sleep(_LOOK_S)


def _remove(path: str, container: str) -> bool:
    """Remove the container; whether it is gone."""
    connection = _Connection(path)
    try:
        connection.request("DELETE", f"/containers/{container}?force=1&v=1")
        return connection.getresponse().status in (204, 404)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    main(float(sys.argv[1]), *sys.argv[2:5])
