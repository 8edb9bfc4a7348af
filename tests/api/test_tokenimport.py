"""The token store of the first Cogflare, brought in: what each entry becomes, and what is never shown of it."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from api.outpost import GOOD_KEY, Outpost
from cogflare.store.open import open_database

pytestmark = pytest.mark.anyio

TOKEN = "bot-token-0123456789abcdef"
WORKER = "worker-secret-0123456789abcdef"
VALUE = {"allow": True, "replicate": GOOD_KEY, "worker": WORKER}
ALL = ["account", "api token", "worker token", "provider", "route"]


@pytest.fixture
async def post(new_url: Callable[[str], str], tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Outpost]:
    db = open_database(new_url(getattr(request, "param", "sqlite")))
    await db.migrate()
    running = Outpost(db, tmp_path)
    await running.vault.unlock(db)
    yield running
    await running.http.aclose()
    await running.settle()
    await db.aclose()


async def take(post: Outpost, *entries: dict[str, Any], **options: bool) -> list[dict[str, Any]]:
    """Bring entries in as an admin."""
    answer = await post.call("POST", "/v1/tokens/import", kind="admin", json={"entries": entries, **options})
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    for secret in (TOKEN, WORKER, GOOD_KEY):
        assert secret not in answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


def entry(key: str = TOKEN, account: str | None = None, **fields: Any) -> dict[str, Any]:
    """Return an entry as the store had it."""
    return {"key": key, "value": {**VALUE, **fields}, **({"account": account} if account else {})}


@pytest.mark.parametrize("post", ["sqlite", "postgres"], indirect=True)
async def test_an_entry_becomes_an_account_that_works_as_before(post: Outpost, tmp_path: Path) -> None:
    [taken] = await take(post, entry())
    assert (taken["outcome"], taken["made"], taken["notes"]) == ("imported", ALL, [])
    api, worker = await post.accounts.caller(TOKEN), await post.accounts.caller(WORKER)
    assert api is not None
    assert worker is not None
    assert (api.kind, worker.kind, api.account) == ("api", "worker", worker.account)
    assert api.username == taken["account"]
    headers = {"X-Cogflare-Token": TOKEN}
    [provider] = (await post.http.get("/v1/providers", headers=headers)).json()["results"]
    assert (provider["name"], provider["kind"], provider["key_hint"]) == ("replicate", "replicate", "r8_a")
    assert post.services == []
    route = (await post.http.get("/v1/route", headers=headers)).json()["route"]
    assert route == ["workers", {"replicate": {"when": "no_workers or queued > workers"}}]
    found = await post.providers.find(api.account, "replicate")
    assert found is not None
    post.providers.executor(found)
    assert post.services[0].key == GOOD_KEY
    stored = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    for secret in (TOKEN, WORKER, GOOD_KEY):
        assert secret.encode() not in stored
        assert secret not in (await post.call("GET", "/v1/tokens", kind="admin")).text


async def test_taking_it_again_changes_nothing(post: Outpost) -> None:
    [first] = await take(post, entry())
    before = (await post.call("GET", "/v1/tokens", kind="admin")).json()
    [again] = await take(post, entry())
    assert (again["outcome"], again["account"], again["made"]) == ("known", first["account"], [])
    assert (await post.call("GET", "/v1/tokens", kind="admin")).json() == before


async def test_a_rehearsal_says_it_and_does_nothing(post: Outpost) -> None:
    [told] = await take(post, entry(), dry_run=True)
    assert (told["outcome"], told["made"]) == ("imported", ALL)
    assert await post.accounts.caller(TOKEN) is None
    [done] = await take(post, entry())
    assert done["account"] == told["account"]


async def test_tokens_with_one_worker_secret_share_their_queue(post: Outpost) -> None:
    first, second = await take(post, entry(), entry("second-token-0123456789"))
    assert second["account"] == first["account"]
    assert second["made"] == ["api token"]


async def test_what_was_set_here_since_is_kept(post: Outpost) -> None:
    await take(post, entry())
    headers = {"Authorization": f"Bearer {TOKEN}"}
    await post.http.put("/v1/route", headers=headers, json={"route": "workers"})
    order = {"kind": "replicate", "key": "r8_a-key-that-is-newer-0123456789"}
    await post.http.put("/v1/providers/replicate", headers=headers, json=order)
    [again] = await take(post, entry())
    assert again["outcome"] == "known"
    assert again["notes"] == [
        "the account has another key for replicate, which was kept",
        "the account has a route of its own, which was kept",
    ]
    assert (await post.http.get("/v1/route", headers=headers)).json()["route"] == ["workers"]


async def test_a_name_may_be_given(post: Outpost) -> None:
    [taken] = await take(post, entry(account="bot"))
    assert taken["account"] == "bot"
    [again] = await take(post, entry(account="other"))
    assert again["outcome"] == "refused"
    assert again["notes"] == ["its secrets, or the name given for it, are of more than one account: bot, other"]


async def test_a_check_asks_replicate(post: Outpost) -> None:
    good, bad = await take(
        post, entry(), entry("second-token-0123456789", worker=None, replicate="r8_wrong-0123456789"), check=True
    )
    assert good["notes"] == ["Replicate: the key works"]
    assert (bad["outcome"], bad["notes"]) == ("imported", ["Replicate: the key is not known there"])


@pytest.mark.parametrize(
    ("fields", "made"),
    [
        ({"replicate": None}, ["account", "api token", "worker token"]),
        ({"replicate": ""}, ["account", "api token", "worker token"]),
        ({"worker": None}, ["account", "api token", "provider", "route"]),
    ],
)
async def test_what_an_entry_lacks_is_not_made(post: Outpost, fields: dict[str, Any], made: list[str]) -> None:
    [taken] = await take(post, entry(**fields))
    assert taken["made"] == made


@pytest.mark.parametrize(
    ("key", "value", "outcome", "note"),
    [
        (TOKEN, {**VALUE, "allow": False}, "skipped", "it was not allowed to do anything"),
        (TOKEN, {"worker": WORKER}, "skipped", "it was not allowed to do anything"),
        (TOKEN, "{", "refused", "its value is not JSON"),
        (TOKEN, json.dumps(["allow"]), "refused", "its value is no object"),
        (
            TOKEN,
            {**VALUE, "worker": TOKEN},
            "refused",
            "its worker secret is the token itself: one secret cannot be both",
        ),
        (TOKEN, {**VALUE, "worker": 7}, "refused", "its worker is no text"),
        (TOKEN, {**VALUE, "replicate": "two words"}, "refused", "its Replicate key cannot be one"),
        ("two words", VALUE, "refused", "the token is not 1 to 512 printable characters"),
        ("", VALUE, "refused", "the token is not 1 to 512 printable characters"),
        (TOKEN, {**VALUE, "worker": "s"}, "imported", "its worker secret is short"),
        (TOKEN, {**VALUE, "runpod": "rp_key-0123456789abcdef"}, "imported", "its RunPod key was left out"),
        (TOKEN, json.dumps(VALUE), "imported", None),
    ],
)
async def test_what_has_to_be_said_is_said(post: Outpost, key: str, value: Any, outcome: str, note: str | None) -> None:
    [taken] = await take(post, {"key": key, "value": value})
    assert taken["outcome"] == outcome
    assert [one[: len(note or "")] for one in taken["notes"]] == ([note] if note else [])
    if outcome != "imported":
        assert await post.accounts.caller(TOKEN) is None
        assert taken["made"] == []


async def test_a_bad_entry_holds_up_no_other(post: Outpost) -> None:
    results = await take(post, {"key": "bad", "value": 1}, entry())
    assert [one["outcome"] for one in results] == ["refused", "imported"]


async def test_secrets_of_others_are_not_taken_over(post: Outpost) -> None:
    bob = await post.token("bob")
    [same] = await take(post, {"key": bob, "value": {"allow": True, "worker": WORKER}})
    assert (same["account"], same["made"]) == ("bob", ["worker token"])
    [stolen] = await take(post, entry(worker=bob))
    assert (stolen["outcome"], stolen["notes"]) == (
        "refused",
        ["its worker secret is a token of the kind api here already"],
    )
    [listed] = [
        one for one in (await post.call("GET", "/v1/tokens", kind="admin")).json()["results"] if one["kind"] == "worker"
    ]
    await post.call("DELETE", f"/v1/tokens/{listed['id']}", kind="admin")
    [revoked] = await take(post, entry())
    assert (revoked["outcome"], revoked["notes"]) == ("refused", ["its worker secret was revoked here, and stays so"])


@pytest.mark.parametrize("post", ["sqlite", "postgres"], indirect=True)
async def test_two_imports_at_once_make_one_account(post: Outpost) -> None:
    taken = await asyncio.gather(*(take(post, entry()) for _ in range(4)))
    assert sorted(one["outcome"] for [one] in taken) == ["imported", "known", "known", "known"]
    assert {one["account"] for [one] in taken} == {taken[0][0]["account"]}


async def test_only_admins_may(post: Outpost) -> None:
    order = {"entries": [entry()]}
    assert (await post.call("POST", "/v1/tokens/import", json=order)).status_code == 403
    wrong = await post.call("POST", "/v1/tokens/import", kind="admin", json={"entries": [{"key": TOKEN}]})
    assert wrong.status_code == 422
    assert TOKEN not in wrong.text
