"""A worker of 2022 on an ordinary link: this end speaks our protocol for it, inside the server.

To the engine a `Session` is an agent like any other, so leases, fences, checkpoints, adoption, quarantine and limits
hold for these workers too. What an agent knows and they do not say is decided here:

- They answer no pings and hear no cancel while a model runs. The lease is renewed as long as the socket is open.
- A worker that reconnects runs nothing any more: it writes to the connection that gave it the work, and takes a new one
  only when the run is over. Yet a fork may go on over the new one. So what it had begun is kept for a short grace,
  which costs a lost run those seconds: a frame about it lets it go on; a frame about anything else, or the end of the
  grace, loses it, and it runs again. What had not begun is not even kept: the worker never heard of it, or lost it.
- They come back at once after a close, and with growing pauses after a refused handshake. So who may not come is told
  before the socket is accepted, and a link that the engine closes is opened anew from here: the worker sees nothing.
- They leave without a word. What they have ended is told first; what they run is theirs for the grace of closed links.

One task does everything in turn; timers, the engine and the socket only queue what is to be done.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Final, Self

import structlog
from msgspec import UNSET, Raw

from cogflare.engine.adoption import Port
from cogflare.engine.legacyruns import Comer, Runs, Step, Surroundings
from cogflare.engine.link import Link
from cogflare.engine.links import Fleet
from cogflare.protocol import legacy
from cogflare.protocol.agent_end import AgentEnd
from cogflare.protocol.messages import (
    MAX_VALUE,
    Answer,
    Assign,
    Cancel,
    Drain,
    Offer,
    Probe,
    Reject,
    Restarting,
    ServerMessage,
)
from cogflare.store import catalog
from cogflare.store import legacy as store
from cogflare.store.base import StoreError

REPLACED: Final = 4409
_PASSING: Final = frozenset({1013, 4408})  # of closes: the store failed, this node stood still
_AGAIN_S: Final = 1.0
_LEAVE_S: Final = 10.0  # for the answers to what has ended, when the worker has gone
_STOP_S: Final = 1.0  # the same while this node stops

log = structlog.get_logger()


class Refused(Exception):
    """The worker may not come; `may_pass` says whether it may later."""

    def __init__(self, reason: str, may_pass: bool) -> None:
        super().__init__(reason)
        self.may_pass = may_pass


class _Ours:
    """The port of one link of a session; what an older link still says is not heard."""

    def __init__(self, session: "Session") -> None:
        self._session = session
        self.is_over = False

    def send(self, frames: Sequence[str]) -> None:
        """Take what the server says."""
        if not self.is_over:
            self._session.told(frames)

    def close(self, code: int, reason: str) -> None:
        """Note that the server has closed the link."""
        if not self.is_over:
            self.is_over = True
            self._session.dropped(code, reason)

    def room(self) -> int:
        """Return how many bytes of inputs may be sent now."""
        return self._session.wire.room()


class Session:
    """One socket of a worker, and the links that stand for it. `wire` takes frames for the worker."""

    def __init__(self, around: Surroundings, fleet: Fleet, comer: Comer, offer: Offer, wire: Port) -> None:
        self._around = around
        self._fleet = fleet
        self._comer = comer
        self.wire = wire
        self._steps: asyncio.Queue[Step] = asyncio.Queue()
        shown = f"2022 {comer.session}" if comer.session else comer.worker
        self._end = AgentEnd(comer.worker, comer.worker, shown, [offer], _about(comer))
        self._runs = Runs(around, comer, self._end, wire, self._steps.put_nowait)
        self._port = _Ours(self)
        self._link: Link | None = None
        self._may_return = False
        self._reason = ""
        self._is_stopping = False
        self._has_babbled = False
        self._is_answered = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    # --- the socket -------------------------------------------------------------------------------------------------

    @classmethod
    async def dial(cls, around: Surroundings, fleet: Fleet, comer: Comer, wire: Port) -> Self:
        """Return the session of a worker, with what it has begun over earlier sockets; raises a `StoreError`."""
        session = cls(around, fleet, comer, await _offer(around, comer), wire)
        session._runs.adopt(await store.begun_of(around.ground.db, comer.worker))
        return session

    async def open(self) -> None:
        """Open the link of the worker; raises `Refused`, and the socket is not to be accepted."""
        await self._connect()
        if not self._end.open:
            raise Refused(self._reason or "the server does not take workers right now", self._may_return)
        self._tasks = [asyncio.create_task(self._work()), asyncio.create_task(self._beat())]

    async def hear(self, text: str | bytes) -> None:
        """Take what the worker sends; returns when that is done, so that no more is read before."""
        frame = legacy.read(text)
        if frame is None:
            if not self._has_babbled:
                self._has_babbled = True
                log.info("a frame of a worker of 2022 has no meaning", worker=self._comer.worker, bytes=len(text))
            return
        runs, done = self._runs, asyncio.Event()

        async def step() -> None:
            try:
                await runs.hear(frame)
            finally:
                done.set()

        self._steps.put_nowait(step)
        await done.wait()

    async def closed(self) -> None:
        """Note that the socket is gone: tell what has ended, and let the grace of what has not begin."""
        try:
            if self._tasks:
                async with asyncio.timeout(_STOP_S if self._is_stopping else _LEAVE_S):
                    await self._settled()
        except TimeoutError:
            log.error("a worker of 2022 left, and what it had ended is not stored", worker=self._comer.worker)
        finally:
            self._runs.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._disconnect()

    async def _settled(self) -> None:
        """Tell every end that is known, and wait until it has been answered."""
        self._steps.put_nowait(self._runs.settle_all)
        idle = asyncio.Event()

        async def reached() -> None:
            idle.set()

        self._steps.put_nowait(reached)
        await idle.wait()
        while any(kept.finish is not None and not kept.answered for kept in self._end.kept.values()):
            self._is_answered.clear()
            await self._is_answered.wait()

    # --- the link ---------------------------------------------------------------------------------------------------

    def told(self, frames: Sequence[str]) -> None:
        """Take what the server says over the link."""
        for frame in frames:
            for message in self._end.receive(frame, self._around.ground.clock.monotonic()):
                self._act(message)

    def _act(self, message: ServerMessage) -> None:
        runs = self._runs
        if isinstance(message, Assign):
            self._steps.put_nowait(partial(runs.take, message))
        elif isinstance(message, Cancel):
            self._steps.put_nowait(partial(runs.cancel, (message.prediction, message.attempt)))
        elif isinstance(message, Answer):
            self._is_answered.set()
        elif isinstance(message, Probe):
            self._steps.put_nowait(self._report)
        elif isinstance(message, Drain):
            self._steps.put_nowait(runs.drain)
        elif isinstance(message, Restarting):
            self._is_stopping = True
        elif isinstance(message, Reject):
            self._may_return, self._reason = message.retry, message.reason

    def dropped(self, code: int, reason: str) -> None:
        """Note that the server has closed the link: for good, or to be opened anew."""
        self._end.disconnected()
        self._reason = self._reason or reason
        self._may_return = code != REPLACED and (self._may_return or code in _PASSING)
        if not self._tasks:
            return  # not even accepted
        if self._may_return:
            asyncio.get_running_loop().call_later(_AGAIN_S, self._steps.put_nowait, self._reconnect)
        else:
            self.wire.close(code, reason)

    async def _connect(self) -> None:
        self._port = _Ours(self)
        self._reason, self._may_return = "", False
        link = self._link = self._fleet.open(self._comer.caller, self._port)
        for frame in self._end.connected():
            await link.receive(frame)

    async def _disconnect(self) -> None:
        self._port.is_over = True
        if self._link is not None:
            link, self._link = self._link, None
            await link.closed()

    async def _reconnect(self) -> None:
        await self._disconnect()
        await self._connect()
        # Between two links nobody could be told that the token does not count any more.
        await self._fleet.check_tokens(self._comer.caller.token)
        log.info("link of a worker of 2022 opened anew", worker=self._comer.worker, is_open=self._end.open)

    async def _report(self) -> None:
        """Answer a probe: all that is known of the model is that its worker is connected."""
        self._end.report(None)

    # --- tasks ------------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        """Do what is queued, in turn."""
        while True:
            step = await self._steps.get()
            try:
                await step()
                await self._pump()
            except StoreError as error:
                log.warning("the store refused a worker of 2022", worker=self._comer.worker, error=str(error))
            except Exception:
                log.exception("a worker of 2022 could not be served", worker=self._comer.worker)
                self.wire.close(1011, "the server failed")

    async def _pump(self) -> None:
        if self._link is not None and self._end.open:
            for frame in self._end.take_frames():
                await self._link.receive(frame)

    async def _beat(self) -> None:
        """Say now and then that the worker is there, as long as its socket is."""
        while True:
            await asyncio.sleep(self._around.ground.times.heartbeat_s)
            try:
                if self._link is not None and self._end.open:
                    await self._link.receive(self._end.heartbeat())
            except Exception:
                log.exception("a worker of 2022 could not be heard", worker=self._comer.worker)


def _about(comer: Comer) -> dict[str, str]:
    """Return what is told of the worker; uploads are compared with its address."""
    return {"version": "2022", "address": comer.address}


async def _offer(around: Surroundings, comer: Comer) -> Offer:
    """Return what the worker runs: the latest version of its model, since it names none.

    The first Cogflare, too, gave a worker whatever was queued for the model. A version of its own would become the
    latest of a model that has others, and hide what is known of it; it gets one only where there is none.
    """
    found = await catalog.find_model(around.ground.db, comer.caller.account, comer.owner, comer.name)
    latest = None if found is None else found.latest
    if latest is None:
        return Offer(comer.owner, comer.name, legacy.version_of(comer.model), 1)
    schema = latest.schema.encode() if latest.schema is not None else b""
    told = Raw(schema) if 0 < len(schema) <= MAX_VALUE else UNSET
    return Offer(comer.owner, comer.name, latest.id, 1, told, latest.cog_version)
