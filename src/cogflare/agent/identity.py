"""Who this worker is: a state folder of its own, locked while the agent lives, with the worker's id in it.

The id is stable per server, model and folder, so that a restarted agent is the same worker and can deliver what its
predecessor finished. A second agent for the same model on the same machine takes the next free folder (`…-2`).
"""

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO

from cogflare.domain.ids import is_id, new_id

if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[bytes]) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(file: IO[bytes]) -> None:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


_FOLDERS = 1000


def default_state() -> Path:
    """Return the folder under which workers keep their state unless told otherwise."""
    return Path.home() / ".local" / "state" / "cogflare" / "worker"


class StateFolder:
    """A locked state folder; `path` is the folder, `worker` the id. Close it to let another agent have it."""

    def __init__(self, path: Path, worker: str, lock: IO[bytes]) -> None:
        self.path = path
        self.worker = worker
        self._lock = lock

    def __enter__(self) -> "StateFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unlock the folder."""
        self._lock.close()


def claim_state(root: Path, server: str, model: str, wall: Callable[[], int]) -> StateFolder:
    """Lock the first free state folder of this server and model under `root`; raises `OSError` when none can be had."""
    label = hashlib.sha256(f"{server}\n{model}".encode()).hexdigest()[:16]
    for number in range(1, _FOLDERS):
        path = root / (label if number == 1 else f"{label}-{number}")
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (path / "lock").open("ab")
        try:
            _lock(lock)
        except OSError:
            lock.close()
            continue
        return StateFolder(path, _worker_id(path / "worker", wall), lock)
    raise OSError(f"{_FOLDERS} workers already hold the state folders {root / label}")


def is_claimed(path: Path) -> bool:
    """Say whether an agent holds this state folder now."""
    try:
        with (path / "lock").open("r+b") as lock:
            _lock(lock)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _worker_id(file: Path, wall: Callable[[], int]) -> str:
    with contextlib.suppress(FileNotFoundError, UnicodeDecodeError):
        if is_id(known := file.read_text().strip()):
            return known
    worker = new_id(wall())
    draft = file.with_suffix(".new")
    with draft.open("w") as out:
        out.write(f"{worker}\n")
        out.flush()
        os.fsync(out.fileno())
    draft.replace(file)
    return worker
