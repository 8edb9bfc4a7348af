"""What is special to Cog servers of the time before coglet: how files get out, what they hide, how they end."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cogflare.agent.depot import Depot
from cogflare.agent.runners import following
from cogflare.agent.runners.base import Event, Job, Log, Output, RunLost, SetupFailed, Started
from cogflare.agent.runners.cogfolder import CogFolderRunner
from cogflare.agent.runners.coghttp import CogHttpRunner
from cogflare.agent.runners.cogrelease import CogRelease
from cogflare.agent.runners.handover import Takeover
from cogflare.agent.runners.inbox import Inbox
from cogflare.agent.runners.process import free_port
from cogflare.agent.runners.receiver import Receiver
from cogflare.agent.sources import FolderSource
from support.oldcog import OLD_MODELS, OldCog
from support.processes import die_with_parent
from support.runners import OLD_COGS, MemorySink, Rig, finished, runner_of

pytestmark = pytest.mark.anyio

each_release = pytest.mark.parametrize("release", OLD_COGS.values())


def folder_runner(release: str, model: str, sink: MemorySink, **options: Any) -> CogFolderRunner:
    """A runner that starts the model with that release of Cog."""
    python, cache = OldCog(release).ready().python, Path(tempfile.gettempdir())
    return CogFolderRunner("acme", model, OLD_MODELS / model, cache, sink, python=python, **options)


@asynccontextmanager
async def started(release: str, model: str, **options: Any) -> AsyncIterator[Rig]:
    """The model, set up with that release of Cog by its runner."""
    rig = Rig(folder_runner(release, model, sink := MemorySink(), **options), sink)
    try:
        rig.offer = await rig.runner.setup(rig.setup_log.append)
        yield rig
    finally:
        await rig.runner.close()


@asynccontextmanager
async def attached(release: str, model: str) -> AsyncIterator[Rig]:
    """The model behind the URL of a server that somebody else started, without an upload URL."""
    port, python = free_port(), OldCog(release).ready().python
    environ = {"PATH": f"{python.parent}:/usr/bin:/bin", "PORT": str(port), "PYTHONUNBUFFERED": "1"}
    environ["COG_LOG_LEVEL"] = "warning"
    command = [str(python), "-m", "cog.server.http"]
    folder = OLD_MODELS / model
    with subprocess.Popen(
        command, cwd=folder, env=environ, stderr=subprocess.DEVNULL, preexec_fn=die_with_parent
    ) as of:
        rig = Rig(CogHttpRunner("acme", model, f"http://127.0.0.1:{port}", sink := MemorySink()), sink)
        try:
            rig.offer = await rig.runner.setup(rig.setup_log.append)
            yield rig
        finally:
            await rig.runner.close()
            of.terminate()


# --- setting up ------------------------------------------------------------------------------------------------------


@each_release
async def test_a_setup_that_fails_says_why(release: str) -> None:
    runner = folder_runner(release, "broken", MemorySink())
    log: list[str] = []
    with pytest.raises(SetupFailed, match="no weights here"):
        await runner.setup(log.append)
    await runner.close()


async def test_the_offer_has_the_schema_that_no_file_has() -> None:
    async with started("0.16.12", "tokens") as model:
        assert model.offer is not None
        assert model.offer.cog_version == "0.16.12"
        assert model.offer.schema is not None
        assert model.offer.schema["components"]["schemas"]["Output"]["x-cog-array-type"] == "iterator"


@pytest.mark.parametrize("release", ["0.9.26", "0.6.1"])
async def test_a_model_that_has_died_is_started_again(release: str) -> None:
    async with started(release, "crasher") as model:
        with pytest.raises(RunLost, match="died"):
            await model.events({"crash": True})
        assert "died" in await asyncio.wait_for(model.runner.wait_broken(), 5)
        await model.runner.restart()
        assert finished(await model.events({"crash": False}, id="p2")).output == "alive"


# --- a server that somebody else started -----------------------------------------------------------------------------


async def test_files_come_with_the_answer_to_a_request_that_waits() -> None:
    async with attached("0.16.12", "frames") as model:
        events = await model.events({"count": 3})
        output = finished(events).output
        assert [event.item for event in events if isinstance(event, Output)] == output
        assert [model.sink.files[item] for item in output] == [b"\x89PNG" + bytes([number]) for number in range(3)]
        assert any(isinstance(event, Log) for event in events)


async def test_a_run_that_a_request_waits_for_is_canceled() -> None:
    async with attached("0.14.12", "painter") as model:
        seen: list[Event] = []
        async for event in model.runner.run(Job(id="p1", attempt=1, input={"seconds": 60})):
            seen.append(event)
            if isinstance(event, Log):
                await model.runner.cancel("p1")
        assert finished(seen).status == "canceled"
        output = finished(await model.events({"seconds": 0}, id="p2")).output
        assert model.sink.files[output] == b"painted"


async def test_a_model_that_dies_while_a_request_waits_loses_the_run() -> None:
    async with attached("0.16.12", "painter") as model:
        with pytest.raises(RunLost, match="the model's process died"):
            await model.events({"seconds": 0, "crash": True})
        assert "died" in await asyncio.wait_for(model.runner.wait_broken(), 5)


async def test_a_file_that_is_not_there_fails_the_run_that_a_request_waits_for() -> None:
    """The answer is the same as that to the death of a model."""
    async with attached("0.16.12", "painter") as model:
        end = finished(await model.events({"seconds": 0, "name": ""}))
        assert end.status == "failed"
        assert await model.runner.health() is None


async def test_a_late_word_that_the_input_is_bad_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    async with attached("0.14.12", "painter") as model:
        monkeypatch.setattr(following, "_ACCEPTED_S", 0)
        end = finished(await model.events({"seconds": "many"}))
        assert end.status == "failed"
        assert "seconds: " in (end.error or "")


async def test_files_that_a_server_keeps_fail_the_run() -> None:
    async with attached("0.9.26", "frames") as model:
        assert "only if it was started with --upload-url" in "".join(model.setup_log)
        end = finished(await model.events({"count": 1}))
        assert end.status == "failed"
        assert "started without --upload-url" in (end.error or "")


async def test_the_first_servers_answer_when_all_is_over() -> None:
    async with attached("0.6.1", "files") as model:
        output = finished(await model.events({"source": "data:text/plain;base64,aGVsbG8="})).output
        assert model.sink.files[output["single"]] == b"HELLO"
        assert await model.runner.health() is None


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", ["0.8.6", "0.9.26"])
async def test_a_file_that_finds_no_room_loses_the_run(release: str, tmp_path: Path) -> None:
    """Such a server leaves the file out and says that all went well."""
    (tmp_path / "depot").touch()
    async with started(release, "frames", depot=Depot(tmp_path / "depot")) as model:
        seen: list[Event] = []

        async def run(attempt: int) -> None:
            async for event in model.runner.run(Job(id="p1", attempt=attempt, input={"count": 1})):
                seen.append(event)

        for attempt in (1, 2):  # the server of 0.8.6 ends, and still takes the second
            with pytest.raises(RunLost):
                await run(attempt)
        told = "".join(event.text for event in seen if isinstance(event, Log))
        if release == "0.8.6":
            told += await asyncio.wait_for(model.runner.wait_broken(), 5)
            assert "/receipts/" in told, "it has the URL in its log"
        assert not re.search("http://[0-9.:]+/[^/\\s]{20,}/", told), "whoever knows the secret can send us files"


async def test_a_name_with_a_hash_sign() -> None:
    """The servers before 0.9.9 put what is behind it into what they take as the file's URL."""
    async with started("0.8.6", "painter") as model:
        output = finished(await model.events({"seconds": 0, "name": "take#1.txt"})).output
        assert model.sink.files[output] == b"painted"


