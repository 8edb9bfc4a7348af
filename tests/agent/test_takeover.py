"""An agent that is killed leaves its model behind: the next one goes on with it, or ends it."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cogflare.agent.runners.base import Event, Finished, Job, Log, Offer, Output, RunLost, Runner, Started
from cogflare.agent.runners.cogfolder import CogFolderRunner
from cogflare.agent.runners.coghttp import CogHttpRunner
from cogflare.agent.runners.handover import Takeover
from cogflare.agent.runners.process import Mark, ServerProcess
from cogflare.agent.scratch import Scratch
from cogflare.agent.sources import FolderSource, FunctionSource, Source
from support.runners import MODELS, MemorySink, Offspring, family, finished, function, handler, runner_of

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are known for sure on Linux alone"),
]

Made = Path | Source

# An agent's runner in a process of its own: says when the run has shown something, and never ends by itself.
AGENT = """
import asyncio, json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from support.runners import MemorySink, runner_of
from cogflare.agent.runners.base import Job, Log
from cogflare.agent.runners.coghttp import CogHttpRunner
from cogflare.agent.runners.handover import Takeover
from cogflare.agent.sources import FolderSource, FunctionSource, HandlerSource
async def main():
    told = json.loads(sys.argv[1])
    takeover = Takeover(Path(told["state"]), frozenset(), told["keep_s"])
    if told["url"]:
        runner = CogHttpRunner("acme", "model", told["url"], MemorySink(), takeover=takeover)
    else:
        kind, *parts = told["model"]
        source = globals()[kind](*[Path(part) if "/" in part else part for part in parts])
        runner = runner_of(source, Path(told["cache"]), MemorySink(), takeover, Path(told["depot"]))
    await runner.setup(lambda text: None)
    print("ready", flush=True)
    if told["input"] is not None:
        async for event in runner.run(Job(id="p1", attempt=1, input=told["input"])):
            if isinstance(event, Log):
                print("runs", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


class Estate:
    """What killed agents leave, and the runner that comes after them."""

    def __init__(self, state: Path, cache: Path) -> None:
        self.state, self.cache, self.depot = state, cache, state.with_name("depot")
        self.log: list[str] = []
        self.sink = MemorySink()
        self.left: list[int] = []
        self.runners: list[Runner] = []

    async def leave(
        self, model: Made, input: dict[str, Any] | None, *, keep_s: float = 30, url: str | None = None
    ) -> None:
        """Have an agent run the model on that input, and kill it in the middle."""
        told: dict[str, object] = {
            "state": self.state,
            "cache": self.cache,
            "url": url,
            "keep_s": keep_s,
            "input": input,
        }
        source = _source(model)
        told["depot"] = self.depot
        told["model"] = [type(source).__name__, *filter(None, astuple(source))]
        arguments = [sys.executable, "-c", AGENT, json.dumps(told, default=str), str(Path(__file__).parents[1])]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as agent:
            assert agent.stdout is not None
            for word in ("ready", "runs")[: 1 if input is None else 2]:
                assert (await asyncio.to_thread(agent.stdout.readline)).decode().strip() == word
            self.left = family(agent.pid)
            agent.kill()

    async def come(self, model: Made, held: frozenset[str] | None = frozenset({"p1-1"}), **options: Any) -> Offer:
        """Set up the next agent's runner; `held` is what it knows of the runs."""
        takeover = Takeover(self.state, held, options.pop("keep_s", 30), lambda: self.log.append("forgotten"))
        if url := options.pop("url", None):
            self.runner: Runner = CogHttpRunner("acme", "model", url, self.sink, takeover=takeover)
        else:
            self.runner = runner_of(_source(model), self.cache, self.sink, takeover, self.depot)
        self.runners.append(self.runner)
        return await self.runner.setup(self.log.append)

    async def resume(self, id: str = "p1", began_s: float = 0.0) -> list[Event]:
        """Follow the run to its end."""
        return [event async for event in self.resuming(id, began_s)]

    def resuming(self, id: str = "p1", began_s: float = 0.0) -> AsyncIterator[Event]:
        began = round((time.time() - began_s) * 1e6)
        return self.runner.run(Job(id=id, attempt=1, input={}, resumed=began))

    async def gone(self) -> None:
        """Wait until nothing of the left model is there."""
        async with asyncio.timeout(10):
            while any(Path(f"/proc/{pid}").exists() for pid in self.left):
                await asyncio.sleep(0.01)


def _source(model: Made) -> Source:
    return FolderSource(model) if isinstance(model, Path) else model


def each(model: str) -> pytest.MarkDecorator:
    """Run a test over every kind of model that the agent starts itself."""
    kinds = {"folder": MODELS / model, "function": function(model), "handler": handler(model)}
    return pytest.mark.parametrize("model", list(kinds.values()), ids=list(kinds))


@pytest.fixture
async def estate(tmp_path: Path, cog_cache: Path) -> AsyncIterator[Estate]:
    state = tmp_path / "state"
    state.mkdir()
    estate = Estate(state, cog_cache)
    yield estate
    for runner in estate.runners:
        await runner.close()
    for pid in estate.left[:1]:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)


