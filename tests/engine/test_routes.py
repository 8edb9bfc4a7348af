"""Providers and routes of accounts: how they are set, what is refused, and what a wish makes of them."""

import asyncio

import pytest

from cogflare.domain.errors import BadRoute, NotFound
from cogflare.domain.policy import BadPolicy, parse
from cogflare.engine.providers import BadProvider, ProviderSettings, check_base_url
from cogflare.providers.base import Report
from cogflare.store import providers as store_providers
from cogflare.store.base import Database
from cogflare.store.predictions import FAR_FUTURE
from cogflare.store.secrets import forget_secrets
from engine.routed import PLANTED, Routed

pytestmark = pytest.mark.anyio


# --- providers --------------------------------------------------------------------------------------------------------


async def test_a_provider_is_kept_sealed_and_checked(store: Database) -> None:
    one = Routed(store)
    client = await one.rig.caller("ada")
    settings = ProviderSettings(max_concurrent=3, price_per_s=0.001)
    put = one.providers.put(client.account, "mine", "replicate", None, f" {PLANTED}\n", settings)
    provider, report = await put
    assert report.ok
    assert (provider.name, provider.row.base_url) == ("mine", "https://api.replicate.com/v1")
    assert (provider.row.hint, provider.settings) == ("r8_a", settings)
    assert PLANTED not in provider.row.sealed
    assert [opened.key for opened in one.opened] == [PLANTED]
    assert await one.providers.find(client.account, "mine") == provider
    assert await one.providers.get(provider.id) == provider
    assert set(await one.providers.all(client.account)) == {"mine"}


async def test_a_provider_is_changed_without_its_key_as_long_as_that_goes_nowhere_else(store: Database) -> None:
    one = Routed(store)
    client = await one.rig.caller("ada")
    first, executor = await one.provider(client)
    cheap = ProviderSettings(price_per_run=0.5)
    put = one.providers.put(client.account, "far", "cogflare", "HTTPS://far.test:443/v1/", None, cheap)
    changed, _ = await put
    assert (changed.id, changed.row.sealed, changed.settings) == (first.id, first.row.sealed, cheap)
    assert one.providers.executor(changed) is executor, "nothing that it needs has changed"
    for kind, url in (("cogflare", "https://evil.test/v1"), ("replicate", "https://far.test/v1")):
        with pytest.raises(BadProvider, match="given again"):
            await one.providers.put(client.account, "far", kind, url, None)
    with pytest.raises(BadProvider, match="needs a key"):
        await one.providers.put(client.account, "new", "runpod", None, None)
    assert len(one.opened) == 1


async def test_a_new_key_is_used_from_then_on_and_the_old_one_closed_in_the_end(store: Database) -> None:
    one = Routed(store)
    client = await one.rig.caller("ada")
    _, old = await one.provider(client)
    put = one.providers.put(client.account, "far", "cogflare", "https://far.test/v1", "another key".replace(" ", "-"))
    provider, _ = await put
    assert one.providers.executor(provider) is one.opened[-1]
    assert one.opened[-1].key == "another-key"
    assert not old.is_closed, "what it has begun is still followed with it"
    await one.providers.aclose()
    assert all(opened.is_closed for opened in one.opened)


@pytest.mark.parametrize(
    ("name", "kind", "address", "key"),
    [
        ("workers", "replicate", None, "key"),
        ("Far", "replicate", None, "key"),
        ("", "replicate", None, "key"),
        ("far", "banana", None, "key"),
        ("far", "cogflare", None, "key"),
        ("far", "cogflare", "ftp://far.test", "key"),
        ("far", "cogflare", "https://me:secret@far.test", "key"),
        ("far", "cogflare", "https://far.test/v1?x=1", "key"),
        ("far", "cogflare", "https://far.test/v1#x", "key"),
        ("far", "cogflare", "https://", "key"),
        ("far", "cogflare", "https://far.test:99999", "key"),
        ("far", "cogflare", "https://fe80::1%25eth0/", "key"),
        ("far", "cogflare", "https://far.test", ""),
        ("far", "cogflare", "https://far.test", "two words"),
        ("far", "cogflare", "https://far.test", "schlüssel"),
    ],
)
async def test_what_cannot_be_a_provider_is_refused(
    store: Database, name: str, kind: str, address: str | None, key: str
) -> None:
    one = Routed(store)
    client = await one.rig.caller("ada")
    with pytest.raises(BadProvider) as caught:
        await one.providers.put(client.account, name, kind, address, key)
    assert "secret" not in str(caught.value)
    assert await one.providers.all(client.account) == {}


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("HTTP://Far.Test:80/v1/", "http://far.test/v1"),
        ("https://far.test:8443", "https://far.test:8443"),
        ("https://[2001:DB8::1]:443/a/", "https://[2001:db8::1]/a"),
    ],
)
def test_an_address_has_one_spelling(text: str, url: str) -> None:
    assert check_base_url(text) == url
    assert check_base_url(url) == url


