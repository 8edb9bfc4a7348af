"""Both ends wired together over links that break at any moment: in the end they agree about every attempt and slot."""

from collections import deque
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import Raw

from cogflare.protocol.agent_end import AgentEnd
from cogflare.protocol.codec import frames
from cogflare.protocol.messages import (
    Answer,
    Assign,
    AttemptKey,
    Cancel,
    Finish,
    Health,
    Heartbeat,
    Hello,
    Log,
    Message,
    Offer,
    Output,
    Renewed,
    Resume,
    Verdict,
    Welcome,
)
from cogflare.protocol.server_end import LinkState, ServerEnd

SLOTS = 3


@dataclass
class Stored:
    """A prediction as the server's store has it; `attempt` is the current one and `held` says whether it is out."""

    attempt: int = 0
    held: bool = False
    ended: bool = False
    items: list[bytes] = field(default_factory=list)
    log: bytes = b""
    finish: Finish | None = None

    def requeue(self) -> None:
        self.held, self.items, self.log = False, [], b""


@dataclass
class Truth:
    """What a run really produced on the worker."""

    items: list[bytes] = field(default_factory=list)
    log: bytes = b""
    finished: bool = False
    canceled: bool = False


class Gateway:
    """The server around its end of the link, as far as the protocol goes."""

    def __init__(self) -> None:
        self.store: dict[str, Stored] = {}
        self.ailment: str | None = None
        self.end = ServerEnd()
        self.down: deque[str] = deque()

    def accept(self) -> None:
        self.end, self.down = ServerEnd(), deque()

    def send(self, *messages: Message) -> None:
        self.down.extend(frames(messages))

    def receive(self, frame: str) -> None:
        for message in self.end.receive(frame):
            if isinstance(message, Hello):
                self._hello(message)
            elif isinstance(message, Output):
                self._output(message)
            elif isinstance(message, Log):
                self._log(message)
            elif isinstance(message, Finish):
                self._finish(message)
            elif isinstance(message, Health):
                self.ailment = None if message.ok else message.reason
            elif isinstance(message, Heartbeat):
                self.send(Renewed([key for key in message.held if not self.wants(key)]))

    def wants(self, key: AttemptKey) -> bool:
        stored = self.store[key[0]]
        return stored.held and stored.attempt == key[1] and not stored.ended

    def _hello(self, hello: Hello) -> None:
        listed = {(held.prediction, held.attempt) for held in hello.held}
        for name, stored in self.store.items():
            if stored.held and (name, stored.attempt) not in listed:
                stored.requeue()
        resumes = []
        for key in listed:
            stored = self.store[key[0]]
            resumes.append(Resume(*key, self.wants(key), len(stored.items), len(stored.log)))
        self.send(Welcome(1, 1, "n", "s", 5, 15, resumes))
        self.end.welcome(resumes)

    def _output(self, message: Output) -> None:
        if self.wants((message.prediction, message.attempt)):
            items = self.store[message.prediction].items
            assert message.index <= len(items), "a gap in the output"
            items += [bytes(item) for item in message.items[len(items) - message.index :]]

    def _log(self, message: Log) -> None:
        if self.wants((message.prediction, message.attempt)):
            stored = self.store[message.prediction]
            assert message.offset <= len(stored.log), "a gap in the log"
            stored.log += message.text.encode()[len(stored.log) - message.offset :]

    def _finish(self, finish: Finish) -> None:
        key = (finish.prediction, finish.attempt)
        stored = self.store[key[0]]
        verdict: Verdict = "superseded"
        if stored.attempt == key[1] and not stored.ended and stored.held:
            verdict = "committed"
            stored.held = False
            if finish.status == "lost":
                stored.requeue()
            else:
                stored.ended, stored.finish = True, finish
        if finish.slot_free:
            self.end.release(key)
        self.send(Answer(*key, verdict))


