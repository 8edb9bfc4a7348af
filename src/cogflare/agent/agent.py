"""The worker: takes assignments off the link, runs them, keeps what the server has not answered, and leaves in order.

    setting up ──▶ serving ──drain()──▶ draining ──all answered──▶ gone (0)
                      │                    │
                      └──────stop()────────┴──▶ gone (130), what it held may run elsewhere at once

It owns the runs and the number of slots that the server may count on: the runner's number while the model is whole,
0 while it restarts or the worker drains. Runs go on while the link is away.
"""

import asyncio
import random
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from msgspec import UnsetType

from cogflare.agent.clock import SystemClock
from cogflare.agent.console import Console, counted
from cogflare.agent.journal import Entry
from cogflare.agent.ledger import HeldRun, Ledger
from cogflare.agent.link import Handle, Refused
from cogflare.agent.runners.base import RestartRefused, Runner, RunnerError
from cogflare.agent.runs import Carrier, Conductor, Inputs, Run
from cogflare.domain.clock import Clock
from cogflare.protocol.agent_end import AgentEnd
from cogflare.protocol.messages import (
    Answer,
    Assign,
    AttemptKey,
    Cancel,
    Drain,
    Finish,
    Probe,
    Restarting,
    ServerMessage,
    Welcome,
)

DRAINED, MODEL_LOST, REFUSED, STOPPED = 0, 1, 2, 130  # exit codes


class Wire(Protocol):
    """The link to the server (`Link`)."""

    async def run(self, handle: Handle) -> None: ...
    def wake(self) -> None: ...
    async def room(self) -> None: ...
    async def close(self) -> None: ...


