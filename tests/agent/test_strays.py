"""What a model starts in a session of its own ends with the model, whichever way that ends."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cogflare.agent.runners import minder
from cogflare.agent.runners.base import Job, RunLost
from cogflare.agent.runners.cogfolder import CogFolderRunner
from cogflare.agent.runners.function import FunctionRunner
from cogflare.agent.runners.process import Mark, ServerProcess, sweep
from cogflare.agent.scratch import Scratch
from cogflare.agent.sources import FunctionSource
from support.runners import MODELS, MemorySink, children

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are known for sure on Linux alone"),
]

# Starts one process in a session of its own, and one that has lost its parent besides; each writes its number down.
STRAYS = """
import os, subprocess, sys, time
SLEEP = "import os, sys, time; open(sys.argv[1], 'w').write(f'{os.getpid()} '); time.sleep(600)"
def stray(path):
    subprocess.Popen([sys.executable, "-c", SLEEP, path + "/session"], start_new_session=True, env=dict(os.environ))
    if not (child := os.fork()):
        os.setsid()
        subprocess.Popen([sys.executable, "-c", SLEEP, path + "/orphan"], start_new_session=True, env=EMPTY)
        os._exit(0)
    os.waitpid(child, 0)
"""
EMPTY, WHOLE = "EMPTY = {}\n", "EMPTY = dict(os.environ)\n"


class Model:
    """A server of a kind: a program that starts strays, under a minder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.strays: list[int] = []

    async def start(self, then: str = "time.sleep(600)", environ: str = EMPTY, **options: Any) -> ServerProcess:
        """Start it, and wait until the strays are there."""
        program = f"{STRAYS}{environ}stray({str(self.folder)!r})\n{then}"
        scratch = Scratch.make("model")
        self.process = await ServerProcess.start(
            Path(sys.executable), ["-c", program], folder=self.folder, environ=os.environ, scratch=scratch, **options
        )
        self.strays = [await said(self.folder / name) for name in ("session", "orphan")]
        assert len({os.getsid(pid) for pid in [self.process.pid, *self.strays]}) == 3
        return self.process

    def inside(self) -> tuple[int, int]:
        """The guard and the server."""
        (guard,) = children(self.process.pid)
        server = next(pid for pid in children(guard) if os.getsid(pid) == self.process.pid)
        return guard, server


