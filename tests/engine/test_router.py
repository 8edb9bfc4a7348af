"""Which predictions go to a provider, over both databases: workers of the rig, and providers that only take notes."""

import asyncio
import time

import msgspec
import pytest

from cogflare.domain.errors import BadRoute, OverBudget, QueueFull
from cogflare.domain.ids import is_route_queue
from cogflare.engine.providers import ProviderSettings
from cogflare.protocol.messages import AttemptKey
from cogflare.store import errands
from cogflare.store import predictions as store_predictions
from cogflare.store.base import Database
from engine.rig import VERSION
from engine.routed import FAR_VERSION, PLANTED, Counted, Routed

pytestmark = pytest.mark.anyio

NO_WORKERS = ["workers", {"far": {"when": "no_workers"}}]
BUSY = ["workers", {"far": {"when": "no_workers or busy"}}]


async def test_no_route_means_workers_only(store: Database) -> None:
    one = Routed(store)
    client = await one.rig.caller("ada")
    worker = await one.rig.worker()
    await one.provider(client)
    created = await one.create(client)
    assert (await worker.next()).prediction == created.id
    waits = await one.create(client)
    await one.look()
    assert one.sent.empty()
    row = await store_predictions.get(store, waits.id)
    assert row is not None
    assert (row.routed, row.route, row.hops) == (False, None, 0)


async def test_a_prediction_without_workers_goes_to_the_provider_at_once(store: Database) -> None:
    """No tick is needed: the create itself makes the router look."""
    one = Routed(store)
    client = await one.rig.caller("ada")
    worker = await one.rig.worker()
    provider, far = await one.provider(client)
    await one.routes.put(client.account, "ada/noop", NO_WORKERS)
    await worker.disconnect()
    one.later()
    created = await one.create(client)
    sent = await one.gone(created)
    assert (sent.state, sent.provider, sent.provider_name, sent.epoch) == ("intent", provider.id, "far", 1)
    assert (sent.node, sent.attempt, sent.token) == ("node", 1, client.token)
    decision = msgspec.json.decode(sent.decision)
    assert (decision["hop"], decision["code"]) == ("far", "overflow")
    assert decision["figures"]["workers"] == 0
    assert msgspec.json.decode(sent.terms)["version"] == FAR_VERSION
    row = await store_predictions.get(store, created.id)
    assert row is not None
    assert (row.phase, row.attempt, row.version) == ("assigned", 1, FAR_VERSION)
    assert (await one.rig.catalog.version(client.account, "ada", "noop", FAR_VERSION)).id == FAR_VERSION
    latest = await one.rig.catalog.model(client.account, "ada", "noop")
    assert latest.latest is not None
    assert latest.latest.id == VERSION, "what workers offer stays the latest"
    assert [asked[:2] for asked in far.asked] == [("ada/noop", None)]


async def test_a_free_worker_is_better_than_a_provider(store: Database) -> None:
    one = Routed(store)
    client, worker = await one.rig.caller("ada"), await one.rig.worker()
    await one.provider(client)
    await one.routes.put(client.account, "ada/noop", BUSY)
    first, second = await one.create(client), await one.create(client)
    assert (await worker.next()).prediction == first.id
    sent = await one.gone(second)
    assert msgspec.json.decode(sent.decision)["figures"]["free"] == 0
    assert worker.assigned.empty()


async def test_a_prediction_moves_on_when_it_has_waited_for_long(store: Database) -> None:
    one = Routed(store)
    client, worker = await one.rig.caller("ada"), await one.rig.worker()
    await one.provider(client)
    await one.routes.put(client.account, "ada/noop", ["workers", {"far": {"when": "wait > 30s"}}])
    await one.create(client)
    waits = await one.create(client)
    await worker.next()
    await one.look()
    assert one.sent.empty()
    one.clock.wall_ahead_s = 31.0
    await one.look()
    sent = await one.gone(waits)
    assert msgspec.json.decode(sent.decision)["figures"]["waited_s"] > 30


