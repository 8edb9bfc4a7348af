"""Driving a Cog server that is ready: its runs, its watch, and its breakage. Shared by the runners of Cog models."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Protocol

import httpx2

from cogflare.agent.runners.base import Event, Job, LogSink, RunLost, SetupFailed, UploadSink
from cogflare.agent.runners.cogserver import CogServer, Health
from cogflare.agent.runners.following import Following, Manner
from cogflare.agent.runners.outputs import OutputShape
from cogflare.agent.runners.receiver import Receiver
from cogflare.agent.unreached import why_unreached

_WATCH_S, _IDLE_WATCH_S = 1.0, 5.0
_PATIENCE = 3
_CANCELED_S = 2.0  # a canceled run that is not there any more is over; its last word may be on the way
_TAIL_LINES = 20
_GIVEN_UP = "ERROR:    Application startup failed"  # a server before 0.7 says so, and stays
_LAST_WORDS_S = 0.03  # from the answer "ready" until the last line of the setup is written, at most


class Breakage:
    """Whether a runner's model can still take runs, and if not why."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._event = asyncio.Event()

    def set(self, reason: str) -> None:
        """Say that it is broken; the first reason stays."""
        self.reason = self.reason or reason
        self._event.set()

    def clear(self) -> None:
        """Say that it is whole again."""
        self.reason = None
        self._event.clear()

    async def wait(self) -> str:
        """Wait until it is broken; return why."""
        await self._event.wait()
        return self.reason or ""


class CogDriver:
    """A ready server and the runs on it.

    ``health`` is the answer in which it was ready. It says in which ``manner`` runs are had, where nobody else does.
    """

    def __init__(
        self,
        server: CogServer,
        receiver: Receiver,
        sink: UploadSink,
        shape: OutputShape,
        health: Health,
        slots: int,
        broken: Breakage,
        manner: Manner | None = None,
    ) -> None:
        self._server, self._receiver, self._sink, self._shape = server, receiver, sink, shape
        self._boot, self._slots, self._broken = health.boot, slots, broken
        self._can_poll = health.can_poll and bool(shape.schema)
        self._manner: Manner = manner or ("goes on" if health.goes_on else "bare")
        self._runs: dict[str, Following] = {}
        self._gone_since: dict[str, float] = {}
        self._complaints = 0
        self._begun = asyncio.Event()
        self._watching = asyncio.create_task(self._watch())

    async def run(self, job: Job) -> AsyncGenerator[Event, None]:
        """Run the job on the server and yield its events; raises `RunLost`."""
        following = Following(job, self._server, self._receiver, self._sink, self._shape, self._broke, self._manner)
        self._runs[job.id] = following
        self._begun.set()
        if self._broken.reason:
            following.lose(self._broken.reason)
        try:
            async with aclosing(following.events()) as events:
                async for event in events:
                    yield event
        finally:
            if self._runs.get(job.id) is following:
                del self._runs[job.id]
            self._gone_since.pop(following.run_id, None)

    async def cancel(self, prediction_id: str) -> None:
        """Ask to stop that prediction's run, if there is one."""
        if following := self._runs.get(prediction_id):
            await following.cancel()

    async def health(self) -> str | None:
        """Return why the server could not take a run, None if it is ready or busy with runs."""
        if self._broken.reason:
            return self._broken.reason
        if self._runs and self._manner == "bare":
            return None
        try:
            health = await self._server.health()
        except (httpx2.HTTPError, ValueError) as error:
            return f"the Cog server does not answer: {why_unreached(error)}"
        if health.status in ("READY", "BUSY"):
            return None
        return f"the Cog server is {health.status}" + (f": {health.complaint}" if health.complaint else "")

    async def close(self, reason: str) -> None:
        """End every run for that reason and let go of the server."""
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)
        self._lose_all(reason)
        await self._server.close()

    def broke(self, reason: str) -> None:
        """Take note that the server can take no further run."""
        reason = self._receiver.hide(reason)
        self._broke(reason)
        self._lose_all(reason)

    def _broke(self, reason: str) -> None:
        self._broken.set(reason)

    def _lose_all(self, reason: str) -> None:
        for following in list(self._runs.values()):
            following.lose(reason)

    async def _watch(self) -> None:
        while not self._broken.reason:
            if not self._runs:
                self._begun.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._begun.wait(), _IDLE_WATCH_S)
            if self._runs:
                await asyncio.sleep(_WATCH_S)
            if self._runs and self._manner == "bare":
                continue  # it may have no thread left to answer
            try:
                self._judge(health := await self._server.health())
                for following in list(self._runs.values()):
                    await self._look_for(following, health)
            except (httpx2.HTTPError, ValueError) as error:
                self._complain(f"the Cog server does not answer: {why_unreached(error)}")

    def _judge(self, health: Health) -> None:
        if health.boot != self._boot:
            self._boot = health.boot
            self._lose_all("the Cog server was started anew")
        if health.status in ("DEFUNCT", "SETUP_FAILED"):
            self.broke(f"the Cog server is {health.status}")
        elif health.status == "UNHEALTHY":
            self._complain(f"the model says it is unhealthy: {health.complaint}")
        else:
            self._complaints = 0

    def _complain(self, reason: str) -> None:
        """One bad answer may be a hiccup; several in a row are the end."""
        self._complaints += 1
        if self._complaints >= _PATIENCE:
            self.broke(reason)

    async def _look_for(self, following: Following, health: Health) -> None:
        """Ask for news of a run, and lose it when the server has not known it for as long as its patience lasts.

        The news matter: of two log lines in quick succession Cog holds the second back until there is a third.
        """
        if not following.is_started or self._manner != "goes on":
            return
        is_there = health.status == "BUSY" or self._slots > 1
        if self._can_poll and not (is_there and self._shape.items_are_files):  # such snapshots may hold the files
            news = await self._server.poll(following.run_id)
            is_there = news is not None
            if news:
                following.deliver(news)
        if is_there:
            self._gone_since.pop(following.run_id, None)
            return
        now = time.monotonic()
        patience_s = _CANCELED_S if following.is_canceled else following.patience_s
        if now - self._gone_since.setdefault(following.run_id, now) >= patience_s:
            following.lose("the Cog server does not know the run any more")


