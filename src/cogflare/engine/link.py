"""The server's end of one worker link: live data, finishes and leases of what runs over it.

A link is driven by the gateway: frames in by `receive`, frames out by the port. What is slow (the store) runs in tasks
of the link, so that frames keep flowing; frames about one attempt keep their order because the store does.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import structlog
from msgspec import UNSET, Raw, UnsetType

from cogflare.domain.filefields import has_marks
from cogflare.domain.ids import model_of_queue, model_queue, version_queue
from cogflare.engine.adoption import Ground, Port, adopt, free_unlisted, resumes_of
from cogflare.engine.dispatcher import Seat
from cogflare.engine.greeting import NotAdmitted, admit, refusal, row_of
from cogflare.engine.live import Live, bounded_metrics, commit_all, hook_of
from cogflare.engine.pending import Pending
from cogflare.protocol.codec import ProtocolError, frames
from cogflare.protocol.messages import (
    MAX_FRAME,
    PING,
    PONG,
    AgentMessage,
    Answer,
    Assign,
    AttemptKey,
    Cancel,
    Capacity,
    Drain,
    Finish,
    Goodbye,
    Health,
    Heartbeat,
    Hello,
    Inventory,
    Log,
    Metrics,
    Output,
    Probe,
    Reject,
    Renewed,
    Resume,
    ServerMessage,
    SlotFree,
    Started,
    Welcome,
)
from cogflare.protocol.server_end import LinkState, ServerEnd
from cogflare.store import fleet
from cogflare.store import predictions as store
from cogflare.store.base import Full, StoreError
from cogflare.store.catalog import Caller
from cogflare.store.fleet import Opened
from cogflare.store.predictions import INLINE_BYTES, Claimed

_INPUT_ROOM = MAX_FRAME - 10_000
_SLICE = 500  # messages of one frame before others get their turn
_MAX_PENDING = 1_000  # things that a worker asked for and the store has still to do

log = structlog.get_logger()


class Link:
    """One worker over one socket. Holds the attempts that run there (`Predictions.lives` holds their data)."""

    def __init__(self, ground: Ground, caller: Caller, port: Port) -> None:
        self._ground = ground
        self._port = port
        self._end = ServerEnd()
        self._seats: list[Seat] = []
        self._outbox: list[ServerMessage] = []
        self._flushing = False
        self._said_goodbye = False
        self._is_renewing = False
        self._pending = Pending(ground.spawn, _MAX_PENDING)
        self._unsent_inputs = 0
        self.caller = caller
        self.worker = ""
        self.epoch = 0
        self.heard_at = ground.clock.monotonic()
        self.is_away = False
        self.is_aside = False
        self._unfit: frozenset[int] = frozenset()

    # --- the socket ------------------------------------------------------------------------------------------------

    async def receive(self, frame: str | bytes) -> int:
        """Take one frame and return how many messages it had; a breach of the protocol ends the link.

        It waits while too much of what the worker asked for is still to be done by the store.
        """
        self.heard_at = self._ground.clock.monotonic()
        if self.is_away:
            log.info("worker heard again", worker=self.worker)
            self.is_away = False
            self._seats_changed()
        if frame == PING:
            self._port.send([PONG])
            return 1
        count = 0
        try:
            for message in self._end.receive(frame):
                count += 1
                if type(message) is Hello:
                    async with self._ground.greeting:
                        await self._hello(message)
                else:
                    if self._pending.is_full:
                        await self._pending.room()
                    if count % _SLICE == 0:
                        await asyncio.sleep(0)
                    self._take(message)
        except ProtocolError as error:
            log.warning("worker broke the protocol", worker=self.worker, reason=error.reason)
            self.say(Reject(error.reason, retry=True))
            self.close(error.code, error.reason)
        except StoreError as error:
            log.error("link ended: the store failed", worker=self.worker, error=str(error))
            self.close(1013, "the server's store does not answer; come back")
        return count

    async def closed(self) -> None:
        """Note that the socket is gone: save what was shown, and let the worker's grace begin."""
        self._end.state = LinkState.CLOSED
        for seat in self._seats:
            self._ground.dispatcher.remove(seat)
        if self._ground.links.get(self.worker) is not self:
            return
        del self._ground.links[self.worker]
        self._ground.health.leave(self)
        self._ground.matching.leave(self.worker)
        lives = self._lives()
        for live in lives:
            # Saved below, and by nobody else: two at once would cut the same data into pieces that overlap.
            live.ending = True
        state = "offline" if self._said_goodbye else "away"
        log.info("worker gone", worker=self.worker, state=state, held=len(lives))
        clock = self._ground.clock
        if not self._said_goodbye:
            self._ground.departed[self.worker] = (self.epoch, clock.monotonic() + self._ground.times.close_grace_s)
        try:
            await self._ground.db.write(fleet.close_link(self.worker, self.epoch, state, clock.wall()))
            await commit_all(self._ground.db, lives)
        except StoreError as error:
            log.error("live data not saved; the agent has it", worker=self.worker, error=str(error))
        finally:
            for live in lives:
                self._ground.predictions.drop(live)

    def say(self, message: ServerMessage) -> None:
        """Queue a message; everything queued in one loop turn goes out as one frame."""
        self._outbox.append(message)
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Send what is queued."""
        self._flushing = False
        if self._outbox:
            queued, self._outbox = self._outbox, []
            self._unsent_inputs = 0
            self._port.send(frames(queued))

    def reject(self, reason: str, code: int) -> None:
        """End the link for good: the agent is told why and does not come back."""
        self.say(Reject(reason))
        self.close(code, reason)

    def close(self, code: int, reason: str) -> None:
        """Send what is queued and close the socket."""
        self._end.state = LinkState.CLOSED
        self._seats_changed()
        self.flush()
        self._port.close(code, reason)

    # --- hello -----------------------------------------------------------------------------------------------------

    async def _hello(self, hello: Hello) -> None:
        ground = self._ground
        try:
            version = await admit(ground, self.caller, hello)
        except NotAdmitted as error:
            self._refuse(error)
            return
        held = [(item.prediction, item.attempt) for item in hello.held]
        row = row_of(ground, self.caller, hello)
        opening = asyncio.ensure_future(fleet.open_link(ground.db, row, held))
        try:
            opened = await asyncio.shield(opening)
        except asyncio.CancelledError:
            # The socket went first, but the unit stands.
            ground.spawn(self._undo(hello.worker, opening))
            raise
        if opened is None:
            self._refuse(await refusal(ground.db, self.caller, hello.worker))
            return
        self.worker = hello.worker
        self.epoch, adopted, standing = opened
        previous = ground.links.get(self.worker)
        if not self._take_place():
            self.close(4409, "replaced by a newer link of the same worker")
            return
        ground.health.join(self, standing)
        await adopt(ground, self, adopted, hello.held)
        if not self._is_newest() or self._end.state is not LinkState.GREETING:
            return
        left = [] if previous is None else previous._lives()
        for live in left:
            ground.predictions.drop(live)
        self._welcome(version, resumes_of(ground, self, held, adopted))
        self._sit(hello, row.unmet)
        log.info("worker connected", worker=self.worker, name=hello.name, epoch=self.epoch, resumed=len(adopted))
        await free_unlisted(ground, self, set(held), {live.key: live for live in left})
        self._seats_changed()

    def _sit(self, hello: Hello, unmet: str) -> None:
        """Make a seat of each offer; `unmet` (JSON text) is what they were found to lack."""
        for index, offer in enumerate(hello.offers):
            queues = queues_of(self.caller.account, offer.owner, offer.name, offer.version)
            self._seats.append(Seat(self, index, *queues, offer.version))
        self._ground.matching.join(self, self.caller.account, hello, unmet)

    async def _undo(self, worker: str, opening: asyncio.Future[Opened | None]) -> None:
        opened = await opening
        departed = self._ground.departed
        if opened is not None and departed.get(worker, (0, 0.0))[0] < opened.epoch:
            clock = self._ground.clock
            departed[worker] = (opened.epoch, clock.monotonic() + self._ground.times.close_grace_s)
            await self._ground.db.write(fleet.close_link(worker, opened.epoch, "away", clock.wall()))

    def _refuse(self, refusal: NotAdmitted) -> None:
        self.say(Reject(str(refusal), retry=refusal.after_s > 0, after_s=refusal.after_s))
        self.close(refusal.code, str(refusal))

    def _welcome(self, version: int, resumes: list[Resume]) -> None:
        ground, times, sizes = self._ground, self._ground.times, self._ground.sizes
        self._end.welcome(resumes)
        limits = sizes.log_bytes, sizes.output_bytes
        about = version, self.epoch, ground.node, ground.server, times.heartbeat_s, times.silence_s
        self.say(Welcome(*about, resumes, *limits))
        self.flush()

    def _take_place(self) -> bool:
        """Become the link of this worker, unless a newer hello of it has overtaken this one."""
        ground = self._ground
        previous = ground.links.get(self.worker)
        if previous is not None and previous.epoch > self.epoch:
            return False
        ground.links[self.worker] = self
        ground.departed.pop(self.worker, None)
        if previous is not None:
            previous.replaced()
        return True

    def _is_newest(self) -> bool:
        return self._ground.links.get(self.worker) is self

    def replaced(self) -> None:
        """End this link because the same worker has opened a newer one."""
        for seat in self._seats:
            self._ground.dispatcher.remove(seat)
        self.say(Reject("another agent with the same worker id has connected", retry=True))
        self.close(4409, "replaced by a newer link of the same worker")

    # --- messages --------------------------------------------------------------------------------------------------

    def _take(self, message: AgentMessage) -> None:
        kind = type(message)
        if kind is Finish:
            self._finish(message)  # type: ignore[arg-type]
        elif kind is Heartbeat:
            self._heartbeat(message)  # type: ignore[arg-type]
        elif kind is SlotFree:
            self._slot_free(message)  # type: ignore[arg-type]
        elif kind is Capacity:
            self._ground.dispatcher.changed(self._seats[message.offer])  # type: ignore[union-attr]
        elif kind is Health:
            self._ground.health.heard(self, message)  # type: ignore[arg-type]
        elif kind is Inventory:
            self._ground.matching.heard(self, message)  # type: ignore[arg-type]
        elif kind is Goodbye:
            self._goodbye(message)  # type: ignore[arg-type]
        else:
            self._live_data(message)  # type: ignore[arg-type]

    def _live_data(self, message: Started | Output | Log | Metrics) -> None:
        live = self._ground.predictions.lives.get(message.prediction)
        if live is None or live.attempt != message.attempt or live.holder is not self or live.ending:
            return
        if isinstance(message, Started):
            if live.started_at is None:
                now = self._ground.clock.wall()
                live.started_at = max(live.created_at, now - message.ago_ms * 1000)
                self._ground.started()
            if live.begun_at is None:
                live.begun_at = self._ground.clock.monotonic() - message.ago_ms / 1000
        elif isinstance(message, Output):
            was_too_large = live.overflow is not None
            live.add_items(message.index, message.items)
            if live.overflow is not None and not was_too_large:
                self._pending.start(self._or_close(self._ground.predictions.end_too_large(live)))
        elif isinstance(message, Log):
            live.add_log(message.offset, message.text)
        else:
            live.metrics = bounded_metrics(live.metrics, message.values)
        self._ground.predictions.feeds.changed(message.prediction)

    def _finish(self, message: Finish) -> None:
        key = (message.prediction, message.attempt)
        offer = self._end.offer_of(key)
        if message.slot_free:
            self._end.release(key)
        live = self._ground.predictions.lives.get(message.prediction)
        if live is None or live.key != key or live.holder is not self:
            self._pending.start(self._or_close(self._answer_late(key, message)))
            self._seats_changed()
            return
        if live.ending:
            return
        live.ending = True
        seat = self._seats[offer] if message.slot_free and offer is not None else None
        if seat is not None and not self._ground.dispatcher.reserve_seat(seat):
            seat = None
        self._pending.start(self._answer(live, message, seat))

    async def _answer(self, live: Live, message: Finish, seat: Seat | None) -> None:
        try:
            verdict = await self._ground.predictions.finish(live, message, seat)
        except StoreError as error:
            live.ending = False
            log.error("finish not stored; the agent keeps it", prediction=live.prediction, error=str(error))
            self.close(1013, "the server's store does not answer; come back")
            return
        if message.status == "succeeded":
            self._ground.health.succeeded(self)
        self.say(Answer(*live.key, verdict))

    async def _answer_late(self, key: AttemptKey, message: Finish) -> None:
        verdict = await self._ground.predictions.verdict(key, self.worker, message.status)
        if message.slot_free and verdict != "unknown":
            await self._ground.db.write(fleet.free_slots(self.worker, self.epoch, [key], self._ground.clock.wall()))
        self.say(Answer(*key, verdict))

    def _slot_free(self, message: SlotFree) -> None:
        key = (message.prediction, message.attempt)
        self._pending.start(self._or_close(self._free([key])))
        self._seats_changed()

    async def _free(self, keys: Sequence[AttemptKey]) -> None:
        await self._ground.db.write(fleet.free_slots(self.worker, self.epoch, keys, self._ground.clock.wall()))

    def _heartbeat(self, message: Heartbeat) -> None:
        # One at a time: what a flood of heartbeats asks is answered by the one under way.
        if not self._is_renewing:
            self._is_renewing = True
            self._ground.spawn(self._renew(message))

    async def _renew(self, message: Heartbeat) -> None:
        try:
            rows = await self._ground.db.write(fleet.renew(self.worker, self.epoch, message.held))
        except Full:
            # As long as nobody can write, nobody takes anything over: the link is as good as before.
            self.say(Renewed([]))
            return
        finally:
            self._is_renewing = False
        renewed = {(prediction, attempt) for prediction, attempt in rows[0]}
        running = set(self._end.running())
        unwanted = [key for key in message.held if key not in renewed and key in running]
        for key in unwanted:
            self._end.stop(key)
            live = self._ground.predictions.lives.get(key[0])
            if live is not None and live.key == key and live.holder is self:
                self._ground.predictions.drop(live)
        self.say(Renewed(unwanted))

    def _goodbye(self, message: Goodbye) -> None:
        self._said_goodbye = True
        reason = f"worker {self.worker} left" + (f" ({message.reason[:200]})" if message.reason else "")
        for live in self._lives():
            self._ground.spawn(self._give_up(live, reason))
        ended = [key for key in self._end.occupants if not self._end.occupants[key].running]
        if ended:
            self._ground.spawn(self._free(ended))
        self._seats_changed()

    async def _give_up(self, live: Live, reason: str) -> None:
        try:
            await self._ground.losses.rescue(live.key, reason, live=live, slot_free=True, is_farewell=True)
        finally:
            self._ground.predictions.drop(live)

    async def _or_close(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what the agent relies on; if the store fails, the agent says it again on the next link."""
        try:
            await work
        except StoreError as error:
            log.error("link ended: the store failed", worker=self.worker, error=str(error))
            self.close(1013, "the server's store does not answer; come back")

    # --- what the engine asks of a link ----------------------------------------------------------------------------

    def free(self, offer: int) -> int:
        """Return how many predictions the worker could take on this offer."""
        return 0 if self.is_away or self.is_aside or offer in self._unfit else self._end.free(offer)

    def assign(self, offer: int, claimed: Claimed) -> None:
        """Send a claimed prediction to the worker; on a link that has closed meanwhile, take it back."""
        predictions = self._ground.predictions
        key = (claimed.prediction, claimed.attempt)
        is_unfit = offer in self._unfit
        if self._end.state is not LinkState.OPEN or self._end.free(offer) < 1 or self.is_aside or is_unfit:
            why = "was set aside" if self.is_aside else "lacks what it requires since" if is_unfit else "left"
            reason = f"worker {self.worker} {why} before it was sent"
            self._ground.spawn(self._ground.losses.rescue(key, reason, slot_free=True, is_innocent=True))
            return
        base = predictions.new_base(claimed.prediction)
        live = Live(*key, claimed.account, claimed.version, claimed.created_at, self, base=base, hook=hook_of(claimed))
        live.run_limit_s, live.assigned_at = claimed.run_limit_s, self._ground.clock.monotonic()
        live.sizes = self._ground.sizes
        predictions.lives[claimed.prediction] = live
        predictions.feeds.changed(claimed.prediction)
        known = base.input if base is not None else UNSET
        given = known if claimed.input is None else store.raw(claimed.input)
        fits = not isinstance(given, UnsetType) and self._fits(given)
        message = Assign(*key, offer, given if fits else UNSET)
        self._end.take(message)
        self.say(message)

    def _fits(self, given: Raw) -> bool:
        """Say whether an input is sent, or left for the agent to fetch: at its own pace, with URLs made for it."""
        size = len(memoryview(given))
        if size >= _INPUT_ROOM or has_marks(given):
            return False
        if size <= INLINE_BYTES:
            return True
        self._unsent_inputs += size
        return self._unsent_inputs < self._port.room()

    def cancel(self, key: AttemptKey) -> None:
        """Tell the worker that the attempt is no longer wanted."""
        if self._end.stop(key):
            self.say(Cancel(*key))

    def drain(self) -> None:
        """Ask the agent to finish what it holds and leave."""
        self.say(Drain())

    def probe(self) -> None:
        """Ask the agent whether its model is well."""
        if self._end.state is LinkState.OPEN:
            self.say(Probe())

    def set_aside(self, is_aside: bool) -> None:
        """Give the worker nothing new while it is in quarantine; what it runs goes on."""
        if is_aside != self.is_aside:
            self.is_aside = is_aside
            self._seats_changed()

    def lack(self, unmet: Sequence[str]) -> None:
        """Give the worker nothing new of offers whose requirements are not met; what it runs goes on."""
        unfit = frozenset(offer for offer, text in enumerate(unmet) if text)
        if unfit != self._unfit:
            self._unfit = unfit
            self._seats_changed()

    def bind(self, is_strict: bool) -> None:
        """Keep each offer to its model, or let it run any that has the version, unless the token is limited."""
        is_bound = is_strict or self.caller.models is not None
        is_loosened = not is_bound and any(seat.only for seat in self._seats)
        for seat in self._seats:
            seat.only = model_of_queue(seat.model_queue) if is_bound else None
        if is_loosened:
            self._seats_changed()

    def away(self) -> None:
        """Note that nothing was heard for too long: it gets nothing new until it is heard again."""
        self.is_away = True
        self._seats_changed()

    def _seats_changed(self) -> None:
        for seat in self._seats:
            self._ground.dispatcher.changed(seat)

    def _lives(self) -> list[Live]:
        lives = self._ground.predictions.lives
        held = [lives.get(prediction) for prediction, _ in self._end.occupants]
        return [live for live in held if live is not None and live.holder is self]


def queues_of(account: str, owner: str, name: str, version: str) -> tuple[str, str]:
    """Return the queues that an offer of this account's workers serves."""
    return model_queue(account, owner, name), version_queue(account, version)
