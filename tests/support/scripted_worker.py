"""A worker whose model does what its input says: the real agent around a runner that is a script. A process of its own.

python -m support.scripted_worker '{"server": …, "token": …, "model": …, "slots": …, "state": …, "diary": …, "kind": …}'

`kind` is what the model's output is: "single", "iterator" (of any values) or "text" (an iterator of text to be joined).
The input may have `seconds` (how long it takes), `items` (how many it yields), `log` (how many lines it logs), `output`
(what it answers), `fail` (the error it ends with), `file` (the text of a file that it answers), `crash` (how many
attempts lose their model), `hang` (how many attempts go on until they are stopped) and `stubborn` (how many seconds it
goes on after a cancel). `log_bytes` and `output_bytes` are floods; with `objects` the items of the output are objects.

With `site` (`region`, `tags`) it tells what its machine has; without, nothing.

Every model run appends a line to the diary when it begins, and one when it ends, so that a test can count the runs.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from cogflare.agent.address import ServerAddress
from cogflare.agent.agent import Agent
from cogflare.agent.clock import SystemClock
from cogflare.agent.console import Console
from cogflare.agent.identity import claim_state
from cogflare.agent.inputs import InputFiles
from cogflare.agent.journal import Journal
from cogflare.agent.link import Link
from cogflare.agent.machine import Site, inventoried
from cogflare.agent.main import agent_end
from cogflare.agent.runners.base import Event, Finished, Job, Log, LogSink, Offer, Output, RunLost, Started
from cogflare.agent.shelf import Shelf
from cogflare.agent.transfer import Transfer
from cogflare.cli.verification import actor
from cogflare.cli.verification.model import Kind
from cogflare.domain.ids import new_id

_INPUTS: dict[str, dict[str, Any]] = {
    "seconds": {"type": "number", "minimum": 0, "maximum": 600, "default": 0},
    "items": {"type": "integer", "minimum": 0, "maximum": 10_000, "default": 0},
    "log": {"type": "integer", "minimum": 0, "maximum": 10_000, "default": 0},
    "log_bytes": {"type": "integer", "minimum": 0, "default": 0},
    "output_bytes": {"type": "integer", "minimum": 0, "default": 0},
    "objects": {"type": "boolean", "default": False},
    "output": {},
    "fail": {"type": "string", "minLength": 1},
    "file": {"type": "string"},
    "crash": {"type": "integer", "minimum": 0, "default": 0},
    "hang": {"type": "integer", "minimum": 0, "default": 0},
    "stubborn": {"type": "number", "minimum": 0, "default": 0},
}
VERSIONS = actor.VERSIONS
FLOOD = "flood " * 170 + "ing\n"


def schema(kind: Kind) -> dict[str, Any]:
    """Return the OpenAPI document of a model of this kind, as Cog would write it."""
    return actor.schema(kind, _INPUTS, required=())


def item(index: int) -> str:
    """Return what a model yields at this index."""
    return f"w{index} "


def line(index: int) -> str:
    """Return what a model logs as its line of this index."""
    return f"line {index}\n"


class Diary:
    """A file with a line for each begin and end of a model run, appended by several processes."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, event: str, job: Job) -> None:
        """Append a line, in one piece."""
        entry = {"event": event, "prediction": job.id, "attempt": job.attempt, "pid": os.getpid()}
        os.write(self._file, f"{json.dumps(entry)}\n".encode())


