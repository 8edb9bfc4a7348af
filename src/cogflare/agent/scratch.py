"""Folders in the temp folder: made, kept as long as somebody needs them, and swept when their owners have died.

Whoever needs a folder holds a lock on it (`flock`, on the folder itself): the agent, and the minder or warden that was
given the lock with its start and outlives the agent. The kernel lets go of it when the last of them has ended, in
whatever way, and tells across containers that share the temp folder. Services that clean temp folders know such locks
and leave the folder alone.

    cogflare-<kind>-<kernel>-…    made under this kernel, as the name says: what nobody has locked is nobody's
    cogflare-<kind>-…             of another machine that shares the temp folder, or an earlier version, or before a
                                  restart of the machine: a lock may be missing, so it stays until it is old
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import shutil
import stat
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

if sys.platform != "win32":
    import fcntl

_PREFIX: Final = "cogflare-"
_KINDS: Final = ("model", "container", "input", "outputs")
_CORD: Final = "cord"
_TRIES, _PAUSE_S = 100, 0.01
_OLD_S: Final = 7 * 86_400.0
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


class Scratch:
    """A folder, and the lock that keeps it. ``lock`` is its descriptor; None where folders cannot be locked."""

    def __init__(self, path: Path, lock: int | None) -> None:
        self.path, self.lock = path, lock

    @classmethod
    def make(cls, kind: str) -> Scratch:
        """Make a folder in the temp folder; raises `OSError`."""
        assert kind in _KINDS
        while True:
            path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{kind}-{_kernel()}-"))
            # Until it is locked, a sweep may take it for one of the dead.
            with suppress(FileNotFoundError, BlockingIOError):
                return cls(path, _lock(path))

    @classmethod
    def at(cls, path: Path) -> Scratch:
        """Keep a folder that is, or was, somebody's; it is made if it is gone. Raises `OSError`."""
        for _ in range(_TRIES):
            path.mkdir(mode=0o700, exist_ok=True)
            with suppress(FileNotFoundError, BlockingIOError):
                return cls(path, _lock(path))
            time.sleep(_PAUSE_S)  # a sweep found nobody's lock
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))

    def shared(self) -> tuple[int, ...]:
        """The descriptors for a process that shall keep the folder too."""
        return () if self.lock is None else (self.lock,)

    def let_go(self) -> None:
        """Keep the folder no longer; may be called twice."""
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def remove(self) -> None:
        """Remove the folder; may be called twice."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.let_go()


def _kernel() -> str:
    """A word for the kernel that keeps the locks of this process: another one may not know of them."""
    try:
        told = _BOOT.read_text()
    except OSError:
        told = platform.node()
    return hashlib.sha256(told.encode(errors="replace")).hexdigest()[:8]


def _lock(path: Path) -> int | None:
    """Lock a folder beside others; raises `FileNotFoundError` or `BlockingIOError` when it is being swept."""
    if sys.platform == "win32":
        return None
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        is_there = os.path.samestat(os.fstat(lock), os.stat(path, follow_symlinks=False))
    except (BlockingIOError, FileNotFoundError):
        os.close(lock)
        raise
    except OSError:  # a file system without locks, where nothing is swept either
        os.close(lock)
        return None
    if not is_there:
        os.close(lock)
        raise FileNotFoundError(path)
    return lock


def start_sweep() -> None:
    """Sweep beside everything else; nobody waits for it, not even this process's end."""
    threading.Thread(target=sweep, name="sweep", daemon=True).start()


def sweep() -> None:
    """Remove the folders of this user whose owners have died."""
    if sys.platform == "win32":
        return
    every = tuple(f"{_PREFIX}{kind}-" for kind in _KINDS)
    own = tuple(f"{prefix}{_kernel()}-" for prefix in every)
    with suppress(OSError):
        root = Path(tempfile.gettempdir())
        for name in os.listdir(root):
            if name.startswith(every):
                _sweep_one(root / name, 0.0 if name.startswith(own) else _OLD_S)


def _sweep_one(path: Path, age_s: float) -> None:
    """Remove a folder that nobody keeps, and in which nothing was made or removed for so long."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # no folder, or not ours to look into
        return
    try:
        about = os.fstat(lock)
        if about.st_uid != os.getuid() or time.time() - about.st_mtime < age_s:
            return
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _has_reader(path / _CORD):
            shutil.rmtree(path, ignore_errors=True)
    except (OSError, RecursionError):  # somebody keeps it, or nobody can tell; or it is too deep
        return
    finally:
        os.close(lock)


def _has_reader(cord: Path) -> bool:
    """Whether a minder or warden waits at this cord: one of an earlier version has no lock."""
    try:
        is_fifo = stat.S_ISFIFO(os.stat(cord, follow_symlinks=False).st_mode)
        writer = os.open(cord, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return False
    os.close(writer)
    return is_fifo
