"""Providers over HTTP: who may see and change what, and where a key never is."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from api.outpost import GOOD_KEY, Outpost
from cogflare.store.open import open_database
from cogflare.store.secrets import forget_secrets

pytestmark = pytest.mark.anyio

OTHER_KEY = "r8_another-key-that-does-not-work"


@pytest.fixture
async def post(new_url: Callable[[str], str], tmp_path: Path) -> AsyncIterator[Outpost]:
    db = open_database(new_url("sqlite"))
    await db.migrate()
    running = Outpost(db, tmp_path)
    await running.vault.unlock(db)
    yield running
    await running.http.aclose()
    await running.settle()
    await db.aclose()


async def test_a_key_comes_in_once_and_is_never_shown_again(post: Outpost, tmp_path: Path) -> None:
    answer = await post.call("PUT", "/v1/providers/replicate", json={"kind": "replicate", "key": f" {GOOD_KEY}\n"})
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    shown = answer.json()
    assert shown["check"] == {
        "ok": True, "text": "the key works", "account": "acme", "is_cogflare": False, "workers": None,
        "is_denied": False,
    }  # fmt: skip
    assert (shown["key_hint"], shown["base_url"]) == ("r8_a", "https://api.replicate.com/v1")
    assert (shown["running"], shown["paused"], shown["max_concurrent"]) == (0, None, 20)
    assert post.services[-1].key == GOOD_KEY
    again = [
        answer.text,
        (await post.call("GET", "/v1/providers")).text,
        (await post.call("GET", "/v1/providers/replicate")).text,
        (await post.call("POST", "/v1/providers/replicate/check")).text,
    ]
    stored = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    for text in again:
        assert GOOD_KEY not in text
        assert "sealed" not in text
    assert GOOD_KEY.encode() not in stored


async def test_one_whose_check_fails_is_kept_and_says_so(post: Outpost) -> None:
    shown = await post.add(key=OTHER_KEY)
    assert shown["check"]["ok"] is False
    assert "not known" in shown["check"]["text"]
    assert "not known" in shown["paused"]["reason"]
    assert (await post.ask("GET", "/providers"))["results"][0]["name"] == "replicate"
    assert (await post.add())["check"]["ok"] is True
    assert len((await post.ask("GET", "/providers"))["results"]) == 1


async def test_a_change_keeps_the_key_but_sends_it_to_no_other_address(post: Outpost) -> None:
    await post.add(price_per_s=0.001)
    changed = await post.add(key=None, max_concurrent=3, price_per_run=0.5)
    assert (changed["max_concurrent"], changed["price_per_s"], changed["price_per_run"]) == (3, None, 0.5)
    assert post.services[-1].key == GOOD_KEY
    order = {"kind": "replicate", "base_url": "https://thief.example.com/v1"}
    answer = await post.call("PUT", "/v1/providers/replicate", json=order)
    assert answer.status_code == 422
    assert "key" in answer.json()["detail"]
    assert {service.base_url for service in post.services} == {"https://api.replicate.com/v1"}


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("workers", {}, "name of a provider"),
        ("classic", {}, "name of a provider"),
        ("Replicate", {}, "name of a provider"),
        ("x" * 64, {}, "name of a provider"),
        ("ok", {"kind": "openai"}, "Invalid enum value"),
        ("ok", {"kind": "cogflare"}, "base URL"),
        ("ok", {"base_url": "ftp://example.com"}, "http(s)"),
        ("ok", {"base_url": "https://u:p@example.com"}, "user name"),
        ("ok", {"base_url": "https://example.com/v1?key=x"}, "query"),
        ("ok", {"base_url": "http://127.0.0.1:9/v1"}, "internal network"),
        ("ok", {"base_url": "http://[::1]/v1"}, "internal network"),
        ("ok", {"key": None}, "key"),
        ("ok", {"key": "two words"}, "key"),
        ("ok", {"key": ""}, "key"),
        ("ok", {"max_concurrent": 0}, ">= 1"),
        ("ok", {"price_per_s": -1}, ">= 0"),
        ("ok", {"colour": "red"}, "unknown field"),
    ],
)
async def test_what_is_no_provider_is_refused_in_words(
    post: Outpost, name: str, fields: dict[str, object], said: str
) -> None:
    order = {"kind": "replicate", "key": GOOD_KEY, **fields}
    answer = await post.call("PUT", f"/v1/providers/{name}", json=order)
    assert answer.status_code == 422, answer.text
    assert said in answer.json()["detail"]
    assert GOOD_KEY not in answer.text
    assert (await post.ask("GET", "/providers"))["results"] == []


async def test_a_provider_is_its_accounts_own(post: Outpost) -> None:
    await post.add()
    assert (await post.ask("GET", "/providers", "bob"))["results"] == []
    for method, path in (("GET", ""), ("POST", "/check"), ("DELETE", "")):
        answer = await post.call(method, f"/v1/providers/replicate{path}", "bob")
        assert answer.status_code == 404, path
        assert (await post.call(method, f"/v1/providers/replicate{path}", kind="worker")).status_code == 403
    assert (await post.call("GET", "/v1/providers", kind="worker")).status_code == 403
    assert (await post.call("GET", "/v1/providers/replicate", kind="admin")).status_code == 200


async def test_keys_that_change_all_the_time_leave_few_executors(
    post: Outpost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cogflare.engine.providers._MOST_RETIRED", 3)
    for number in range(6):
        await post.add(key=f"{OTHER_KEY}{number}")
    kept = [executor for _, executor in post.providers._retired]
    assert kept == post.services[2:5]
    assert post.services[-1].key == f"{OTHER_KEY}5"


async def test_a_name_that_cannot_be_stored_is_not_there(new_url: Callable[[str], str], tmp_path: Path) -> None:
    db = open_database(new_url("postgres"))
    await db.migrate()
    post = Outpost(db, tmp_path)
    assert (await post.call("DELETE", "/v1/providers/%00")).status_code == 404
    await post.http.aclose()
    await post.settle()
    await db.aclose()


async def test_one_that_is_removed_is_gone_but_not_while_anything_runs_there(post: Outpost) -> None:
    await post.worker(slots=0)
    await post.add()
    await post.ask("PUT", "/route", json={"route": "replicate"})
    errand = await post.send_away()
    assert (await post.ask("GET", "/providers/replicate"))["running"] == 1
    busy = await post.call("DELETE", "/v1/providers/replicate")
    assert busy.status_code == 409
    assert "running there" in busy.json()["detail"]
    await post.settle_errand(errand, 1)
    assert (await post.call("DELETE", "/v1/providers/replicate")).status_code == 204
    assert (await post.call("DELETE", "/v1/providers/replicate")).status_code == 404
    assert (await post.ask("GET", "/providers"))["results"] == []


async def test_a_pause_is_shown_and_ends_when_a_check_goes_well(post: Outpost) -> None:
    await post.add()
    provider = await post.providers.find((await post.caller("ada")).account, "replicate")
    assert provider is not None
    await post.providers.pause(provider.id, None, "the account there has no credit")
    shown = (await post.ask("GET", "/providers"))["results"][0]
    assert shown["paused"] == {"reason": "the account there has no credit", "until": None}
    await post.providers.pause(provider.id, 60, "too many requests")
    assert (await post.ask("POST", "/providers/replicate/check"))["paused"] is None
    await post.providers.pause(provider.id, 60, "too many requests")
    paused = (await post.ask("GET", "/providers/replicate"))["paused"]
    assert paused["reason"] == "too many requests"
    assert paused["until"].endswith("Z")


async def test_a_key_that_is_lost_with_the_servers_own_has_to_be_given_again(post: Outpost) -> None:
    await post.add()
    await forget_secrets(post.db)
    shown = await post.ask("POST", "/providers/replicate/check")
    assert shown["check"]["ok"] is False
    assert "give it again" in shown["check"]["text"]
    assert "give it again" in shown["paused"]["reason"]
    answer = await post.call("PUT", "/v1/providers/replicate", json={"kind": "replicate"})
    assert answer.status_code == 422
    again = await post.add()
    assert (again["check"]["ok"], again["paused"]) == (True, None)


async def test_a_check_may_be_about_one_endpoint(post: Outpost) -> None:
    await post.add()
    report = (await post.ask("POST", "/providers/replicate/check?endpoint=abc-1"))["check"]
    assert (report["workers"], "abc-1" in report["text"]) == (0, True)
    assert (await post.call("POST", "/v1/providers/replicate/check?endpoint=../x")).status_code == 400


async def test_an_account_has_a_bounded_number_of_them(post: Outpost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cogflare.api.providers.MOST", 2)
    for name in ("one", "two"):
        await post.add(name)
    order = {"kind": "replicate", "key": GOOD_KEY}
    assert (await post.call("PUT", "/v1/providers/three", json=order)).status_code == 409
    assert (await post.call("PUT", "/v1/providers/two", json=order)).status_code == 200
