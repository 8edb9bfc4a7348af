"""What the token of a worker lets it do, and what a hostile worker gets to see: nothing of those it does not serve."""

import asyncio
from collections.abc import Sequence

import pytest
from msgspec import UNSET

from cogflare.domain.ids import SHARED, new_id
from cogflare.engine.accounts import NO_LIMITS, Limits
from cogflare.engine.predictions import Order
from cogflare.protocol.agent_end import AgentEnd
from cogflare.protocol.codec import encode
from cogflare.protocol.messages import Finish, Heartbeat, Held, Hello, Offer, Output, Reject, SlotFree, Welcome
from cogflare.store.base import Database
from cogflare.store.catalog import Caller
from engine.rig import VERSION, MovableClock, Rig, RigWorker

pytestmark = pytest.mark.anyio

OTHER = "b" * 64


class Ear:
    """The socket of something that is no agent: it says what it likes, and keeps every frame that it is sent."""

    def __init__(self, rig: Rig, caller: Caller) -> None:
        self.frames: list[str] = []
        self.closed: tuple[int, str] | None = None
        self.link = rig.fleet.open(caller, self)

    def send(self, frames: Sequence[str]) -> None:
        self.frames += frames

    def close(self, code: int, reason: str) -> None:
        self.closed = (code, reason)

    def room(self) -> int:
        return 1_000_000


class Listener(RigWorker):
    """A worker that keeps every frame that it is sent."""

    def __init__(self, rig: Rig, caller: Caller, offers: list[Offer], worker: str = "") -> None:
        super().__init__(rig, caller, 1)
        worker = worker or new_id(rig.clock.wall())
        self.end = AgentEnd(worker, new_id(rig.clock.wall()), "rig", offers, {})
        self.frames: list[str] = []

    def send(self, frames: Sequence[str]) -> None:
        self.frames += frames
        super().send(frames)

    @property
    def reject(self) -> Reject | None:
        return next((message for message in self.heard if isinstance(message, Reject)), None)

    @property
    def is_welcome(self) -> bool:
        return any(isinstance(message, Welcome) for message in self.heard)


def offer(model: str, version: str = VERSION) -> Offer:
    owner, _, name = model.partition("/")
    return Offer(owner, name, version, 1, UNSET, "0.16.0")


async def token(rig: Rig, account: str, limits: Limits = NO_LIMITS, expires_in_s: float | None = None) -> Caller:
    expires_at = None if expires_in_s is None else rig.clock.wall() + int(expires_in_s * 1_000_000)
    created = await rig.accounts.create(account, "worker", "a friend's", expires_at, limits=limits)
    assert created is not None
    caller = await rig.accounts.caller(created.secret)
    assert caller is not None
    return caller


async def come(rig: Rig, caller: Caller, *offers: Offer, worker: str = "") -> Listener:
    listener = Listener(rig, caller, list(offers), worker)
    await listener.connect()
    await rig.settle()
    return listener


# --- models ----------------------------------------------------------------------------------------------------------


async def test_a_token_for_some_models_is_for_no_others(store: Database) -> None:
    rig = Rig(store)
    friend = await token(rig, "ada", Limits(models=("ada/noop", "lin/*")))
    for allowed in (offer("ada/noop"), offer("lin/a"), offer("lin/b")):
        assert (await come(rig, friend, allowed)).is_welcome
    for offers in ([offer("ada/secret")], [offer("ada/noop"), offer("ada/secret")], [offer("linus/a")]):
        refused = await come(rig, friend, *offers)
        assert refused.reject is not None
        assert not refused.reject.retry
        assert "is for ada/noop, lin/*, not for" in refused.reject.reason
        assert refused.closed is not None
        assert refused.closed[0] == 4403
    models = await rig.catalog.models(friend.account, ("", ""), 100)
    assert {f"{model.owner}/{model.name}" for model in models} == {"ada/noop", "lin/a", "lin/b"}, "no word of others"


async def test_what_is_pinned_to_a_version_of_another_model_stays_with_that_model(store: Database) -> None:
    """A version id is only what a worker says: one that claims another model's is given nothing of that model."""
    rig = Rig(store)
    owner = await come(rig, await token(rig, "ada"), offer("ada/secret"))
    hostile = await come(rig, await token(rig, "ada", Limits(models=("ada/noop",))), offer("ada/noop"))
    assert hostile.is_welcome
    client = await rig.caller("ada")
    order = Order(b'{"prompt": "of the secret"}', {}, "ada/secret", VERSION)
    first = await rig.predictions.create(client, order)
    second = await rig.predictions.create(client, order)
    taken = await owner.next()
    await rig.settle()
    await owner.finish(await owner.start(taken))
    assert {taken.prediction, (await owner.next()).prediction} == {first.id, second.id}
    own = await rig.predictions.create(client, Order(b"{}", {}, "ada/noop", VERSION))
    assert (await hostile.next()).prediction == own.id, "what is its own it gets"
    assert hostile.assigned.empty()
    assert not any(first.id in frame or "secret" in frame for frame in hostile.frames)


async def test_a_limited_token_does_not_speak_for_workers_of_other_models(store: Database) -> None:
    rig = Rig(store)
    owner = await come(rig, await token(rig, "ada"), offer("ada/secret"))
    client = await rig.caller("ada")
    await rig.create(client, "ada/secret")
    work = await owner.next()
    key = await owner.start(work)
    friend = await token(rig, "ada", Limits(models=("ada/noop",)))
    thief = Ear(rig, friend)
    held = [Held(*key)]
    await thief.link.receive(encode([Hello(1, owner.end.worker, "i", "", [offer("ada/noop")], held)]))
    await rig.settle()
    assert thief.closed is not None
    assert thief.closed[0] == 4403
    assert "has served models" in thief.closed[1]
    assert owner.closed is None
    assert await owner.finish(key) == "committed"