async def test_the_rule_of_2022_sends_away_what_stands_behind_more_than_there_are_workers(store: Database) -> None:
    one = Routed(store)
    client, worker = await one.rig.caller("ada"), await one.rig.worker()
    await one.provider(client, "replicate")
    await one.routes.put(client.account, "", "classic")
    running = await one.create(client)
    assert (await worker.next()).prediction == running.id
    waits = await one.create(client)
    moved = [await one.create(client) for _ in range(3)]
    await one.look()
    assert {one.sent.get_nowait().prediction for _ in range(3)} == {view.id for view in moved}
    row = await store_predictions.get(store, waits.id)
    assert row is not None
    assert row.phase == "queued"


async def test_a_worker_gets_nothing_that_only_a_provider_may_run(store: Database) -> None:
    one = Routed(store)
    client, worker = await one.rig.caller("ada"), await one.rig.worker()
    provider, _ = await one.provider(client)
    await one.routes.put(client.account, "ada/noop", "far")
    await one.providers.pause(provider.id, None, "its key does not work")
    created = await one.create(client)
    await one.look()
    assert one.sent.empty()
    assert worker.assigned.empty()
    [queue] = await one.queues(client)
    assert queue is not None
    assert is_route_queue(queue)
    await one.providers.resume(provider.id)
    await one.look()
    await one.gone(created)


async def test_a_provider_before_workers_is_first_even_where_one_is_free(store: Database) -> None:
    one = Routed(store)
    client, worker = await one.rig.caller("ada"), await one.rig.worker()
    provider, _ = await one.provider(client)
    await one.routes.put(client.account, "ada/noop", ["far", "workers"])
    await one.gone(await one.create(client))
    assert worker.assigned.empty()
    await one.providers.pause(provider.id, None, "paused")
    mine = await one.create(client)
    assert (await worker.next()).prediction == mine.id


async def test_what_was_kept_for_a_provider_goes_to_workers_when_the_provider_cannot(store: Database) -> None:
    one = Routed(store)
    client, worker = await one.rig.caller("ada"), await one.rig.worker()
    provider, _ = await one.provider(client)
    await one.routes.put(client.account, "ada/noop", "far")
    await one.providers.pause(provider.id, None, "paused")
    waits = await one.create(client)
    await one.look()
    assert worker.assigned.empty()
    await one.routes.put(client.account, "ada/noop", "workers")
    await one.look()
    assert (await worker.next()).prediction == waits.id


async def test_max_concurrent_bounds_what_runs_at_a_provider(store: Database) -> None:
    one = Routed(store)
    client = await one.rig.caller("ada")
    await (await one.rig.worker()).disconnect()
    await one.provider(client, settings=ProviderSettings(max_concurrent=2))
    await one.routes.put(client.account, "ada/noop", "far")
    created = [await one.create(client) for _ in range(5)]
    await one.look()
    sent = [one.sent.get_nowait() for _ in range(2)]
    assert one.sent.empty()
    assert {errand.prediction for errand in sent} <= {view.id for view in created}
    await one.over(sent[0], 0)
    await one.look()
    assert one.sent.qsize() == 1


async def test_a_budget_is_never_passed(store: Database) -> None:
    """Ten at a dime a dollar, whoever looks, and however often; the day's rest waits for workers."""
    one, other = Routed(store), Routed(store, "other")
    client = await one.rig.caller("ada")
    await (await one.rig.worker()).disconnect()
    await one.provider(client, settings=ProviderSettings(max_concurrent=1000))
    await one.routes.put(client.account, "ada/noop", ["workers", {"far": {"price_per_run": 0.1, "budget_per_day": 1}}])
    await asyncio.gather(*(one.create(client) for _ in range(30)))
    for _ in range(3):
        await asyncio.gather(one.look(), other.look())
    assert one.sent.qsize() + other.sent.qsize() == 10
    assert len(await one.queues(client)) == 20


