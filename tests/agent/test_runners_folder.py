"""What the folder runner owns: the environment, the server's processes, and their end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cogflare.agent.runners.base import Event, Finished, Job, Log, RunLost, SetupFailed
from cogflare.agent.runners.cogfolder import CogFolderRunner
from cogflare.agent.runners.cogyaml import read_config
from cogflare.agent.runners.environment import Wishes, ensure
from support.runners import MODELS, MemorySink, Offspring, Rigger, family, finished

pytestmark = pytest.mark.anyio


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def gone(pids: list[int]) -> None:
    """Wait until none of the processes is left."""
    async with asyncio.timeout(10):
        while any(map(is_alive, pids)):
            await asyncio.sleep(0.01)


async def until_asleep(runs: AsyncIterator[Event], seen: list[Event]) -> None:
    async for event in runs:
        seen.append(event)
        if isinstance(event, Log) and "asleep" in event.text:
            return


async def test_close_leaves_no_process(offspring: Offspring, folder_rig: Rigger) -> None:
    model = await folder_rig("sleeper")
    seen: list[Event] = []
    runs = model.runner.run(Job(id="p1", attempt=1, input={"seconds": 60, "stubborn": True}))
    await until_asleep(runs, seen)
    pids = offspring()
    assert len(pids) == 4
    await model.runner.close()
    assert not any(map(is_alive, pids))
    await runs.aclose()


async def test_the_setup_log_is_passed_on(folder_rig: Rigger) -> None:
    model = await folder_rig("sleeper")
    assert "sleeper is awake" in "".join(model.setup_log)


async def test_a_setup_that_fails_says_why_and_leaves_nothing(offspring: Offspring, folder_rig: Rigger) -> None:
    with pytest.raises(SetupFailed, match="no weights here"):
        await folder_rig("broken")
    assert offspring() == []


async def test_a_server_that_cannot_start_says_why(cog_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "cog.yaml").write_text('run: "absent.py:Runner"\n')
    runner = CogFolderRunner("acme", "absent", tmp_path, cog_cache, MemorySink())
    with pytest.raises(SetupFailed, match=r"absent\.py"):
        await runner.setup(lambda text: None)


async def test_a_folder_without_a_model_says_so(tmp_path: Path) -> None:
    runner = CogFolderRunner("acme", "none", tmp_path, tmp_path / "cache", MemorySink())
    with pytest.raises(SetupFailed, match="cannot be read"):
        await runner.setup(lambda text: None)


async def test_a_model_that_ignores_the_cancel_is_restarted(offspring: Offspring, folder_rig: Rigger) -> None:
    model = await folder_rig("sleeper")
    seen: list[Event] = []
    runs = model.runner.run(Job(id="p1", attempt=1, input={"seconds": 60, "stubborn": True}))
    await until_asleep(runs, seen)
    await model.runner.cancel("p1")
    async for event in runs:
        if isinstance(event, Log) and "not getting up" in event.text:
            break
    before = offspring()
    await model.runner.restart()
    assert [event async for event in runs] == [Finished(status="canceled")]
    assert not any(map(is_alive, before))
    assert finished(await model.events({"seconds": 0}, id="p2")).output == "rested"


async def test_a_restart_loses_runs_that_nobody_canceled(folder_rig: Rigger) -> None:
    model = await folder_rig("sleeper")
    seen: list[Event] = []
    runs = model.runner.run(Job(id="p1", attempt=1, input={"seconds": 60}))
    await until_asleep(runs, seen)
    await model.runner.restart()
    with pytest.raises(RunLost, match="restarted"):
        seen += [event async for event in runs]


async def test_a_crashed_model_is_whole_after_a_restart(folder_rig: Rigger) -> None:
    model = await folder_rig("crasher")
    with pytest.raises(RunLost):
        await model.events({"crash": True})
    await asyncio.wait_for(model.runner.wait_broken(), 5)
    await model.runner.restart()
    assert finished(await model.events({"crash": False}, id="p2")).output == "alive"


async def test_a_server_that_finds_no_place_on_the_disk_may_start_later(
    folder_rig: Rigger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = await folder_rig("noop")
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
        with pytest.raises(SetupFailed, match=r"cannot be started: .*gone"):
            await model.runner.restart()
    await model.runner.restart()
    assert finished(await model.events({"text": "again"})).output == "again"


async def test_a_killed_server_loses_its_run(offspring: Offspring, folder_rig: Rigger) -> None:
    model = await folder_rig("sleeper")
    seen: list[Event] = []
    runs = model.runner.run(Job(id="p1", attempt=1, input={"seconds": 60}))
    await until_asleep(runs, seen)
    os.kill(offspring()[0], signal.SIGKILL)
    with pytest.raises(RunLost, match="signal 9"):
        seen += [event async for event in runs]
    assert "signal 9" in await model.runner.wait_broken()


async def test_tokens_of_the_agent_stay_with_the_agent(
    offspring: Offspring, folder_rig: Rigger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COGFLARE_TOKEN", "secret-of-the-agent")
    await folder_rig("noop")
    environs = [environ_of(pid) for pid in offspring()]
    assert len(environs) == 4
    assert not any(b"secret-of-the-agent" in environ for environ in environs)


def environ_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


AGENT = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from support.runners import MemorySink
from cogflare.agent.runners.cogfolder import CogFolderRunner
async def main():
    runner = CogFolderRunner("acme", "noop", Path(sys.argv[1]), Path(sys.argv[2]), MemorySink())
    await runner.setup(lambda text: None)
    print("ready", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the tie between agent and server is Linux's")
async def test_a_killed_agent_takes_its_server_along(cog_cache: Path) -> None:
    here = str(Path(__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", AGENT, str(MODELS / "noop"), str(cog_cache), here], stdout=subprocess.PIPE
    ) as agent:
        assert agent.stdout is not None
        assert await asyncio.to_thread(agent.stdout.readline) == b"ready\n"
        pids = family(agent.pid)
        assert len(pids) == 4
        agent.kill()
        await gone(pids)


async def test_the_version_follows_the_content(cog_cache: Path, tmp_path: Path, folder_rig: Rigger) -> None:
    versions = []
    for text in ("a", "a", "b"):
        (tmp_path / "cog.yaml").write_text('run: "predict.py:Runner"\n')
        (tmp_path / "predict.py").write_text((MODELS / "noop" / "predict.py").read_text() + f"# {text}\n")
        runner = CogFolderRunner("acme", "copy", tmp_path, cog_cache, MemorySink())
        offer = await runner.setup(lambda text: None)
        assert offer.schema is None
        events = [event async for event in runner.run(Job(id="p1", attempt=1, input={"text": text}))]
        assert isinstance(events[-1], Finished)
        assert events[-1].output == text
        versions.append(offer.version)
        await runner.close()
    assert versions[0] == versions[1] != versions[2]


async def test_two_agents_at_once_build_one_environment(tmp_path: Path) -> None:
    logs: list[str] = []
    wishes = Wishes(cog="0.23.1", python=f"{sys.version_info.major}.{sys.version_info.minor}")
    bins = await asyncio.gather(*(ensure(tmp_path, MODELS / "noop", wishes, logs.append) for _ in range(2)))
    assert bins[0] == bins[1]
    assert (bins[0] / "python").exists()
    assert sum(log.startswith("Building") for log in logs) == 1
    assert sum(log.startswith("Waiting") for log in logs) == 1


async def test_a_torn_environment_is_built_anew(tmp_path: Path) -> None:
    wishes = Wishes(cog="0.23.1", python=f"{sys.version_info.major}.{sys.version_info.minor}")
    torn = tmp_path / wishes.key() / "bin"
    torn.mkdir(parents=True)
    (torn / "python").write_text("torn")
    assert (await ensure(tmp_path, MODELS / "noop", wishes, lambda text: None) / "python").is_symlink()


async def test_an_environment_that_cannot_be_built_says_why(tmp_path: Path) -> None:
    logs: list[str] = []
    wishes = Wishes(
        cog="0.23.1",
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        packages=("./nothing-here",),
    )
    with pytest.raises(SetupFailed, match="nothing-here"):
        await ensure(tmp_path, tmp_path, wishes, logs.append)
    assert not (tmp_path / wishes.key() / ".complete").exists()


async def test_without_uv_the_environment_comes_from_venv_and_pip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cogflare.agent.runners.environment._uv", lambda: None)
    wishes = Wishes(cog="0.23.1", python=f"{sys.version_info.major}.{sys.version_info.minor}")
    bin_dir = await ensure(tmp_path, tmp_path, wishes, lambda text: None)
    process = await asyncio.create_subprocess_exec(bin_dir / "python", "-c", "import coglet")
    assert await process.wait() == 0


async def interpreter_with_cog(cache: Path) -> Path:
    wishes = read_config(MODELS / "noop", None).wishes("0.23.1")
    return await ensure(cache, MODELS / "noop", wishes, lambda text: None) / "python"


async def answer_of(runner: CogFolderRunner, input: dict[str, object]) -> object:
    """Set the model up, run it once, and close it."""
    try:
        offer = await runner.setup(lambda text: None)
        assert offer.cog_version == "0.23.1"
        return finished([event async for event in runner.run(Job(id="p1", attempt=1, input=input))]).output
    finally:
        await runner.close()


async def test_with_an_interpreter_no_environment_is_built(cog_cache: Path, tmp_path: Path) -> None:
    python = await interpreter_with_cog(cog_cache)
    runner = CogFolderRunner("acme", "noop", MODELS / "noop", tmp_path / "cache", MemorySink(), python=python)
    assert await answer_of(runner, {"text": "hello"}) == "hello"
    assert not (tmp_path / "cache").exists()


async def test_an_interpreter_of_another_name_runs_the_model_too(
    cog_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Cog server starts the model's process as `python`, whatever it runs in itself."""
    python = tmp_path / "cog's own"
    python.write_text(f'#!/bin/sh\nexec {await interpreter_with_cog(cog_cache)} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    runner = CogFolderRunner("acme", "noop", MODELS / "noop", tmp_path / "cache", MemorySink(), python=python)
    assert await answer_of(runner, {"text": "hello"}) == "hello"


async def test_inside_an_image_the_environment_names_the_model(
    cog_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = await interpreter_with_cog(cog_cache)
    (tmp_path / "predict.py").write_text((MODELS / "noop" / "predict.py").read_text())
    runner = CogFolderRunner("acme", "noop", tmp_path, tmp_path / "cache", MemorySink(), python=python)
    with pytest.raises(SetupFailed, match=r"cog\.yaml"):
        await answer_of(runner, {})
    monkeypatch.setenv("COG_PREDICT_TYPE_STUB", "predict.py:Runner")
    assert await answer_of(runner, {"text": "hello"}) == "hello"


async def test_an_interpreter_without_cog_says_so(tmp_path: Path) -> None:
    python = Path(sys.executable)
    runner = CogFolderRunner("acme", "noop", MODELS / "noop", tmp_path, MemorySink(), python=python)
    with pytest.raises(SetupFailed, match=r"(?s)has no Cog server.*No module named 'cog'"):
        await runner.setup(lambda text: None)
