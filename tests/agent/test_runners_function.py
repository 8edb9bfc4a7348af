"""What is special to functions and RunPod handlers: where they are found, their interpreter, their process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import venv
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from cogflare.agent.runners.base import Event, Finished, Job, Log, RunLost, SetupFailed
from cogflare.agent.runners.function import FunctionRunner
from cogflare.agent.runners.process import Mark
from cogflare.agent.sources import FunctionSource, HandlerSource
from support.runners import MODELS, MemorySink, Offspring, Rig, Rigger, family, finished, function, handler

pytestmark = pytest.mark.anyio

Opener = Callable[[FunctionSource | HandlerSource], Awaitable[Rig]]
KINDS = pytest.mark.parametrize("source", [function, handler])


@pytest.fixture
async def opened() -> AsyncIterator[Opener]:
    """Sets runners up, and closes them at the end."""
    rigs: list[Rig] = []

    async def open_source(source: FunctionSource | HandlerSource) -> Rig:
        sink = MemorySink()
        rig = Rig(FunctionRunner("acme", "model", source, sink), sink)
        rigs.append(rig)
        rig.offer = await rig.runner.setup(rig.setup_log.append)
        return rig

    yield open_source
    for rig in rigs:
        await rig.runner.close()


async def until_log(runs: AsyncIterator[Event], text: str) -> None:
    async for event in runs:
        if isinstance(event, Log) and text in event.text:
            return


def is_alive(pid: int) -> bool:
    return Mark.of(pid) is not None and Path(f"/proc/{pid}/cmdline").read_bytes() != b""


@KINDS
async def test_close_leaves_no_process(
    offspring: Offspring, opened: Opener, source: Callable[[str], FunctionSource | HandlerSource]
) -> None:
    model = await opened(source("sleeper"))
    runs = model.runner.run(Job(id="p1", attempt=1, input={"seconds": 60, "stubborn": True}))
    await until_log(runs, "asleep")
    pids = offspring()
    assert len(pids) == 4
    await model.runner.close()
    assert not any(map(is_alive, pids))
    await runs.aclose()


@KINDS
async def test_the_setup_log_is_passed_on(
    opened: Opener, source: Callable[[str], FunctionSource | HandlerSource]
) -> None:
    model = await opened(source("sleeper"))
    assert "".join(model.setup_log).count("sleeper is awake\n") == 1


@KINDS
async def test_a_setup_that_fails_says_why_and_leaves_nothing(
    offspring: Offspring, source: Callable[[str], FunctionSource | HandlerSource]
) -> None:
    log: list[str] = []
    with pytest.raises(SetupFailed, match=r"(?s)^RuntimeError: no weights here\n.*looking for the weights\n"):
        await FunctionRunner("acme", "broken", source("broken"), MemorySink()).setup(log.append)
    assert "".join(log).count("looking for the weights") == 1
    assert "".join(log).count("RuntimeError: no weights here") == 1
    assert offspring() == []


@KINDS
async def test_a_model_that_ignores_the_cancel_is_restarted(
    offspring: Offspring, opened: Opener, source: Callable[[str], FunctionSource | HandlerSource]
) -> None:
    model = await opened(source("sleeper"))
    runs = model.runner.run(Job(id="p1", attempt=1, input={"seconds": 60, "stubborn": True}))
    await until_log(runs, "asleep")
    await model.runner.cancel("p1")
    await until_log(runs, "not getting up")
    before = offspring()
    await model.runner.restart()
    assert [event async for event in runs] == [Finished(status="canceled")]
    assert not any(map(is_alive, before))
    assert finished(await model.events({"seconds": 0}, id="p2")).output == "rested"


@KINDS
async def test_a_crashed_model_is_whole_after_a_restart(
    opened: Opener, source: Callable[[str], FunctionSource | HandlerSource]
) -> None:
    model = await opened(source("crasher"))
    with pytest.raises(RunLost, match=r"^the model's process died: it ended with status 13"):
        await model.events({"crash": True})
    await asyncio.wait_for(model.runner.wait_broken(), 5)
    await model.runner.restart()
    assert finished(await model.events({"crash": False}, id="p2")).output == "alive"


@pytest.mark.parametrize("doomed", [0, 2, 3], ids=["minder", "host", "model"])
async def test_a_killed_process_loses_its_run(offspring: Offspring, function_rig: Rigger, doomed: int) -> None:
    model = await function_rig("sleeper")
    runs = model.runner.run(Job(id="p1", attempt=1, input={"seconds": 60}))
    await until_log(runs, "asleep")
    pids = offspring()
    os.kill(sorted(pids)[doomed], signal.SIGKILL)
    with pytest.raises(RunLost, match=r"signal 9|SIGKILL"):
        _ = [event async for event in runs]
    assert await asyncio.wait_for(model.runner.wait_broken(), 5)
    await model.runner.close()
    assert not any(map(is_alive, pids))


AGENT = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from support.runners import MemorySink, function
from cogflare.agent.runners.function import FunctionRunner
async def main():
    await FunctionRunner("acme", "noop", function("noop"), MemorySink()).setup(lambda text: None)
    print("ready", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the tie between agent and host is Linux's")
async def test_a_killed_agent_takes_its_host_along() -> None:
    tests = str(Path(__file__).parents[1])
    with subprocess.Popen([sys.executable, "-c", AGENT, tests], stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None
        assert await asyncio.to_thread(agent.stdout.readline) == b"ready\n"
        pids = family(agent.pid)
        assert len(pids) == 4
        agent.kill()
        async with asyncio.timeout(10):
            while any(map(is_alive, pids)):
                await asyncio.sleep(0.01)


async def test_tokens_of_the_agent_stay_with_the_agent(opened: Opener, tmp_path: Path) -> None:
    (tmp_path / "curious.py").write_text("import os\ndef run() -> list[str]:\n    return list(os.environ)\n")
    os.environ["COGFLARE_WORKER_TOKEN"], os.environ["HF_TOKEN"] = "secret-of-the-agent", "of-the-model"
    try:
        model = await opened(FunctionSource("curious:run", tmp_path))
    finally:
        del os.environ["COGFLARE_WORKER_TOKEN"], os.environ["HF_TOKEN"]
    names = finished(await model.events({})).output
    assert "HF_TOKEN" in names
    assert [name for name in names if name.startswith("COGFLARE_")] == []


async def test_the_version_follows_the_content(opened: Opener, tmp_path: Path) -> None:
    versions = []
    for content in ("a", "a", "b"):
        (tmp_path / "twofold.py").write_text(f"def run() -> str: return '{content}'\ndef other() -> str: ...\n")
        model = await opened(FunctionSource("twofold:run", tmp_path))
        assert model.offer is not None
        versions.append(model.offer.version)
        await model.runner.close()
    assert versions[0] == versions[1] != versions[2]
    other = await opened(FunctionSource("twofold:other", tmp_path))
    assert other.offer is not None
    assert other.offer.version not in versions


async def test_the_version_follows_all_files_of_a_package(opened: Opener, tmp_path: Path) -> None:
    versions = set()
    (tmp_path / "package" / "parts").mkdir(parents=True)
    (tmp_path / "package" / "serve.py").write_text(
        "from package.parts.words import WORD\ndef run() -> str: return WORD\n"
    )
    for word in ("a", "b"):
        (tmp_path / "package" / "parts" / "words.py").write_text(f"WORD = '{word * 9}'\n")
        model = await opened(FunctionSource("package.serve:run", tmp_path))
        assert finished(await model.events({})).output == word * 9
        assert model.offer is not None
        versions.add(model.offer.version)
        await model.runner.close()
    assert len(versions) == 2


async def test_an_interpreter_has_packages_of_its_own(opened: Opener, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    [packages] = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    source = "import subprocess, sys\ndef run() -> list[str]:\n"
    source += "    again = subprocess.check_output(['python', '-c', 'import sys; print(sys.prefix)'], text=True)\n"
    source += "    return [sys.prefix, again.strip(), str('msgspec' in sys.modules)]\n"
    (packages / "only_there.py").write_text(source)
    model = await opened(FunctionSource("only_there:run", tmp_path, python))
    prefix = str(tmp_path / "venv")
    assert finished(await model.events({})).output == [prefix, prefix, "False"]
    with pytest.raises(SetupFailed, match="no Python module only_there"):
        await opened(FunctionSource("only_there:run", tmp_path))


async def test_a_folder_with_a_module_that_is_called_like_pythons_own(opened: Opener, tmp_path: Path) -> None:
    for name in ("json.py", "importlib.py", "http.py", "threading.py"):
        (tmp_path / name).write_text("raise SystemExit('not meant')")
    (tmp_path / "mine.py").write_text("def run() -> str: return 'here'\n")
    assert finished(await (await opened(FunctionSource("mine:run", tmp_path))).events({})).output == "here"


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo '[[3, 8], [null]]'", "Python 3.8: functions need 3.10 or newer"),
        ("echo torn >&2; exit 3", "(?s)cannot look for the function.*torn"),
    ],
)
async def test_an_interpreter_that_will_not_do(opened: Opener, tmp_path: Path, script: str, problem: str) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    with pytest.raises(SetupFailed, match=problem):
        await opened(FunctionSource("noop:run", MODELS / "functions", python))


async def test_an_interpreter_that_cannot_be_run(opened: Opener, tmp_path: Path) -> None:
    with pytest.raises(SetupFailed, match="cannot be run"):
        await opened(HandlerSource(MODELS / "handlers" / "noop.py", tmp_path / "python"))


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("absent:run", "no Python module absent"),
        ("noop:walk", "there is no walk in noop"),
        ("noop.deeper:run", "deeper"),
    ],
)
async def test_a_function_that_is_not_there(offspring: Offspring, opened: Opener, entry: str, problem: str) -> None:
    with pytest.raises(SetupFailed, match=problem):
        await opened(FunctionSource(entry, MODELS / "functions"))
    assert offspring() == []


async def test_a_package_that_is_missing_is_said_with_where_it_was_looked_for(opened: Opener, tmp_path: Path) -> None:
    (tmp_path / "lacking.py").write_text("import not_installed\n\n\ndef run(text: str) -> str:\n    return text\n")
    with pytest.raises(SetupFailed, match=r"^ModuleNotFoundError: No module named 'not_installed': .*--python names"):
        await opened(FunctionSource("lacking:run", tmp_path))
