"""The server's side of every worker link of this node: hello and reconciliation, live data, finishes, leases.

A link is driven by the gateway: frames in by `receive`, frames out by the port. What is slow (the store) runs in tasks
of the link, so that frames keep flowing; frames about one attempt keep their order because the store does.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

import msgspec
import structlog
from msgspec import UNSET, UnsetType

from cogflare.domain.clock import Clock
from cogflare.domain.ids import model_queue, version_queue
from cogflare.engine.accounts import CHANNEL_REVOKED, Accounts
from cogflare.engine.catalog import Catalog, OfferRefused
from cogflare.engine.dispatcher import Dispatcher, Seat
from cogflare.engine.live import Live
from cogflare.engine.predictions import Predictions
from cogflare.protocol.codec import ProtocolError, frames
from cogflare.protocol.messages import (
    MAX_FRAME,
    PING,
    PONG,
    PROTOCOL,
    AgentMessage,
    Answer,
    Assign,
    AttemptKey,
    Cancel,
    Capacity,
    Drain,
    Finish,
    Goodbye,
    Heartbeat,
    Hello,
    Log,
    Metrics,
    Output,
    Reject,
    Renewed,
    Restarting,
    Resume,
    ServerMessage,
    SlotFree,
    Started,
    Welcome,
)
from cogflare.protocol.server_end import LinkState, ServerEnd
from cogflare.store import fleet
from cogflare.store import predictions as store
from cogflare.store.base import Database, Hint, Statement, StoreError
from cogflare.store.catalog import Caller
from cogflare.store.fleet import HeldAttempt
from cogflare.store.predictions import Claimed

_INPUT_ROOM = MAX_FRAME - 10_000

log = structlog.get_logger()

Spawn = Callable[[Coroutine[Any, Any, None]], object]


class LinkTimes(msgspec.Struct, frozen=True):
    """Durations of the worker link, in seconds."""

    heartbeat_s: float = 5.0
    silence_s: float = 15.0
    close_grace_s: float = 15.0
    lease_s: float = 60.0


class Port(Protocol):
    """The socket of a link."""

    def send(self, frames: Sequence[str]) -> None:
        """Send text frames in order, without waiting."""
        ...

    def close(self, code: int, reason: str) -> None:
        """Close the socket after what was sent."""
        ...


class Fleet:
    """The links of this node and what they share."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        accounts: Accounts,
        catalog: Catalog,
        dispatcher: Dispatcher,
        predictions: Predictions,
        times: LinkTimes,
        node: str,
        server: str,
        spawn: Spawn,
    ) -> None:
        self.db = db
        self.clock = clock
        self.accounts = accounts
        self.catalog = catalog
        self.dispatcher = dispatcher
        self.predictions = predictions
        self.times = times
        self.node = node
        self.server = server
        self.spawn = spawn
        self.links: dict[str, Link] = {}
        self.departed: dict[str, tuple[int, float]] = {}
        db.listen(self._heard)

    def open(self, caller: Caller, port: Port) -> "Link":
        """Return the link of a socket that a worker's token opened."""
        return Link(self, caller, port)

    def stop(self) -> None:
        """Tell every agent to run on and come back, and take nothing more from the queue."""
        self.dispatcher.stop()
        for link in list(self.links.values()):
            link.say(Restarting())
            link.flush()

    def _heard(self, hint: Hint) -> None:
        if hint.channel == CHANNEL_REVOKED:
            self.revoke(hint.payload)

    def revoke(self, token: str) -> None:
        """End the links of a token that no longer counts."""
        for link in [link for link in self.links.values() if link.caller.token == token]:
            link.reject("the token of this worker was revoked; start it with a new one", 4401)