def items_of(events: list[Event]) -> list[object]:
    outputs = [event for event in events if isinstance(event, Output)]
    assert [output.index for output in outputs] == list(range(len(outputs)))
    return [output.item for output in outputs]


def log_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Log))


@each("tokens")
async def test_a_stream_is_told_from_its_beginning_again(offspring: Offspring, estate: Estate, model: Made) -> None:
    await estate.leave(model, {"count": 60, "delay_s": 0.03})
    offer = await estate.come(model)
    assert offer.is_taken_over
    assert offspring() == [], "nothing was started"
    events = await estate.resume()
    words = [f"w{number} " for number in range(60)]
    assert isinstance(events[0], Started)
    assert (items_of(events), finished(events).output, log_of(events)) == (words, words, "first word\n")


@each("noop")
async def test_the_model_that_was_taken_over_runs_what_comes_next_and_is_closed(estate: Estate, model: Made) -> None:
    await estate.leave(model, None)
    assert (await estate.come(model, frozenset())).is_taken_over
    events = [event async for event in estate.runner.run(Job(id="p2", attempt=1, input={"text": "next"}))]
    assert finished(events).output == "next"
    await estate.runner.close()
    await estate.gone()
    assert list(estate.state.iterdir()) == []


@each("sleeper")
async def test_a_resumed_run_can_be_canceled(estate: Estate, model: Made) -> None:
    await estate.leave(model, {"seconds": 60})
    await estate.come(model)
    seen: list[Event] = []
    async for event in estate.resuming():
        seen.append(event)
        if isinstance(event, Log):
            await estate.runner.cancel("p1")
    assert finished(seen).status == "canceled"


@each("sleeper")
async def test_a_resumed_run_that_ignores_its_cancel_ends_with_its_model(estate: Estate, model: Made) -> None:
    await estate.leave(model, {"seconds": 60, "stubborn": True})
    await estate.come(model)
    seen: list[Event] = []
    async for event in estate.resuming():
        seen.append(event)
        if isinstance(event, Log) and "not getting up" in event.text:
            await estate.runner.restart()
        elif isinstance(event, Log):
            await estate.runner.cancel("p1")
    assert finished(seen).status == "canceled"
    await estate.gone()


