"""Who may run what: machines held against what models require, at every moment at which either changes."""

import asyncio

import pytest
from msgspec import UNSET

from cogflare.domain.errors import Forbidden
from cogflare.domain.ids import model_queue, new_id
from cogflare.domain.policy import parse
from cogflare.engine.predictions import Order
from cogflare.engine.requirements import machine_of, machine_text
from cogflare.protocol.agent_end import AgentEnd
from cogflare.protocol.messages import PROTOCOL, Gpu, Hello, Inventory, Machine, Offer
from cogflare.store import catalog, fleet, routes
from cogflare.store import requirements as store_of
from cogflare.store.base import Database, StoreError
from cogflare.store.catalog import Caller
from engine.asked import Asked
from engine.rig import VERSION, Rig, RigWorker

pytestmark = pytest.mark.anyio

SMALL = Machine((Gpu("NVIDIA GeForce RTX 3070", 8_192, 7_000),), cpus=8)
BIG = Machine((Gpu("NVIDIA GeForce RTX 4090", 24_564, 24_000),), cpus=16, tags=("fast",))
LARGE = '{"min_vram_gb":24}'


async def worker_on(
    rig: Rig, machine: Machine | None, *models: str, account: str = "ada", name: str = "rig", slots: int = 1
) -> RigWorker:
    """Connect a worker with a machine that offers these models (ada/noop)."""
    worker = RigWorker(rig, await rig.caller(account, "worker"), slots)
    names = [model.split("/") for model in models or ("ada/noop",)]
    offers = [
        Offer(owner, short, f"{number:x}" * 64, slots, UNSET, "0.16.0")
        for number, (owner, short) in enumerate(names, 10)
    ]
    identity = new_id(rig.clock.wall())
    worker.end = AgentEnd(identity, identity, name, offers, {})
    worker.end.machine = machine
    await worker.connect()
    return worker


async def require(rig: Rig, caller: Caller, text: str | None, model: str = "ada/noop") -> None:
    """Set what a model requires, and wait until this node has seen to it."""
    owner, name = model.split("/")
    await rig.catalog.change(caller, owner, name, {"requirements": text})
    await rig.settle()


async def unmet(db: Database, worker: RigWorker) -> str:
    row = await fleet.get_worker(db, worker.end.worker)
    assert row is not None
    return row.unmet


async def test_a_small_machine_gets_nothing_of_a_large_model_and_a_big_one_does(store: Database) -> None:
    rig = Rig(store)
    small, ada = await worker_on(rig, SMALL), await rig.caller("ada")
    await require(rig, ada, LARGE)
    waiting = await rig.create(ada)
    await rig.settle()
    assert small.assigned.empty()
    big = await worker_on(rig, BIG)
    assert (await big.next()).prediction == waiting.id
    assert small.assigned.empty()
    assert await unmet(store, small) == '["lacks 24 GB of VRAM (has 8)"]'
    assert await unmet(store, big) == '[""]'


async def test_it_holds_in_every_claim_there_is(store: Database) -> None:
    """A create and a finish claim in their own units, a look of the dispatcher and a hint by themselves."""
    rig = Rig(store)
    small, big, ada = await worker_on(rig, SMALL), await worker_on(rig, BIG), await rig.caller("ada")
    await require(rig, ada, LARGE)
    for _ in range(2):
        await rig.create(ada)  # the first is claimed by the create, the second waits for a slot
    first = await big.next()
    await rig.dispatcher.tick()
    rig.dispatcher.wake([model_queue(ada.account, "ada", "noop")])
    await rig.settle()
    assert small.assigned.empty()
    await big.finish(await big.start(first))
    second = await big.next()
    assert small.assigned.empty()
    await big.finish(await big.start(second))
    pinned = await rig.predictions.create(ada, Order(b"{}", {}, None, "a" * 64))
    assert (await big.next()).prediction == pinned.id
    assert small.assigned.empty(), "the queue of the version counts too"