async def test_a_new_token_for_the_same_models_may_take_the_worker_over(store: Database) -> None:
    rig = Rig(store)
    first = await come(rig, await token(rig, "ada", Limits(models=("ada/noop",))), offer("ada/noop"))
    await first.disconnect()
    again = await come(
        rig, await token(rig, "ada", Limits(models=("ada/*",))), offer("ada/noop"), worker=first.end.worker
    )
    assert again.is_welcome


# --- connections -----------------------------------------------------------------------------------------------------


async def test_only_so_many_workers_connect_with_a_token(store: Database) -> None:
    rig = Rig(store)
    friend = await token(rig, "ada", Limits(max_connections=2))
    first, _ = await come(rig, friend, offer("ada/noop")), await come(rig, friend, offer("ada/noop"))
    third = await come(rig, friend, offer("ada/noop"))
    assert third.reject is not None
    assert (third.reject.retry, third.reject.after_s >= 30) == (True, True), "it comes back, and slowly"
    assert third.closed is not None
    assert third.closed[0] == 4429
    # The same worker is not another one, whether or not its old socket is known to be gone.
    for _ in range(3):
        again = await come(rig, friend, offer("ada/noop"), worker=first.end.worker)
        assert again.is_welcome
    assert (await come(rig, await token(rig, "ada"), offer("ada/noop"))).is_welcome, "other tokens have their own room"
    await again.disconnect()
    await third.connect()
    await rig.settle()
    assert third.is_welcome


async def test_room_is_counted_over_all_nodes(store: Database) -> None:
    here, there = Rig(store, "here"), Rig(store, "there")
    friend = await token(here, "ada", Limits(max_connections=3))
    rigs = [here, there] * 6
    came = await asyncio.gather(*(come(rig, friend, offer("ada/noop")) for rig in rigs))
    assert sum(worker.is_welcome for worker in came) == 3
    assert sum(worker.reject is not None for worker in came) == 9


# --- expiry ----------------------------------------------------------------------------------------------------------


async def test_a_link_ends_when_its_token_expires_and_its_run_goes_on_elsewhere(store: Database) -> None:
    clock = MovableClock()
    rig = Rig(store, clock=clock)
    friend = await come(rig, await token(rig, "ada", expires_in_s=3600), offer("ada/noop"))
    view = await rig.create(await rig.caller("ada"))
    await friend.start(await friend.next())
    await rig.leases.tick()
    assert friend.closed is None
    clock.wall_ahead_s = 3601
    await rig.leases.tick()
    assert friend.closed is not None
    assert friend.closed[0] == 4401
    assert friend.reject is not None
    assert "has expired" in friend.reject.reason
    assert not friend.reject.retry
    other = await rig.worker()
    await friend.disconnect()
    clock.ahead_s = 0.5
    await rig.leases.tick()
    await rig.releases.tick()
    await rig.dispatcher.tick()
    assert (await other.next()).prediction == view.id


# --- other tenants ---------------------------------------------------------------------------------------------------


async def test_a_hostile_worker_sees_nothing_of_those_that_it_does_not_serve(store: Database) -> None:
    """Mallory's worker offers all that Ada and the shared pool have, claims what they run, and listens."""
    rig = Rig(store)
    ada, shared = (
        await come(rig, await token(rig, "ada"), offer("ada/noop")),
        await come(rig, await token(rig, SHARED), offer("pool/model", OTHER)),
    )
    claims = [offer("ada/noop"), offer("pool/model", OTHER), offer("ada/noop", OTHER), offer("pool/model")]
    mallory = await come(rig, await token(rig, "mallory"), *claims)
    assert mallory.is_welcome
    client, secret = await rig.caller("ada"), b'{"prompt": "nobody else is to read this"}'
    keys = []
    for model, version, worker in (
        ("ada/noop", None, ada),
        ("ada/noop", VERSION, ada),
        ("pool/model", None, shared),
        ("pool/model", OTHER, shared),
    ):
        view = await rig.predictions.create(client, Order(secret, {}, model, version))
        work = await worker.next()
        assert work.prediction == view.id
        key = await worker.start(work)
        keys.append(key)
        # Whatever it knows of an attempt that it was not given, it gets nothing of it and changes nothing.
        claimed = [Held(*key)]
        assert mallory.link is not None
        await mallory.link.receive(
            encode([Heartbeat([key]), Output(*key, 0, []), SlotFree(*key), Finish(*key, "failed")])
        )
        again = await come(rig, mallory.caller, *claims, worker=mallory.end.worker)
        liar, thief = Ear(rig, mallory.caller), Ear(rig, mallory.caller)
        await liar.link.receive(encode([Hello(1, new_id(rig.clock.wall()), "i", "", claims, claimed)]))
        await thief.link.receive(encode([Hello(1, worker.end.worker, "i", "", claims, claimed)]))
        await rig.settle()
        assert thief.closed is not None
        assert thief.closed[0] == 4403
        for listener in (mallory, again, liar, thief):
            assert not any("nobody" in frame or client.account in frame for frame in listener.frames)
        assert again.assigned.empty()
        assert not any("assign" in frame for frame in liar.frames)
        assert '"wanted":true' not in "".join(liar.frames)
        mallory = again
        waiting = await rig.predictions.create(client, Order(secret, {}, model, version))
        await rig.dispatcher.tick()
        await rig.settle()
        assert mallory.assigned.empty()
        await rig.predictions.cancel(client.account, waiting.id)
        assert await worker.finish(key) == "committed"
    # Its words about their attempts come back as its own, and that is all.
    told = "".join(mallory.frames)
    assert not any(key[0] in told for key in keys[:-1])