async def test_a_run_that_the_model_was_never_given_is_lost(estate: Estate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cogflare.agent.runners.following._GONE_S", 0.5)
    monkeypatch.setattr("cogflare.agent.runners.driver._WATCH_S", 0.1)
    await estate.leave(MODELS / "sleeper", None)
    assert (await estate.come(MODELS / "sleeper", frozenset({"ghost-1"}))).is_taken_over
    events = estate.resuming("ghost")
    with pytest.raises(RunLost, match="does not know"):
        await anext(events)


@each("sleeper")
async def test_a_model_that_broke_after_it_was_taken_over_is_started_anew(estate: Estate, model: Made) -> None:
    await estate.leave(model, {"seconds": 60})
    await estate.come(model)
    os.kill(estate.left[2], signal.SIGKILL)
    with pytest.raises(RunLost, match="the model's server ended"):
        await estate.resume()
    assert "the model's server ended" in await estate.runner.wait_broken()
    await estate.runner.restart()
    await estate.gone()
    events = [event async for event in estate.runner.run(Job(id="p2", attempt=1, input={"seconds": 0}))]
    assert finished(events).output == "rested"


async def test_the_end_of_a_model_is_noticed_without_a_process_handle(
    estate: Estate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old kernels and some sandboxes have none."""

    def pidfd_open(pid: int, flags: int = 0) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    await estate.leave(MODELS / "sleeper", {"seconds": 60})
    assert (await estate.come(MODELS / "sleeper")).is_taken_over
    os.kill(estate.left[2], signal.SIGKILL)
    with pytest.raises(RunLost, match="the model's server ended"):
        await estate.resume()
    await estate.runner.close()
    await estate.gone()


async def test_an_agent_whose_model_shall_not_outlive_it_takes_none_over(estate: Estate) -> None:
    """The minder of a model has the bound that the first agent gave it."""
    await estate.leave(MODELS / "sleeper", {"seconds": 60})
    assert not (await estate.come(MODELS / "sleeper", keep_s=0)).is_taken_over
    await estate.gone()


@pytest.mark.parametrize("held", [frozenset(), None], ids=["runs something else", "nothing is known"])
@each("sleeper")
async def test_a_model_that_cannot_be_trusted_is_ended(
    estate: Estate, model: Made, held: frozenset[str] | None
) -> None:
    await estate.leave(model, {"seconds": 60})
    offer = await estate.come(model, held)
    await estate.gone()
    assert not offer.is_taken_over
    events = [event async for event in estate.runner.run(Job(id="p2", attempt=1, input={"seconds": 0}))]
    assert finished(events).output == "rested"


async def test_a_changed_model_is_set_up_anew(estate: Estate, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(MODELS / "sleeper", model)
    await estate.leave(model, {"seconds": 60})
    (model / "predict.py").write_text((model / "predict.py").read_text() + "# changed\n")
    assert not (await estate.come(model)).is_taken_over
    await estate.gone()


async def test_a_changed_function_is_set_up_anew(estate: Estate, tmp_path: Path) -> None:
    shutil.copy(MODELS / "functions" / "sleeper.py", tmp_path)
    source = FunctionSource("sleeper:run", tmp_path)
    await estate.leave(source, {"seconds": 60})
    with (tmp_path / "sleeper.py").open("a") as file:
        file.write("# changed\n")
    assert not (await estate.come(source)).is_taken_over
    await estate.gone()


async def test_another_function_of_the_file_is_another_model(estate: Estate, tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text("def one() -> str: ...\ndef other() -> str: ...\n")
    await estate.leave(FunctionSource("two:one", tmp_path), None)
    assert not (await estate.come(FunctionSource("two:other", tmp_path), frozenset())).is_taken_over
    await estate.gone()


async def test_the_files_of_a_function_wait_for_the_next_agent(estate: Estate) -> None:
    await estate.leave(function("frames"), {"count": 3})
    await asyncio.sleep(0.2)  # an upload fails meanwhile
    await estate.come(function("frames"))
    output = finished(await estate.resume(began_s=1)).output
    assert [estate.sink.files[item] for item in output] == [b"\x89PNG" + bytes([number]) for number in range(3)]


async def test_the_end_of_a_function_waits_for_the_next_agent(estate: Estate) -> None:
    await estate.leave(function("sleeper"), {"seconds": 0.1})
    port = json.loads((estate.state / "server.json").read_text())["server"]["port"]
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as host, asyncio.timeout(10):
        while (await host.get("/health-check")).json()["status"] == "BUSY":
            await asyncio.sleep(0.01)
    assert (await estate.come(function("sleeper"))).is_taken_over
    async with asyncio.timeout(5):
        events = await estate.resume(began_s=60)
    assert (finished(events).output, log_of(events)) == ("rested", "asleep\n")


async def test_what_a_model_makes_in_its_folder_does_not_make_another_model(estate: Estate, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(MODELS / "sleeper", model)
    before = await estate.come(model, None)
    await estate.runner.close()
    await estate.leave(model, {"seconds": 60})
    (model / "weights").mkdir()
    (model / "weights" / "loaded.bin").write_text("weights")
    offer = await estate.come(model)
    assert offer.is_taken_over
    assert offer.version == before.version
    await estate.runner.close()
    assert (await estate.come(model, None)).version != before.version


async def test_without_its_receiver_a_model_is_not_taken_over(estate: Estate) -> None:
    await estate.leave(MODELS / "sleeper", {"seconds": 60})
    port = json.loads((estate.state / "server.json").read_text())["receiver_port"]
    with socket.create_server(("127.0.0.1", port)):
        offer = await estate.come(MODELS / "sleeper")
    assert not offer.is_taken_over
    assert "is not taken over" in "".join(estate.log)
    await estate.gone()


async def test_a_file_that_found_no_agent_loses_the_run(estate: Estate, tmp_path: Path) -> None:
    """Cog fails a prediction whose output it cannot upload, and its model is not at fault."""
    model = tmp_path / "model"
    shutil.copytree(MODELS / "noop", model)
    (model / "predict.py").write_text(
        "import time\nfrom cog import BaseRunner, Path\n"
        "class Runner(BaseRunner):\n    def run(self, text: str) -> Path:\n"
        "        print('runs', flush=True)\n        time.sleep(1)\n"
        "        with open(text, 'w') as file:\n            file.write('x')\n"
        "        return Path(text)\n"
    )
    document = json.loads((model / ".cog" / "openapi_schema.json").read_text())
    document["components"]["schemas"]["Output"] = {"title": "Output", "type": "string", "format": "uri"}
    (model / ".cog" / "openapi_schema.json").write_text(json.dumps(document))
    file = tmp_path / "output.txt"
    await estate.leave(model, {"text": str(file)})
    async with asyncio.timeout(10):
        while not file.exists():
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)  # the upload is tried once, at once
    await estate.come(model)
    with pytest.raises(RunLost, match="did not reach the worker"):
        await estate.resume(began_s=1)


@pytest.mark.parametrize("doomed", [0, 2])
@each("sleeper")
async def test_without_agent_and_minder_or_server_nothing_is_left(estate: Estate, model: Made, doomed: int) -> None:
    """A model that is at work would not notice."""
    await estate.leave(model, {"seconds": 60})
    os.kill(estate.left[doomed], signal.SIGKILL)
    await estate.gone()


@each("sleeper")
async def test_the_next_agent_ends_what_lost_its_minder_and_its_guard(estate: Estate, model: Made) -> None:
    await estate.leave(model, {"seconds": 60})
    minder, guard, server, _ = estate.left
    os.kill(minder, signal.SIGSTOP)  # it would act as soon as its guard has ended
    for doomed in (guard, minder):
        os.kill(doomed, signal.SIGKILL)
    assert Path(f"/proc/{server}").exists()
    assert not (await estate.come(model)).is_taken_over
    await estate.gone()


@each("sleeper")
async def test_what_nobody_takes_over_ends_after_a_while(estate: Estate, model: Made) -> None:
    await estate.leave(model, {"seconds": 60}, keep_s=0.5)
    assert all(Path(f"/proc/{pid}").exists() for pid in estate.left)
    await estate.gone()


@pytest.mark.parametrize("content", [b"", b"{", b'{"content": 1}', b"\xff", b"[" * 100_000])
def test_a_damaged_handover_is_set_aside(tmp_path: Path, content: bytes) -> None:
    said: list[str] = []
    (tmp_path / "server.json").write_bytes(content)
    assert Takeover(tmp_path, frozenset()).left(said.append) is None
    assert "set aside" in said[0]
    assert (tmp_path / "server.damaged").exists()


async def test_a_process_is_known_by_its_birth() -> None:
    process = await asyncio.create_subprocess_exec("sleep", "60")
    mark = Mark.of(process.pid)
    assert mark == Mark.of(process.pid) != Mark.of(os.getpid())
    process.kill()
    await process.wait()
    assert Mark.of(process.pid) is None


async def test_whoever_has_the_number_of_a_dead_server_is_left_alone(tmp_path: Path) -> None:
    program = "import os, time\nwhile not os.path.exists('over'): time.sleep(0.01)"
    server = await ServerProcess.start(
        Path(sys.executable), ["-c", program], folder=tmp_path, environ=os.environ, scratch=Scratch.at(tmp_path)
    )
    (tmp_path / "over").touch()
    await server.ended()
    other = await asyncio.create_subprocess_exec("sleep", "60", start_new_session=True)
    assert server.mark is not None
    server.pid, server.mark = other.pid, Mark(other.pid, server.mark.birth)
    await server.stop(0)
    assert Mark.of(other.pid) is not None
    other.kill()
    assert await other.wait() == -signal.SIGKILL


# --- servers that somebody else runs ---------------------------------------------------------------------------------


@asynccontextmanager
async def strangers_server(estate: Estate, model: str) -> AsyncIterator[str]:
    """A Cog server that no agent of the test has started, and its URL."""
    runner = CogFolderRunner("acme", model, MODELS / model, estate.cache, MemorySink())
    await runner.setup(lambda text: None)
    assert runner._driver is not None
    try:
        yield str(runner._driver._server._http.base_url)
    finally:
        await runner.close()


async def test_a_run_in_a_strangers_server_is_resumed(estate: Estate) -> None:
    async with strangers_server(estate, "sleeper") as url:
        await estate.leave(MODELS, {"seconds": 2}, url=url)
        assert (await estate.come(MODELS, url=url)).is_taken_over
        events = await estate.resume()
        assert isinstance(events[0], Started)
        assert (finished(events).output, log_of(events)) == ("rested", "asleep\n")
        await estate.runner.close()


async def test_a_run_that_cannot_be_resumed_in_a_strangers_server_is_canceled(estate: Estate) -> None:
    async with strangers_server(estate, "sleeper") as url:
        await estate.leave(MODELS, {"seconds": 60}, url=url)
        port = json.loads((estate.state / "server.json").read_text())["receiver_port"]
        with socket.create_server(("127.0.0.1", port)):
            assert not (await estate.come(MODELS, url=url)).is_taken_over
        assert "forgotten" in estate.log
        async with asyncio.timeout(10):
            events = [event async for event in estate.runner.run(Job(id="p2", attempt=1, input={"seconds": 0}))]
        assert isinstance(events[-1], Finished)
        assert events[-1].output == "rested"
        await estate.runner.close()