async def test_requirements_belong_to_one_model_of_a_worker(store: Database) -> None:
    rig = Rig(store)
    worker, ada = await worker_on(rig, SMALL, "ada/large", "ada/light"), await rig.caller("ada")
    await require(rig, ada, LARGE, "ada/large")
    await rig.create(ada, "ada/large")
    light = await rig.create(ada, "ada/light")
    assigned = await worker.next()
    assert (assigned.prediction, assigned.offer) == (light.id, 1)
    await worker.finish(await worker.start(assigned))
    await rig.settle()
    assert worker.assigned.empty()


async def test_what_runs_goes_on_when_the_requirements_change(store: Database) -> None:
    rig = Rig(store)
    small, ada = await worker_on(rig, SMALL, slots=2), await rig.caller("ada")
    running = await rig.create(ada)
    key = await small.start(await small.next())
    await require(rig, ada, LARGE)
    waiting = await rig.create(ada)
    assert await small.finish(key) == "committed"
    await rig.settle()
    assert small.assigned.empty()
    assert (await rig.predictions.get(ada.account, running.id)).status == "succeeded"
    await require(rig, ada, None)
    assert (await small.next()).prediction == waiting.id, "what is not required any more keeps nobody waiting"
    assert await unmet(store, small) == '[""]'


async def test_a_machine_that_changes_is_matched_anew(store: Database) -> None:
    rig = Rig(store)
    worker, ada = await worker_on(rig, SMALL), await rig.caller("ada")
    await require(rig, ada, '{"min_vram_gb":24,"tags":["fast"]}')
    waiting = await rig.create(ada)
    await rig.settle()
    assert worker.assigned.empty()
    worker.end.inventory(BIG)
    await worker.pump()
    assert (await worker.next()).prediction == waiting.id
    row = await fleet.get_worker(store, worker.end.worker)
    assert row is not None
    assert (row.unmet, "RTX 4090" in row.machine) == ('[""]', True)
    await rig.matching.tick()
    worker.end.inventory(SMALL)
    await worker.pump()
    await rig.settle()
    assert await unmet(store, worker) == '["lacks 24 GB of VRAM (has 8) and the tag fast"]'


async def test_of_machines_told_in_a_row_the_last_counts(store: Database) -> None:
    rig = Rig(store)
    worker, ada = await worker_on(rig, SMALL), await rig.caller("ada")
    await require(rig, ada, LARGE)
    for machine in (BIG, SMALL, BIG, SMALL) * 5:
        worker.end.inventory(machine)
    await worker.pump()
    await rig.matching.tick()
    await rig.settle()
    assert await unmet(store, worker) == '["lacks 24 GB of VRAM (has 8)"]'
    await rig.create(ada)
    await rig.settle()
    assert worker.assigned.empty()


