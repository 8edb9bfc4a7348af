"""What the verbs of routes, of what they are decided on, and of run times promise, over both dialects."""

import json
from typing import Any

import pytest

from cogflare.domain.ids import route_queue
from cogflare.store import fleet, providers, recovery, routes, routing, usage
from cogflare.store.base import Conflict
from cogflare.store.recovery import SetupFailure
from cogflare.store.routes import RouteRow
from cogflare.store.routing import OfferedRow
from store.errands import provider, send, settling
from store.scene import OTHER_QUEUE, QUEUE, Scene

pytestmark = pytest.mark.anyio

POLICY = '["workers", "replicate"]'


async def routed(scene: Scene, *ids: str) -> list[bool]:
    return [(await scene.row(id)).routed for id in ids]


# --- routes ----------------------------------------------------------------------------------------------------------


async def test_a_route_counts_for_what_is_there_already(scene: Scene) -> None:
    one, two = await scene.create(), await scene.create(name="n")
    wished = await scene.create(route='"replicate"', routed=True)
    ended, foreign = await scene.create(), await scene.create("bob")
    await scene.cancel((ended, 0))
    all_of_them = (one, two, wished, ended, foreign)
    await routes.put(scene.db, "acct", "o/m", POLICY, 1, True)
    assert await routed(scene, *all_of_them) == [True, False, True, False, False]
    await routes.put(scene.db, "acct", "", POLICY, 2, True)
    assert await routed(scene, *all_of_them) == [True, True, True, False, False]
    await routes.put(scene.db, "acct", "o/m", '["workers"]', 3, False)
    assert await routed(scene, *all_of_them) == [False, True, True, False, False]
    assert await routes.list_of(scene.db, "acct") == [RouteRow("", POLICY, 2), RouteRow("o/m", '["workers"]', 3)]
    assert await routes.remove(scene.db, "acct", "o/m")
    assert await routed(scene, *all_of_them) == [True, True, True, False, False]
    assert await routes.remove(scene.db, "acct", "")
    assert await routed(scene, *all_of_them) == [False, False, True, False, False]
    assert not await routes.remove(scene.db, "acct", "")
    assert await routes.list_of(scene.db, "acct") == []


async def test_a_route_counts_for_what_runs_and_may_come_back(scene: Scene) -> None:
    await scene.create()
    key = await scene.claim_key()
    await routes.put(scene.db, "acct", "o/m", POLICY, 1, True)
    assert await routing.waiting(scene.db) == []
    await scene.requeue(key)
    assert await routing.waiting(scene.db) == [("acct", "o/m")]


async def test_what_no_worker_looks_for_stays_with_the_router(scene: Scene) -> None:
    await provider(scene)
    queue = route_queue("acct", "o", "m")
    waits, runs = [await scene.create(queues=(queue,), routed=True) for _ in range(2)]
    await routes.put(scene.db, "acct", "o/m", '["replicate"]', 1, True)
    row = await send(scene, runs)
    assert await routes.remove(scene.db, "acct", "o/m")
    await scene.requeue(row.key, queues=(queue,))
    await scene.db.write(*settling(scene, row))
    assert await providers.remove(scene.db, "acct", "replicate") == "removed"
    assert await providers.exist(scene.db)
    assert [one.id for one in await routing.candidates(scene.db, "acct", "o/m")] == [waits, runs]
    await scene.db.write(*routing.hand_over(waits, 0, [QUEUE]))
    with pytest.raises(Conflict):
        await scene.db.write(*routing.hand_over(runs, 0, [QUEUE]))
    await scene.db.write(*routing.hand_over(runs, 1, [QUEUE]))
    assert {await scene.claim_key(), await scene.claim_key()} == {(waits, 1), (runs, 2)}
    assert set((await scene.waiting()).values()) == {0}
    assert not await providers.exist(scene.db)


# --- candidates ------------------------------------------------------------------------------------------------------


async def test_what_waits_is_found_by_account_and_model(scene: Scene) -> None:
    assert await routing.waiting(scene.db) == []
    for account, name, is_routed in (
        ("b", "m", True),
        ("a", "n", True),
        ("a", "m", True),
        ("a", "m", True),
        ("a", "k", False),
        ("c", "x", True),
    ):
        await scene.create(account, name=name, routed=is_routed)
    assert await routing.waiting(scene.db) == [("a", "o/m"), ("a", "o/n"), ("b", "o/m"), ("c", "o/x")]


