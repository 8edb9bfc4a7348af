"""The model of the harness, a process of its own: does what the script in its input says, and says so to the history.

python -m cogflare.cli.verification.model WORKER KIND AGENT_PID HISTORY_FILE

Orders come as JSON lines on standard input, what a run shows leaves as JSON lines on standard output. All that a run
shows begins with `tag/attempt`, so that data of an attempt that is over is known wherever it turns up. When the agent
dies, so does the model, without another word.
"""

import asyncio
import base64
import hashlib
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET, UnsetType

from cogflare.cli.verification.history import Begun, Over, Recorder, now
from cogflare.cli.verification.process import tie_to_parent

Kind = Literal["single", "iterator", "text"]
Ended = Literal["succeeded", "failed", "canceled"]
_HOW = {"succeeded": "done", "failed": "failed", "canceled": "canceled"}
_LIMIT = 64 * 1024 * 1024
UNREADABLE = "its input file cannot be read"
"""With what a run fails whose input file is not where its agent has put it."""


class Script(msgspec.Struct, frozen=True, omit_defaults=True):
    """The input of a prediction: what the model does.

    It takes `seconds`, yields `items` and logs `log` lines evenly over them, each with `pad` more bytes; ends with the
    error `fail`, or answers `output`, or a file with the text `file`; goes on for `stubborn` seconds after a cancel.
    With an input file `source`, what it answers in place of `output` is the digest of that.
    """

    tag: str
    seconds: float = 0.0
    items: int = 0
    log: int = 0
    pad: int = 0
    output: str = ""
    file: str | None = None
    fail: str | None = None
    stubborn: float = 0.0
    source: str | None = None


def mark(tag: str, attempt: int) -> str:
    """Return what everything that a run shows begins with."""
    return f"{tag}/{attempt}"


def item(tag: str, attempt: int, index: int, pad: int = 0) -> str:
    """Return what a run yields at this index."""
    return f"{mark(tag, attempt)} item {index}{'.' * pad} "


def line(tag: str, attempt: int, index: int, pad: int = 0) -> str:
    """Return what a run logs as its line of this index."""
    return f"{mark(tag, attempt)} line {index}{'.' * pad}\n"


def answer(tag: str, attempt: int, text: str) -> str:
    """Return what a run answers, fails with or puts in its file, given the text of its script."""
    return f"{mark(tag, attempt)} {text}"


class Order(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the agent says: run this script, or (without one) cancel this prediction."""

    prediction: str
    attempt: int = 0
    script: Script | None = None


class Shown(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a run shows: its start, a log line, an item, or its end. The text of a file stands beside the output."""

    prediction: str
    started: int | None = None
    log: str | None = None
    item: str | None = None
    ended: Ended | None = None
    output: Any | UnsetType = UNSET
    error: str | None = None
    file: str | None = None


class Model:
    """Runs scripts, any number at once."""

    def __init__(self, worker: str, kind: Kind, agent_pid: int, recorder: Recorder) -> None:
        self._worker = worker
        self._kind = kind
        self._agent_pid = agent_pid
        self._recorder = recorder
        self._cancels: dict[str, asyncio.Event] = {}
        self._runs: set[asyncio.Task[None]] = set()

    def take(self, order: Order) -> None:
        """Do what the agent says."""
        if order.script is not None:
            canceled = self._cancels[order.prediction] = asyncio.Event()
            task = asyncio.create_task(self._run(order.prediction, order.attempt, order.script, canceled))
            self._runs.add(task)
            task.add_done_callback(self._runs.discard)
        elif order.prediction in self._cancels:
            self._cancels[order.prediction].set()

    async def _run(self, prediction: str, attempt: int, script: Script, canceled: asyncio.Event) -> None:
        self._recorder.note(Begun(now(), self._worker, self._agent_pid, os.getpid(), prediction, attempt, script.tag))
        _say(Shown(prediction, started=time.time_ns() // 1000))
        if script.source is not None:
            script = await _with_source(script, script.source)
        await self._show(prediction, attempt, script, canceled)
        if canceled.is_set():
            await asyncio.sleep(script.stubborn)
        shown = self._end(prediction, attempt, script, canceled.is_set())
        assert shown.ended is not None
        del self._cancels[prediction]
        self._recorder.note(Over(now(), self._worker, os.getpid(), prediction, attempt, _HOW[shown.ended]))
        _say(shown)

    async def _show(self, prediction: str, attempt: int, script: Script, canceled: asyncio.Event) -> None:
        """Log lines and yield items, evenly over the time of the run."""
        items = 0 if self._kind == "single" else script.items
        steps = max(items, script.log)
        for step in range(steps):
            if step < script.log:
                _say(Shown(prediction, log=line(script.tag, attempt, step, script.pad)))
            if step < items:
                _say(Shown(prediction, item=item(script.tag, attempt, step, script.pad)))
            if await _is_set_within(canceled, script.seconds / steps):
                return
        if not steps:
            await _is_set_within(canceled, script.seconds)

    def _end(self, prediction: str, attempt: int, script: Script, is_canceled: bool) -> Shown:
        if is_canceled:
            return Shown(prediction, ended="canceled")
        if script.fail is not None:
            return Shown(prediction, ended="failed", error=answer(script.tag, attempt, script.fail))
        if self._kind != "single":
            items = [item(script.tag, attempt, index, script.pad) for index in range(script.items)]
            return Shown(prediction, ended="succeeded", output=items)
        if script.file is not None:
            return Shown(prediction, ended="succeeded", file=answer(script.tag, attempt, script.file))
        output = answer(script.tag, attempt, script.output) + "." * script.pad
        return Shown(prediction, ended="succeeded", output=output)


async def _with_source(script: Script, url: str) -> Script:
    """Return a script that answers the digest of its input file, or fails where that cannot be read."""
    try:
        content = await _read(url)
    except (OSError, ValueError) as error:
        return msgspec.structs.replace(script, fail=f"{UNREADABLE}: {error!r}")
    return msgspec.structs.replace(script, output=hashlib.sha256(content).hexdigest())


async def _read(url: str) -> bytes:
    """Return a file of a `data:` URL or of the agent; raises `OSError` or `ValueError`."""
    if url.startswith("data:"):
        return base64.b64decode(url.partition(",")[2], validate=True)
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(f"GET {parts.path} HTTP/1.0\r\n\r\n".encode())
        head, _, content = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    status, *lines = head.lower().split(b"\r\n")
    if b" 200 " not in status or b"content-length: %d" % len(content) not in lines:
        raise ValueError(f"{status.decode(errors='replace')}, {len(content)} bytes")
    return content


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    if seconds:
        with suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), seconds)
    else:
        await asyncio.sleep(0)
    return event.is_set()


def _say(shown: Shown) -> None:
    """Tell the agent; a model waits for an agent that does not listen."""
    left = memoryview(msgspec.json.encode(shown) + b"\n")
    while left:
        left = left[os.write(1, left) :]


async def serve(model: Model) -> None:
    """Take orders until the agent is gone; then end at once."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=_LIMIT)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    decoder = msgspec.json.Decoder(Order)
    while order := await reader.readline():
        model.take(decoder.decode(order))
    os._exit(0)


def main(worker: str, kind: Kind, agent_pid: int, history: Path) -> None:
    """Run the model of a worker."""
    tie_to_parent(agent_pid, reads_input=True)
    asyncio.run(serve(Model(worker, kind, agent_pid, Recorder(history))))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))  # type: ignore[arg-type]