@asynccontextmanager
async def receiving() -> AsyncIterator[tuple[Receiver, Inbox, MemorySink]]:
    """A receiver that waits for what comes for one run."""
    receiver = Receiver(sink := MemorySink())
    await receiver.start()
    try:
        receiver.open("p1-1", inbox := Inbox("p1", "p1-1", lambda body: None, receiver.receipts))
        yield receiver, inbox, sink
    finally:
        await receiver.close()


async def test_an_upload_that_comes_again_is_the_same_file() -> None:
    """A server gives up on an answer after 15 seconds, and sends the file to the same place."""
    async with receiving() as (receiver, inbox, sink), httpx2.AsyncClient() as client:
        place = (await client.put(f"{receiver.upload_url}/a.txt", content=b"one")).headers["location"]
        for _ in range(2):
            assert (await client.put(place, content=b"one")).is_success
        assert sink.files[await inbox.stored(place.partition("?")[0])] == b"one"
        assert (len(sink.puts), inbox.missing) == (1, None)


async def test_an_upload_that_breaks_off_is_missing_until_it_comes_again() -> None:
    async with receiving() as (receiver, inbox, _), httpx2.AsyncClient() as client:
        url = httpx2.URL(f"{receiver.upload_url}/a.txt")
        _, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(
            f"PUT {url.path} HTTP/1.1\r\nhost: x\r\nx-prediction-id: p1-1\r\ncontent-length: 9\r\n\r\nhalf".encode()
        )
        await writer.drain()
        writer.close()
        async with asyncio.timeout(10):
            while inbox.missing is None:
                await asyncio.sleep(0.01)
        await client.put(url, content=b"something", headers={"x-prediction-id": "p1-1"})
        assert inbox.missing is None


