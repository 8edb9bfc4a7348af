"""Interpreters that somebody else has filled with what a model needs: a virtual environment, or a Cog image's own."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from cogflare.agent.runners.base import SetupFailed
from cogflare.agent.runners.cogrelease import CogRelease
from cogflare.agent.runners.environment import scrubbed

# The package's own version does not tell: in its first years, images had it as 0.0.1.
_LOOK = """
from importlib.util import find_spec
print(find_spec("coglet") is not None)
print(open(find_spec("cog.server.http").origin).read())
"""


def with_interpreter(environ: Mapping[str, str], python: Path) -> dict[str, str]:
    """Return the variables with that interpreter first in the path, as in its virtual environment if it is in one."""
    changed = {"PATH": f"{python.parent}{os.pathsep}{environ.get('PATH', os.defpath)}", "PYTHONUNBUFFERED": "1"}
    if (python.parent.parent / "pyvenv.cfg").is_file():
        changed["VIRTUAL_ENV"] = str(python.parent.parent)
    return {**environ, **changed}


def called_python(python: Path, cache_dir: Path) -> Path:
    """Return the interpreter under the name ``python``, by which coglet starts the model's process.

    Where it has not that name beside it, it gets a script of that name in the cache: a link would lose its environment.
    """
    python = Path(os.path.abspath(python))
    beside = python.with_name("python")
    if beside.exists() and beside.samefile(python):
        return beside
    script = f'#!/bin/sh\nexec {shlex.quote(str(python))} "$@"\n'
    called = cache_dir / f"python-{hashlib.sha256(script.encode()).hexdigest()[:16]}" / "python"
    try:
        if not called.exists():
            called.parent.mkdir(parents=True, exist_ok=True)
            draft = called.with_name(f"python.{os.getpid()}")
            draft.write_text(script)
            draft.chmod(0o755)
            draft.replace(called)
    except OSError as error:
        raise SetupFailed(f"the model's interpreter cannot be prepared: {error}") from error
    return called


async def cog_of(python: Path, folder: Path) -> CogRelease:
    """Return what that interpreter's Cog server can do; raises `SetupFailed` where it has no Cog."""
    said = await answer(python, ["-c", _LOOK], folder, "has no Cog server")
    coglet, _, server = said.partition("\n")
    return CogRelease() if coglet == "True" else CogRelease.of_server(server)


async def answer(python: Path, arguments: list[str], folder: Path, problem: str) -> str:
    """Return what the interpreter prints in that folder; raises `SetupFailed` with the problem when it fails."""
    try:
        process = await asyncio.create_subprocess_exec(
            python, *arguments, cwd=folder, env=with_interpreter(scrubbed(), python),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except OSError as error:
        raise SetupFailed(f"{python} cannot be run: {error}") from error
    try:
        said, complaint = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        raise SetupFailed(f"{python} {problem}\n{complaint.decode(errors='replace')[-2000:]}".rstrip())
    return said.decode(errors="replace")
