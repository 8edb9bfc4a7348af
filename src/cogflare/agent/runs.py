"""One attempt on this worker, from its assignment to its finish: input, model, events, and the cancel on the way.

A run is one task and one `Run`; what it has to say goes to `AgentEnd`. Rule: the slot comes back when the runner's
events are over, not when the answer is known, so that a slot is free only when the GPU is.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from msgspec import UNSET, Raw

from cogflare.agent.courier import Superseded, Ticket, TransferError
from cogflare.agent.inputs import Fetched, InputError
from cogflare.agent.ledger import HeldRun
from cogflare.agent.runners.base import (
    Event,
    Finished,
    Job,
    Log,
    Metric,
    Output,
    OutputRefused,
    RunLost,
    Runner,
    Started,
)
from cogflare.agent.values import BadValue, error_of, fits, metrics_of, to_raw
from cogflare.domain.clock import Clock
from cogflare.protocol.agent_end import AgentEnd
from cogflare.protocol.messages import Assign, AttemptKey, Finish, FinishStatus


class Carrier(Protocol):
    """Moves what does not fit a frame (`Transfer`)."""

    def open(self, key: AttemptKey) -> Ticket: ...
    def close(self, ticket: Ticket) -> None: ...
    async def fetch_input(self, ticket: Ticket) -> Raw: ...
    async def put_result(self, ticket: Ticket, output: Raw) -> None: ...


class Inputs(Protocol):
    """Fetches the files of inputs (`InputFiles`)."""

    def learn(self, openapi_schema: Raw | None) -> None: ...
    async def fetch(self, given: Raw) -> Fetched: ...
    async def restore(self, urls: list[str], folder: str) -> Fetched: ...
    def sweep(self, kept: Collection[str]) -> None: ...
    def drop(self, fetched: Fetched) -> None: ...


@dataclass(slots=True, eq=False)
class Run:
    """An attempt under way. `overdue` is set when the model ignored its cancel for too long.

    `fetched` is its input, once that is here; for a run that an earlier agent began, the files of it alone.
    """

    key: AttemptKey
    ticket: Ticket
    began: float
    task: "asyncio.Task[None] | None" = None
    fetched: Fetched | None = None
    is_resumed: bool = False
    in_model: bool = False
    canceled: bool = False
    overdue: bool = False
    over: bool = False
    items: int = 0
    is_cut: bool = False  # the rest of the items passes the server's limits
    is_bulky: bool = False  # an item did not fit a frame, so the rest waits for the whole output


class Conductor:
    """Carries runs through.

    `changed` is called when there is something to send, `fetched` once the input's files are here, `ended` once a
    finish is recorded. `room` waits until there is room for more to send: a model that says more than the link takes
    has to wait, not this process to grow.
    """

    def __init__(
        self,
        runner: Runner,
        end: AgentEnd,
        carrier: Carrier,
        inputs: Inputs,
        clock: Clock,
        changed: Callable[[], None],
        fetched: Callable[[Run, Assign], None],
        ended: Callable[[Run, Finish], None],
        room: Callable[[], Awaitable[None]],
    ) -> None:
        self._runner = runner
        self._end = end
        self._carrier = carrier
        self._inputs = inputs
        self._clock = clock
        self._changed = changed
        self._fetched = fetched
        self._ended = ended
        self._room = room

    async def carry(self, run: Run, assign: Assign, earlier: list["asyncio.Task[None]"]) -> None:
        """Carry the run through, once the earlier ones are over; it never raises but when the worker stops."""
        await self._to_its_end(run, self._take(run, assign, earlier))

    async def resume(self, run: Run, held: HeldRun) -> None:
        """Carry through a run that an earlier agent gave to the model; like `carry`."""
        await self._to_its_end(run, self._take_up(run, held))

    async def _take(self, run: Run, assign: Assign, earlier: list["asyncio.Task[None]"]) -> Job:
        if earlier:
            await asyncio.wait(earlier)
        given = assign.input if assign.input is not UNSET else await self._carrier.fetch_input(run.ticket)
        run.fetched = fetched = await self._inputs.fetch(given)
        if fetched.folder is not None:
            self._fetched(run, assign)
            await asyncio.sleep(0)  # what was written down reaches the disk with the turn of the loop
        return Job(id=run.key[0], attempt=run.key[1], input=fetched.input)

    async def _take_up(self, run: Run, held: HeldRun) -> Job:
        run.fetched = fetched = await self._inputs.restore(held.urls, held.folder)
        return Job(id=run.key[0], attempt=run.key[1], input=fetched.input, resumed=held.began)

    async def _to_its_end(self, run: Run, taking: Awaitable[Job]) -> None:
        try:
            job = await taking
            run.in_model = True
            await self._drive(run, job)
            self._finish(run, "lost", "the model's events ended without a result")
        except asyncio.CancelledError:
            if not run.canceled:
                raise
            self._finish(run, "canceled", None)
        except Superseded:
            self._finish(run, "canceled", None)
        except (InputError, OutputRefused) as error:
            self._finish(run, "failed", str(error))
        except (RunLost, TransferError) as error:
            self._finish(run, "lost", str(error))
        except Exception as error:
            # A fault of the runner is not the prediction's: it may run elsewhere.
            self._finish(run, "lost", f"the worker failed: {error!r}")
        finally:
            if run.fetched is not None and (run.fetched.urls or run.fetched.folder):
                self._inputs.drop(run.fetched)
            self._carrier.close(run.ticket)
        self._end.slot_free(run.key)
        self._changed()

    def abandon(self, run: Run) -> None:
        """End a run that was canceled before its task had begun."""
        self._finish(run, "canceled", None)
        self._carrier.close(run.ticket)
        self._end.slot_free(run.key)
        self._changed()

    async def _drive(self, run: Run, job: Job) -> None:
        async with aclosing(self._runner.run(job)) as events:
            async for event in events:
                if not run.over:
                    await self._event(run, event)
                if self._end.is_full:
                    await self._room()

    async def _event(self, run: Run, event: Event) -> None:
        key = run.key
        if isinstance(event, Finished):
            await self._finished(run, event)
        elif isinstance(event, Output):
            self._output(run, event)
        elif isinstance(event, Log):
            self._end.log(key, event.text)
        elif isinstance(event, Started):
            now = self._clock.monotonic()
            age_s = max(0.0, (self._clock.wall() - event.at) / 1e6)
            self._end.started(key, max(run.began, now - age_s), now)
        elif isinstance(event, Metric) and (values := metrics_of({event.name: event.value})):
            self._end.metrics(key, values)
        self._changed()

    def _output(self, run: Run, event: Output) -> None:
        if event.index < run.items or run.is_bulky or run.is_cut:
            return
        try:
            item = to_raw(event.item)
        except BadValue:
            run.is_bulky = True  # the whole output will have the same fault, and is the one to fail
            return
        if event.index > run.items or not fits(item):
            run.is_bulky = True
            return
        taken = self._end.output(run.key, [item])
        run.items += taken
        run.is_cut = not taken

    async def _finished(self, run: Run, event: Finished) -> None:
        """Record the result: as the count of its items where they were all sent, else as a value, else by upload."""
        whole = event.output
        error = event.error
        if run.is_resumed and event.status == "failed" and _names_file(run.fetched, error or ""):
            self._finish(run, "lost", "the model asked for an input file while no worker was there", event)
            return
        status: FinishStatus = event.status
        is_told = run.items and not run.is_bulky
        if is_told and (run.is_cut or whole is None or (isinstance(whole, list) and len(whole) == run.items)):
            self._finish(run, status, error, event, items=run.items)
            return
        if whole is None:
            self._finish(run, status, error, event)
            return
        try:
            output = to_raw(whole)
        except BadValue as fault:
            self._finish(run, "failed", str(fault), event)
            return
        if fits(output):
            self._finish(run, status, error, event, output=output)
            return
        try:
            await self._carrier.put_result(run.ticket, output)
        except Superseded:
            self._finish(run, "canceled", None, event)
        except TransferError as fault:
            self._finish(run, "failed", str(fault), event)
        else:
            self._finish(run, status, error, event, uploaded=True)

    def _finish(
        self, run: Run, status: FinishStatus, error: str | None, event: Finished | None = None, **output: Any
    ) -> None:
        if run.over:
            return
        run.over = True
        if run.canceled and status == "lost":
            status, error = "canceled", None
        took_s = event.predict_time_s if event is not None else None
        finish = Finish(
            *run.key,
            status,
            error=error_of(error),
            metrics=metrics_of(event.metrics) if event is not None and event.metrics else {},
            files=run.ticket.files,
            run_ms=None if took_s is None else took_s * 1000,
            **output,
        )
        self._end.finish(finish, self._clock.monotonic())
        self._ended(run, finish)


def _names_file(fetched: Fetched | None, error: str) -> bool:
    """Say whether the error is about one of the files that this machine serves."""
    return fetched is not None and any(urlsplit(url).path in error for url in fetched.urls)