class ScriptedRunner:
    """The model."""

    def __init__(self, settings: dict[str, Any], transfer: Transfer, clock: SystemClock) -> None:
        self._settings = settings
        self._transfer = transfer
        self._clock = clock
        self._diary = Diary(settings["diary"])
        self._cancels: dict[str, asyncio.Event] = {}
        self._broken = asyncio.Event()

    async def setup(self, log: LogSink) -> Offer:
        """Return the offer; there is nothing to set up."""
        owner, _, name = self._settings["model"].partition("/")
        kind = self._settings["kind"]
        return Offer(
            owner=owner,
            name=name,
            version=VERSIONS[kind],
            schema=schema(kind),
            cog_version="0.16.0",
            slots=self._settings["slots"],
        )

    async def run(self, job: Job) -> AsyncGenerator[Event, None]:
        """Do what the input says."""
        script = msgspec.json.decode(job.input) if isinstance(job.input, msgspec.Raw) else job.input
        canceled = self._cancels[job.id] = asyncio.Event()
        self._diary.write("begin", job)
        try:
            yield Started(self._clock.wall())
            if job.attempt <= script.get("crash", 0):
                raise RunLost("the model's process died")
            if job.attempt <= script.get("hang", 0):
                await canceled.wait()
            async for event in self._show(script, canceled):
                yield event
            if canceled.is_set():
                await asyncio.sleep(script.get("stubborn", 0))
            yield await self._end(job, script, canceled.is_set())
        finally:
            del self._cancels[job.id]
            self._diary.write("end", job)

    async def _show(self, script: dict[str, Any], canceled: asyncio.Event) -> AsyncIterator[Event]:
        """Log lines and yield items, evenly over the time of the run."""
        async for event in _flood(script, canceled):
            yield event
        items, lines, seconds = script.get("items", 0), script.get("log", 0), script.get("seconds", 0)
        steps = max(items, lines)
        for step in range(steps):
            if step < lines:
                yield Log(line(step))
            if step < items:
                yield Output(step, item(step))
            if await _is_set_within(canceled, seconds / steps):
                return
        if not steps:
            await _is_set_within(canceled, seconds)

    async def _end(self, job: Job, script: dict[str, Any], is_canceled: bool) -> Finished:
        if is_canceled:
            return Finished(status="canceled")
        if "fail" in script:
            return Finished(status="failed", error=script["fail"])
        if "file" in script:
            reference = await self._transfer.put(job.id, "answer.txt", "text/plain", _whole(script["file"]), None)
            return Finished(status="succeeded", output=reference)
        if script.get("output_bytes"):
            return Finished(status="succeeded")
        if self._settings["kind"] != "single":
            return Finished(status="succeeded", output=[item(index) for index in range(script.get("items", 0))])
        return Finished(status="succeeded", output=script.get("output", "done"))

    async def cancel(self, prediction_id: str) -> None:
        """Let the run end."""
        if prediction_id in self._cancels:
            self._cancels[prediction_id].set()

    async def restart(self) -> None:
        """Do nothing: a script is never stuck for long."""

    async def wait_broken(self) -> str:
        """Never break."""
        await self._broken.wait()
        return ""

    async def health(self) -> str | None:
        """Be well, always."""
        return None

    async def close(self) -> None:
        """There is nothing to close."""


async def _flood(script: dict[str, Any], canceled: asyncio.Event) -> AsyncIterator[Event]:
    """Log and yield so many bytes, as fast as they are taken."""
    for number in range(script.get("log_bytes", 0) // len(FLOOD)):
        yield Log(FLOOD)
        if number % 100 == 0 and await _is_set_within(canceled, 0.0001):
            return
    for number in range(script.get("output_bytes", 0) // len(FLOOD)):
        yield Output(number, {"line": FLOOD} if script.get("objects") else FLOOD)
        if number % 100 == 0 and await _is_set_within(canceled, 0.0001):
            return


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    if seconds:
        with suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()


async def _whole(text: str) -> AsyncIterator[bytes]:
    yield text.encode()


async def run(settings: dict[str, Any]) -> int:
    """Run the agent until it is drained, stopped or killed; return its exit code."""
    clock, console = SystemClock(), Console()
    address = ServerAddress(settings["server"])
    with claim_state(Path(settings["state"]), address.base, settings["model"], clock.wall) as claimed:
        transfer = Transfer(address, lambda: settings["token"], claimed.worker)
        runner = ScriptedRunner(settings, transfer, clock)
        end = agent_end(await runner.setup(print), claimed.worker, new_id(clock.wall()), settings["name"], console)
        link = Link(end, address, lambda: settings["token"], console, clock=clock)
        journal = Journal(claimed.path, print)
        inputs = InputFiles(address, Shelf())
        agent = Agent(runner, end, link, journal, transfer, inputs, console=console, clock=clock)
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, agent.interrupt)
        site = settings.get("site")
        try:
            if site is None:
                return await agent.run()
            async with inventoried(end, link.wake, Site(claimed.path, site["region"], tuple(site["tags"]))):
                return await agent.run()
        finally:
            await inputs.aclose()
            await transfer.aclose()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(run(json.loads(sys.argv[1]))))