class Driven:
    """What every runner over a Cog server does with its driver, which it has while the model is set up."""

    def __init__(self) -> None:
        self._broken = Breakage()
        self._driver: CogDriver | None = None

    async def run(self, job: Job) -> AsyncGenerator[Event, None]:
        """Run the job; raises `RunLost`."""
        if not self._driver:
            raise RunLost("the model is not set up")
        async with aclosing(self._driver.run(job)) as events:
            async for event in events:
                yield event

    async def cancel(self, prediction_id: str) -> None:
        """Ask the model to stop that prediction."""
        if self._driver:
            await self._driver.cancel(prediction_id)

    async def wait_broken(self) -> str:
        """Wait until the model can take no further run; return why."""
        return await self._broken.wait()

    async def health(self) -> str | None:
        """Ask the server how it is; return what is wrong."""
        return await self._driver.health() if self._driver else self._broken.reason or "the model is not set up"


async def wait_ready(server: CogServer, log: LogSink, reach_s: float, news: Callable[[], str] | None = None) -> Health:
    """Wait until the server is ready, passing its setup log on; raises `SetupFailed`.

    It may take any time to set up, but has to answer at all within ``reach_s`` seconds. Where its output can be read,
    ``news`` gives what it has written since the last call: coglet sometimes leaves the end out of the log it reports.
    """
    said, pause, deadline = "", 0.02, time.monotonic() + reach_s
    while True:
        try:
            health = await server.health()
        except (httpx2.HTTPError, ValueError) as error:
            health = None
            if time.monotonic() > deadline:
                why = f"the Cog server does not answer: {why_unreached(error)}"
                raise SetupFailed(f"{why}\n{last_lines(said)}".rstrip()) from error
        if health and health.status != "STARTING" and news:
            await asyncio.sleep(_LAST_WORDS_S)
        text = news() if news else health.setup_logs[len(said) :] if health else ""
        if text:
            log(text)
            said += text
        if health is None and _GIVEN_UP in text:
            raise SetupFailed(_setup_failure("SETUP_FAILED", last_lines(said.partition(_GIVEN_UP)[0])))
        if health and health.status in ("READY", "BUSY"):
            return await server.named(health)
        if health and health.status != "STARTING":
            if not said.startswith(health.setup_logs):  # which may have been cut; else the traceback is in it alone
                log(health.setup_logs.removeprefix(said))
                said = health.setup_logs
            why = last_lines(said)
            raise SetupFailed(_setup_failure(health.status, why))
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.5)


def _setup_failure(status: str, why: str) -> str:
    """Say what the log ends with, where Python says what went wrong, and then the lines before."""
    lines = [line.strip() for line in why.splitlines() if line.strip()]
    last = lines[-1] if lines else "without a word about the reason"
    headline = last if lines and status == "SETUP_FAILED" else f"the model's setup ended as {status}: {last}"
    return f"{headline}\n{why}" if len(lines) > 1 else headline


class Program(Protocol):
    """What runs a Cog server: a process, or a container."""

    def news(self) -> str:
        """Return what it has written since the last call."""
        ...

    async def ended(self) -> str:
        """Wait until it has ended; return how."""
        ...


async def wait_up(
    server: CogServer, log: LogSink, reach_s: float, program: Program, hide: Callable[[str], str]
) -> Health:
    """Do as `wait_ready` for a server of our own, whose program may end first: then that is said.

    ``hide`` takes out of what the program writes what nobody else is to see.
    """
    ready = asyncio.ensure_future(wait_ready(server, log, reach_s, lambda: hide(program.news())))
    ended = asyncio.ensure_future(program.ended())
    try:
        await asyncio.wait((ready, ended), return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            raise SetupFailed(hide(ended.result()))
        return ready.result()
    finally:
        for task in (ready, ended):
            task.cancel()
        await asyncio.gather(ready, ended, return_exceptions=True)


async def told_shape(server: CogServer) -> OutputShape:
    """Ask what the outputs look like; raises `SetupFailed`."""
    try:
        return OutputShape(await server.schema())
    except httpx2.HTTPError as error:
        raise SetupFailed(f"the model's server does not tell its schema: {why_unreached(error)}") from error


def can_resume(health: Health, shape: OutputShape, slots: int) -> bool:
    """Whether it can be found out what has become of the runs that such a server has from an earlier agent.

    A server before coglet does not say which of several runs it has, nor that a file found nobody who took it.
    """
    return health.can_poll or (health.goes_on and slots == 1 and not shape.has_files)


def last_lines(text: str) -> str:
    """The end of a log, for an error message."""
    return "\n".join(text.splitlines()[-_TAIL_LINES:])
