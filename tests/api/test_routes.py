"""Routes over HTTP, and what a request may wish beside them."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from api.outpost import Outpost
from cogflare.store.open import open_database

pytestmark = pytest.mark.anyio

OVERFLOW: list[Any] = ["workers", {"replicate": {"when": "wait > 30s or no_workers", "budget_per_day": 5}}]
MODEL = "/models/ada/noop/route"


@pytest.fixture
async def post(new_url: Callable[[str], str], tmp_path: Path) -> AsyncIterator[Outpost]:
    db = open_database(new_url("sqlite"))
    await db.migrate()
    running = Outpost(db, tmp_path)
    await running.vault.unlock(db)
    await running.add()
    yield running
    await running.http.aclose()
    await running.settle()
    await db.aclose()


async def problem(post: Outpost, path: str, route: object) -> dict[str, Any]:
    """Send a route that has to be refused, and return what is said of it."""
    answer = await post.call("PUT", f"/v1{path}", json={"route": route})
    assert answer.status_code == 422, answer.text
    [fault] = answer.json()["invalid_fields"]
    return dict(fault)


@pytest.mark.parametrize("path", ["/route", MODEL])
async def test_a_route_is_set_shown_and_removed(post: Outpost, path: str) -> None:
    assert (await post.call("GET", f"/v1{path}")).status_code == 404
    shown = await post.ask("PUT", path, json={"route": OVERFLOW})
    assert shown["route"] == OVERFLOW
    assert shown["model"] == (None if path == "/route" else "ada/noop")
    assert await post.ask("GET", path) == shown
    assert (await post.ask("GET", "/routes"))["results"] == [shown]
    assert (await post.ask("GET", "/routes", "bob"))["results"] == []
    assert (await post.call("GET", f"/v1{path}", "bob")).status_code == 404
    assert (await post.call("PUT", f"/v1{path}", kind="worker", json={"route": "workers"})).status_code == 403
    assert await post.ask("DELETE", path) is None
    assert (await post.call("DELETE", f"/v1{path}")).status_code == 404


async def test_an_option_may_be_named_with_half_a_character(post: Outpost) -> None:
    fault = await problem(post, "/route", r'[{"replicate": {"\ud800": 1}}]')
    assert fault["field"] == "route[0].replicate.?"


async def test_a_route_may_be_one_line_of_text(post: Outpost) -> None:
    line = """["workers", {replicate = {when = "no_workers"}}]"""
    assert (await post.ask("PUT", MODEL, json={"route": line}))["route"] == [
        "workers",
        {"replicate": {"when": "no_workers"}},
    ]
    assert (await post.ask("PUT", MODEL, json={"route": "replicate"}))["route"] == ["replicate"]


@pytest.mark.parametrize(
    ("route", "field", "said"),
    [
        (["workers", {"replicate": {"when": "wait > 30q"}}], "route[1].replicate.when", "character 10: unknown unit"),
        (["workers", {"replicate": {"budget_per_day": -1}}], "route[1].replicate.budget_per_day", "amount"),
        (["workers", {"replicate": {"wen": "busy"}}], "route[1].replicate.wen", "unknown option"),
        (["workers", "nowhere"], "route[1]", "there is no provider nowhere"),
        (["workers", "workers"], "route[1]", "stands twice"),
        ([], "route", "empty list"),
        (7, "route", "a list of hops"),
        (None, "route", "a list of hops"),
        ("['workers'", "route", "TOML"),
    ],
)
async def test_nonsense_is_refused_with_its_place(post: Outpost, route: object, field: str, said: str) -> None:
    fault = await problem(post, MODEL, route)
    assert fault["field"].startswith(field)
    assert said in fault["description"] or "JSON" in fault["description"]
    assert (await post.ask("GET", "/routes"))["results"] == []


async def test_a_body_that_is_no_order_is_refused(post: Outpost) -> None:
    for body in ({}, {"route": "workers", "model": "x"}, ["workers"], "workers"):
        assert (await post.call("PUT", f"/v1{MODEL}", json=body)).status_code == 422
    assert (await post.call("PUT", f"/v1{MODEL}", content=b"{")).status_code == 400
    assert (await post.call("PUT", f"/v1{MODEL}", content=b" " * 70_000)).status_code == 413
    deep = b'{"route":' + b"[" * 200 + b"]" * 200 + b"}"
    assert (await post.call("PUT", f"/v1{MODEL}", content=deep)).status_code == 400
    assert (await post.call("GET", "/v1/models/a%00/b/route")).status_code == 404


async def test_routes_are_listed_in_pages(post: Outpost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cogflare.api.routes.PAGE", 2)
    await post.ask("PUT", "/route", json={"route": "classic"})
    for number in range(4):
        await post.ask("PUT", f"/models/ada/m{number}/route", json={"route": "workers"})
    found: list[Any] = []
    path = "/routes"
    while path:
        page = await post.ask("GET", path)
        found += [route["model"] for route in page["results"]]
        path = (page["next"] or "").partition("/v1")[2]
    assert found == [None, "ada/m0", "ada/m1", "ada/m2", "ada/m3"]


async def test_an_account_has_a_bounded_number_of_them(post: Outpost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cogflare.api.routes.MOST", 1)
    await post.ask("PUT", MODEL, json={"route": "classic"})
    await post.ask("PUT", MODEL, json={"route": "workers"})
    assert (await post.call("PUT", "/v1/route", json={"route": "workers"})).status_code == 409


# --- wishes ----------------------------------------------------------------------------------------------------------


async def created(post: Outpost, *, wish: object = None, header: str | None = None, **options: Any) -> Any:
    """Create a prediction of ada/noop with a wish, and return the answer."""
    headers = {**options.pop("headers", {}), **({} if header is None else {"Cogflare-Route": header})}
    body = {"input": {}, **({} if wish is None else {"route": wish})}
    return await post.call("POST", "/v1/models/ada/noop/predictions", json=body, headers=headers, **options)


async def wish_of(post: Outpost, answer: Any) -> str | None:
    """Return what is stored of the wish of a prediction that was created."""
    assert answer.status_code == 201, answer.text
    return (await post.predictions.row((await post.caller("ada")).account, answer.json()["id"])).route


@pytest.mark.parametrize(
    ("how", "stored"),
    [
        ({"wish": "workers"}, '"workers"'),
        ({"header": "workers"}, '"workers"'),
        ({"wish": ["workers"]}, '["workers"]'),
        ({"header": '["workers"]'}, '["workers"]'),
        ({"wish": ["workers"], "header": "replicate"}, '["workers"]'),
        ({"header": "  "}, None),
        ({}, None),
    ],
)
async def test_a_wish_comes_in_the_body_or_in_a_header(post: Outpost, how: dict[str, Any], stored: str | None) -> None:
    await post.worker(slots=0)
    assert await wish_of(post, await created(post, **how)) == stored


@pytest.mark.parametrize(
    ("how", "field"),
    [
        ({"wish": "No Name"}, "route"),
        ({"wish": ["workers", {"replicate": {"when": "wait >"}}]}, "route[1].replicate.when"),
        ({"wish": {"replicate": {}}}, "route"),
        ({"wish": 5}, "route"),
        ({"wish": [["workers"] * 5]}, "route[0]"),
        ({"header": "No Name"}, "Cogflare-Route"),
        ({"header": "[workers"}, "Cogflare-Route"),
        ({"header": '["workers", {"replicate": {"wen": 1}}]'}, "Cogflare-Route[1].replicate.wen"),
    ],
)
async def test_a_wish_that_is_no_route_is_refused_with_its_place(
    post: Outpost, how: dict[str, Any], field: str
) -> None:
    await post.worker(slots=0)
    answer = await created(post, **how)
    assert answer.status_code == 422, answer.text
    assert answer.json()["invalid_fields"][0]["field"] == field
    assert (await post.ask("GET", "/predictions"))["results"] == []


@pytest.mark.parametrize("hops", ["", "-1", "x", "1000", "1.5"])
async def test_a_number_of_servers_is_a_number(post: Outpost, hops: str) -> None:
    await post.worker(slots=0)
    assert (await created(post, headers={"Cogflare-Hops": hops})).status_code == 400
    answer = await created(post, headers={"Cogflare-Hops": "3"})
    assert (await post.predictions.row((await post.caller("ada")).account, answer.json()["id"])).hops == 3


async def test_the_same_key_with_another_wish_is_another_request(post: Outpost) -> None:
    await post.worker(slots=0)
    key = {"Idempotency-Key": "k"}
    first = await created(post, wish="workers", headers=key)
    assert (await created(post, wish="workers", headers=key)).json()["id"] == first.json()["id"]
    assert (await created(post, header="workers", headers=key)).json()["id"] == first.json()["id"]
    assert (await created(post, headers=key)).status_code == 422
    for path in ("/v1/models/ada/noop/predictions/own",):
        body = {"input": {}, "route": "workers"}
        assert (await post.call("PUT", path, json=body)).status_code == 201
        assert (await post.call("PUT", path, json=body)).headers["idempotent-replayed"] == "true"
        assert (await post.call("PUT", path, json={"input": {}})).status_code == 422