@pytest.mark.parametrize(
    "prices", [ProviderSettings(), ProviderSettings(price_per_s=0.3)], ids=["none", "by the second"]
)
async def test_what_nobody_can_price_goes_one_at_a_time(store: Database, prices: ProviderSettings) -> None:
    """What the first one costs is what is reserved for each from then on."""
    one = Routed(store)
    client = await one.rig.caller("ada")
    await (await one.rig.worker()).disconnect()
    await one.provider(client, settings=prices)
    await one.routes.put(client.account, "ada/noop", ["workers", {"far": {"budget_per_day": 1}}])
    for _ in range(4):
        await one.create(client)
    await one.look()
    first = one.sent.get_nowait()
    assert first.reserved == 1_000_000, "all that is left"
    assert one.sent.empty()
    await one.over(first, 300_000)
    one.later()
    await one.look()
    assert [one.sent.get_nowait().reserved for _ in range(2)] == [300_000] * 2
    assert one.sent.empty()


async def test_the_dearest_of_the_last_runs_is_reserved(store: Database) -> None:
    """Many that go on at once would pass the budget if they were like it, and only the average was reserved."""
    one = Routed(store)
    client = await one.rig.caller("ada")
    await (await one.rig.worker()).disconnect()
    await one.provider(client)
    await one.routes.put(client.account, "ada/noop", ["workers", {"far": {"budget_per_day": 2}}])
    for cost in (100_000, 600_000, 100_000):
        await one.create(client)
        await one.look()
        await one.over(one.sent.get_nowait(), cost)
        one.later()
    for _ in range(4):
        await one.create(client)
    await one.look()
    assert [one.sent.get_nowait().reserved for _ in range(2)] == [600_000] * 2
    assert one.sent.empty()


async def test_a_model_s_limit_counts_what_waits_for_a_provider(store: Database) -> None:
    one = Routed(store)
    client, _ = await one.rig.caller("ada"), await one.rig.worker()
    provider, _ = await one.provider(client)
    await one.rig.catalog.change(client, "ada", "noop", {"max_queued": 2})
    await one.routes.put(client.account, "ada/noop", "far")
    await one.providers.pause(provider.id, None, "paused")
    for _ in range(2):
        await one.create(client)
    with pytest.raises(QueueFull):
        await one.create(client)


async def test_over_budget_is_refused_where_the_route_says_so(store: Database) -> None:
    one = Routed(store)
    client, worker = await one.rig.caller("ada"), await one.rig.worker()
    await one.provider(client)
    options = {"price_per_run": 0.6, "budget_per_day": 1, "over_budget": "refuse", "when": "busy or no_workers"}
    await one.routes.put(client.account, "ada/noop", ["workers", {"far": options}])
    await one.create(client)
    await worker.next()
    one.later()
    await one.gone(await one.create(client))
    one.later()
    with pytest.raises(OverBudget, match=r"far: the budget that the route gives to far .* \$0\.60"):
        await one.create(client)
    assert await one.queues(client) == []


async def test_a_wish_chooses_the_places_and_lifts_no_budget(store: Database) -> None:
    one = Routed(store)
    client, worker = await one.rig.caller("ada"), await one.rig.worker()
    await one.provider(client)
    rule = {"far": {"when": "busy", "price_per_run": 1, "budget_per_day": 1, "model": "far/away"}}
    await one.routes.put(client.account, "", ["workers", rule])
    await one.routes.put(client.account, "ada/noop", "workers")
    sent = await one.gone(await one.create(client, [{"far": {"budget_per_day": 1000, "price_per_run": 0}}]))
    assert msgspec.json.decode(sent.terms)["model"] == "far/away"
    assert sent.reserved == 1_000_000
    one.later()
    await one.create(client, "far")
    await one.look()
    assert one.sent.empty()
    assert worker.assigned.empty()
    home = await one.create(client, "workers")
    assert (await worker.next()).prediction == home.id


async def test_a_wish_for_a_provider_that_is_not_there_is_refused(store: Database) -> None:
    one = Routed(store)
    client = await one.rig.caller("ada")
    await one.rig.worker()
    with pytest.raises(BadRoute, match="there is no provider nowhere") as caught:
        await one.create(client, ["workers", "nowhere"])
    assert caught.value.place == "[1]"