def lives(pid: int) -> bool:
    """Whether a process runs; a dead one that nobody has reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def said(file: Path) -> int:
    """Return the number that a process writes down, once it does."""
    async with asyncio.timeout(20):
        while not file.exists() or not (text := file.read_text()).endswith(" "):
            await asyncio.sleep(0.01)
    return int(text)


async def gone(pids: list[int]) -> None:
    """Wait until none of them is there."""
    async with asyncio.timeout(10):
        while any(lives(pid) for pid in pids):
            await asyncio.sleep(0.01)


@pytest.fixture
async def model(tmp_path: Path) -> AsyncIterator[Model]:
    model = Model(tmp_path)
    yield model
    await model.process.stop(0)
    model.process.scratch.remove()
    for pid in model.strays:
        if lives(pid):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("grace_s", [0, 3])
async def test_a_stop_ends_them(model: Model, grace_s: float) -> None:
    process = await model.start()
    await process.stop(grace_s)
    assert not any(lives(pid) for pid in model.strays)


async def test_a_stop_of_a_frozen_minder_ends_them(model: Model) -> None:
    process = await model.start()
    os.kill(process.pid, signal.SIGSTOP)
    await process.stop(0)
    assert not any(lives(pid) for pid in model.strays)


async def test_the_end_of_the_server_ends_them_and_is_told_as_it_was(model: Model) -> None:
    wait = "while not os.path.exists('go'): time.sleep(0.01)\n"
    process = await model.start(f"{wait}print('over', flush=True)\nos._exit(7)")
    (model.folder / "go").touch()
    assert await process.ended() == "the model's server ended with status 7\nover"
    await gone(model.strays)


async def test_a_server_that_cannot_be_started_says_why(model: Model) -> None:
    process = model.process = await ServerProcess.start(
        model.folder / "no-python", ["-c", ""], folder=model.folder, environ=os.environ, scratch=Scratch.make("model")
    )
    assert "ended with status 1\n" in (said := await process.ended())
    assert "No such file or directory" in said


@pytest.mark.parametrize("inherited", ["ignored", "blocked"])
async def test_an_end_is_told_whatever_signals_the_agent_was_started_with(model: Model, inherited: str) -> None:
    """A supervisor hands on to all below it which signals it has ignored or blocked."""
    numbers = {signal.SIGCHLD, minder.END}
    old = {number: signal.getsignal(number) for number in numbers}
    if inherited == "blocked":
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    else:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
    try:
        process = await model.start("while not os.path.exists('go'): time.sleep(0.01)\nos._exit(7)")
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        for number, handler in old.items():
            signal.signal(number, handler)
    (model.folder / "go").touch()
    async with asyncio.timeout(20):
        assert "ended with status 7" in await process.ended()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
async def test_a_crash_of_the_server_ends_them_and_is_told_as_it_was(model: Model, number: int) -> None:
    process = await model.start()
    os.kill(model.inside()[1], number)
    assert await process.ended() == f"the model's server was killed by signal {number}"
    await gone(model.strays)


async def test_the_end_of_the_guard_ends_them(model: Model) -> None:
    process = await model.start()
    os.kill(model.inside()[0], signal.SIGKILL)
    await process.ended()
    await gone(model.strays)


async def test_the_end_of_the_minder_ends_them(model: Model) -> None:
    process = await model.start()
    guard, server = model.inside()
    os.kill(process.pid, signal.SIGKILL)
    await gone([guard, server, *model.strays])


@pytest.mark.parametrize("keep_s", [0, 0.5])
async def test_the_time_without_an_agent_ends_them(model: Model, keep_s: float) -> None:
    process = await model.start(keep_s=keep_s)
    os.close(process._cord)
    process._cord = -1
    if keep_s:
        await asyncio.sleep(0.1)
        assert all(lives(pid) for pid in model.strays)
    await gone(model.strays)


async def _stopped(process: ServerProcess, mark: Mark) -> None:
    await process.stop(0)


async def _swept(process: ServerProcess, mark: Mark) -> None:
    await sweep(mark, process.scratch.path)


@pytest.mark.parametrize("end", [_stopped, _swept])
async def test_without_minder_and_guard_the_agent_knows_them_by_their_environment(
    model: Model, end: Callable[[ServerProcess, Mark], Awaitable[None]]
) -> None:
    process = await model.start(environ=WHOLE)
    assert process.mark is not None
    os.kill(process.pid, signal.SIGSTOP)
    for doomed in (*model.inside(), process.pid):
        os.kill(doomed, signal.SIGKILL)
    await process.ended()
    assert all(lives(pid) for pid in model.strays)
    await end(process, process.mark)
    assert not any(lives(pid) for pid in model.strays)


async def test_of_an_earlier_version_the_group_is_known_by_its_mark_alone(tmp_path: Path) -> None:
    """One whose leader has gone."""
    sleeper = "import time; time.sleep(600)"
    program = (
        "import os, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {sleeper!r}])\n"
        "open('child', 'w').write(f'{child.pid} ')\nsys.stdin.read()"
    )
    leader = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, cwd=tmp_path, env={**os.environ, "CHILD_OF_COGFLARE": "1"},
        start_new_session=True, stdin=asyncio.subprocess.PIPE,
    )  # fmt: skip
    (scratch := tmp_path / "scratch").mkdir()
    child = await said(tmp_path / "child")
    mark = Mark.of(leader.pid)
    assert mark is not None
    try:
        await sweep(Mark(mark.pid, "another birth"), scratch)
        assert lives(child), "the number is another's now"
        leader.kill()
        await leader.wait()
        assert lives(child)
        await sweep(mark, scratch)
        assert not lives(child)
    finally:
        if lives(child):
            os.kill(child, signal.SIGKILL)


async def test_nothing_of_another_server_is_touched(model: Model, tmp_path: Path) -> None:
    """Not even without minder and guard, nor where one stands inside the other."""
    process = await model.start(environ=WHOLE)
    inner = Model(tmp_path / "inner")
    inner.folder.mkdir()
    within = {**os.environ, "CHILD_OF_COGFLARE": str(process.scratch.path)}
    program = f"{STRAYS}{WHOLE}stray({str(inner.folder)!r})\ntime.sleep(600)"
    inner.process = await ServerProcess.start(
        Path(sys.executable), ["-c", program], folder=tmp_path, environ=within, scratch=Scratch.make("model")
    )
    inner.strays = [await said(inner.folder / name) for name in ("session", "orphan")]
    await inner.process.stop(0)
    assert not any(lives(pid) for pid in inner.strays)
    assert all(lives(pid) for pid in [process.pid, *model.inside(), *model.strays])
    inner.process.scratch.remove()


async def test_what_ends_meanwhile_is_reaped(model: Model) -> None:
    """Orphans come to the guard, for weeks."""
    await model.start("[os.system('(true &)') for _ in range(50)]; print('done', flush=True); time.sleep(600)")
    async with asyncio.timeout(20):
        while "done" not in model.process.tail():
            await asyncio.sleep(0.01)
        guard, server = model.inside()
        while set(children(guard)) != {server, *(pid for pid in model.strays if pid in children(guard))}:
            await asyncio.sleep(0.01)
    assert model.strays[1] in children(guard)


# --- models -----------------------------------------------------------------------------------------------------------


async def lost(runner: FunctionRunner, job: Job) -> None:
    with pytest.raises(RunLost):
        _ = [event async for event in runner.run(job)]


async def test_what_a_function_starts_ends_with_a_restart_and_with_the_worker(tmp_path: Path) -> None:
    (tmp_path / "leaver.py").write_text(
        f"{STRAYS}{EMPTY}def run(where: str) -> str:\n    stray(where)\n    time.sleep(600)\n    return ''\n"
    )
    runner = FunctionRunner("acme", "model", FunctionSource("leaver:run", tmp_path), MemorySink())
    await runner.setup(lambda text: None)
    seen: list[int] = []
    try:
        for number, end in enumerate((runner.restart, runner.close)):
            (where := tmp_path / f"run-{number}").mkdir()
            run = asyncio.create_task(lost(runner, Job(id=where.name, attempt=1, input={"where": str(where)})))
            seen += [await said(where / name) for name in ("session", "orphan")]
            await end()
            await run
            assert not any(lives(pid) for pid in seen)
        assert len(seen) == 4
    finally:
        await runner.close()


async def test_what_a_cog_model_starts_ends_with_it(tmp_path: Path, cog_cache: Path) -> None:
    shutil.copytree(MODELS / "noop", folder := tmp_path / "model")
    (folder / "predict.py").write_text(
        f"from cog import BaseRunner\n{STRAYS}{EMPTY}class Runner(BaseRunner):\n"
        f"    def setup(self) -> None:\n        stray({str(tmp_path)!r})\n"
        "    def run(self, text: str) -> str:\n        return text\n"
    )
    runner = CogFolderRunner("acme", "model", folder, cog_cache, MemorySink())
    try:
        await runner.setup(lambda text: None)
        strays = [await said(tmp_path / name) for name in ("session", "orphan")]
    finally:
        await runner.close()
    assert not any(lives(pid) for pid in strays)
