"""What a worker of 2022 runs: from its frames to what an agent would say of them.

The frame that comes last comes twice, the second time with the metrics: the first waits a moment for it. Nothing of a
run survives at the worker, so what cannot be stored for a while is tried again here. A cancel is not heard there: the
slot is taken until the last frame about what was in it, and what such frames say is dropped.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

import structlog
from msgspec import Raw, UnsetType

from cogflare.blobs.base import BlobError
from cogflare.domain.clock import Clock
from cogflare.domain.errors import NotFound
from cogflare.engine.adoption import Ground, Port
from cogflare.engine.files import Files, Sender, Superseded, TooManyFiles
from cogflare.engine.legacyfiles import Holding, LegacyFiles
from cogflare.engine.sizes import too_large
from cogflare.protocol.agent_end import AgentEnd
from cogflare.protocol.legacy import BUSY, MAX_JOB, End, Frame, News, Reader, job
from cogflare.protocol.messages import MAX_VALUE, Assign, AttemptKey, Finish, FinishStatus
from cogflare.store.base import StoreError
from cogflare.store.catalog import Caller
from cogflare.store.legacy import Begun

T = TypeVar("T")
Step = Callable[[], Awaitable[None]]
_PAUSE_S: Final = 1.0
_TRIES: Final = 30
_TOO_LARGE: Final = f"Input is larger than {MAX_JOB} bytes, which is all that a worker of 2022 takes"
_GONE: Final = "the worker came back without it"
_ELSEWHERE: Final = "the worker came back with something else"

log = structlog.get_logger()


@dataclass(frozen=True)
class Times:
    """How long this end waits, in seconds.

    `grace_s`: for a word on what was begun over an earlier socket. `twin_s`: for the frame that comes last to come
    again. `busy_s`: until a worker that says it is busy is given something again.
    """

    grace_s: float = 5.0
    twin_s: float = 0.5
    busy_s: float = 10.0


@dataclass(frozen=True)
class Surroundings:
    """What workers of 2022 meet here. `files` takes large results, `uploads` the files that they send."""

    ground: Ground
    files: Files
    uploads: LegacyFiles
    times: Times = field(default_factory=Times)


@dataclass(frozen=True)
class Comer:
    """A worker as the address that it dialled tells.

    `session` is as much of its session as is shown, `origin` begins the URLs that it can reach, and `address` is where
    it dialled from.
    """

    caller: Caller
    worker: str
    owner: str
    name: str
    session: str
    origin: str
    address: str

    @property
    def model(self) -> str:
        """The model as owner/name."""
        return f"{self.owner}/{self.name}"


@dataclass(slots=True, eq=False)
class Run:
    """An attempt at the worker. `in_grace`: begun over an earlier socket, and nothing was heard of it over this one.

    `files` has what stands for texts of its output; `is_bulky`: an item does not fit a message, so that the rest waits
    for the whole output.
    """

    key: AttemptKey
    reader: Reader = field(default_factory=Reader)
    files: dict[str, str] = field(default_factory=dict)
    items: int = 0
    is_bulky: bool = False
    is_begun: bool = False
    is_canceled: bool = False
    in_grace: bool = False
    end: End | None = None
    timer: asyncio.TimerHandle | None = None

    def wait(self, delay_s: float, then: Callable[[], object]) -> None:
        """Set the timer of the run, in place of the one before."""
        self.calm()
        self.timer = asyncio.get_running_loop().call_later(delay_s, then)

    def calm(self) -> None:
        """Stop the timer of the run."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Runs:
    """The runs of one worker. `queue` has a step done after those before it; every method is part of such a step."""

    def __init__(
        self, around: Surroundings, comer: Comer, end: AgentEnd, wire: Port, queue: Callable[[Step], None]
    ) -> None:
        self._around = around
        self._comer = comer
        self._end = end
        self._wire = wire
        self._queue = queue
        self._clock: Clock = around.ground.clock
        self._runs: dict[str, Run] = {}
        self._is_drained = False
        self._has_strayed = False

    # --- what begins ------------------------------------------------------------------------------------------------

    def adopt(self, begun: Sequence[Begun]) -> None:
        """Hold what the worker has begun over an earlier socket, and wait for a word on it."""
        now, wall = self._clock.monotonic(), self._clock.wall()
        for item in begun:
            key = (item.prediction, item.attempt)
            self._end.resume(key, 0)
            self._end.kept[key].started_at = now - max(0.0, (wall - item.started_at) / 1e6)
            run = self._runs[item.prediction] = Run(key, is_begun=True, in_grace=True)
            run.wait(self._around.times.grace_s, partial(self._queue, partial(self._give_up, run)))

    async def take(self, assign: Assign) -> None:
        """Give the worker what was assigned to it."""
        run = self._runs[assign.prediction] = Run((assign.prediction, assign.attempt))
        try:
            text = await self._job(run, assign)
        except (NotFound, Superseded):
            self._finish(run, "canceled")
        except (BlobError, TooManyFiles, StoreError) as error:
            self._finish(run, "lost", f"the input could not be sent: {error}")
        else:
            if len(text.encode()) > MAX_JOB:
                self._finish(run, "failed", _TOO_LARGE)
            else:
                self._wire.send([text])

    async def _job(self, run: Run, assign: Assign) -> str:
        given, comer = assign.input, self._comer
        if isinstance(given, UnsetType):
            read = self._around.ground.predictions.input_of
            told = await _steadily(lambda: read(*run.key, comer.worker, comer.origin))
            given = Raw(told.encode())
        version = self._end.offers[assign.offer].version
        text = job(assign.prediction, comer.model, version, given)
        if len(text.encode()) <= MAX_JOB:
            return text
        spilled = await self._around.uploads.spilled(self._holding(run), given, comer.origin, run.files)
        return job(assign.prediction, comer.model, version, spilled)

    # --- what is heard ----------------------------------------------------------------------------------------------

    async def hear(self, frame: Frame) -> None:
        """Take what the worker says; what it says of nothing that it holds is dropped."""
        for other in [run for run in self._runs.values() if run.in_grace and run.key[0] != frame.id]:
            self._finish(other, "lost", _ELSEWHERE)
        run = self._runs.get(frame.id)
        if run is None:
            if not self._has_strayed:
                self._has_strayed = True
                log.info("a worker of 2022 speaks of what it does not hold", worker=self._comer.worker)
            return
        if run.in_grace:
            run.in_grace = False
            run.calm()
        news = run.reader.read(frame)
        if run.end is not None:
            await self._twin(run, news)
        elif not run.is_begun and news.end is not None and news.end.error == BUSY:
            self._pause()
            self._finish(run, "lost", "the worker still runs something else")
        else:
            await self._news(run, frame, news)

    async def _twin(self, run: Run, news: News) -> None:
        """Take the metrics of the frame that comes last; what the first one said stands."""
        assert run.end is not None
        if news.end is not None:
            if news.end.is_last:
                run.end = run.end._replace(metrics=news.end.metrics, run_s=news.end.run_s)
            await self.settle(run)

    async def _news(self, run: Run, frame: Frame, news: News) -> None:
        if not run.is_begun:
            run.is_begun = True
            now = self._clock.monotonic()
            self._end.started(run.key, now, now)
        if not run.is_canceled:
            try:
                await self._show(run, frame, news)
            except Superseded:
                run.is_canceled = True
            except (BlobError, TooManyFiles, StoreError) as error:
                # The whole output comes with every frame; what matters is whether it can be kept in the end.
                run.is_bulky = True
                if news.end is not None:
                    self._finish(run, "failed", f"a file of the output could not be kept: {error}")
        if run.is_canceled and news.end is not None:
            self._finish(run, "canceled")

    async def _show(self, run: Run, frame: Frame, news: News) -> None:
        if news.log:
            self._end.log(run.key, news.log)
        placed: list[Raw] = []
        try:
            for item in news.items:
                placed.append(await self._placed(run, item))
                if run.is_bulky or len(memoryview(placed[-1])) > MAX_VALUE:
                    run.is_bulky = True
                    placed.pop()
                    break
        finally:
            run.items += self._end.output(run.key, placed)
        if news.end is None:
            return
        output = frame.output if run.is_bulky and news.end.status == "succeeded" else news.end.output
        run.end = news.end._replace(output=None if output is None else await self._placed(run, output))
        if news.end.is_last:
            await self.settle(run)
        else:
            run.wait(self._around.times.twin_s, partial(self._queue, partial(self.settle, run)))

    async def _placed(self, run: Run, output: Raw) -> Raw:
        return await _steadily(lambda: self._around.uploads.placed(self._holding(run), output, run.files))

    def _pause(self) -> None:
        """Give the worker nothing for a while."""

        async def resume() -> None:
            self._end.resize(0, 0 if self._is_drained else 1)

        self._end.resize(0, 0)
        asyncio.get_running_loop().call_later(self._around.times.busy_s, self._queue, resume)

    async def drain(self) -> None:
        """Take nothing more; these workers cannot be asked to leave."""
        self._is_drained = True
        self._end.resize(0, 0)

    # --- what ends --------------------------------------------------------------------------------------------------

    async def settle(self, run: Run) -> None:
        """Tell the end of a run, if it is known and not told yet."""
        end = run.end
        if end is None or self._runs.get(run.key[0]) is not run:
            return
        try:
            status, error, output = await self._result(run, end)
        except Superseded:
            self._finish(run, "canceled")
        except StoreError as fault:
            self._finish(run, "lost", f"the output could not be stored: {fault}")
        else:
            self._finish(run, status, error, end, output)

    async def settle_all(self) -> None:
        """Tell the ends that still wait for their twin."""
        for run in list(self._runs.values()):
            await self.settle(run)

    async def cancel(self, key: AttemptKey) -> None:
        """Drop whatever the worker still says of a run; its slot is free once it says the last of it."""
        run = self._runs.get(key[0])
        if run is not None and run.key == key:
            run.is_canceled = True
            if run.in_grace or run.end is not None:
                self._finish(run, "canceled")

    async def _give_up(self, run: Run) -> None:
        if run.in_grace and self._runs.get(run.key[0]) is run:
            self._finish(run, "lost", _GONE)

    def close(self) -> None:
        """Stop all timers."""
        for run in self._runs.values():
            run.calm()

    async def _result(self, run: Run, end: End) -> tuple[FinishStatus, str | None, dict[str, Any]]:
        """Return what a finish says of the output, which goes apart where it does not fit a message."""
        if end.output is None:
            return end.status, end.error, {"items": run.items or None}
        size, limit = len(memoryview(end.output)), self._around.ground.sizes.result_bytes
        if size <= MAX_VALUE:
            return end.status, end.error, {"output": end.output}
        if size > limit:
            return "failed", end.error or too_large(limit), {"items": run.items or None}
        sender, text = Sender(self._comer.caller.account, self._comer.worker), bytes(end.output).decode()
        await _steadily(lambda: self._around.files.put_result(sender, run.key, text))
        return end.status, end.error, {"uploaded": True}

    def _finish(
        self,
        run: Run,
        status: FinishStatus,
        error: str | None = None,
        end: End | None = None,
        output: dict[str, Any] | None = None,
    ) -> None:
        run.calm()
        del self._runs[run.key[0]]
        finish = Finish(
            *run.key,
            status,
            error=error,
            metrics={} if end is None else end.metrics,
            files=len(run.files),
            run_ms=None if end is None or end.run_s is None else end.run_s * 1000,
            slot_free=True,
            **(output or {}),
        )
        self._end.finish(finish, self._clock.monotonic())

    def _holding(self, run: Run) -> Holding:
        return Holding(self._comer.worker, self._comer.model, run.key)


async def _steadily(step: Callable[[], Awaitable[T]]) -> T:
    """Do what the store may refuse for a while."""
    for _ in range(_TRIES):
        try:
            return await step()
        except StoreError as error:
            log.warning("the store refused a worker of 2022; trying again", error=str(error))
            await asyncio.sleep(_PAUSE_S)
    return await step()