class Link:
    """One worker over one socket. Holds the attempts that run there (`Predictions.lives` holds their data)."""

    def __init__(self, owner: Fleet, caller: Caller, port: Port) -> None:
        self._fleet = owner
        self._port = port
        self._end = ServerEnd()
        self._seats: list[Seat] = []
        self._outbox: list[ServerMessage] = []
        self._flushing = False
        self._said_goodbye = False
        self.caller = caller
        self.worker = ""
        self.epoch = 0
        self.heard_at = owner.clock.monotonic()
        self.is_away = False

    # --- the socket ------------------------------------------------------------------------------------------------

    async def receive(self, frame: str | bytes) -> None:
        """Take one frame; a breach of the protocol ends the link."""
        self.heard_at = self._fleet.clock.monotonic()
        if self.is_away:
            self.is_away = False
            self._seats_changed()
        if frame == PING:
            self._port.send([PONG])
            return
        try:
            for message in self._end.receive(frame):
                if type(message) is Hello:
                    await self._hello(message)
                else:
                    self._take(message)
        except ProtocolError as error:
            log.warning("worker broke the protocol", worker=self.worker, reason=error.reason)
            self.say(Reject(error.reason, retry=True))
            self.close(error.code, error.reason)
        except StoreError as error:
            log.error("link ended: the store failed", worker=self.worker, error=str(error))
            self.close(1013, "the server's store does not answer; come back")

    async def closed(self) -> None:
        """Note that the socket is gone: save what was shown, and let the worker's grace begin."""
        self._end.state = LinkState.CLOSED
        for seat in self._seats:
            self._fleet.dispatcher.remove(seat)
        if self._fleet.links.get(self.worker) is not self:
            return
        del self._fleet.links[self.worker]
        lives = self._lives()
        for live in lives:
            del self._fleet.predictions.lives[live.prediction]
        state = "offline" if self._said_goodbye else "away"
        log.info("worker gone", worker=self.worker, state=state, held=len(lives))
        if not self._said_goodbye:
            due = self._fleet.clock.monotonic() + self._fleet.times.close_grace_s
            self._fleet.departed[self.worker] = (self.epoch, due)
        now = self._fleet.clock.wall()
        await self._fleet.db.write(
            fleet.close_link(self.worker, self.epoch, state, now),
            *save(lives),
        )

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
        owner, now = self._fleet, self._fleet.clock.wall()
        if hello.protocol != PROTOCOL:
            self.reject(f"server speaks protocol {PROTOCOL}, agent {hello.protocol}: update the older", 4400)
            return
        try:
            await owner.catalog.register(self.caller.account, hello.offers, now)
        except OfferRefused as error:
            self.reject(str(error), 4400)
            return
        held = [(item.prediction, item.attempt) for item in hello.held]
        opened = await fleet.open_link(owner.db, self._row(hello, now), held)
        if opened is None:
            self.reject("this worker id belongs to another account; remove the agent's state folder", 4403)
            return
        self.worker = hello.worker
        self.epoch, adopted = opened
        previous = owner.links.get(self.worker)
        owner.links[self.worker] = self
        owner.departed.pop(self.worker, None)
        if previous is not None:
            previous.replaced()
        await self._adopt(adopted)
        resumes = self._resumes(held, adopted)
        self._end.welcome(resumes)
        self.say(
            Welcome(
                PROTOCOL, self.epoch, owner.node, owner.server, owner.times.heartbeat_s, owner.times.silence_s, resumes
            )
        )
        self.flush()
        for index, offer in enumerate(hello.offers):
            queues = queues_of(self.caller.account, offer.owner, offer.name, offer.version)
            self._seats.append(Seat(self, index, *queues, offer.version))
        log.info("worker connected", worker=self.worker, name=hello.name, epoch=self.epoch, resumed=len(adopted))
        await self._free_unlisted(set(held))
        self._seats_changed()

    def _row(self, hello: Hello, now: int) -> fleet.Link:
        offers = [
            {"owner": offer.owner, "name": offer.name, "version": offer.version, "slots": offer.slots}
            for offer in hello.offers
        ]
        return fleet.Link(
            hello.worker,
            self.caller.account,
            self.caller.token,
            hello.name.replace("\0", ""),
            hello.instance,
            self._fleet.node,
            _text(offers),
            _text({key[:50].replace("\0", ""): value[:200].replace("\0", "") for key, value in hello.agent.items()}),
            now,
        )

    async def _adopt(self, adopted: Sequence[HeldAttempt]) -> None:
        """Take the attempts that go on here into memory, with what is committed of them."""
        db, predictions = self._fleet.db, self._fleet.predictions
        chunks = await store.chunks(db, [(item.prediction, item.attempt) for item in adopted]) if adopted else []
        for item in adopted:
            row = await store.get(db, item.prediction)
            if row is None or row.attempt != item.attempt:
                continue
            live = Live(row.id, row.attempt, row.account, row.version, row.created_at, self, started_at=item.started_at)
            for chunk in chunks:
                if chunk.prediction == row.id and chunk.kind == "output" and chunk.position < item.output_items:
                    live.items += [bytes(raw) for raw in msgspec.json.decode(f"[{chunk.data}]", type=list[msgspec.Raw])]
                elif chunk.prediction == row.id and chunk.kind == "log" and chunk.position < item.log_bytes:
                    live.log += chunk.data.encode()
            live.committed_items, live.committed_log = len(live.items), len(live.log)
            live.committed_start = item.started_at is not None
            predictions.lives[row.id] = live

    def _resumes(self, held: Sequence[AttemptKey], adopted: Sequence[HeldAttempt]) -> list[Resume]:
        lives = self._fleet.predictions.lives
        wanted = {(item.prediction, item.attempt) for item in adopted}
        resumes = []
        for key in held:
            live = lives.get(key[0]) if key in wanted else None
            if live is not None and live.key == key and live.holder is self:
                resumes.append(Resume(*key, wanted=True, outputs=len(live.items), log_bytes=len(live.log)))
            else:
                resumes.append(Resume(*key, wanted=False))
        return resumes

    async def _free_unlisted(self, held: set[AttemptKey]) -> None:
        """Attempts that this worker was given and does not list are lost: it never got them, or it died since."""
        for key in await fleet.live_of(self._fleet.db, self.worker):
            live = self._fleet.predictions.lives.get(key[0])
            if key not in held and (live is None or live.key != key):
                reason = f"worker {self.worker} came back without it"
                await self._fleet.predictions.rescue(key, reason, slot_free=True, is_innocent=True)

    def replaced(self) -> None:
        """End this link because the same worker has opened a newer one."""
        for seat in self._seats:
            self._fleet.dispatcher.remove(seat)
        for live in self._lives():
            del self._fleet.predictions.lives[live.prediction]
        self.say(Reject("another agent with the same worker id has connected", retry=True))
        self.close(4409, "replaced by a newer link of the same worker")

    # --- messages --------------------------------------------------------------------------------------------------

    def _take(self, message: AgentMessage) -> None:
        kind = type(message)
        if kind is Finish:
            self._finish(message)  # type: ignore[arg-type]
        elif kind is Heartbeat:
            self._fleet.spawn(self._renew(message))  # type: ignore[arg-type]
        elif kind is SlotFree:
            self._slot_free(message)  # type: ignore[arg-type]
        elif kind is Capacity:
            self._seats_changed()
        elif kind is Goodbye:
            self._goodbye(message)  # type: ignore[arg-type]
        else:
            self._live_data(message)  # type: ignore[arg-type]

    def _live_data(self, message: Started | Output | Log | Metrics) -> None:
        live = self._fleet.predictions.lives.get(message.prediction)
        if live is None or live.attempt != message.attempt or live.holder is not self or live.ending:
            return
        if isinstance(message, Started):
            if live.started_at is None:
                now = self._fleet.clock.wall()
                live.started_at = max(live.created_at, now - message.ago_ms * 1000)
        elif isinstance(message, Output):
            live.add_items(message.index, message.items)
        elif isinstance(message, Log):
            live.add_log(message.offset, message.text)
        else:
            live.metrics.update(message.values)

    def _finish(self, message: Finish) -> None:
        key = (message.prediction, message.attempt)
        offer = self._end.offer_of(key)
        if message.slot_free:
            self._end.release(key)
        live = self._fleet.predictions.lives.get(message.prediction)
        if live is None or live.key != key or live.holder is not self:
            self._fleet.spawn(self._answer_late(key, message))
            self._seats_changed()
            return
        if live.ending:
            return
        live.ending = True
        seat = self._seats[offer] if message.slot_free and offer is not None else None
        if seat is not None and not self._fleet.dispatcher.reserve_seat(seat):
            seat = None
        self._fleet.spawn(self._answer(live, message, seat))

    async def _answer(self, live: Live, message: Finish, seat: Seat | None) -> None:
        try:
            verdict = await self._fleet.predictions.finish(live, message, seat)
        except StoreError as error:
            live.ending = False
            log.error("finish not stored; the agent keeps it", prediction=live.prediction, error=str(error))
            self.close(1013, "the server's store does not answer; come back")
            return
        self.say(Answer(*live.key, verdict))

    async def _answer_late(self, key: AttemptKey, message: Finish) -> None:
        verdict = await self._fleet.predictions.verdict(key, message.status)
        if message.slot_free and verdict != "unknown":
            await self._fleet.db.write(fleet.free_slots(self.worker, [key], self._fleet.clock.wall()))
        self.say(Answer(*key, verdict))

    def _slot_free(self, message: SlotFree) -> None:
        key = (message.prediction, message.attempt)
        self._fleet.spawn(self._free([key]))
        self._seats_changed()

    async def _free(self, keys: Sequence[AttemptKey]) -> None:
        await self._fleet.db.write(fleet.free_slots(self.worker, keys, self._fleet.clock.wall()))

    async def _renew(self, message: Heartbeat) -> None:
        rows = await self._fleet.db.write(fleet.renew(self.worker, self.epoch, message.held))
        renewed = {(prediction, attempt) for prediction, attempt in rows[0]}
        running = set(self._end.running())
        unwanted = [key for key in message.held if key not in renewed and key in running]
        for key in unwanted:
            self._end.stop(key)
        self.say(Renewed(unwanted))

    def _goodbye(self, message: Goodbye) -> None:
        self._said_goodbye = True
        reason = f"worker {self.worker} left" + (f" ({message.reason})" if message.reason else "")
        for live in self._lives():
            del self._fleet.predictions.lives[live.prediction]
            rescue = self._fleet.predictions.rescue(live.key, reason, live=live, slot_free=True)
            self._fleet.spawn(rescue)
        ended = [key for key in self._end.occupants if not self._end.occupants[key].running]
        if ended:
            self._fleet.spawn(self._free(ended))
        self._seats_changed()

    # --- what the engine asks of a link ----------------------------------------------------------------------------

    def free(self, offer: int) -> int:
        """Return how many predictions the worker could take on this offer."""
        return 0 if self.is_away else self._end.free(offer)

    def assign(self, offer: int, claimed: Claimed) -> None:
        """Send a claimed prediction to the worker; on a link that has closed meanwhile, take it back."""
        predictions = self._fleet.predictions
        key = (claimed.prediction, claimed.attempt)
        if self._end.state is not LinkState.OPEN:
            reason = f"worker {self.worker} left before it was sent"
            self._fleet.spawn(predictions.rescue(key, reason, slot_free=True, is_innocent=True))
            return
        base = predictions.new_base(claimed.prediction)
        live = Live(*key, claimed.account, claimed.version, claimed.created_at, self, base=base)
        predictions.lives[claimed.prediction] = live
        known = base.input if base is not None else UNSET
        given = known if claimed.input is None else store.raw(claimed.input)
        fits = not isinstance(given, UnsetType) and len(memoryview(given)) < _INPUT_ROOM
        message = Assign(*key, offer, given if fits else UNSET)
        self._end.take(message)
        self.say(message)

    def cancel(self, key: AttemptKey) -> None:
        """Tell the worker that the attempt is no longer wanted."""
        if self._end.stop(key):
            self.say(Cancel(*key))

    def drain(self) -> None:
        """Ask the agent to finish what it holds and leave."""
        self.say(Drain())

    def away(self) -> None:
        """Note that nothing was heard for too long: it gets nothing new until it is heard again."""
        self.is_away = True
        self._seats_changed()

    def _seats_changed(self) -> None:
        for seat in self._seats:
            self._fleet.dispatcher.changed(seat)

    def _lives(self) -> list[Live]:
        return [live for live in self._fleet.predictions.lives.values() if live.holder is self]


def queues_of(account: str, owner: str, name: str, version: str) -> tuple[str, str]:
    """Return the queues that an offer of this account's workers serves."""
    return model_queue(account, owner, name), version_queue(account, version)


def save(lives: Sequence[Live]) -> list[Statement]:
    """Return the statements that commit the live data of these attempts."""
    dirty = [live for live in lives if live.is_dirty() and live.started_at is not None]
    if not dirty:
        return []
    return store.checkpoint([live.checkpoint() for live in dirty], [c for live in dirty for c in live.uncommitted()])


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()
