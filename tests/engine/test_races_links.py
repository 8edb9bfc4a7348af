"""More interleavings, mostly of links, nodes and claims: the method is that of `test_races`."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import pytest
from msgspec import UNSET, Raw

from cogflare.engine.predictions import Order
from cogflare.protocol.agent_end import AgentEnd
from cogflare.protocol.codec import encode
from cogflare.protocol.messages import Finish, Heartbeat, Offer, Output
from cogflare.store import fleet
from cogflare.store.base import Database
from engine.rig import VERSION, Rig, RigWorker
from engine.test_races import DeadPort, Slow, finish_items, numbers, quiet

pytestmark = pytest.mark.anyio

_TEXT = (
    b'{"components":{"schemas":{"Input":{"type":"object","properties":{}},'
    b'"Output":{"type":"array","items":{"type":"string"},"x-cog-array-type":"iterator",'
    b'"x-cog-array-display":"concatenate"}}}}'
)


class Jumping:
    """A clock whose monotonic time can jump ahead, as after SIGSTOP and SIGCONT of the server."""

    def __init__(self, rig: Rig) -> None:
        self._clock = rig.clock
        self.ahead_s = 0.0

    def wall(self) -> int:
        return self._clock.wall()

    def monotonic(self) -> float:
        return self._clock.monotonic() + self.ahead_s


def born_again(worker: RigWorker) -> AgentEnd:
    """Return the protocol end of the same worker in a new process that knows of nothing."""
    offer = Offer("ada", "noop", VERSION, worker.slots, UNSET, "0.16.0")
    return AgentEnd(worker.end.worker, "another-instance", "rig", [offer], {})


def joined(items: Sequence[Raw]) -> bytes:
    return b"[" + b",".join(bytes(item) for item in items) + b"]"


# --- one terminal status ---------------------------------------------------------------------------------------------


async def test_who_waits_is_told_of_the_cancel_that_beat_the_finish(store: Database) -> None:
    slow = Slow(store)
    rig = Rig(slow)
    worker, client = await rig.worker(), await rig.caller("ada")
    hold = asyncio.create_task(rig.create(client, hold_s=5))
    key = await worker.start(await worker.next())
    reached, go_on = slow.hold("before finish_prediction")
    finishing = asyncio.create_task(worker.finish(key))
    await asyncio.wait_for(reached.wait(), 5)
    assert (await rig.predictions.cancel(client.account, key[0])).status == "canceled"
    told = await hold
    go_on.set()
    assert await finishing == "superseded"
    stored = await rig.predictions.get(client.account, key[0])
    assert (told.status, told.output) == (stored.status, stored.output) == ("canceled", None)


async def test_who_waits_for_a_rescued_prediction_is_told_the_start_that_is_stored(store: Database) -> None:
    rig = Rig(store)
    first, client = await rig.worker(), await rig.caller("ada")
    hold = asyncio.create_task(rig.create(client, hold_s=5))
    await first.start(await first.next())
    await rig.checkpoints.tick()
    second = await rig.worker()
    await asyncio.sleep(0.02)
    first.end.goodbye("bye")
    await first.pump()
    assert await second.finish(await second.start(await second.next())) == "committed"
    told = await hold
    assert told.started_at == (await rig.predictions.get(client.account, told.id)).started_at


async def test_a_start_that_an_overtaken_link_could_not_commit_is_not_shown(store: Database) -> None:
    slow = Slow(store)
    rig = Rig(slow)
    worker, client = await rig.worker(), await rig.caller("ada")
    created = await rig.create(client)
    await worker.start(await worker.next())
    opened, go_on = slow.hold("open_link")
    link = rig.fleet.open(worker.caller, DeadPort())
    [hello] = worker.end.connected()
    greeting = asyncio.create_task(link.receive(hello))
    await asyncio.wait_for(opened.wait(), 5)
    await rig.checkpoints.tick()  # of the older link, whose epoch has passed
    before = (await rig.predictions.get(client.account, created.id)).status
    go_on.set()
    await greeting
    after = (await rig.predictions.get(client.account, created.id)).status
    await rig.settle()
    assert (before, after) != ("processing", "starting"), "a status never moves back"


async def test_a_slow_read_does_not_pass_an_earlier_state_on_to_a_later_attempt(store: Database) -> None:
    slow = Slow(store)
    rig = Rig(slow)
    client = await rig.caller("ada")
    first = await rig.worker(slots=0)
    created = await rig.create(client)
    read, go_on = slow.hold("get_prediction")
    reading = asyncio.create_task(rig.predictions.get(client.account, created.id))
    await asyncio.wait_for(read.wait(), 5)
    first.end.resize(0, 1)
    await first.pump()
    await first.start(await first.next())
    await rig.checkpoints.tick()
    assert (await rig.predictions.get(client.account, created.id)).status == "processing"
    first.end.goodbye("bye")
    await first.pump()
    await rig.settle()
    second = await rig.worker()
    assert (await second.next()).attempt == 2
    go_on.set()
    await reading
    assert (await rig.predictions.get(client.account, created.id)).status == "processing"


# --- older links -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["hole", "overlap"])
async def test_a_finish_over_an_older_link_spoils_no_output(store: Database, how: str) -> None:
    old, new = Rig(store, node="old"), Rig(store, node="new")
    worker, client = await old.worker(), await old.caller("ada")
    created = await old.create(client)
    key = await worker.start(await worker.next())
    worker.end.output(key, numbers(0, 5))
    await worker.pump()
    await old.checkpoints.tick()
    assert worker.link is not None
    half_open = worker.link
    await worker.connect(new)  # the old node was stopped for a while; what its socket holds is read later
    half_open._port = DeadPort()
    worker.end.output(key, numbers(5, 8))
    await worker.pump()
    if how == "overlap":
        await new.checkpoints.tick()
        worker.end.output(key, numbers(8, 12))
        await worker.pump()
        await new.checkpoints.tick()
    await half_open.receive(encode([Output(*key, 5, numbers(5, 12))]))
    if how == "hole":
        await old.checkpoints.tick()
        worker.end.output(key, numbers(8, 12))
    await half_open.receive(encode([Finish(*key, "succeeded", items=12, slot_free=True)]))
    await old.settle()
    finish_items(worker, key, 12)
    await worker.pump()
    await asyncio.wait_for(worker.answers[key], 5)
    await quiet(new)
    shown = await new.predictions.get(client.account, created.id)
    assert (shown.status, shown.output) == ("succeeded", joined(numbers(0, 12)))


async def test_a_late_word_over_an_older_link_frees_no_slot_of_the_newer_one(store: Database) -> None:
    old, new = Rig(store, node="old"), Rig(store, node="new")
    worker, client = await old.worker(), await old.caller("ada")
    created = await old.create(client)
    key = await worker.start(await worker.next())
    assert worker.link is not None
    half_open = worker.link
    await worker.connect(new)
    half_open._port = DeadPort()
    # What the old socket still holds: a heartbeat, and the end that the new link will hear of too.
    await half_open.receive(encode([Heartbeat([key])]))
    await old.settle()
    await half_open.receive(encode([Finish(*key, "succeeded", output=Raw(b"1"), slot_free=True)]))
    await old.settle()
    assert worker.link is not None
    await worker.link.receive(encode([Heartbeat([key])]))  # while the end is on its way
    await new.settle()
    assert worker.canceled == set()
    assert await worker.finish(key) == "committed"
    assert (await new.predictions.get(client.account, created.id)).status == "succeeded"


async def test_what_a_worker_lost_is_free_at_once_although_its_old_socket_is_still_open(store: Database) -> None:
    rig = Rig(store)
    worker, client = await rig.worker(), await rig.caller("ada")
    created = await rig.create(client)
    await worker.start(await worker.next())
    await rig.checkpoints.tick()
    assert worker.link is not None
    half_open = worker.link
    worker.end = born_again(worker)  # the machine was reset; nobody closed its connection
    await worker.connect()
    await half_open.closed()
    await rig.settle()
    rows = await fleet.list_attempts(store, created.id)
    assert rows[0].outcome == "lost", "a hello that does not list a held prediction frees it at once"
    work = await worker.next()
    assert (work.prediction, work.attempt) == (created.id, 2)


async def test_nothing_of_a_replaced_link_stays_behind(store: Database) -> None:
    slow = Slow(store)
    rig, other = Rig(store, node="node"), Rig(slow, node="other")
    worker, client = await rig.worker(), await rig.caller("ada")
    created = await rig.create(client)
    await worker.start(await worker.next())
    await rig.checkpoints.tick()
    await rig.predictions.get(client.account, created.id)
    slow.is_mute = True
    await other.predictions.cancel(client.account, created.id)  # this node does not hear of it
    assert worker.link is not None
    half_open = worker.link
    await worker.connect()
    await half_open.closed()
    await rig.settle()
    assert (await rig.predictions.get(client.account, created.id)).status == "canceled"
    assert rig.predictions.lives == {}


# --- hello -----------------------------------------------------------------------------------------------------------


async def test_a_link_that_is_ended_during_its_hello_gets_no_work(store: Database) -> None:
    slow = Slow(store)
    rig = Rig(slow)
    worker, client = await rig.worker(), await rig.caller("ada")
    await rig.create(client)
    key = await worker.start(await worker.next())
    await worker.disconnect()
    waiting = await rig.create(client)
    reading, go_on = slow.hold("read_chunks")
    worker.end.offers[0] = Offer("ada", "noop", VERSION, 2, UNSET, "0.16.0")
    worker.end._slots[0] = 2
    link = rig.fleet.open(worker.caller, DeadPort())
    [hello] = worker.end.connected()
    greeting = asyncio.create_task(link.receive(hello))
    await asyncio.wait_for(reading.wait(), 5)
    rig.fleet.revoke(worker.caller.token)
    go_on.set()
    await greeting
    await quiet(rig)
    held = {(row.prediction, row.attempt) for row in await fleet.live_attempts(store)}
    assert held == {key}, f"{waiting.id} was given to a link that is closed"


async def test_a_socket_that_goes_during_its_hello_leaves_no_worker_online(store: Database) -> None:
    slow = Slow(store)
    rig = Rig(slow)
    worker, client = await rig.worker(), await rig.caller("ada")
    created = await rig.create(client)
    await worker.start(await worker.next())
    await worker.disconnect()
    opened, go_on = slow.hold("open_link")
    link = rig.fleet.open(worker.caller, DeadPort())
    [hello] = worker.end.connected()
    # As the gateway does it.
    reading = asyncio.create_task(link.receive(hello))
    await asyncio.wait_for(opened.wait(), 5)
    reading.cancel()
    with suppress(asyncio.CancelledError):
        await reading
    go_on.set()
    await link.closed()
    await rig.settle()
    [row] = await fleet.list_workers(store, None, "", 10)
    assert row.state == "away"
    await asyncio.sleep(0.25)  # its grace, which is shorter than a lease
    await rig.leases.tick()
    assert [row.outcome for row in await fleet.list_attempts(store, created.id)] == ["lost"]


# --- claims ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["fill", "finish", "create"])
async def test_a_hint_that_comes_while_the_only_free_slot_claims_is_not_lost(store: Database, by: str) -> None:
    slow = Slow(store)
    rig = Rig(slow)
    client = await rig.caller("ada")
    worker = await rig.worker(slots=1 if by == "finish" else 0)
    working: asyncio.Task[object] | None = None
    if by == "finish":
        await rig.create(client)
        key = await worker.start(await worker.next())
        claimed, go_on = slow.hold("claim_attempt")
        working = asyncio.create_task(worker.finish(key))
    elif by == "fill":
        claimed, go_on = slow.hold("claim_attempt")
        worker.end.resize(0, 1)
        await worker.pump()
    else:
        worker.end.resize(0, 1)
        await worker.pump()
        await rig.settle()
        # A create that fails gives the slot back, which then looks for itself.
        claimed, go_on = slow.hold("claim_attempt")
        slow.refused.add("insert_prediction")
        with suppress(Exception):
            await rig.create(client)
        slow.refused.clear()
    await asyncio.wait_for(claimed.wait(), 5)  # it found nothing
    created = await rig.create(client)
    go_on.set()
    if working is not None:
        await working
    await quiet(rig)
    assert worker.assigned.qsize() == 1, "the slot is idle, the prediction waits, and only the next poll sees it"
    assert (await worker.next()).prediction == created.id


# --- leases ----------------------------------------------------------------------------------------------------------


async def test_a_worker_that_comes_back_is_not_robbed_by_a_final_loss(store: Database) -> None:
    slow = Slow(store)
    rig = Rig(slow)
    client = await rig.caller("ada")
    worker = await rig.worker(schema=_TEXT)
    order = Order(b"{}", {}, "ada/noop")
    created = await rig.predictions.create(client, order)
    key = await worker.start(await worker.next())
    worker.end.output(key, [Raw(b'"Once"')])
    await worker.pump()
    await rig.checkpoints.tick()
    await worker.disconnect()
    await asyncio.sleep(0.25)
    looked, go_on = slow.hold("before end_prediction")
    tick = asyncio.create_task(rig.leases.tick())
    await asyncio.wait_for(looked.wait(), 5)
    await worker.connect()
    go_on.set()
    await tick
    await rig.settle()
    assert [row.outcome for row in await fleet.list_attempts(store, created.id)] == [None]
    assert (await rig.predictions.get(client.account, created.id)).status == "processing"


async def test_a_server_that_was_stopped_for_a_while_rescues_nobody(store: Database) -> None:
    rig = Rig(store)
    worker, client = await rig.worker(), await rig.caller("ada")
    created = await rig.create(client)
    await worker.start(await worker.next())
    clock = Jumping(rig)
    rig.leases._clock = clock
    await rig.leases.tick()
    clock.ahead_s = 300  # SIGSTOP, and SIGCONT five minutes later; the heartbeats wait in the socket
    await rig.leases.tick()
    assert worker.closed is None
    assert [row.outcome for row in await fleet.list_attempts(store, created.id)] == [None]


# --- a node that has not heard that its worker is elsewhere ---------------------------------------------------------


async def moved(store: Database, first_half: int) -> tuple[Rig, Rig, RigWorker, tuple[str, int]]:
    """Return two nodes and a worker that has gone to the second; the first has four items, the second some of them."""
    first, second = Rig(store, "first"), Rig(store, "second")
    worker = await first.worker()
    await first.create(await first.caller("ada"))
    key = await worker.start(await worker.next())
    await first.checkpoints.tick()
    worker.end.output(key, [Raw(b'"%d"' % number) for number in range(4)])
    worker.end.log(key, "abc")
    await worker.pump()
    worker.end.disconnected()
    kept = worker.end.kept[key]
    rest, kept.items = kept.items[first_half:], kept.items[:first_half]
    await worker.connect(second)
    await second.checkpoints.tick()
    worker.end.output(key, rest)
    await worker.pump()
    await second.checkpoints.tick()
    return first, second, worker, key


@pytest.mark.parametrize("first_half", [2, 4])
async def test_a_cancel_there_doubles_nothing_and_takes_nothing_back(store: Database, first_half: int) -> None:
    first, second, worker, key = await moved(store, first_half)
    worker.end.output(key, [Raw(b'"4"')])
    worker.end.log(key, "def")
    await worker.pump()
    await second.checkpoints.tick()
    account = (await first.caller("ada")).account
    for shown in (await first.predictions.cancel(account, key[0]), await second.predictions.get(account, key[0])):
        assert (shown.status, shown.output, shown.logs) == ("canceled", b'["0","1","2","3","4"]', "abcdef")
    await second.settle()
    assert worker.canceled == {key}


# --- stop ------------------------------------------------------------------------------------------------------------


async def test_who_begins_to_wait_while_the_node_stops_is_answered(store: Database) -> None:
    rig = Rig(store)
    client = await rig.caller("ada")
    await rig.worker(slots=0)
    rig.fleet.stop()
    rig.predictions._waiters.wake_all()
    shown = await asyncio.wait_for(rig.create(client, hold_s=60), 5)
    assert shown.status == "starting"