async def test_a_pause_ends_by_itself_by_hand_and_by_a_check(store: Database) -> None:
    one = Routed(store)
    client = await one.rig.caller("ada")
    provider, executor = await one.provider(client)
    await one.providers.pause(provider.id, 30, "busy")
    paused = await one.providers.find(client.account, "far")
    assert paused is not None
    now = one.clock.wall()
    assert paused.pause(now) == "busy"
    assert paused.pause(now + 31_000_000) is None
    await one.providers.pause(provider.id, None, "the key does not work")
    paused = await one.providers.get(provider.id)
    assert paused is not None
    assert (paused.row.paused_until, paused.row.pause_reason) == (FAR_FUTURE, "the key does not work")
    executor.report = Report(False, "it still does not")
    await one.providers.check(paused)
    assert (await one.providers.all(client.account))["far"].pause(now) is not None
    executor.report = Report(True, "it works")
    await one.providers.check(paused)
    assert (await one.providers.all(client.account))["far"].pause(now) is None


async def test_a_provider_whose_key_is_lost_waits_for_another(store: Database) -> None:
    one = Routed(store)
    client = await one.rig.caller("ada")
    await one.provider(client)
    await forget_secrets(store)
    one.later()
    lost = await one.providers.find(client.account, "far")
    assert lost is not None
    assert "give it again" in (lost.pause(one.clock.wall()) or "")
    report = await one.providers.check(lost)
    assert not report.ok
    assert "give it again" in report.text
    with pytest.raises(BadProvider, match="give it again"):
        await one.providers.put(client.account, "far", "cogflare", "https://far.test/v1", None)
    await one.provider(client)
    found = (await one.providers.all(client.account))["far"]
    assert found.pause(one.clock.wall()) is None
    assert (await one.providers.check(found)).ok


async def test_a_provider_goes_with_its_key_unless_something_runs_there(store: Database) -> None:
    one = Routed(store)
    client = await one.rig.caller("ada")
    _, executor = await one.provider(client)
    await one.routes.put(client.account, "", "far")
    sent = await one.gone(await one.create(client, model="me/only-there"))
    assert await one.providers.remove(client.account, "far") == "busy"
    await one.over(sent, 0)
    assert await one.providers.remove(client.account, "far") == "removed"
    assert executor.is_closed
    assert await one.providers.find(client.account, "far") is None
    assert await store_providers.list_of(store, client.account) == []
    with pytest.raises(NotFound):
        await one.providers.remove(client.account, "far")


async def test_other_nodes_hear_of_changes(store: Database) -> None:
    one, other = Routed(store), Routed(store, "other")
    client = await one.rig.caller("ada")
    assert await other.providers.all(client.account) == {}
    assert await other.routes.policy(client.account, "ada/noop") is None
    await one.provider(client)
    await one.routes.put(client.account, "ada/noop", "far")
    async with asyncio.timeout(5):
        while await other.routes.policy(client.account, "ada/noop") is None:
            await asyncio.sleep(0.01)
    assert set(await other.providers.all(client.account)) == {"far"}


# --- routes -----------------------------------------------------------------------------------------------------------


