"""An agent that is killed leaves its container behind: the next one goes on with it, or it ends."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cogflare.agent.runners.base import Event, Job, Log, Offer, Output, Started
from cogflare.agent.runners.handover import Takeover
from cogflare.agent.runners.image import ImageRunner
from cogflare.agent.scratch import sweep
from cogflare.agent.sources import ImageSource
from support.docker import Dockerd, image_of, wardens
from support.runners import MemorySink, finished

pytestmark = pytest.mark.anyio

# An agent's runner in a process of its own: says when the run has shown something, and never ends by itself.
AGENT = """
import asyncio, json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from support.docker import image_of
from support.runners import MemorySink
from cogflare.agent.runners.base import Job, Log
from cogflare.agent.runners.handover import Takeover
from cogflare.agent.runners.image import ImageRunner
from cogflare.agent.sources import ImageSource
async def main():
    told = json.loads(sys.argv[1])
    takeover = Takeover(Path(told["state"]), frozenset(), told["keep_s"])
    source = ImageSource(image_of(told["model"]), env=("MOOD=good",))
    runner = ImageRunner("acme", "model", source, "worker-1", MemorySink(), takeover=takeover)
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

    def __init__(self, state: Path, daemon: Dockerd) -> None:
        self.state, self.daemon = state, daemon
        self.log: list[str] = []
        self.sink = MemorySink()
        self.left = ""
        self.runners: list[ImageRunner] = []

    async def leave(self, model: str, input: dict[str, Any] | None, keep_s: float = 30) -> str:
        """Have an agent run the model on that input, and kill it in the middle; return its container."""
        told = {"state": str(self.state), "model": model, "keep_s": keep_s, "input": input}
        arguments = [sys.executable, "-c", AGENT, json.dumps(told), str(Path(__file__).parents[1])]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as agent:
            assert agent.stdout is not None
            for word in ("ready", "runs")[: 1 if input is None else 2]:
                assert (await asyncio.to_thread(agent.stdout.readline)).decode().strip() == word
            agent.kill()
        (container,) = self.daemon.containers()
        self.left = container
        assert len(wardens(container)) == 1
        return container

    async def come(self, model: str, held: frozenset[str] | None = frozenset({"p1-1"}), keep_s: float = 30) -> Offer:
        """Set up the next agent's runner; `held` is what it knows of the runs."""
        takeover = Takeover(self.state, held, keep_s, lambda: self.log.append("forgotten"))
        source = ImageSource(image_of(model), env=("MOOD=good",))
        self.runner = ImageRunner("acme", "model", source, "worker-1", self.sink, takeover=takeover)
        self.runners.append(self.runner)
        return await self.runner.setup(self.log.append)

    async def resume(self) -> list[Event]:
        """Follow the run to its end."""
        job = Job(id="p1", attempt=1, input={}, resumed=round(time.time() * 1e6))
        return [event async for event in self.runner.run(job)]

    async def until_gone(self) -> None:
        """Wait until there is no container, and no warden of the killed agent's."""
        async with asyncio.timeout(15):
            while self.daemon.containers() or wardens(self.left):
                await asyncio.sleep(0.05)


@pytest.fixture
async def estate(tmp_path: Path, dockerd: Dockerd, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Estate]:
    monkeypatch.setenv("DOCKER_HOST", dockerd.url)
    estate = Estate(tmp_path, dockerd)
    yield estate
    for runner in estate.runners:
        await runner.close()
    for container in dockerd.containers():
        dockerd.remove(container)


async def test_a_run_goes_on_in_the_same_container(estate: Estate) -> None:
    container = await estate.leave("tokens", {"count": 60, "delay_s": 0.05})
    offer = await estate.come("tokens")
    assert offer.is_taken_over
    assert estate.daemon.containers() == [container]
    events = await estate.resume()
    words = [f"w{number} " for number in range(60)]
    assert isinstance(events[0], Started)
    assert [event.item for event in events if isinstance(event, Output)] == finished(events).output == words
    assert "".join(event.text for event in events if isinstance(event, Log)) == "first word\n"
    await estate.runner.close()
    await estate.until_gone()
    assert list(estate.state.iterdir()) == []


async def test_a_container_without_its_warden_gets_another(estate: Estate) -> None:
    container = await estate.leave("sleeper", {"seconds": 3})
    before = wardens(container)
    os.kill(before[0], 9)
    assert (await estate.come("sleeper")).is_taken_over
    assert [pid for pid in wardens(container) if pid not in before] != []
    assert finished(await estate.resume()).output == "rested"


async def test_a_container_that_was_taken_over_outlives_its_bound(estate: Estate) -> None:
    """Its warden has the bound of the first agent, and counts only while nobody is there."""
    container = await estate.leave("sleeper", {"seconds": 7}, keep_s=5)
    assert (await estate.come("sleeper")).is_taken_over
    assert finished(await estate.resume()).output == "rested"
    assert estate.daemon.containers() == [container]


@pytest.mark.parametrize(
    ("held", "keep_s"), [(frozenset(), 30), (None, 30), (frozenset({"p1-1"}), 0)], ids=["unknown", "damaged", "bound"]
)
async def test_a_container_that_cannot_be_trusted_is_replaced(
    estate: Estate, held: frozenset[str] | None, keep_s: float
) -> None:
    container = await estate.leave("sleeper", {"seconds": 60})
    offer = await estate.come("sleeper", held, keep_s)
    assert not offer.is_taken_over
    assert "forgotten" in estate.log
    (replaced,) = estate.daemon.containers()
    assert replaced != container


async def test_another_image_is_another_model(estate: Estate) -> None:
    container = await estate.leave("sleeper", {"seconds": 60})
    assert not (await estate.come("noop")).is_taken_over
    assert "another model" in "".join(estate.log)
    assert container not in estate.daemon.containers()


async def test_a_container_that_was_killed_meanwhile_is_replaced(estate: Estate) -> None:
    container = await estate.leave("sleeper", {"seconds": 60})
    estate.daemon.kill(container)
    assert not (await estate.come("sleeper")).is_taken_over
    assert container not in estate.daemon.containers()


async def test_a_damaged_handover_does_not_keep_a_container(estate: Estate) -> None:
    container = await estate.leave("sleeper", {"seconds": 60})
    (estate.state / "server.json").write_text("{")
    assert not (await estate.come("sleeper")).is_taken_over
    assert container not in estate.daemon.containers()
    await estate.runner.close()
    await estate.until_gone()


async def test_what_nobody_takes_over_ends_after_a_while(estate: Estate) -> None:
    container = await estate.leave("sleeper", {"seconds": 60}, keep_s=2)
    scratch = Path(estate.daemon.inspect(container)["Config"]["Labels"]["cogflare.cord"])
    assert scratch.exists()
    await estate.until_gone()
    assert not scratch.exists()


async def test_the_folder_of_a_container_is_kept_by_its_warden(estate: Estate) -> None:
    """A sweep takes it when there is none, which does not keep the container from being taken over."""
    container = await estate.leave("noop", None)
    scratch = Path(estate.daemon.inspect(container)["Config"]["Labels"]["cogflare.cord"])
    sweep()
    assert (scratch / "cord").exists()
    os.kill(wardens(container)[0], 9)
    async with asyncio.timeout(10):
        while scratch.exists():
            sweep()
            await asyncio.sleep(0.01)
    assert (await estate.come("noop", frozenset())).is_taken_over
    sweep()
    assert (scratch / "cord").exists()
    await estate.runner.close()
    assert not scratch.exists()