async def test_candidates_come_in_order_and_in_pages(scene: Scene) -> None:
    await provider(scene)
    ids = [await scene.create(routed=True, hops=2, run_limit_s=9.5, start_by=scene.now + 10**9) for _ in range(5)]
    await scene.create()
    pinned = await scene.create(
        queues=(OTHER_QUEUE,), pinned=True, routed=True, route='"x"', webhook="https://h", webhook_origin="https://o"
    )
    await send(scene, ids[1])
    await scene.cancel((ids[2], 0))
    found = await routing.candidates(scene.db, "acct", "o/m")
    assert [candidate.id for candidate in found] == [ids[0], ids[3], ids[4], pinned]
    first, last = found[0], found[-1]
    assert (first.account, first.token, first.catalog, first.model, first.flow) == (
        "acct",
        "t1",
        "shared",
        "o/m",
        "acct",
    )
    assert (first.pinned, first.hops, first.run_limit_s, first.attempt, first.queue) == (False, 2, 9.5, 0, QUEUE)
    assert (last.pinned, last.route, last.webhook_origin, last.queue, last.hops) == (
        True,
        '"x"',
        "https://o",
        OTHER_QUEUE,
        0,
    )
    page = await routing.candidates(scene.db, "acct", "o/m", after=ids[0], limit=2)
    assert [candidate.id for candidate in page] == [ids[3], ids[4]]
    assert await routing.candidates(scene.db, "bob", "o/m") == []
    row = await scene.row(pinned)
    assert (row.routed, row.route, row.hops, row.token) == (True, '"x"', 0, "t1")


async def test_the_place_in_a_queue_is_told(scene: Scene) -> None:
    ids = [await scene.create() for _ in range(3)]
    urgent = await scene.create(priority=-1)
    await scene.create("bob")
    assert [await routing.ahead(scene.db, id, QUEUE) for id in (urgent, *ids)] == [0, 1, 2, 3]
    assert await routing.ahead(scene.db, ids[0], "other") is None
    await scene.claim_key()
    flows = await routing.flows(scene.db, [QUEUE, "other"])
    assert flows == [(QUEUE, "bob", 1, 0), (QUEUE, "acct", 3, 1_000_000)]
    await scene.requeue((urgent, 1), pause_us=1000)
    assert await routing.ahead(scene.db, urgent, QUEUE) is None
    assert await routing.ahead(scene.db, ids[0], QUEUE) == 0


# --- workers ---------------------------------------------------------------------------------------------------------


def offer(name: str, version: str, slots: int) -> dict[str, Any]:
    return {"owner": "o", "name": name, "version": version, "slots": slots}


async def link(scene: Scene, worker: str, *offers: dict[str, Any], account: str = "shared") -> None:
    hello = scene.hello(worker, account)
    fields = {name: getattr(hello, name) for name in hello.__struct_fields__}
    opened = await fleet.open_link(scene.db, fleet.Link(**{**fields, "offers": json.dumps(offers)}), [])
    assert opened is not None
    scene.epochs[worker] = opened.epoch


async def test_the_workers_that_offer_a_model_are_shown_with_what_they_do(scene: Scene) -> None:
    await scene.account("bob")
    await scene.account("eve")
    await link(scene, "w1", offer("m", "v1", 2), offer("n", "v7", 5))
    await link(scene, "w2", offer("m", "v2", 1), account="bob")
    await link(scene, "w3", offer("m", "v1", 1), account="eve")
    await link(scene, "w4", offer("n", "v7", 1))
    failure = SetupFailure("w5", "shared", "t", "x", json.dumps([offer("m", "v1", 1)]), "no GPU", scene.tick())
    assert await recovery.note_setup_failure(scene.db, failure)
    await scene.create()
    first = await scene.claim_key()
    await scene.create(queues=("shared/o/n",), name="n")
    assert await scene.claim("w1", queues=("shared/o/n", "shared:v7"))
    found = await routing.fleet_of(scene.db, ["bob", "shared"], "o", "m")
    assert found == [
        OfferedRow("w1", "shared", "online", None, "v1", 2, 1, "{}", None),
        OfferedRow("w2", "bob", "online", None, "v2", 1, 0, "{}", None),
        OfferedRow("w5", "shared", "offline", "no GPU", "v1", 1, 0, "{}", None),
    ]
    # A slot is taken until the worker says that it is free.
    await scene.finish(first)
    assert (await routing.fleet_of(scene.db, ["shared"], "o", "m"))[0].busy == 1