async def test_a_provider_of_another_account_is_none(store: Database) -> None:
    one = Routed(store)
    ada, eve = await one.rig.caller("ada"), await one.rig.caller("eve")
    await one.provider(ada)
    await one.rig.worker("eve")
    with pytest.raises(BadRoute):
        await one.create(eve, "far")


async def test_a_version_that_is_not_offered_there_waits_for_workers(store: Database) -> None:
    one = Routed(store)
    client = await one.rig.caller("ada")
    worker = await one.rig.worker()
    _, far = await one.provider(client)
    await one.routes.put(client.account, "ada/noop", BUSY)
    await one.create(client)
    key = await worker.start(await worker.next())
    pinned = await one.create(client, version=VERSION)
    await one.look()
    assert one.sent.empty()
    assert [version for _, version, _ in far.asked] == [VERSION], "asked once, and remembered"
    await worker.finish(key)
    assert (await worker.next()).prediction == pinned.id


async def test_the_next_provider_is_asked_where_one_cannot(store: Database) -> None:
    one = Routed(store)
    client = await one.rig.caller("ada")
    await (await one.rig.worker()).disconnect()
    _, first = await one.provider(client, "first")
    await one.provider(client, "second")
    first.models = set()
    await one.routes.put(client.account, "ada/noop", ["first", "second"])
    sent = await one.gone(await one.create(client))
    assert sent.provider_name == "second"
    assert msgspec.json.decode(sent.decision)["blocked"] == {"first": "there is no model ada/noop"}


async def test_what_a_provider_refused_does_not_go_there_again(store: Database) -> None:
    one = Routed(store)
    client = await one.rig.caller("ada")
    worker = await one.rig.worker()
    await one.provider(client)
    await one.routes.put(client.account, "ada/noop", BUSY)
    await one.create(client)
    first = await worker.start(await worker.next())
    sent = await one.gone(created := await one.create(client))
    assert await one.router.has_other(sent)
    await refuse(one, sent)
    await one.look()
    assert one.sent.empty()
    await worker.finish(first)
    work = await worker.next()
    assert (work.prediction, work.attempt) == (created.id, 2)


async def test_a_refused_prediction_has_no_other_way_without_workers(store: Database) -> None:
    one = Routed(store)
    client = await one.rig.caller("ada")
    _, _ = await one.provider(client), await one.provider(client, "second")
    await one.routes.put(client.account, "", ["workers", "far"])
    sent = await one.gone(await one.create(client, model="me/only-there"))
    assert not await one.router.has_other(sent)
    sent = await one.gone(await one.create(client, ["far", "second"], model="me/only-there"))
    assert await one.router.has_other(sent)


async def test_a_requeued_prediction_of_a_provider_only_route_waits_where_no_worker_takes_it(store: Database) -> None:
    one = Routed(store)
    client, worker = await one.rig.caller("ada"), await one.rig.worker()
    provider, _ = await one.provider(client)
    await one.routes.put(client.account, "ada/noop", "far")
    sent = await one.gone(created := await one.create(client))
    await one.providers.pause(provider.id, None, "paused")
    await one.rig.losses.rescue(sent.key, "test", slot_free=True, is_innocent=True)
    await one.rig.settle()
    assert worker.assigned.empty()
    [queue] = await one.queues(client)
    assert queue is not None
    assert is_route_queue(queue)
    await one.over(sent, 0)
    await one.providers.resume(provider.id)
    await one.look()
    assert (await one.gone(created)).attempt == 2


async def test_servers_do_not_send_in_circles(store: Database) -> None:
    one = Routed(store)
    client = await one.rig.caller("ada")
    await (await one.rig.worker()).disconnect()
    await one.provider(client)
    await one.routes.put(client.account, "ada/noop", "far")
    await one.gone(await one.create(client, hops=3))
    with pytest.raises(BadRoute, match="come through 4 servers"):
        await one.create(client, hops=4)
    await one.create(client, NO_WORKERS, hops=4)
    await one.look()
    assert one.sent.empty()


