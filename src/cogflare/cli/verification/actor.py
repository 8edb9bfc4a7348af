"""A worker of the harness: the real agent around a model that is a process of its own. A process of its own.

python -m cogflare.cli.verification.actor PARENT_PID SETTINGS_JSON; the token is in COGFLARE_WORKER_TOKEN.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from cogflare.agent.address import ServerAddress
from cogflare.agent.agent import Agent, Patience
from cogflare.agent.clock import SystemClock
from cogflare.agent.console import Console
from cogflare.agent.identity import claim_state
from cogflare.agent.inputs import InputFiles
from cogflare.agent.journal import Journal
from cogflare.agent.link import Link, Timing
from cogflare.agent.main import agent_end
from cogflare.agent.runners.base import (
    Event,
    Finished,
    Job,
    Log,
    LogSink,
    Offer,
    Output,
    RunLost,
    SetupFailed,
    Started,
    UploadSink,
)
from cogflare.agent.shelf import Shelf
from cogflare.agent.transfer import Transfer
from cogflare.cli.verification.history import Born, Died, Recorder, now
from cogflare.cli.verification.model import Kind, Order, Script, Shown
from cogflare.cli.verification.process import tie_to_parent
from cogflare.domain.ids import new_id

VERSIONS: dict[Kind, str] = {"single": "1" * 64, "iterator": "2" * 64, "text": "3" * 64}

_LINE_LIMIT = 64 * 1024 * 1024
_INPUTS: dict[str, dict[str, Any]] = {
    "tag": {"type": "string", "minLength": 1, "maxLength": 100},
    "seconds": {"type": "number", "minimum": 0, "maximum": 600, "default": 0},
    "items": {"type": "integer", "minimum": 0, "maximum": 10_000, "default": 0},
    "log": {"type": "integer", "minimum": 0, "maximum": 10_000, "default": 0},
    "pad": {"type": "integer", "minimum": 0, "maximum": 1_000_000, "default": 0},
    "output": {"type": "string"},
    "file": {"type": "string"},
    "source": {"type": "string", "format": "uri"},
    "fail": {"type": "string", "minLength": 1},
    "stubborn": {"type": "number", "minimum": 0, "default": 0},
}
_OUTPUTS: dict[Kind, dict[str, Any]] = {
    "single": {"title": "Output"},
    "iterator": {"title": "Output", "type": "array", "items": {}, "x-cog-array-type": "iterator"},
    "text": {
        "title": "Output",
        "type": "array",
        "items": {"type": "string"},
        "x-cog-array-type": "iterator",
        "x-cog-array-display": "concatenate",
    },
}


def schema(
    kind: Kind, inputs: dict[str, dict[str, Any]] = _INPUTS, required: Sequence[str] = ("tag",)
) -> dict[str, Any]:
    """Return the OpenAPI document of a model of this kind with these inputs, as Cog would write it."""
    fields = {name: {"title": name, "x-order": order, **field} for order, (name, field) in enumerate(inputs.items())}
    return {
        "openapi": "3.0.2",
        "info": {"title": "Cog", "version": "0.1.0"},
        "paths": {},
        "components": {
            "schemas": {
                "Input": {"title": "Input", "type": "object", "properties": fields, "required": list(required)},
                "Output": _OUTPUTS[kind],
            }
        },
    }


class Settings(msgspec.Struct, frozen=True):
    """What the stage tells a worker. `model` is `account/kind`; paths are of this machine."""

    name: str
    server: str
    model: str
    slots: int
    state: str
    history: str

    @property
    def kind(self) -> Kind:
        """What the model's output is."""
        kind: Kind = msgspec.convert(self.model.partition("/")[2], Kind)
        return kind

    @property
    def model_name(self) -> str:
        """The name of the model's process in the history: `model-2` of `worker-2`."""
        return f"model-{self.name.rpartition('-')[2]}"

    def model_pid_file(self) -> Path:
        """Return the file with the process id of the living model."""
        return Path(self.state) / "model.pid"