async def test_what_runs_is_what_takes_slots_of_workers(scene: Scene) -> None:
    await provider(scene)
    id = await scene.create()
    await scene.claim_key()
    await scene.checkpoint((id, 1))
    started = scene.now
    await scene.create()
    await scene.claim_key("w2")
    await send(scene, await scene.create())
    await scene.create(queues=("other",))
    await scene.claim("w3", queues=("other", "none"))
    await scene.finish((id, 1))
    found = await routing.running(scene.db, [QUEUE, OTHER_QUEUE])
    assert [(prediction, holder, begun) for prediction, holder, _, begun in found] == [
        (id, "w1", started),
        (found[1][0], "w2", None),
    ]
    await scene.db.write(fleet.free_slots("w1", scene.epochs["w1"], [(id, 1)], scene.tick()))
    assert [holder for _, holder, _, _ in await routing.running(scene.db, [QUEUE])] == ["w2"]


# --- usage -----------------------------------------------------------------------------------------------------------


async def test_what_own_workers_ran_is_added_up(scene: Scene) -> None:
    await scene.account("acct")
    await scene.account("bob")
    day, next_day = "2026-01-31", "2026-02-01"
    await usage.add(
        scene.db, [("acct", "o/m", day, 2, 10), ("acct", "o/m", day, 1, 5), ("bob", "o/m", day, 1, 1)], [], 1
    )
    await usage.add(scene.db, [("acct", "o/m", day, 1, 100), ("acct", "o/n", next_day, 1, 7)], [], 2)
    await usage.add(scene.db, [], [], 3)
    assert await usage.used(scene.db, "acct", day, next_day) == [("o/m", day, 4, 115), ("o/n", next_day, 1, 7)]
    assert await usage.used(scene.db, "acct", next_day, next_day) == [("o/n", next_day, 1, 7)]
    assert await usage.used(scene.db, None, day, day) == [("o/m", day, 5, 116)]


async def test_the_last_run_times_of_each_version_and_gpu_are_kept(scene: Scene) -> None:
    await usage.add(
        scene.db,
        [],
        [
            ("shared", "o/m", "v1", "H100", [1.5, 2.0]),
            ("shared", "o/m", "v1", "", [9.0]),
            ("shared", "o/m", "v1", "H100", [3.0]),
        ],
        1,
    )
    await usage.add(scene.db, [], [("shared", "o/m", "v1", "H100", [0.25]), ("bob", "o/m", "v1", "H100", [7.0])], 2)
    assert await usage.run_times(scene.db, "shared", "o/m") == [
        ("v1", "", [9.0]),
        ("v1", "H100", [1.5, 2.0, 3.0, 0.25]),
    ]
    await usage.add(scene.db, [], [("shared", "o/m", "v1", "H100", [float(n) for n in range(10, 72)])], 3)
    [_, (_, _, samples)] = await usage.run_times(scene.db, "shared", "o/m")
    assert samples == [3.0, 0.25, *(float(n) for n in range(10, 72))]
    await usage.add(scene.db, [], [("shared", "o/m", "v1", "", [float(n) for n in range(100)])], 4)
    [(_, _, samples), _] = await usage.run_times(scene.db, "shared", "o/m")
    assert samples == [float(n) for n in range(36, 100)]
    assert await usage.run_times(scene.db, "shared", "o/x") == []


async def test_a_worker_that_sets_up_is_shown(scene: Scene) -> None:
    await link(scene, "w1", offer("m", "v1", 1))
    offers = json.dumps([offer("m", "v1", 1)])
    assert await recovery.note_setup(scene.db, recovery.Setup("w2", "shared", "t", "x", offers, 77))
    found = await routing.fleet_of(scene.db, ["shared"], "o", "m")
    assert [(row.worker, row.state, row.setup_since) for row in found] == [
        ("w1", "online", None),
        ("w2", "offline", 77),
    ]
