"""The name of this machine's GPU, as NVIDIA's tool tells it; run times are learned by it.

What asks the driver is a process of its own that nobody waits for longer than a few seconds, whatever becomes of it.
"""

import asyncio
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_TIMEOUT_S: Final = 5.0
_KILL_S: Final = 1.0
_MOST: Final = 32_000  # bytes of an answer that are read: more than any machine has GPUs for
_QUERY: Final = ("--query-gpu=name", "--format=csv,noheader")


async def gpu_name() -> str | None:
    """Return the names of the GPUs here, such as "2 x NVIDIA A40"; None where there is none that can be named."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    return _shown(await answer_of(tool, *_QUERY))


async def answer_of(*command: str) -> bytes:
    """Return what a program writes; nothing of one that fails, hangs, or is not there."""
    asking = asyncio.create_task(_ask(command))
    try:
        # No tool that hangs may hold the worker up, not even with its end.
        done, _ = await asyncio.wait({asking}, timeout=_TIMEOUT_S)
        return asking.result() if done else b""
    except OSError:
        return b""
    finally:
        asking.cancel()
        await asyncio.wait({asking}, timeout=_KILL_S)


async def _ask(command: Sequence[str]) -> bytes:
    pipe, silent = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, stdin=silent, stdout=pipe, stderr=silent)
    assert process.stdout is not None
    try:
        said = b""
        while part := await process.stdout.read(_MOST):
            said += part[: _MOST - len(said)]
        return said if await process.wait() == 0 else b""
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


def _shown(said: bytes) -> str | None:
    names = [" ".join(line.split()) for line in said.decode(errors="replace").splitlines()]
    counts = Counter(name for name in names if name)
    return ", ".join(name if many == 1 else f"{many} x {name}" for name, many in counts.items()) or None


def is_gpu_here() -> bool:
    """Whether this machine has an NVIDIA GPU with its driver, as Linux and WSL show it."""
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg"))