async def test_a_flood_of_machines_costs_a_write_and_one_more_at_each_look(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, written = Rig(store), list[str]()
    note = store_of.note_machine

    async def counted(db: Database, worker: str, epoch: int, machine: str, unmet: str) -> None:
        written.append(machine)
        await note(db, worker, epoch, machine, unmet)

    monkeypatch.setattr(store_of, "note_machine", counted)
    worker = await worker_on(rig, SMALL)
    for number in range(50):
        worker.end.inventory(Machine(cpus=number))
        await worker.pump()
        await rig.settle()
    assert len(written) == 1
    await rig.matching.tick()
    assert (len(written), machine_of(written[-1]).cpus) == (2, 49)
    await rig.matching.tick()
    assert len(written) == 2


async def test_a_machine_that_could_not_be_written_down_is_at_the_next_look(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(store)
    worker, ada = await worker_on(rig, SMALL), await rig.caller("ada")
    await require(rig, ada, LARGE)
    with monkeypatch.context() as broken:

        async def fail(*_: object) -> None:
            raise StoreError("no")

        broken.setattr(store_of, "note_machine", fail)
        worker.end.inventory(BIG)
        await worker.pump()
        await rig.settle()
    await rig.matching.tick()
    assert await unmet(store, worker) == '[""]'


async def test_of_many_that_say_hello_at_once_one_asks_what_models_require(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    read = store_of.of_models

    async def counted(db: Database) -> dict[tuple[str, str, str], str]:
        nonlocal asked
        asked += 1
        return await read(db)

    monkeypatch.setattr(store_of, "of_models", counted)
    matching = Rig(store).matching
    await asyncio.gather(*(matching.ready() for _ in range(100)))
    assert asked == 1


async def test_an_agent_that_tells_nothing_of_its_machine_meets_nothing(store: Database) -> None:
    rig = Rig(store)
    old, empty, ada = await worker_on(rig, None), await worker_on(rig, Machine()), await rig.caller("ada")
    await require(rig, ada, LARGE)
    await rig.create(ada)
    await rig.settle()
    for worker in (old, empty):
        assert worker.assigned.empty()
        assert "its agent tells nothing of its machine" in await unmet(store, worker)
    await old.disconnect()
    await old.connect()
    await rig.settle()
    assert old.assigned.empty(), "the hello of a link that comes back is matched as well"


async def test_all_nodes_hear_of_new_requirements_and_a_lost_hint_costs_a_look(store: Database) -> None:
    here, there = Rig(store, "here"), Rig(store, "there")
    far, ada = await worker_on(there, SMALL), await here.caller("ada")
    await catalog.set_model(store, ada.account, "ada", "noop", {"requirements": LARGE})
    await there.matching.tick()
    assert await unmet(store, far) == '["lacks 24 GB of VRAM (has 8)"]'
    waiting = await here.create(ada)
    await there.settle()
    assert far.assigned.empty()
    await require(here, ada, None)
    await there.settle()
    assert (await far.next()).prediction == waiting.id, "a hint tells all nodes"
    assert await unmet(store, far) == '[""]'


async def test_a_node_leaves_workers_of_other_nodes_to_them_and_sees_to_those_that_are_away(store: Database) -> None:
    here, there = Rig(store, "here"), Rig(store, "there")
    far, gone, ada = await worker_on(there, SMALL), await worker_on(there, SMALL), await here.caller("ada")
    await gone.disconnect()
    await catalog.set_model(store, ada.account, "ada", "noop", {"requirements": LARGE})
    await here.matching.tick()
    assert await unmet(store, far) == '[""]', "its link would not know"
    assert await unmet(store, gone) == '["lacks 24 GB of VRAM (has 8)"]'


async def test_hellos_in_the_middle_of_changes_end_up_right(store: Database) -> None:
    rig = Rig(store)
    workers = [await worker_on(rig, SMALL) for _ in range(4)]
    ada = await rig.caller("ada")
    for turn in range(12):
        text = LARGE if turn % 2 else None
        changing = rig.catalog.change(ada, "ada", "noop", {"requirements": text})
        await asyncio.gather(changing, *(worker.connect() for worker in workers))
        await rig.settle()
        expected = '["lacks 24 GB of VRAM (has 8)"]' if text else '[""]'
        assert {await unmet(store, worker) for worker in workers} == {expected}
    assert rig.dispatcher.has_idle([model_queue(ada.account, "ada", "noop")]) is False
    await require(rig, ada, None)
    assert rig.dispatcher.has_idle([model_queue(ada.account, "ada", "noop")])


async def test_what_a_hello_was_found_to_lack_is_put_right_when_the_requirements_changed_meanwhile(
    store: Database,
) -> None:
    rig = Rig(store)
    worker, ada = await worker_on(rig, SMALL), await rig.caller("ada")
    await require(rig, ada, LARGE)
    end, link = worker.end, worker.link
    assert link is not None
    hello = Hello(PROTOCOL, end.worker, end.instance, end.name, end.offers, machine=SMALL)
    # As its unit would have written it that began before the change.
    await store_of.note_unmet(store, [(end.worker, link.epoch, '[""]')])
    link.lack([""])
    rig.matching.join(link, ada.account, hello, '[""]')
    await rig.settle()
    # And what is written down is what is so by then.
    async with rig.matching._one:
        rig.matching.join(link, ada.account, hello, '["lacks something"]')
        await store_of.note_machine(store, end.worker, link.epoch, machine_text(BIG), '[""]')
    await rig.settle()
    assert await unmet(store, worker) == '[""]'
    await store_of.note_machine(store, end.worker, link.epoch, machine_text(SMALL), '[""]')
    rig.matching.join(link, ada.account, hello, '[""]')
    await rig.settle()
    assert await unmet(store, worker) == '["lacks 24 GB of VRAM (has 8)"]'
    assert link.free(0) == 0


async def test_what_was_claimed_before_the_change_is_given_back_without_a_strike(store: Database) -> None:
    rig = Rig(store)
    small, ada = await worker_on(rig, SMALL), await rig.caller("ada")
    assert small.link is not None
    [seat] = small.link._seats
    creating = asyncio.ensure_future(rig.create(ada))
    while not seat.reserved:
        await asyncio.sleep(0)
    small.link.lack(["lacks something"])
    view = await creating
    await rig.settle()
    row = await rig.predictions.row(ada.account, view.id)
    assert (row.phase, row.strikes) == ("queued", 0)
    assert small.assigned.empty()


async def test_only_the_owner_of_a_model_says_what_it_requires(store: Database) -> None:
    rig = Rig(store)
    shared = await worker_on(rig, SMALL, account="shared")
    ada, admin = await rig.caller("ada"), await rig.caller("admin", "admin")
    with pytest.raises(Forbidden):
        await rig.catalog.change(ada, "ada", "noop", {"requirements": LARGE})
    await require(rig, admin, LARGE)
    assert await unmet(store, shared) == '["lacks 24 GB of VRAM (has 8)"]'
    own = await worker_on(rig, SMALL)
    await rig.settle()
    assert await unmet(store, own) == '[""]', "a model of the same name in another account is another model"


# --- what is said of it -----------------------------------------------------------------------------------------------


async def test_why_names_who_lacks_what(store: Database) -> None:
    rig = Asked(store)
    await worker_on(rig, SMALL, name="gamer")
    await worker_on(rig, None, name="old")
    ada = await rig.caller("ada")
    await require(rig, ada, LARGE)
    waiting = await rig.create(ada)
    found = await rig.why(ada, waiting.id)
    assert found.code == "requirements_unmet"
    assert "worker gamer lacks 24 GB of VRAM (has 8); worker old does not say whether" in found.text
    assert "cogflare models set ada/noop" in found.text
    assert found.queue is not None
    assert (found.queue.workers, found.queue.slots, found.eta) == (0, 0, None), "they serve nobody who waits for it"
    assert [note.name for note in found.queue.unfit] == ["gamer", "old"]
    pinned = await rig.pinned(ada, VERSION)
    assert (await rig.why(ada, pinned.id)).code == "requirements_unmet"


async def test_with_others_that_can_they_count_for_nothing(store: Database) -> None:
    rig = Asked(store)
    await worker_on(rig, SMALL, name="gamer")
    big, ada = await worker_on(rig, BIG), await rig.caller("ada")
    await require(rig, ada, LARGE)
    await rig.create(ada)
    await rig.begin(big)
    second = await rig.create(ada)
    found = await rig.why(ada, second.id)
    assert found.text.startswith("The only slot of 1 worker is taken")
    owner, name = "ada", "noop"
    key = big.end.worker, [ada.account], (owner, name), None
    assert not await fleet.has_other_worker(store, *key), "what is lost there has nowhere else to go"
    await require(rig, ada, None)
    assert await fleet.has_other_worker(store, *key)


async def test_a_route_sees_no_workers_where_none_can(store: Database) -> None:
    rig = Asked(store)
    worker, ada = await worker_on(rig, SMALL, name="gamer"), await rig.caller("ada")
    await rig.create(ada)
    await rig.begin(worker)
    waiting = await rig.create(ada)
    await routes.put(store, ada.account, "", '["workers", "replicate"]', rig.clock.wall(), routed=True)
    rig.route.policy = parse(["workers", {"replicate": {"when": "no_workers"}}])
    assert (await rig.why(ada, waiting.id)).code == "all_busy"
    await require(rig, ada, LARGE)
    assert (await rig.why(ada, waiting.id)).code == "submitting"


async def test_of_workers_of_others_no_reason_is_told(store: Database) -> None:
    rig = Asked(store)
    await worker_on(rig, SMALL, account="shared", name="gamer")
    await require(rig, await rig.caller("admin", "admin"), LARGE)
    eve = await rig.caller("eve")
    found = await rig.why(eve, (await rig.create(eve)).id)
    assert (found.code, "the shared worker gamer lacks something of it" in found.text) == ("requirements_unmet", True)
    assert "8" not in found.text


async def test_a_lost_worker_that_could_is_waited_for(store: Database) -> None:
    rig = Asked(store)
    await worker_on(rig, SMALL, name="gamer")
    big, ada = await worker_on(rig, BIG, name="rack"), await rig.caller("ada")
    await require(rig, ada, LARGE)
    await big.disconnect()
    found = await rig.why(ada, (await rig.create(ada)).id)
    assert (found.code, "rack" in found.text) == ("worker_away", True)


# --- hostile workers --------------------------------------------------------------------------------------------------


async def test_an_inventory_over_an_older_link_changes_nothing(store: Database) -> None:
    rig = Rig(store)
    worker, ada = await worker_on(rig, SMALL), await rig.caller("ada")
    await require(rig, ada, LARGE)
    await store_of.note_machine(store, worker.end.worker, 0, "{}", '[""]')
    await store_of.note_unmet(store, [(worker.end.worker, 0, '[""]')])
    assert await unmet(store, worker) == '["lacks 24 GB of VRAM (has 8)"]'


@pytest.mark.parametrize(
    "machine",
    [
        Machine(tuple(Gpu("a card", 1) for _ in range(65))),
        Machine((Gpu("x" * 201, 1),)),
        Machine((Gpu("a card", -1),)),
        Machine(os="\0"),
        Machine(tags=("two words",)),
        Machine(tags=tuple(f"tag{number}" for number in range(33))),
        Machine(region="x" * 201),
    ],
    ids=["cards", "name", "memory", "nul", "tag", "tags", "region"],
)
async def test_a_machine_beyond_all_bounds_ends_the_link_and_changes_nothing(store: Database, machine: Machine) -> None:
    rig = Rig(store)
    worker = await worker_on(rig, SMALL)
    before = await fleet.get_worker(store, worker.end.worker)
    worker.end._send(Inventory(machine))
    await worker.pump()
    await rig.settle()
    assert worker.closed is not None
    assert worker.closed[0] == 1002
    row = await fleet.get_worker(store, worker.end.worker)
    assert before is not None
    assert row is not None
    assert row.machine == before.machine
    worker.end.machine = machine
    await worker.connect()
    assert worker.closed[0] == 1002


async def test_a_version_of_another_model_is_no_way_around_what_a_model_requires(store: Database) -> None:
    """Which version a worker offers is only what it says, so that of a large model may come under another name."""
    rig = Rig(store)
    ada = await rig.caller("ada")
    owner = await rig.worker()
    small = RigWorker(rig, await rig.caller("ada", "worker"), 1)
    identity = new_id(rig.clock.wall())
    small.end = AgentEnd(identity, identity, "rig", [Offer("ada", "other", VERSION, 1, UNSET, "0.16.0")], {})
    small.end.machine = SMALL
    pinned = Order(b"{}", {}, "ada/noop", VERSION)
    await owner.disconnect()
    await small.connect()
    first = await rig.predictions.create(ada, pinned)
    taken = await small.next()
    assert taken.prediction == first.id, "it requires nothing yet"
    await small.finish(await small.start(taken))
    await require(rig, ada, LARGE)
    waiting = await rig.predictions.create(ada, pinned)
    own = await rig.create(ada, "ada/other")
    assert (await small.next()).prediction == own.id
    await rig.settle()
    assert small.assigned.empty()
    again = RigWorker(rig, small.caller, 1)
    again.end = AgentEnd(new_id(rig.clock.wall()), "again", "rig", small.end.offers, {})
    await again.connect()
    await rig.settle()
    assert again.assigned.empty(), "nor does one that comes later get it"
    await require(rig, ada, None)
    assert (await again.next()).prediction == waiting.id