class Spool(Protocol):
    """What keeps finishes over the death of this process (`Journal`)."""

    def read(self) -> list[Entry]: ...
    def keep(self, entry: Entry) -> None: ...
    def forget(self, key: AttemptKey) -> None: ...
    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the agent waits, in seconds."""

    cancel_grace_s: float = 10.0
    restart_first_s: float = 1.0
    restart_cap_s: float = 60.0
    health_s: float = 15.0


class Agent:
    """One worker with one model. The runner is set up already, and `end` makes the model's offer as its only one.

    With a `ledger` its runs are written down for the next agent; `left` are those that the last one left in the model.
    """

    def __init__(
        self,
        runner: Runner,
        end: AgentEnd,
        link: Wire,
        journal: Spool,
        carrier: Carrier,
        inputs: Inputs,
        *,
        console: Console | None = None,
        clock: Clock | None = None,
        patience: Patience | None = None,
        ledger: Ledger | None = None,
        left: Sequence[HeldRun] = (),
    ) -> None:
        self._runner = runner
        self._end = end
        self._link = link
        self._journal = journal
        self._carrier = carrier
        self._inputs = inputs
        self._console = console or Console()
        self._clock = clock or SystemClock()
        self._patience = patience or Patience()
        self._ledger = ledger
        self._left = left
        told = link.wake, self._fetched, self._ended, link.room
        self._conductor = Conductor(runner, end, carrier, inputs, self._clock, *told)
        self._slots = end.offers[0].slots
        self._told = self._slots
        self._runs: dict[AttemptKey, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_down = False
        self._owes_health = False
        self._is_draining = False
        self._stuck = asyncio.Event()
        self._over: asyncio.Future[int] | None = None

    async def run(self) -> int:
        """Serve until drained, stopped or refused; return the exit code."""
        self._over = asyncio.get_running_loop().create_future()
        schema = self._end.offers[0].schema
        self._inputs.learn(None if isinstance(schema, UnsetType) else schema)
        self._adopt()
        self._leave_if_done()  # a signal may have come first
        link = asyncio.create_task(self._link.run(self._handle))
        mending = asyncio.create_task(self._mend())
        try:
            ends: set[asyncio.Future[Any]] = {link, mending, self._over}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            return self._outcome(link, mending)
        finally:
            await self._leave(link, mending)

    def drain(self) -> None:
        """Take nothing more, end what is held, then leave."""
        if not self._is_draining:
            self._is_draining = True
            held = self._end.busy()
            text = f"{counted(held, 'prediction')} to end; Ctrl-C stops now" if held else "nothing runs"
            self._console.say("draining", f"draining: {text}", held=held)
            self._tell_capacity()
            self._leave_if_done()

    def stop(self) -> None:
        """Leave now: what is held may run elsewhere at once."""
        if held := self._end.busy():
            self._console.say("stopping", f"stopping: {counted(held, 'prediction')} may run elsewhere", held=held)
        self._settle(STOPPED)

    def interrupt(self) -> None:
        """Drain at the first signal, stop at the second."""
        if self._is_draining:
            self.stop()
        else:
            self.drain()

    # --- from the server -----------------------------------------------------------------------------------------

    def _handle(self, message: ServerMessage) -> None:
        if isinstance(message, Assign):
            self._start(message)
        elif isinstance(message, Answer):
            key = (message.prediction, message.attempt)
            self._journal.forget(key)
            self._drop(key)
            self._leave_if_done()
        elif isinstance(message, Cancel):
            self._drop((message.prediction, message.attempt))
        elif isinstance(message, Welcome):
            text = f"connected, {counted(self._told, 'slot')}; the server runs {message.server}"
            self._console.say("connected", text, node=message.node)
            self._leave_if_done()
        elif isinstance(message, Probe):
            self._spawn(self._examine())
        elif isinstance(message, Drain):
            self.drain()
        elif isinstance(message, Restarting):
            self._console.say("restarting", "the server restarts; runs go on")

    def _start(self, assign: Assign) -> None:
        key = (assign.prediction, assign.attempt)
        # A model knows predictions by id alone, so two attempts at one must not meet in it.
        earlier = [run.task for run in self._runs.values() if run.key[0] == key[0] and run.task is not None]
        run = Run(key, self._carrier.open(key), self._clock.monotonic())
        if self._ledger is not None:
            self._ledger.hold(HeldRun(*key, assign.offer, self._clock.wall()))
        self._begin(run, self._conductor.carry(run, assign, earlier))
        self._console.say("started", f"{key[0]} started", prediction=key[0], attempt=key[1])

    def _begin(self, run: Run, work: Coroutine[None, None, None]) -> None:
        self._runs[run.key] = run
        run.task = asyncio.create_task(work)
        run.task.add_done_callback(lambda _: self._gone(run))

    def _drop(self, key: AttemptKey) -> None:
        """Stop the run: the server does not want it any more."""
        run = self._runs.get(key)
        if run is None or run.canceled or run.over:
            return
        run.canceled = True
        run.ticket.dropped.set()
        if run.in_model:
            self._spawn(self._press(run))
        elif run.task is not None:
            run.task.cancel()

    async def _press(self, run: Run) -> None:
        """Ask the model to stop; one that ignores it is restarted as soon as nothing else runs in it."""
        try:
            await self._runner.cancel(run.key[0])
        except Exception as error:  # whatever it was, the escalation goes on
            self._console.say("cancel_failed", f"{run.key[0]} could not be canceled: {error!r}")
        assert run.task is not None
        await asyncio.wait({run.task}, timeout=self._patience.cancel_grace_s)
        run.overdue = True
        self._restart_if_stuck()

    # --- from the runs -------------------------------------------------------------------------------------------

    def _fetched(self, run: Run, assign: Assign) -> None:
        fetched = run.fetched
        if self._ledger is not None and fetched is not None:
            # It begins now: its start counts, and the model has known nothing of it while files were fetched.
            began = self._clock.wall()
            self._ledger.hold(HeldRun(*run.key, assign.offer, began, fetched.urls, str(fetched.folder or "")))

    def _ended(self, run: Run, finish: Finish) -> None:
        now = self._clock.monotonic()
        kept = self._end.kept.get(run.key)
        if kept is not None and not kept.answered:
            self._journal.keep(Entry.of(kept, self._clock.wall(), now))
        prediction, took_s = run.key[0], now - run.began
        text = f"{prediction} {finish.status} after {took_s:.2f} s"
        if lines := (finish.error or "").strip().splitlines():
            # A loss begins with its reason, and ends with the model's log; a failure ends with the exception.
            text += f": {lines[0 if finish.status == 'lost' else -1][:200]}"
        self._console.say("ended", text, prediction=prediction, status=finish.status, seconds=round(took_s, 3))

    def _gone(self, run: Run) -> None:
        self._runs.pop(run.key, None)
        if self._ledger is not None:
            self._ledger.release(run.key)
        if run.canceled and not run.over:
            self._conductor.abandon(run)
        self._restart_if_stuck()
        self._leave_if_done()

    def _restart_if_stuck(self) -> None:
        if self._is_stuck():
            self._stuck.set()

    def _is_stuck(self) -> bool:
        """Say whether all that still runs in the model are canceled runs that it does not let go of."""
        inside = [run for run in self._runs.values() if run.in_model]
        return bool(inside) and all(run.overdue for run in inside)

    # --- the model -----------------------------------------------------------------------------------------------

    async def _mend(self) -> None:
        """Restart the model when it broke, or when it does not let go of canceled runs; raises `RestartRefused`."""
        while True:
            broken = asyncio.create_task(self._runner.wait_broken())
            stuck = asyncio.create_task(self._stuck.wait())
            try:
                await asyncio.wait({broken, stuck}, return_when=asyncio.FIRST_COMPLETED)
                is_broken = broken.done()
                reason = broken.result() if is_broken else "it ignored a cancel"
            finally:
                broken.cancel()
                stuck.cancel()
                await asyncio.gather(broken, stuck, return_exceptions=True)
            self._stuck.clear()
            if is_broken or self._is_stuck():
                await self._restart(reason, is_broken)

    async def _examine(self) -> None:
        """Look how the model is, and tell the server."""
        if self._is_down:
            self._owes_health = True  # told as soon as it is known whether it comes back
            return
        try:
            async with asyncio.timeout(self._patience.health_s):
                ailment = await self._runner.health()
        except Exception as error:  # a model that cannot even be asked is not well
            ailment = f"the model could not be asked: {error!r}"
        if not self._is_down:
            self._end.report(ailment)
            self._link.wake()

    async def _restart(self, reason: str, is_broken: bool) -> None:
        self._is_down = True
        self._tell_capacity()
        self._console.say("model_restarts", f"the model restarts: {reason}", reason=reason)
        pause_s = self._patience.restart_first_s
        while True:
            try:
                await self._runner.restart()
                break
            except RestartRefused:
                if is_broken:
                    raise
                self._console.say("restart_refused", "the model is not ours to restart; waiting for it to let go")
                break
            except RunnerError as error:
                self._console.say("restart_failed", f"the model does not come back: {error}; trying again")
                self._end.report(f"the model does not come back: {error}")
                self._link.wake()
                self._owes_health = True
                await asyncio.sleep(random.uniform(pause_s / 2, pause_s))  # noqa: S311
                pause_s = min(self._patience.restart_cap_s, pause_s * 2)
                is_broken = True
        self._is_down = False
        self._tell_capacity()
        if self._owes_health:
            self._owes_health = False
            self._end.report(None)
            self._link.wake()

    def _tell_capacity(self) -> None:
        slots = 0 if self._is_down or self._is_draining else self._slots
        if slots != self._told:
            self._told = slots
            self._end.resize(0, slots)
            self._link.wake()

    # --- coming and going ----------------------------------------------------------------------------------------

    def _adopt(self) -> None:
        """Take over what an earlier process on this machine had finished, and what it had under way."""
        entries = self._journal.read()
        now, wall = self._clock.monotonic(), self._clock.wall()
        for entry in entries:
            started = None if entry.started is None else now - (wall - entry.started) / 1e6
            ended = now - (wall - entry.finished) / 1e6
            self._end.adopt(entry.finish, entry.items, entry.log, started, ended)
        if entries:
            text = f"{counted(len(entries), 'finished prediction')} of an earlier run to deliver"
            self._console.say("adopted", text)
        left: list[HeldRun] = []
        for held in self._left:
            # A later attempt at a prediction was waiting for the earlier: the model has never had it.
            if held.key not in self._end.kept and all(held.prediction != other.prediction for other in left):
                left.append(held)
        self._inputs.sweep({held.folder for held in left})
        if self._ledger is not None:
            self._ledger.open(left)
        for held in left:
            self._resume(held, now - (wall - held.began) / 1e6)

    def _resume(self, held: HeldRun, began: float) -> None:
        """Go on with a run that an earlier process on this machine gave to the model."""
        self._end.resume(held.key, held.offer)
        run = Run(held.key, self._carrier.open(held.key), began, is_resumed=True)
        self._begin(run, self._conductor.resume(run, held))
        self._console.say("resumed", f"{held.prediction} goes on", prediction=held.prediction, attempt=held.attempt)

    def _leave_if_done(self) -> None:
        if self._is_draining and not self._end.busy() and not self._runs:
            self._settle(DRAINED)

    def _settle(self, code: int) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(code)

    def _outcome(self, link: "asyncio.Task[None]", mending: "asyncio.Task[None]") -> int:
        assert self._over is not None
        if self._over.done():
            return self._over.result()
        if mending.done():
            try:
                mending.result()
            except RestartRefused as error:
                self._end.report(f"the model is gone: {error}")
                self._console.say("model_lost", f"the model is gone: {error}; start it again, then this worker")
            return MODEL_LOST
        try:
            link.result()
        except Refused as error:
            self._console.say("refused", str(error))
        return REFUSED

    async def _leave(self, link: "asyncio.Task[None]", mending: "asyncio.Task[None]") -> None:
        self._end.goodbye("drained" if self._is_draining and not self._end.busy() else "stopped")
        await self._link.close()
        runs = [run.task for run in self._runs.values() if run.task is not None]
        tasks = [link, mending, *runs, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._journal.aclose()
        if self._ledger is not None:
            self._ledger.close()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
