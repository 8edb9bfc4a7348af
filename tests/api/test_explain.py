"""Reasons and receipts over HTTP, and the bell that providers ring."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from api.outpost import Outpost
from cogflare.store.open import open_database

pytestmark = pytest.mark.anyio


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


async def test_a_prediction_says_why_it_waits_when_it_is_asked(post: Outpost) -> None:
    await post.worker(slots=1)
    ada = await post.caller("ada")
    await post.create(ada)
    waiting = await post.create(ada)
    path = f"/predictions/{waiting.id}"
    plain = await post.ask("GET", path)
    asked = await post.ask("GET", f"{path}?explain=1")
    why = asked.pop("explanation")
    assert asked == plain
    assert (why["code"], why["position"], why["id"]) == ("all_busy", 1, waiting.id)
    assert (why["queue"]["slots"], why["queue"]["free"]) == (1, 0)
    assert why["text"]
    for value, status in (("true", 200), ("0", 200), ("false", 200), ("yes", 400), ("", 400)):
        answer = await post.call("GET", f"/v1{path}?explain={value}")
        assert answer.status_code == status, value
        assert ("explanation" in answer.json()) == (value == "true")
    assert (await post.call("GET", f"/v1{path}?explain=1", "bob")).status_code == 404


async def test_a_receipt_is_for_its_account(post: Outpost) -> None:
    worker, assigned = await post.running()
    await worker.finish((assigned.prediction, assigned.attempt), b'"done"')
    path = f"/predictions/{assigned.prediction}/receipt"
    receipt = await post.ask("GET", path)
    assert (receipt["id"], receipt["status"], receipt["cost"]) == (assigned.prediction, "succeeded", 0)
    [attempt] = receipt["attempts"]
    assert (attempt["place"], attempt["outcome"]) == ("worker", "succeeded")
    assert receipt["total_s"] >= receipt["run_s"] >= 0
    assert (await post.call("GET", f"/v1{path}", "bob")).status_code == 404
    assert (await post.call("GET", f"/v1{path}", kind="worker")).status_code == 403
    assert (await post.call("GET", "/v1/predictions/nothing/receipt")).status_code == 404


async def test_attempts_name_the_provider_and_not_its_id(post: Outpost) -> None:
    await post.worker(slots=0)
    await post.add()
    await post.ask("PUT", "/route", json={"route": "replicate"})
    errand = await post.send_away()
    answer = await post.call("GET", f"/v1/predictions/{errand.prediction}/attempts")
    [attempt] = answer.json()["results"]
    assert (attempt["worker"], attempt["provider"]) == (None, "replicate")
    assert errand.provider not in answer.text


@pytest.mark.parametrize("mark", ["0123456789abcdef0123456789abcdef01234567", "unknown-mark", "x", "%00", "a" * 300])
async def test_anybody_may_ring_and_nobody_is_told_anything(post: Outpost, mark: str) -> None:
    for content in (b"", b'{"status": "succeeded"}', b"\xff" * 10_000):
        answer = await post.http.post(f"/v1/hooks/{mark}", content=content)
        assert (answer.status_code, answer.content) == (204, b"")
    assert post.bells.marks == ([mark] * 3 if 8 <= len(mark) <= 100 else [])
    assert (await post.http.get(f"/v1/hooks/{mark}")).status_code == 405
