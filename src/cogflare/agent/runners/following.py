"""Following one run on a Cog server, from the job to its last event.

The run is started so that it goes on without us; its end comes by webhook. What happens on the way comes by the event
stream where the model has one, else by webhook. Everything that arrives goes through one queue, so that the order of
what we say is the order in which we learnt it. A run that an earlier agent had started is followed in the same way, and
told from its beginning again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any, Literal

import httpx2
import msgspec

from cogflare.agent.runners.base import (
    Event,
    Finished,
    Job,
    Log,
    Output,
    OutputRefused,
    RunLost,
    Started,
    UploadSink,
    run_name,
)
from cogflare.agent.runners.cogserver import CRASHED, ENDED, Answer, CogServer, NotUnderWay
from cogflare.agent.runners.inbox import Inbox
from cogflare.agent.runners.outputs import OutputFiles, OutputShape
from cogflare.agent.runners.progress import Progress
from cogflare.agent.runners.receiver import Receiver
from cogflare.agent.unreached import why_unreached

_FIRST_RETRY_S, _LAST_RETRY_S = 0.001, 0.25
_REATTACH_S = 0.2
_POLL_S = 0.5
_MAX_SIGNALS = 100

# Cog sends the word of a run's end again after as long as it has tried already, but after `_LAST_TRY_S` at most. Only
# when that has passed is it sure that nothing more comes for a run which ended while no agent was there.
_GONE_S, _LAST_TRY_S = 15.0, 110.0

# How Cog words the death of the model's process, which it reports as a failed prediction, and that a server which ends
# for such a reason has taken another run.
_CRASHES = ("Worker crashed", CRASHED, "Invalid operation: state is WorkerState")
# And that an output file did not reach the receiver, which is no fault of the model's either.
_NOT_UPLOADED = ("Failed to upload output", "Got error trying to upload output", "Cog: Got error trying to upload")

# How a run is had: it goes on without the request that started it; the request waits for its end, and a webhook tells
# of it meanwhile; or there is nothing but the request.
Manner = Literal["goes on", "waits", "bare"]
_ACCEPTED_S = 0.1  # a request that waits and is not answered after so long was accepted

# What arrives: its kind, for the stream the name of the event, and the data.
Signal = tuple[Literal["snapshot", "latest", "stream", "attached", "lost"], str, dict[str, Any]]


class Following:
    """One run. ``run_id`` is what Cog calls it; it is lost once Cog has not known it for ``patience_s`` seconds."""

    def __init__(
        self,
        job: Job,
        server: CogServer,
        receiver: Receiver,
        sink: UploadSink,
        shape: OutputShape,
        on_crash: Callable[[str], None],
        manner: Manner = "goes on",
    ) -> None:
        self.job, self.run_id = job, run_name(job.id, job.attempt)
        self.is_started, self.is_canceled = job.resumed is not None, False
        self.patience_s = _patience_s(job)
        self._is_seen = False
        self._server, self._receiver, self._shape, self._on_crash = server, receiver, shape, on_crash
        inbox = Inbox(job.id, self.run_id, self.deliver, receiver.receipts)
        self._files = OutputFiles(shape, inbox, sink)
        self._progress = Progress(is_iterator=shape.is_iterator)
        self._streams = shape.is_streamed
        self._signals: asyncio.Queue[Signal] = asyncio.Queue()
        self._taken = asyncio.Event()
        self._latest: dict[str, Any] | None = None
        self._lost: str | None = None
        self._refusal: str | None = None
        self._manner: Manner = manner
        self._inbox = inbox
        self._waiting: asyncio.Task[None] | None = None
        receiver.open(self.run_id, inbox)

    def deliver(self, body: dict[str, Any]) -> None:
        """Take in a snapshot of the run; a later one stands for those before it that nobody has looked at."""
        if body.get("status") in ENDED:
            self._signals.put_nowait(("snapshot", "", body))
            return
        if self._manner == "waits":
            body = {**body, "output": None}  # files come with the end alone
        if self._latest is None:
            self._signals.put_nowait(("latest", "", {}))
        self._latest = body

    def lose(self, reason: str) -> None:
        """End the run as lost, or as canceled where that was asked for."""
        self._lost = reason
        self._signals.put_nowait(("lost", "", {}))

    async def cancel(self) -> None:
        """Ask the model to stop; before the start, not to start."""
        self.is_canceled = True
        if self.is_started:
            with suppress(httpx2.HTTPError):  # an unreachable server ends the run by other means
                await self._server.cancel(self.run_id)

    async def events(self) -> AsyncGenerator[Event, None]:
        """Start the run, unless it is resumed, and yield its events; raises `RunLost`."""
        reader: asyncio.Task[None] | None = None
        try:
            began = self.job.resumed
            if began is None:
                if refusal := await self._start():
                    yield refusal
                    return
                yield Started(time.time_ns() // 1000)
            if self._streams:
                reader = asyncio.create_task(self._read_stream())
            end = None
            while end is None:
                events, end = await self._next()
                if began is not None and self._is_seen:
                    yield Started(began)
                    began = None
                for event in events:
                    yield event
            yield await self._finish(end)
        finally:
            for task in filter(None, (reader, self._waiting)):
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await self._receiver.forget(self.run_id)

    async def _start(self) -> Finished | None:
        """Have the run started; a `Finished` says that it will not be."""
        body, delay = self._request(), _FIRST_RETRY_S
        while not self.is_canceled:
            if self._lost:
                raise RunLost(self._lost)
            try:
                answer = await self._ask(body)
            except (httpx2.HTTPError, msgspec.DecodeError) as error:
                raise RunLost(f"the Cog server could not be reached: {why_unreached(error)}") from error
            match answer.kind:
                case "started":
                    self.is_started = True
                    if self.is_canceled:
                        await self.cancel()
                    return None
                case "invalid" | "refused":
                    return Finished(status="failed", error=answer.detail)
            # Busy, often for a moment after the last run has ended, or not ready: both pass.
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LAST_RETRY_S)
        return Finished(status="canceled")

    async def _ask(self, body: bytes) -> Answer:
        """Ask the server to run it; a request that waits for the end is left waiting."""
        if self._manner == "goes on":
            return await self._server.start(self.run_id, body)
        asking = asyncio.create_task(self._server.run("" if self._manner == "bare" else self.run_id, body))
        self._waiting = asyncio.create_task(self._wait_for(asking, accepted := asyncio.Event()))
        await asyncio.wait({asking}, timeout=_ACCEPTED_S)
        # A server that dies of it had accepted it.
        if asking.done() and not isinstance(asking.exception(), httpx2.ReadError | httpx2.RemoteProtocolError):
            return await asking
        accepted.set()
        return Answer("started")

    async def _wait_for(self, asking: asyncio.Task[Answer], accepted: asyncio.Event) -> None:
        try:
            answer = await asking
        except (httpx2.HTTPError, msgspec.DecodeError) as error:
            await self._let_go(f"the Cog server dropped the run: {why_unreached(error)}")
        else:
            if answer.end is not None:
                self.deliver(answer.end)
            elif accepted.is_set() and answer.kind == "invalid":
                self.deliver({"status": "failed", "error": answer.detail})
            elif accepted.is_set():
                await self._let_go(f"the Cog server did not run it: {answer.detail or answer.kind}")
        finally:
            asking.cancel()

    async def _let_go(self, reason: str) -> None:
        """Lose a run whose answer will not come; a proxy may have given up on a server that goes on with it."""
        if self._manner == "waits":
            with suppress(httpx2.HTTPError):
                await self._server.cancel(self.run_id)
        self.lose(reason)

    def _request(self) -> bytes:
        if self._manner == "bare":
            return msgspec.json.encode({"input": self.job.input})
        # While it waits for the end, the server leaves files where they are until then.
        events = ["completed"] if self._manner == "goes on" else []
        if self._manner == "waits":
            events += ["logs"]
        elif not self._streams:
            # A model that returns one value sends it as a list while it runs: only iterators have partial output.
            events += ["logs", "output"] if self._shape.is_iterator else ["logs"]
        hook = self._receiver.hook_url(self.run_id)
        return msgspec.json.encode({"input": self.job.input, "webhook": hook, "webhook_events_filter": events})

    async def _next(self) -> tuple[list[Event], dict[str, Any] | None]:
        """The events of the next signal, and the snapshot of the run's end once it is there."""
        kind, event, data = await self._signals.get()
        self._taken.set()
        if kind == "latest":
            data, self._latest = self._latest or {}, None
        if kind == "lost":
            return [], {"status": "lost"}
        if kind == "attached":
            self._progress.stream_begins()
            return [], None
        self._is_seen = True
        if kind == "stream":
            return await self._stored(self._progress.stream(event, data)), None
        is_final = data.get("status") in ENDED
        events = await self._stored(self._progress.snapshot(data))
        return events, data if is_final else None

    async def _finish(self, body: dict[str, Any]) -> Finished:
        if self._refusal is not None:
            return Finished(status="failed", error=self._refusal)
        if body["status"] == "lost":
            return self._end_lost(self._lost or "")
        error = body.get("error")
        if isinstance(error, str):
            error = self._receiver.hide(error)
        if body["status"] == "failed" and str(error).startswith(_CRASHES):
            reason = _death(str(error))
            self._on_crash(reason)
            return self._end_lost(reason)
        if body["status"] == "failed" and str(error).startswith(_NOT_UPLOADED):
            return self._end_lost(f"an output file did not reach the worker: {self._inbox.missing or error}")
        if body["status"] == "succeeded" and (missing := self._inbox.missing) is not None:
            return self._end_lost(f"an output file could not be taken: {missing}")
        metrics = body.get("metrics") or {}
        try:
            output = await self._guard(self._files.whole(body.get("output")))
        except OutputRefused as refusal:
            return Finished(status="failed", error=str(refusal))
        return Finished(
            status=body["status"],
            output=output,
            error=error,
            metrics=metrics,
            predict_time_s=metrics.get("predict_time"),
        )

    def _end_lost(self, reason: str) -> Finished:
        if self.is_canceled:
            return Finished(status="canceled")
        raise RunLost(reason)

    async def _stored(self, events: list[Event]) -> list[Event]:
        """The events with the files of output items stored."""
        stored: list[Event] = []
        for event in events:
            if isinstance(event, Log):
                stored.append(Log(self._receiver.hide(event.text)))
            elif not isinstance(event, Output):
                stored.append(event)
            elif self._refusal is None:
                try:
                    item = await self._guard(self._files.item(event.index, event.item))
                except OutputRefused as error:
                    await self._refuse(str(error))
                else:
                    stored.append(Output(event.index, item))
        return stored

    async def _refuse(self, reason: str) -> None:
        """Stop a model whose output cannot be stored; its run ends as failed for that reason."""
        self._refusal = reason
        with suppress(httpx2.HTTPError):
            await self._server.cancel(self.run_id)

    async def _guard(self, storing: Any) -> Any:
        try:
            return await storing
        except OutputRefused:
            raise
        except Exception as error:
            raise RunLost(f"an output file could not be stored: {error!r}") from error

    async def _read_stream(self) -> None:
        """Read the event stream until the run is over, attaching again as often as it drops."""
        while True:
            self._signals.put_nowait(("attached", "", {}))
            try:
                async with aclosing(self._server.stream(self.run_id)) as stream:
                    async for event, data in stream:
                        if event == "error":
                            return await self._poll()
                        if event == "completed":
                            return self.deliver(data)
                        await self._until_room()
                        self._signals.put_nowait(("stream", event, data))
            except NotUnderWay:
                return None
            except httpx2.HTTPError:
                pass
            await asyncio.sleep(_REATTACH_S)

    async def _until_room(self) -> None:
        """Read no further while those who listen are behind: Cog has to wait, not this process to grow."""
        while self._signals.qsize() >= _MAX_SIGNALS:
            self._taken.clear()
            await self._taken.wait()

    async def _poll(self) -> None:
        """Ask for snapshots instead, where the server has forgotten the first events of the stream."""
        with suppress(httpx2.HTTPError):
            while body := await self._server.poll(self.run_id):
                self.deliver(body)
                await asyncio.sleep(_POLL_S)


def _death(error: str) -> str:
    """Return how the model's process died, said once."""
    how = error.removeprefix("Worker crashed: ")
    told = how.removeprefix("the model's process ")
    return f"the model's process died: {how if told == how else f'it {told}'}"


def _patience_s(job: Job) -> float:
    if job.resumed is None:
        return _GONE_S
    return min(_LAST_TRY_S, max(_GONE_S, time.time() - job.resumed / 1e6))