async def test_what_it_would_do_is_told_without_asking_a_provider(store: Database) -> None:
    one = Routed(store)
    client = await one.rig.caller("ada")
    worker = await one.rig.worker()
    provider, far = await one.provider(client)
    await one.routes.put(client.account, "ada/noop", ["workers", {"far": {"when": "queued > 1"}}])
    running, waits = await one.create(client), await one.create(client)
    assert (await worker.next()).prediction == running.id
    one.later()
    told = await one.router.weigh(await one.rig.predictions.row(client.account, waits.id))
    assert told is not None
    assert (told.hop, told.code, told.figures.queued) == ("workers", "all_busy", 1)
    assert far.asked == []
    await one.providers.pause(provider.id, None, "its key does not work")
    behind = await one.create(client)
    told = await one.router.weigh(await one.rig.predictions.row(client.account, behind.id))
    assert told is not None
    assert (told.code, told.blocked, told.figures.queued) == ("provider_paused", {"far": "its key does not work"}, 2)
    home = await one.create(client, "workers")
    assert await one.router.weigh(await one.rig.predictions.row(client.account, home.id)) is None


async def test_nothing_is_read_where_nobody_has_a_provider(store: Database) -> None:
    counted = Counted(store)
    one = Routed(counted)
    client = await one.rig.caller("ada")
    await (await one.rig.worker()).disconnect()
    await one.create(client)
    await one.router.tick()
    counted.reads.clear()
    for _ in range(10):
        await one.router.tick()
    assert counted.reads == []
    await one.create(client)
    assert counted.reads == [], "a create asks for nothing that it has not been told a moment ago"
    await one.provider(client)
    await one.look()
    assert "waiting_routes" in counted.reads


async def test_two_nodes_send_each_prediction_once(store: Database) -> None:
    one, other = Routed(store), Routed(store, "other")
    client = await one.rig.caller("ada")
    await (await one.rig.worker()).disconnect()
    provider, _ = await one.provider(client, settings=ProviderSettings(max_concurrent=1000))
    await one.routes.put(client.account, "ada/noop", "far")
    await one.providers.pause(provider.id, None, "paused")
    created = [await one.create(client) for _ in range(40)]
    await one.providers.resume(provider.id)
    one.later()
    other.later()
    await asyncio.gather(one.look(), other.look())
    sent = [queue.get_nowait().prediction for queue in (one.sent, other.sent) for _ in range(queue.qsize())]
    assert sorted(sent) == sorted(view.id for view in created)
    counts = await errands.open_counts(store, client.account)
    assert counts == {provider.id: 40}


async def test_a_long_line_is_looked_at_in_bites(store: Database) -> None:
    """What may go stands far behind more than one look takes, and is reached all the same."""
    one = Routed(store)
    client = await one.rig.caller("ada")
    worker = await one.rig.worker()
    await one.provider(client)
    await one.routes.put(client.account, "ada/noop", ["workers", {"far": {"when": "wait > 1h"}}])
    await one.create(client)
    await worker.next()
    await asyncio.gather(*(one.create(client) for _ in range(450)))
    last = await one.create(client, ["workers", {"far": {"when": "queued > 420"}}])
    for _ in range(6):
        if one.sent.empty():
            await one.look()
    sent = await one.gone(last)
    assert msgspec.json.decode(sent.decision)["figures"]["queued"] > 420


async def test_a_stopped_node_sends_nothing(store: Database) -> None:
    one = Routed(store)
    client = await one.rig.caller("ada")
    await (await one.rig.worker()).disconnect()
    await one.provider(client)
    await one.routes.put(client.account, "ada/noop", "far")
    one.rig.dispatcher.stop()
    await one.create(client)
    await one.look()
    assert one.sent.empty()