class TwoEnds(RuleBasedStateMachine):
    """One worker, one server, and a wire that loses everything in flight when it breaks."""

    @initialize()
    def begin(self) -> None:
        self.now = 100.0
        self.agent = AgentEnd("w1", "i1", "", [Offer("acme", "m", "0" * 64, SLOTS)], {})
        self.gateway = Gateway()
        self.truth: dict[AttemptKey, Truth] = {}
        self.up: deque[str] = deque()
        self.connected = False
        self.ailment: str | None = None

    def _flush(self) -> None:
        if self.connected:
            self.up.extend(self.agent.take_frames())

    def _running(self) -> list[AttemptKey]:
        return [key for key, truth in self.truth.items() if not truth.finished]

    def _occupied(self) -> list[AttemptKey]:
        return [key for key, kept in self.agent.kept.items() if not kept.freed]

    # --- the wire ------------------------------------------------------------------------------------------------

    @precondition(lambda self: not self.connected)
    @rule()
    def connect(self) -> None:
        self.gateway.accept()
        self.up = deque(self.agent.connected())
        self.connected = True

    @precondition(lambda self: self.connected)
    @rule()
    def break_(self) -> None:
        self.connected = False
        self.agent.disconnected()

    @precondition(lambda self: self.connected and self.up)
    @rule()
    def carry_up(self) -> None:
        self.gateway.receive(self.up.popleft())

    @precondition(lambda self: self.connected and self.gateway.down)
    @rule()
    def carry_down(self) -> None:
        for message in self.agent.receive(self.gateway.down.popleft(), self.now):
            if isinstance(message, Assign):
                self.truth[message.prediction, message.attempt] = Truth()
            elif isinstance(message, Cancel):
                self.truth[message.prediction, message.attempt].canceled = True
        self._flush()

    # --- the server ----------------------------------------------------------------------------------------------

    @precondition(lambda self: self.connected and self.gateway.end.free(0))
    @rule(again=st.booleans())
    def assign(self, again: bool) -> None:
        queued = [name for name, stored in self.gateway.store.items() if not stored.held and not stored.ended]
        name = queued[0] if queued and again else f"p{len(self.gateway.store)}"
        stored = self.gateway.store.setdefault(name, Stored())
        stored.requeue()
        stored.attempt, stored.held = stored.attempt + 1, True
        assign = Assign(name, stored.attempt, 0, Raw(b"{}"))
        self.gateway.end.take(assign)
        self.gateway.send(assign)

    @precondition(lambda self: any(stored.held for stored in self.gateway.store.values()))
    @rule(data=st.data(), told=st.booleans())
    def cancel(self, data: st.DataObject, told: bool) -> None:
        held = [name for name, stored in self.gateway.store.items() if stored.held]
        name = data.draw(st.sampled_from(held))
        stored = self.gateway.store[name]
        stored.ended, stored.held = True, False
        key = (name, stored.attempt)
        if told and self.connected and self.gateway.end.state is LinkState.OPEN and self.gateway.end.stop(key):
            self.gateway.send(Cancel(*key))

    @precondition(lambda self: any(stored.held for stored in self.gateway.store.values()))
    @rule(data=st.data())
    def rescue(self, data: st.DataObject) -> None:
        """The lease ran out: the prediction is queued again while the worker may still run it."""
        held = [name for name, stored in self.gateway.store.items() if stored.held]
        self.gateway.store[data.draw(st.sampled_from(held))].requeue()

    # --- the worker ----------------------------------------------------------------------------------------------

    @precondition(lambda self: self._running())
    @rule(data=st.data(), count=st.integers(1, 3))
    def output(self, data: st.DataObject, count: int) -> None:
        key = data.draw(st.sampled_from(self._running()))
        truth = self.truth[key]
        items = [b"%d" % (len(truth.items) + number) for number in range(count)]
        truth.items += items
        self.agent.output(key, [Raw(item) for item in items])
        self._flush()

    @precondition(lambda self: self._running())
    @rule(data=st.data(), text=st.sampled_from(["x", "é", "😀\n"]))
    def log(self, data: st.DataObject, text: str) -> None:
        key = data.draw(st.sampled_from(self._running()))
        self.truth[key].log += text.encode()
        self.agent.log(key, text)
        self._flush()

    @precondition(lambda self: self._running())
    @rule(data=st.data(), status=st.sampled_from(["succeeded", "failed", "lost"]), free=st.booleans())
    def finish(self, data: st.DataObject, status: str, free: bool) -> None:
        key = data.draw(st.sampled_from(self._running()))
        self._finish(key, status, free)
        self._flush()

    def _finish(self, key: AttemptKey, status: str, free: bool) -> None:
        truth = self.truth[key]
        truth.finished = True
        finish = Finish(*key, status, items=len(truth.items), slot_free=free)  # type: ignore[arg-type]
        self.agent.finish(finish, self.now)

    @precondition(lambda self: any(self.truth[key].finished for key in self._occupied()))
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        self.agent.slot_free(data.draw(st.sampled_from([key for key in self._occupied() if self.truth[key].finished])))
        self._flush()

    @precondition(lambda self: self.connected and self.agent.open)
    @rule()
    def beat(self) -> None:
        frame = self.agent.heartbeat()
        if frame != "ping":
            self.up.append(frame)

    @rule(ailment=st.sampled_from(["no GPU", "no memory", None]))
    def report(self, ailment: str | None) -> None:
        self.ailment = ailment
        self.agent.report(ailment)
        self._flush()

    @rule(slots=st.integers(0, SLOTS))
    def resize(self, slots: int) -> None:
        self.agent.resize(0, slots)
        self._flush()

    # --- what holds ----------------------------------------------------------------------------------------------

    @invariant()
    def what_ended_is_what_ran(self) -> None:
        for name, stored in getattr(self, "gateway", Gateway()).store.items():
            if stored.finish is not None:
                truth = self.truth[name, stored.attempt]
                assert stored.finish.items == len(truth.items)
                assert stored.finish.log_bytes == len(truth.log)
                assert stored.items == truth.items
                assert stored.log == truth.log

    def teardown(self) -> None:
        """Let things come to rest: then nothing is held, and every slot is free on both ends."""
        if not hasattr(self, "gateway"):
            return
        if not self.connected:
            self.connect()
        self._settle_wire()
        self.beat_and_settle()
        for key in self._running():
            self._finish(key, "canceled" if self.truth[key].canceled else "succeeded", True)
        for key in self._occupied():
            self.agent.slot_free(key)
        self._flush()
        self._settle_wire()
        # That it is well again may be lost with a link, for the server asks; what is wrong is told on each link.
        assert self.ailment is None or self.gateway.ailment == self.ailment
        assert self.agent.kept == {}
        assert self.gateway.end.occupants == {}
        self.agent.resize(0, SLOTS)
        self._flush()
        self._settle_wire()
        assert self.gateway.end.free(0) == SLOTS
        assert not any(stored.held for stored in self.gateway.store.values())
        self.what_ended_is_what_ran()

    def beat_and_settle(self) -> None:
        if self.agent.open:
            self.beat()
        self._settle_wire()
        unwanted = [key for key in self._running() if not self.gateway.wants(key)]
        assert all(self.truth[key].canceled for key in unwanted), "a run that nobody wants was never told"

    def _settle_wire(self) -> None:
        while self.up or self.gateway.down:
            while self.up:
                self.carry_up()
            while self.gateway.down:
                self.carry_down()


TestTwoEnds = TwoEnds.TestCase
TestTwoEnds.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