class ModelRunner:
    """Drives the model's process (the `Runner` seam)."""

    def __init__(self, settings: Settings, sink: UploadSink, recorder: Recorder) -> None:
        self._settings = settings
        self._sink = sink
        self._recorder = recorder
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None
        self._runs: dict[str, asyncio.Queue[Shown | None]] = {}
        self._canceled: set[str] = set()
        self._broken = asyncio.Event()

    async def setup(self, log: LogSink) -> Offer:
        """Start the model and return the offer."""
        await self._start()
        owner, _, name = self._settings.model.partition("/")
        kind = self._settings.kind
        return Offer(
            owner=owner,
            name=name,
            version=VERSIONS[kind],
            schema=schema(kind),
            cog_version="0.16.0",
            slots=self._settings.slots,
        )

    async def run(self, job: Job) -> AsyncGenerator[Event, None]:
        """Let the model do what the input says."""
        shown: asyncio.Queue[Shown | None] = asyncio.Queue()
        self._runs[job.id] = shown
        count = 0
        try:
            script = msgspec.convert(_decoded(job.input), Script)
            self._tell(Order(job.id, job.attempt, script))
            while (news := await shown.get()) is not None:
                if (event := await self._event(news, count)) is not None:
                    yield event
                count += news.item is not None
                if news.ended is not None:
                    return
            if job.id not in self._canceled:
                raise RunLost("the model's process died")
            yield Finished(status="canceled")
        finally:
            del self._runs[job.id]
            self._canceled.discard(job.id)

    async def cancel(self, prediction_id: str) -> None:
        """Tell the model."""
        if prediction_id in self._runs:
            self._canceled.add(prediction_id)
            with suppress(RunLost):
                self._tell(Order(prediction_id))

    async def restart(self) -> None:
        """Kill the model, if it still lives, and start it again."""
        await self._end()
        await self._start()

    async def wait_broken(self) -> str:
        """Return once the model's process is gone."""
        await self._broken.wait()
        return "its process died"

    async def health(self) -> str | None:
        """Say that the model is gone, where it is."""
        return "the model's process is gone" if self._broken.is_set() else None

    async def close(self) -> None:
        """End the model."""
        await self._end()

    async def _start(self) -> None:
        settings = self._settings
        arguments = [settings.name, settings.kind, str(os.getpid()), settings.history]
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "cogflare.cli.verification.model", *arguments),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_LINE_LIMIT,
            )
        except OSError as error:
            raise SetupFailed(f"the model's process could not be started: {error}") from error
        self._process = process
        file = settings.model_pid_file()
        draft = file.with_suffix(".new")
        draft.write_text(str(process.pid))
        draft.replace(file)
        self._recorder.note(Born(now(), "model", settings.model_name, process.pid))
        self._broken.clear()
        self._listening = asyncio.create_task(self._listen(process))

    async def _end(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
        if self._listening is not None:
            await self._listening

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """Pass on what the model shows, until its end."""
        assert process.stdout is not None
        while said := await process.stdout.readline():
            # A model that was killed may have left half a line.
            with suppress(msgspec.DecodeError):
                shown = _shown.decode(said)
                if shown.prediction in self._runs:
                    self._runs[shown.prediction].put_nowait(shown)
        status = await process.wait()
        self._settings.model_pid_file().unlink(missing_ok=True)
        self._recorder.note(Died(now(), "model", self._settings.model_name, process.pid, f"status {status}"))
        for run in self._runs.values():
            run.put_nowait(None)
        self._broken.set()

    def _tell(self, order: Order) -> None:
        if self._process is None or self._process.stdin is None or self._broken.is_set():
            raise RunLost("the model's process is gone")
        self._process.stdin.write(msgspec.json.encode(order) + b"\n")

    async def _event(self, shown: Shown, count: int) -> Event | None:
        if shown.started is not None:
            return Started(shown.started)
        if shown.log is not None:
            return Log(shown.log)
        if shown.item is not None:
            return Output(count, shown.item)
        if shown.ended is None:
            return None
        if shown.file is not None:
            output: Any = await self._sink.put(
                shown.prediction, "answer.txt", "text/plain", _whole(shown.file.encode()), None
            )
        else:
            output = None if shown.output is msgspec.UNSET else shown.output
        return Finished(status=shown.ended, output=output, error=shown.error)


_shown = msgspec.json.Decoder(Shown)


def _decoded(given: dict[str, Any] | msgspec.Raw) -> Any:
    return msgspec.json.decode(given) if isinstance(given, msgspec.Raw) else given


async def _whole(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def run(settings: Settings, token: str) -> int:
    """Run the agent until it is drained, stopped or killed; return its exit code."""
    clock, console = SystemClock(), Console()
    address = ServerAddress(settings.server)
    async with AsyncExitStack() as stack:
        state = stack.enter_context(claim_state(Path(settings.state), address.base, settings.model, clock.wall))
        transfer = Transfer(address, lambda: token, state.worker, cap_s=1.0)
        stack.push_async_callback(transfer.aclose)
        inputs = InputFiles(address, Shelf(), folder=state.path / "inputs")
        stack.push_async_callback(inputs.aclose)
        runner = ModelRunner(settings, transfer, Recorder(Path(settings.history)))
        stack.push_async_callback(runner.close)
        end = agent_end(await runner.setup(console.model), state.worker, new_id(clock.wall()), settings.name, console)
        # Pauses shorter than the product's, so that a link is back well within the grace of its worker.
        timing = Timing(cap_s=1.0, refused_cap_s=1.0, open_s=5.0)
        link = Link(end, address, lambda: token, console, timing=timing, clock=clock, proxy=False)
        journal = Journal(state.path, print)
        patience = Patience(cancel_grace_s=3.0, restart_first_s=0.2, restart_cap_s=2.0)
        agent = Agent(runner, end, link, journal, transfer, inputs, console=console, clock=clock, patience=patience)
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, agent.interrupt)
        return await agent.run()


if __name__ == "__main__":
    tie_to_parent(int(sys.argv[1]))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        told = msgspec.json.decode(sys.argv[2], type=Settings)
        sys.exit(runner.run(run(told, os.environ["COGFLARE_WORKER_TOKEN"])))