async def test_it_takes_no_longer_than_a_moment(store: Database) -> None:
    one = Routed(store)
    client = await one.rig.caller("ada")
    await (await one.rig.worker()).disconnect()
    await one.provider(client)
    await one.routes.put(client.account, "ada/noop", "far")
    await one.gone(await one.create(client))
    took = []
    for _ in range(5):
        created = await one.create(client)
        begun = time.monotonic()
        await one.gone(created)
        took.append(time.monotonic() - begun)
    # A tick would be half a second.
    assert min(took) < 0.1


async def test_a_key_is_shown_by_nothing(store: Database, capsys: pytest.CaptureFixture[str]) -> None:
    one = Routed(store)
    client = await one.rig.caller("ada")
    provider, _ = await one.provider(client)
    await one.routes.put(client.account, "", "far")
    sent = await one.gone(await one.create(client, model="me/only-there"))
    shown = f"{provider!r} {provider} {sent!r} {one.providers!r} {await one.routes.list(client.account)!r}"
    assert PLANTED not in shown
    assert PLANTED not in "".join(capsys.readouterr())
    assert PLANTED not in repr(await store.read("list_providers", account=client.account))


async def refuse(one: Routed, sent: errands.ErrandRow) -> None:
    """Do what becomes of an errand that its provider refuses: it is over, and the prediction waits again."""
    key: AttemptKey = sent.key
    unit = errands.settle(sent, now=one.rig.clock.wall(), cost=0, run_us=None, is_refused=True)
    await one.db.write(*unit)
    await one.rig.losses.rescue(key, "refused", slot_free=True, is_innocent=True)


async def test_a_long_line_moves_in_its_order(store: Database) -> None:
    """Each place that becomes free goes to the first, however many looks there were that went on behind it."""
    one = Routed(store)
    client = await one.rig.caller("ada")
    await (await one.rig.worker()).disconnect()
    provider, _ = await one.provider(client, settings=ProviderSettings(max_concurrent=1))
    await one.routes.put(client.account, "ada/noop", "far")
    await one.providers.pause(provider.id, None, "paused")
    created = [await one.create(client) for _ in range(420)]
    await one.providers.resume(provider.id)
    one.later()
    for view in created[:3]:
        await one.look()
        await one.look()
        await one.over(await one.gone(view), 0)


async def test_an_answer_that_breaks_the_program_holds_up_nobody_else(store: Database) -> None:
    one = Routed(store)
    client, worker = await one.rig.caller("ada"), await one.rig.worker()
    _, far = await one.provider(client)
    await one.routes.put(client.account, "ada/noop", ["far", "workers"])
    far.error = RuntimeError("an answer that nobody has thought of")  # type: ignore[assignment]
    mine = await one.create(client)
    await one.look()
    assert (await worker.next()).prediction == mine.id


async def test_a_wish_names_no_other_model_where_the_route_has_a_price(store: Database) -> None:
    """The price is of what the route names; a dearer one would be counted as that."""
    one = Routed(store)
    client = await one.rig.caller("ada")
    await one.rig.worker()
    await one.provider(client)
    await one.routes.put(client.account, "ada/noop", ["workers", {"far": {"price_per_run": 0.01}}])
    for name, value in (("model", "far/dearer"), ("version", "d" * 64), ("endpoint", "large")):
        with pytest.raises(BadRoute, match="price"):
            await one.create(client, [{"far": {name: value}}])
    sent = await one.gone(await one.create(client, "far"))
    assert msgspec.json.decode(sent.terms)["model"] == "ada/noop"


async def test_a_budget_below_the_price_of_a_run_promises_no_other_day(store: Database) -> None:
    one = Routed(store)
    client = await one.rig.caller("ada")
    await (await one.rig.worker()).disconnect()
    await one.provider(client)
    await one.routes.put(client.account, "ada/noop", ["workers", {"far": {"price_per_run": 2, "budget_per_day": 1}}])
    created = await one.create(client)
    await one.look()
    row = await store_predictions.get(store, created.id)
    assert row is not None
    decision = await one.router.weigh(row)
    assert decision is not None
    assert decision.code == "budget_exhausted"
    assert "covers none at all" in decision.text
    assert "next day" not in decision.text
