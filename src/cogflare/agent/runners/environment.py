"""Python environments for folders of Cog models: built once for the same wishes, kept under a cache directory.

An environment is a directory ``<key>`` with a file ``.complete`` beside a lock file. Building happens in place (a
virtual environment cannot be moved) under the lock; what lacks the mark is somebody's torn build and is built anew.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import shutil
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from cogflare.agent.runners.base import LogSink, SetupFailed

_LOCK_PAUSE_S = 0.2
_MARK = ".complete"
_TAIL_LINES = 20


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What an environment shall hold. ``requirements`` is the content of the folder's requirements file."""

    cog: str
    python: str
    packages: tuple[str, ...] = ()
    requirements: str = ""
    requirements_file: str = ""

    def key(self) -> str:
        """The name of the environment: equal for equal wishes."""
        known = [self.cog, self.python, sorted(self.packages), self.requirements]
        return hashlib.sha256(msgspec.json.encode(known)).hexdigest()[:24]


async def ensure(cache_dir: Path, folder: Path, wishes: Wishes, log: LogSink) -> Path:
    """Return the ``bin`` directory of an environment that grants the wishes, building it if need be.

    Raises `SetupFailed` with the last lines of the tool that failed.
    """
    home = cache_dir / wishes.key()
    if not _is_complete(home):
        async with _locked(cache_dir, f"{wishes.key()}.lock", log):
            if not _is_complete(home):
                await _build(home, folder, wishes, log)
    return home / "bin"


def _is_complete(home: Path) -> bool:
    return (home / _MARK).exists()


@asynccontextmanager
async def _locked(cache_dir: Path, name: str, log: LogSink) -> AsyncIterator[None]:
    """Hold the lock file; the kernel lets go of it when this process dies."""
    os.makedirs(cache_dir, exist_ok=True)
    descriptor = os.open(cache_dir / name, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        is_first_try = True
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if is_first_try:
                    log("Waiting for another agent that builds this environment\n")
                is_first_try = False
                await asyncio.sleep(_LOCK_PAUSE_S)
        yield
    finally:
        os.close(descriptor)


async def _build(home: Path, folder: Path, wishes: Wishes, log: LogSink) -> None:
    await asyncio.to_thread(shutil.rmtree, home, ignore_errors=True)
    log(f"Building a Python {wishes.python} environment with cog {wishes.cog}\n")
    wanted = [f"cog=={wishes.cog}", *wishes.packages]
    if wishes.requirements_file:
        wanted += ["-r", wishes.requirements_file]
    python = str(home / "bin" / "python")
    if uv := _uv():
        await _call([uv, "venv", "--python", wishes.python, str(home)], folder, log)
        await _call([uv, "pip", "install", "--python", python, *wanted], folder, log)
    else:
        await _call([_interpreter(wishes.python), "-m", "venv", str(home)], folder, log)
        await _call([python, "-m", "pip", "install", *wanted], folder, log)
    (home / _MARK).touch()


def _uv() -> str | None:
    return shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))


def _interpreter(version: str) -> str:
    """A Python of that version on this machine."""
    if version == own_python():
        return sys.executable
    if found := shutil.which(f"python{version}"):
        return found
    raise SetupFailed(f"the model wants Python {version}, which is not on this machine; install it, or install uv")


def own_python() -> str:
    """The version of the Python that runs the agent, as ``major.minor``."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


async def _call(command: list[str], folder: Path, log: LogSink) -> None:
    """Run a tool in the folder, passing its lines on; raises `SetupFailed` when it fails."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env=scrubbed(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    try:
        assert process.stdout is not None
        async for raw in process.stdout:
            line = raw.decode(errors="replace").rstrip()
            tail.append(line)
            if not line.startswith("Activate with"):  # nobody has to
                log(line + "\n")
        status = await process.wait()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if status:
        raise SetupFailed(f"{' '.join(command[:3])} … failed with status {status}\n" + "\n".join(tail))


def scrubbed() -> dict[str, str]:
    """The agent's environment variables without those that hold its tokens or bend Python to its own packages."""
    bent = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT")
    return {name: value for name, value in os.environ.items() if not name.startswith("COGFLARE_") and name not in bent}