# --- an agent that was killed ----------------------------------------------------------------------------------------

AGENT = """
import asyncio, json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from support.runners import MemorySink, runner_of
from cogflare.agent.runners.base import Job, Started
from cogflare.agent.runners.handover import Takeover
from cogflare.agent.sources import FolderSource
async def main():
    told = json.loads(sys.argv[1])
    state = Path(told["state"])
    source = FolderSource(Path(told["folder"]), Path(told["python"]))
    runner = runner_of(source, state, MemorySink(), Takeover(state, frozenset(), 30), state / "depot")
    await runner.setup(lambda text: None)
    async for event in runner.run(Job(id="p1", attempt=1, input=told["input"])):
        if isinstance(event, Started):
            print("runs", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


class Succession:
    """An agent that is killed while its model is at work, and the one that comes after it."""

    def __init__(self, release: str, model: str, state: Path) -> None:
        self.source = FolderSource(OLD_MODELS / model, OldCog(release).ready().python)
        self.state, self.diary, self.log = state, state / "diary", list[str]()
        self.runner = runner_of(
            self.source, state, MemorySink(), Takeover(state, frozenset({"p1-1"}), 30), state / "depot"
        )

    async def kill(self, input: dict[str, object]) -> None:
        """Kill the agent once the model has written that it has begun."""
        told = {"state": self.state, "folder": self.source.folder, "python": self.source.python, "input": input}
        arguments = [sys.executable, "-c", AGENT, json.dumps(told, default=str), str(Path(__file__).parents[1])]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as agent:
            assert agent.stdout is not None
            assert (await asyncio.to_thread(agent.stdout.readline)) == b"runs\n"
            async with asyncio.timeout(10):
                while not self.diary.exists():
                    await asyncio.sleep(0.01)
            agent.kill()

    async def run(self, *, resumed: bool, **input: object) -> list[Event]:
        began = round(time.time() * 1e6) if resumed else None
        job = Job(id="p1", attempt=1 if resumed else 2, input=input, resumed=began)
        return [event async for event in self.runner.run(job)]

    def events(self) -> list[str]:
        """What the model has written, without the ids of its processes."""
        return [line.split()[0] for line in self.diary.read_text().splitlines()]


@pytest.mark.parametrize("release", ["0.8.6", "0.16.12"])
async def test_a_run_goes_on_after_its_agent_and_ends_once(release: str, tmp_path: Path) -> None:
    succession = Succession(release, "sleeper", tmp_path)
    await succession.kill({"seconds": 2.5, "diary": str(succession.diary), "snores": True})
    try:
        offer = await succession.runner.setup(succession.log.append)
        assert offer.is_taken_over, succession.log
        events = await succession.run(resumed=True)
        assert isinstance(events[0], Started)
        assert finished(events).output == "rested"
        assert succession.events() == ["begin", "end"]
    finally:
        await succession.runner.close()


@pytest.mark.parametrize(("release", "model"), [("0.9.26", "painter"), ("0.6.1", "sleeper")])
async def test_a_model_that_cannot_say_what_became_of_its_run_is_ended(
    release: str, model: str, tmp_path: Path
) -> None:
    """The one may have dropped a file without a word, the other has nobody any more to answer."""
    succession = Succession(release, model, tmp_path)
    await succession.kill({"seconds": 60, "diary": str(succession.diary)})
    try:
        offer = await succession.runner.setup(succession.log.append)
        assert not offer.is_taken_over
        assert "does not say what has become of its runs" in "".join(succession.log)
        assert (
            finished(await succession.run(resumed=False, seconds=0, diary=str(succession.diary))).status == "succeeded"
        )
        assert succession.events() == ["begin", "begin", "end"]
    finally:
        await succession.runner.close()


# --- what is known of releases ---------------------------------------------------------------------------------------


@each_release
def test_what_a_server_can_do_is_seen_in_its_source(release: str) -> None:
    python = OldCog(release).ready().python
    (source,) = python.parents[1].glob("lib/python*/site-packages/cog/server/http.py")
    seen, known = CogRelease.of_server(source.read_text()), CogRelease.of(release)
    for ability in ("is_coglet", "takes_host", "goes_on", "takes_port"):
        assert getattr(seen, ability) == getattr(known, ability), ability