async def test_a_model_follows_its_own_route_else_that_of_its_account(store: Database) -> None:
    one = Routed(store)
    ada, eve = await one.rig.caller("ada"), await one.rig.caller("eve")
    await one.provider(ada)
    await one.routes.put(ada.account, "", ["workers", "far"])
    await one.routes.put(ada.account, "ada/noop", '["far", "workers"]')
    await one.routes.put(ada.account, "ada/line", '[{far = {when = "wait > 5s"}}]')
    names = {model: await one.routes.policy(ada.account, model) for model in ("ada/noop", "ada/line", "ada/other")}
    assert names == {
        "ada/noop": parse(["far", "workers"]),
        "ada/line": parse([{"far": {"when": "wait > 5s"}}]),
        "ada/other": parse(["workers", "far"]),
    }
    assert await one.routes.policy(eve.account, "ada/noop") is None
    assert [row.model for row in await one.routes.list(ada.account)] == ["", "ada/line", "ada/noop"]
    assert await one.routes.has_providers(ada.account)
    assert not await one.routes.has_providers(eve.account)
    assert await one.routes.remove(ada.account, "ada/noop")
    assert not await one.routes.remove(ada.account, "ada/noop")
    assert await one.routes.policy(ada.account, "ada/noop") == parse(["workers", "far"])


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (["workers", "nowhere"], "[1]"),
        ("nowhere", "policy"),
        (["workers", {"far": {"when": "wait >"}}], "[1].far.when, character 7"),
        ("classic", "[1]"),
        ('["workers", "nowhere"]', "[1]"),
        ([], "policy"),
    ],
)
async def test_nonsense_is_refused_with_its_place(store: Database, value: object, place: str) -> None:
    one = Routed(store)
    client = await one.rig.caller("ada")
    await one.provider(client)
    with pytest.raises(BadPolicy) as caught:
        await one.routes.put(client.account, "ada/noop", value)
    assert caught.value.place == place
    assert await one.routes.list(client.account) == []


async def test_a_wish_takes_what_the_account_has_set_for_a_provider(store: Database) -> None:
    one = Routed(store)
    client = await one.rig.caller("ada")
    await one.provider(client)
    await one.provider(client, "other")
    account = client.account
    said = {"when": "busy", "budget_per_day": 5, "over_budget": "refuse", "price_per_s": 0.01, "model": "x/y"}
    await one.routes.put(account, "", ["workers", {"far": {**said, "endpoint": "abc"}}])

    async def far(wish: str, model: str = "ada/noop") -> dict[str, object]:
        rule = await one.routes.rule(account, model, wish)
        assert rule is not None
        hop = rule.policy.hop("far")
        assert hop is not None
        options = ("when", "budget_per_day", "budget_per_month", "over_budget", "price_per_s", "price_per_run")
        return {name: getattr(hop, name) for name in (*options, "model", "endpoint")} | {"route": rule.route_of(hop)}

    whole: dict[str, object] = {
        "when": None,
        "budget_per_day": 5_000_000,
        "budget_per_month": None,
        "over_budget": "refuse",
    }
    whole |= {"price_per_s": 0.01, "price_per_run": None, "model": "x/y", "endpoint": "abc", "route": ""}
    assert await far('"far"') == whole
    assert await far('[{"far": {"budget_per_day": 90, "price_per_run": 0.001, "over_budget": "wait"}}]') == whole
    assert await far('[{"far": {"budget_per_day": 2, "model": "x/y"}}]') == {**whole, "budget_per_day": 2_000_000}
    # The price is of what the route runs there.
    with pytest.raises(BadRoute, match="has a price"):
        await far('[{"far": {"model": "a/b"}}]')
    # A model with a route of its own that does not name the provider borrows from the account's, and spends from that.
    await one.routes.put(account, "ada/noop", "other")
    assert await far('"far"') == whole
    await one.routes.put(account, "ada/noop", ["workers", {"far": {"budget_per_month": 7}}])
    own = {**dict.fromkeys(whole), "budget_per_month": 7_000_000, "over_budget": "wait", "route": "ada/noop"}
    assert await far('"far"') == own
    assert await far('[{"far": {"model": "a/b"}}]') == {**own, "model": "a/b"}
    # A price of the request's own would make any budget last.
    await one.routes.remove(account, "")
    await one.routes.remove(account, "ada/noop")
    assert (await far('[{"far": {"price_per_run": 0}}]'))["price_per_run"] is None


async def test_what_is_no_wish_is_refused(store: Database) -> None:
    one = Routed(store)
    client = await one.rig.caller("ada")
    for wish, place in (('["workers"', ""), ("[1]", "[0]"), ('[{"far": {"when": "?"}}]', "[0].far.when, character 1")):
        with pytest.raises(BadRoute) as caught:
            await one.routes.rule(client.account, "ada/noop", wish)
        assert caught.value.place == place
