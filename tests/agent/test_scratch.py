"""Folders in the temp folder: an agent that starts sweeps those of the dead, and no others."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cogflare.agent.depot import Depot
from cogflare.agent.runners.base import Job
from cogflare.agent.runners.function import FunctionRunner
from cogflare.agent.runners.process import ServerProcess
from cogflare.agent.scratch import Scratch, start_sweep, sweep
from cogflare.agent.sources import FunctionSource
from support.runners import MemorySink, family, finished

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked there"),
]

DAY_S = 86_400

HOLDER = """
import sys, time
from cogflare.agent.scratch import Scratch
kept = Scratch.make(sys.argv[1])
(kept.path / "file").touch()
print(kept.path, flush=True)
time.sleep(600)
"""


@pytest.fixture
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temp folder of the test's own."""
    (folder := tmp_path / "temp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.fixture
def holder(temp: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that has a folder, and the folder."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, "model"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())
        process.kill()


@pytest.fixture
async def server(temp: Path) -> AsyncIterator[ServerProcess]:
    """A server with a folder; its agent lets go of the folder, but not of the cord."""
    process = await ServerProcess.start(
        Path(sys.executable),
        ["-c", "import time; time.sleep(600)"],
        folder=temp,
        environ=os.environ,
        scratch=Scratch.make("model"),
        keep_s=30,
    )
    process.scratch.let_go()
    yield process
    await process.stop(0)


def test_a_folder_stays_while_its_owner_lives_and_goes_after_it_was_killed(
    holder: tuple[subprocess.Popen[str], Path],
) -> None:
    process, folder = holder
    sweep()
    assert (folder / "file").exists()
    process.kill()
    process.wait()
    sweep()
    assert not folder.exists()


@pytest.mark.parametrize("kind", ["model", "container", "input", "outputs"])
def test_every_kind_is_kept_and_swept(temp: Path, kind: str) -> None:
    kept = Scratch.make(kind)
    sweep()
    assert list(temp.iterdir()) == [kept.path]
    kept.let_go()
    sweep()
    assert list(temp.iterdir()) == []


async def test_a_model_without_its_agent_keeps_its_folder(server: ServerProcess) -> None:
    """The next agent finds there what it needs to take the model over."""
    os.close(server._cord)
    sweep()
    assert {file.name for file in server.scratch.path.iterdir()} == {"cord", "server.log"}
    assert server.mark is not None
    heir = ServerProcess.adopt(server.mark, server.scratch.path)
    assert heir is not None
    server._cord = heir._cord
    await heir.stop(0)
    server._cord = -1
    sweep()
    assert not server.scratch.path.exists()


async def test_the_minder_or_its_guard_alone_keep_the_folder(server: ServerProcess) -> None:
    async with asyncio.timeout(10):
        while len(below := family(server.pid)) < 2:
            await asyncio.sleep(0.01)
    guard = below[0]
    for pid in (server.pid, guard):
        os.kill(pid, signal.SIGSTOP)
    os.kill(server.pid, signal.SIGKILL)
    await server.ended()
    sweep()
    assert server.scratch.path.exists()
    os.kill(guard, signal.SIGKILL)
    async with asyncio.timeout(10):
        while server.scratch.path.exists():
            sweep()
            await asyncio.sleep(0.01)


async def test_input_files_of_a_function_lie_in_the_folder_of_its_server(temp: Path, tmp_path: Path) -> None:
    (tmp_path / "looker.py").write_text("from pathlib import Path\ndef run(file: Path) -> str:\n    return str(file)\n")
    runner = FunctionRunner("acme", "model", FunctionSource("looker:run", tmp_path), MemorySink())
    try:
        await runner.setup(lambda text: None)
        job = Job(id="p1", attempt=1, input={"file": "data:text/plain,x"})
        place = Path(str(finished([event async for event in runner.run(job)]).output))
        (folder,) = temp.iterdir()
        assert place.is_relative_to(folder)
        assert folder.name.startswith("cogflare-model-")
    finally:
        await runner.close()
    assert list(temp.iterdir()) == []


def age(folder: Path, seconds: float) -> None:
    """Make a folder look as if nothing had been made in it for so long."""
    os.utime(folder, (time.time() - seconds,) * 2)


def test_a_folder_without_a_lock_stays_while_a_minder_waits_at_its_cord(temp: Path) -> None:
    """Earlier versions lock nothing."""
    (folder := temp / "cogflare-model-abcdefgh").mkdir()
    os.mkfifo(folder / "cord")
    reader = os.open(folder / "cord", os.O_RDONLY | os.O_NONBLOCK)
    age(folder, 8 * DAY_S)
    sweep()
    assert folder.exists()
    os.close(reader)
    sweep()
    assert not folder.exists()


@pytest.mark.parametrize("name", ["cogflare-outputs-abcdefgh", "cogflare-input-00000000-abcdefgh"])
def test_whose_lock_might_not_be_seen_stays_until_it_is_old(temp: Path, name: str) -> None:
    """Earlier versions have none, and those of other machines that share the temp folder may not be told here."""
    (folder := temp / name).mkdir()
    age(folder, 6 * DAY_S)
    sweep()
    assert folder.exists()
    age(folder, 8 * DAY_S)
    sweep()
    assert not folder.exists()


def test_what_is_no_folder_of_an_agent_stays(temp: Path) -> None:
    outside = temp / "outside"
    outside.mkdir()
    (outside / "file").touch()
    for name in ("cogflare-demo-abcdefgh", "cogflare-model", "other-model-abcdefgh"):
        (temp / name).mkdir()
    (temp / "cogflare-model-file").touch()
    (temp / "cogflare-model-link").symlink_to(outside)
    os.mkfifo(temp / "cogflare-model-fifo")
    before = sorted(temp.iterdir())
    sweep()
    assert sorted(temp.iterdir()) == before
    assert (outside / "file").exists()


def test_links_in_a_folder_lead_nowhere(temp: Path) -> None:
    (outside := temp / "outside").mkdir()
    (outside / "file").touch()
    dead = Scratch.make("model")
    (dead.path / "folder").symlink_to(outside)
    (dead.path / "file").symlink_to(outside / "file")
    dead.let_go()
    sweep()
    assert not dead.path.exists()
    assert (outside / "file").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_the_folders_of_other_users_stay(temp: Path) -> None:
    others = Scratch.make("model")
    others.let_go()
    os.chown(others.path, 12345, 12345)
    sweep()
    assert others.path.exists()


def test_a_folder_that_a_sweep_has_found_first_is_made_anew(temp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its making and its lock it looks like one of the dead."""
    make, found = tempfile.mkdtemp, []

    def swept_at_once(**options: str) -> str:
        found.append(make(**options))
        if len(found) == 1:
            sweep()
        elif len(found) == 2:
            sweeping = os.open(found[-1], os.O_RDONLY)
            fcntl.flock(sweeping, fcntl.LOCK_EX)
        return found[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", swept_at_once)
    kept = Scratch.make("model")
    assert (len(found), str(kept.path)) == (3, found[2])
    sweep()
    assert kept.path.exists()


def test_makers_and_sweeps_do_not_meet(temp: Path) -> None:
    """Whatever the moment, what was made stays and is there."""
    over = threading.Event()

    def sweep_on() -> None:
        while not over.is_set():
            sweep()

    sweeps = [threading.Thread(target=sweep_on) for _ in range(2)]
    for thread in sweeps:
        thread.start()
    try:
        kept = [Scratch.make("input") for _ in range(200)]
    finally:
        over.set()
        for thread in sweeps:
            thread.join()
    assert all(one.path.is_dir() for one in kept)
    for one in kept:
        one.remove()


def test_a_folder_that_was_swept_is_made_again_for_who_needs_it(temp: Path) -> None:
    dead = Scratch.make("container")
    dead.remove()
    again = Scratch.at(dead.path)
    sweep()
    assert again.path.is_dir()


def test_a_sweep_that_fails_fails_nobody(temp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(temp / "gone"))
    start_sweep()
    sweep()


def test_a_depot_of_its_own_is_kept_until_it_is_closed(temp: Path) -> None:
    depot = Depot()
    folder = depot.folder("a-1")
    sweep()
    assert folder.exists()
    depot.close()
    assert list(temp.iterdir()) == []
