"""Models that only a provider has: found by a create, once, and remembered, a no included."""

import asyncio

import msgspec
import pytest

from cogflare.domain.errors import BadRoute, InvalidInput, NotFound, ProviderAway, VersionNotFound
from cogflare.engine.predictions import Order
from cogflare.providers.base import Busy, Denied, Terms, Unanswered
from cogflare.store import predictions as store_predictions
from cogflare.store.base import Database
from engine.rig import VERSION
from engine.routed import FAR_VERSION, Routed

pytestmark = pytest.mark.anyio

SCHEMA = msgspec.json.encode(
    {
        "components": {
            "schemas": {
                "Input": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
                "Output": {"type": "string"},
            }
        }
    }
)


async def test_a_create_finds_a_model_that_only_a_provider_has(store: Database) -> None:
    one = Routed(store)
    client = await one.rig.caller("ada")
    _, far = await one.provider(client)
    far.schema = SCHEMA
    with pytest.raises(NotFound):
        await one.create(client, model="me/upstream")
    assert far.asked == [], "no route leads there"
    await one.routes.put(client.account, "", ["workers", "far"])
    with pytest.raises(InvalidInput):
        await one.create(client, model="me/upstream")
    order = Order(b'{"text": "x"}', {"text": "x"}, "me/upstream")
    created = await one.rig.predictions.create(client, order)
    assert created.version == FAR_VERSION
    sent = await one.gone(created)
    assert msgspec.json.decode(sent.terms, type=Terms) == Terms("me/upstream", FAR_VERSION)
    known = await one.rig.catalog.model(client.account, "me", "upstream")
    assert known.latest is not None
    assert known.latest.output_kind == "single"
    assert len(far.asked) == 1
    eve = await one.rig.caller("eve")
    with pytest.raises(NotFound):
        await one.create(eve, model="me/upstream")


async def test_a_wish_finds_models_too(store: Database) -> None:
    one = Routed(store)
    client = await one.rig.caller("ada")
    await one.provider(client)
    await one.gone(await one.create(client, "far", model="me/upstream"))


async def test_a_version_that_only_a_provider_has_is_found_and_does_not_become_the_latest(store: Database) -> None:
    one = Routed(store)
    client = await one.rig.caller("ada")
    worker = await one.rig.worker()
    await one.provider(client)
    await one.routes.put(client.account, "", ["workers", "far"])
    pinned = await one.create(client, version=FAR_VERSION)
    await one.gone(pinned)
    assert worker.assigned.empty()
    known = await one.rig.catalog.model(client.account, "ada", "noop")
    assert known.latest is not None
    assert known.latest.id == VERSION
    with pytest.raises(VersionNotFound):
        await one.create(client, version="0" * 64)


async def test_a_shared_model_stays_what_it_is(store: Database) -> None:
    one = Routed(store)
    await one.rig.worker("shared")
    client = await one.rig.caller("ada")
    await one.provider(client)
    await one.routes.put(client.account, "", "far")
    with pytest.raises(VersionNotFound):
        await one.create(client, version=FAR_VERSION)
    created = await one.create(client)
    sent = await one.gone(created)
    row = await store_predictions.get(store, sent.prediction)
    assert row is not None
    assert (row.catalog, row.version) == ("shared", VERSION)


async def test_a_no_is_remembered_for_a_minute(store: Database) -> None:
    one = Routed(store)
    client = await one.rig.caller("ada")
    _, far = await one.provider(client)
    far.models = set()
    await one.routes.put(client.account, "", "far")
    for _ in range(3):
        with pytest.raises(NotFound, match="of its route: far: there is no model me/upstream"):
            await one.create(client, model="me/upstream")
    assert len(far.asked) == 1
    far.models = None
    one.clock.ahead_s += 61.0
    await one.gone(await one.create(client, model="me/upstream"))
    assert len(far.asked) == 2


async def test_many_creates_at_once_ask_once(store: Database) -> None:
    one = Routed(store)
    client = await one.rig.caller("ada")
    _, far = await one.provider(client)
    far.gate = asyncio.Event()
    await one.routes.put(client.account, "", "far")
    creates = [asyncio.create_task(one.create(client, model="me/upstream")) for _ in range(8)]
    async with asyncio.timeout(5):
        while not far.asked:
            await asyncio.sleep(0)
    creates[0].cancel()
    far.gate.set()
    views = await asyncio.gather(*creates[1:])
    assert len(far.asked) == 1
    sent = {(await one.sent.get()).prediction for _ in views}
    assert sent == {view.id for view in views}


async def test_a_provider_that_does_not_answer_is_no_answer(store: Database) -> None:
    one = Routed(store)
    client = await one.rig.caller("ada")
    _, far = await one.provider(client)
    await one.routes.put(client.account, "", "far")
    far.error = Unanswered("connection refused")
    with pytest.raises(ProviderAway, match="far, which may have me/upstream: connection refused"):
        await one.create(client, model="me/upstream")
    one.clock.ahead_s += 6.0
    far.error = Busy("too many requests", 30.0)
    with pytest.raises(ProviderAway) as caught:
        await one.create(client, model="me/upstream")
    assert caught.value.retry_after_s == 30.0
    one.clock.ahead_s += 31.0
    far.error = None
    await one.gone(await one.create(client, model="me/upstream"))


async def test_a_key_that_does_not_work_pauses_its_provider(store: Database) -> None:
    one = Routed(store)
    client = await one.rig.caller("ada")
    _, far = await one.provider(client)
    await one.routes.put(client.account, "", "far")
    far.error = Denied("the token is not valid")
    with pytest.raises(BadRoute, match="far: the token is not valid"):
        await one.create(client, model="me/upstream")
    paused = await one.providers.find(client.account, "far")
    assert paused is not None
    assert paused.pause(one.clock.wall()) == "the token is not valid"
    with pytest.raises(ProviderAway, match="is paused: the token is not valid"):
        await one.create(client, model="me/upstream")


async def test_a_schema_that_means_nothing_is_not_registered(store: Database) -> None:
    one = Routed(store)
    client = await one.rig.caller("ada")
    _, far = await one.provider(client)
    far.schema = b'{"components": {"schemas": {"Input": {"type": "no such type"}}}}'
    await one.routes.put(client.account, "", "far")
    with pytest.raises(BadRoute, match="me/upstream of the provider cannot be used"):
        await one.create(client, model="me/upstream")
    with pytest.raises(NotFound):
        await one.rig.catalog.model(client.account, "me", "upstream")
