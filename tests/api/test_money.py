"""Budgets and costs over HTTP, on claims and settlements as errands make them."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from api.outpost import Outpost
from cogflare.domain.money import day_of, month_of
from cogflare.engine.budgets import Exhausted
from cogflare.store import usage
from cogflare.store.base import Conflict
from cogflare.store.open import open_database

pytestmark = pytest.mark.anyio

CENT = 10_000


@pytest.fixture
async def post(new_url: Callable[[str], str], tmp_path: Path) -> AsyncIterator[Outpost]:
    db = open_database(new_url("sqlite"))
    await db.migrate()
    running = Outpost(db, tmp_path)
    await running.vault.unlock(db)
    await running.add()
    await running.worker(slots=0)
    await running.ask("PUT", "/route", json={"route": ["workers", "replicate"]})
    yield running
    await running.http.aclose()
    await running.settle()
    await db.aclose()


async def budgets(post: Outpost) -> dict[tuple[str, str | None, str], Any]:
    """Return the budgets as they are listed."""
    found = (await post.ask("GET", "/budgets"))["results"]
    return {(each["scope"], each["ref"], each["period"]): each for each in found}


async def test_a_budget_knows_what_was_spent_before_it_was_set(post: Outpost) -> None:
    await post.settle_errand(await post.send_away(estimate=3 * CENT), cost=4 * CENT)
    await post.send_away(estimate=2 * CENT)
    shown = await post.ask("PUT", "/budgets/account/day", json={"amount": 0.25})
    today = day_of(post.clock.wall())
    assert (shown["scope"], shown["ref"], shown["period"], shown["since"]) == ("account", None, "day", today)
    assert [shown[name] for name in ("amount", "spent", "reserved", "left")] == [0.25, 0.04, 0.02, 0.19]
    month = await post.ask("PUT", "/budgets/model/ada/noop/month", json={"amount": 1})
    assert (month["ref"], month["since"], month["left"]) == ("ada/noop", month_of(post.clock.wall()), 0.94)


async def test_what_no_budget_covers_is_not_sent_away(post: Outpost) -> None:
    """Ten at 4 cents have room in 40 cents, one more has not; what one of them has not used is there again."""
    await post.ask("PUT", "/budgets/account/day", json={"amount": 0.4})
    errands = [await post.send_away(estimate=4 * CENT) for _ in range(10)]
    with pytest.raises(Conflict, match="reserve"):
        await post.send_away(estimate=4 * CENT)
    assert (await budgets(post))["account", None, "day"]["left"] == 0
    await post.settle_errand(errands[0], cost=0)
    await post.send_away(estimate=4 * CENT)


async def test_runs_without_a_price_go_one_at_a_time(post: Outpost) -> None:
    await post.ask("PUT", "/budgets/account/day", json={"amount": 0.1})
    first = await post.send_away(estimate=None)
    assert (await budgets(post))["account", None, "day"]["left"] == 0
    with pytest.raises(Conflict, match="reserve"):
        await post.send_away(estimate=None)
    await post.settle_errand(first, cost=6 * CENT)
    assert (await budgets(post))["account", None, "day"]["left"] == 0.04
    await post.settle_errand(await post.send_away(estimate=None), cost=6 * CENT)
    assert (await budgets(post))["account", None, "day"]["spent"] == 0.12
    assert (await budgets(post))["account", None, "day"]["reserved"] == 0
    assert (await budgets(post))["account", None, "day"]["left"] == 0
    with pytest.raises(Conflict, match="reserve"):
        await post.send_away(estimate=None)


async def test_it_is_said_which_budget_is_spent(post: Outpost) -> None:
    ada, now = await post.caller("ada"), post.clock.wall()
    hop = (await post.routes.policy(ada.account, "ada/noop")).providers[0]  # type: ignore[union-attr]

    async def said(estimate: int | None) -> str | None:
        post.budgets.forget(ada.account)
        found = await post.budgets.exhausted(ada.account, ada.token, "ada/noop", "", hop, estimate, now)
        assert found is None or not found.is_passing
        return None if found is None else found.text

    assert await said(None) is None
    for path, whose in (
        ("/budgets/account/day", "the account's budget"),
        (f"/budgets/token/{ada.token}/month", "this token"),
        ("/budgets/model/ada/noop/day", "ada/noop"),
    ):
        await post.ask("PUT", path, json={"amount": 0.03})
        assert await said(3 * CENT) is None
        assert await said(None) is None
        told = await said(4 * CENT)
        assert told is not None
        assert whose in told
        assert "$0.04" in told
        await post.ask("PUT", path, json={"amount": 0})
        assert await said(None) is not None
        await post.ask("DELETE", path)
    assert await said(4 * CENT) is None


async def test_what_is_only_reserved_by_a_run_of_unknown_cost_passes(post: Outpost) -> None:
    ada, now = await post.caller("ada"), post.clock.wall()
    hop = (await post.routes.policy(ada.account, "ada/noop")).providers[0]  # type: ignore[union-attr]
    await post.ask("PUT", "/budgets/account/day", json={"amount": 1})
    errand = await post.send_away(estimate=None)

    async def look(estimate: int | None) -> Exhausted | None:
        post.budgets.forget(ada.account)
        return await post.budgets.exhausted(ada.account, ada.token, "ada/noop", "", hop, estimate, now)

    waits = await look(None)
    assert waits is not None
    assert waits.is_passing
    assert "$1.00 is reserved by runs that go on" in waits.text
    await post.settle_errand(errand, cost=10 * CENT)
    assert await look(None) is None
    await post.settle_errand(await post.send_away(estimate=None), cost=90 * CENT)
    spent = await look(None)
    assert spent is not None
    assert not spent.is_passing


async def test_a_budget_of_a_route_is_counted_where_the_route_is(post: Outpost) -> None:
    hop = {"replicate": {"budget_per_day": 0.1, "price_per_run": 0.04}}
    await post.ask("PUT", "/route", json={"route": ["workers", hop]})
    for _ in range(2):
        await post.send_away(estimate=4 * CENT)
    with pytest.raises(Conflict, match="reserve"):
        await post.send_away(estimate=4 * CENT)
    await post.ask("PUT", "/models/ada/noop/route", json={"route": ["workers", hop]})
    await post.send_away(estimate=4 * CENT, route="ada/noop")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/budgets/account/week", {"amount": 1}, 400),
        ("/budgets/account/day", {"amount": -1}, 422),
        ("/budgets/account/day", {"amount": 1e10}, 422),
        ("/budgets/account/day", {"amount": "5"}, 422),
        ("/budgets/account/day", {"amount": True}, 422),
        ("/budgets/account/day", {}, 422),
        ("/budgets/account/day", {"amount": 1, "currency": "EUR"}, 422),
        ("/budgets/token/nobody/day", {"amount": 1}, 404),
        ("/budgets/token/01hzxw3v7f4v9d8q2m5n6p7r8s/day", {"amount": 1}, 404),
        ("/budgets/model/ada/no%00pe/day", {"amount": 1}, 404),
    ],
)
async def test_what_is_no_budget_is_refused(post: Outpost, path: str, body: object, status: int) -> None:
    assert (await post.call("PUT", f"/v1{path}", json=body)).status_code == status
    assert await budgets(post) == {}


async def test_budgets_are_the_accounts_own(post: Outpost) -> None:
    bob = await post.caller("bob")
    assert (await post.call("PUT", f"/v1/budgets/token/{bob.token}/day", json={"amount": 1})).status_code == 404
    await post.ask("PUT", "/budgets/account/day", json={"amount": 1})
    assert (await post.ask("GET", "/budgets", "bob"))["results"] == []
    assert (await post.call("DELETE", "/v1/budgets/account/day", "bob")).status_code == 404
    for method, path in (("GET", "/budgets"), ("GET", "/costs"), ("PUT", "/budgets/account/day")):
        answer = await post.call(method, f"/v1{path}", kind="worker", json={"amount": 1})
        assert answer.status_code == 403
    assert (await post.call("DELETE", "/v1/budgets/account/day")).status_code == 204
    assert (await post.call("DELETE", "/v1/budgets/account/day")).status_code == 404


async def test_budgets_are_listed_in_pages(post: Outpost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cogflare.api.money.PAGE", 2)
    for path in ("account/day", "account/month", *(f"model/ada/m{number}/day" for number in range(3))):
        await post.ask("PUT", f"/budgets/{path}", json={"amount": 1})
    found: list[Any] = []
    path = "/budgets"
    while path:
        page = await post.ask("GET", path)
        found += [(each["ref"], each["period"]) for each in page["results"]]
        path = (page["next"] or "").partition("/v1")[2]
    models = [(f"ada/m{number}", "day") for number in range(3)]
    assert found == [(None, "day"), (None, "month"), *models]


async def test_an_account_has_a_bounded_number_of_them(post: Outpost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cogflare.api.money.MOST", 1)
    for amount in (1, 2):
        await post.ask("PUT", "/budgets/account/day", json={"amount": amount})
    assert (await post.call("PUT", "/v1/budgets/account/month", json={"amount": 1})).status_code == 409


# --- costs -----------------------------------------------------------------------------------------------------------


async def test_costs_are_added_up_by_what_one_asks_for(post: Outpost) -> None:
    await post.settle_errand(await post.send_away(estimate=CENT), cost=2 * CENT, run_s=4)
    await post.settle_errand(await post.send_away(), cost=None, run_s=1)
    await post.settle_errand(await post.send_away(estimate=CENT), cost=CENT, run_s=0, is_in_doubt=True)
    await post.settle_errand(await post.send_away(), cost=0, run_s=0, is_refused=True)
    await post.send_away()
    total = (await post.ask("GET", "/costs"))["total"]
    assert total == {"runs": 3, "unknown": 1, "in_doubt": 1, "run_s": 5, "cost": 0.03}
    found = await post.ask("GET", "/costs?since=7d&by=model,provider,day")
    today = day_of(post.clock.wall())
    assert found["results"] == [{"day": today, "model": "ada/noop", "provider": "replicate", **total}]
    by_token = (await post.ask("GET", "/costs?by=token"))["results"]
    assert len({line["token"] for line in by_token}) == 3
    assert {line["token_name"] for line in by_token} == {"test"}
    assert (await post.ask("GET", "/costs", "bob"))["total"]["runs"] == 0
    for query in ("by=colour", "by=day,day", "since=yesterday", "since=1h&until=2d", "since=2000-01-01T00:00:00Z"):
        assert (await post.call("GET", f"/v1/costs?{query}")).status_code == 400, query


async def test_own_runs_are_priced_by_the_route_else_the_provider_else_experience(post: Outpost) -> None:
    ada, now = await post.caller("ada"), post.clock.wall()
    run = (ada.account, "ada/noop", day_of(now), 10, 20_000_000)
    await usage.add(post.db, [run, (ada.account, "ada/other", day_of(now), 1, 1_000_000)], [], now)

    async def saved() -> Any:
        return (await post.ask("GET", "/costs"))["saved"]

    assert await saved() == {
        "runs": 11,
        "unpriced": 11,
        "run_s": 21,
        "amount": None,
        "models": [
            {"model": "ada/noop", "runs": 10, "run_s": 20, "amount": None},
            {"model": "ada/other", "runs": 1, "run_s": 1, "amount": None},
        ],
    }
    await post.settle_errand(await post.send_away(), cost=2 * CENT, run_s=2)
    assert ((await saved())["amount"], (await saved())["unpriced"]) == (0.2, 1)
    await post.add(price_per_run=0.5)
    assert ((await saved())["amount"], (await saved())["unpriced"]) == (5.5, 0)
    await post.ask("PUT", "/models/ada/noop/route", json={"route": ["workers", {"replicate": {"price_per_s": 0.1}}]})
    assert [model["amount"] for model in (await saved())["models"]] == [2.0, 0.5]
