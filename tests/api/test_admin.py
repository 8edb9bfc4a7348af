"""Tokens, workers, attempts and health, over both databases."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from api.node import BASE, Node
from cogflare import __version__
from cogflare.api.admin import PAGE
from cogflare.protocol.messages import Drain, Gpu, Machine
from cogflare.store.base import Database
from engine.rig import VERSION, Rig, RigWorker

pytestmark = pytest.mark.anyio


@pytest.fixture
async def node(store: Database, tmp_path: Path) -> AsyncIterator[Node]:
    running = Node(store, tmp_path)
    yield running
    await running.http.aclose()
    await running.settle()


async def test_health_is_open(node: Node) -> None:
    answer = await node.http.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "version": __version__})


# --- tokens


async def test_the_life_of_a_token(node: Node) -> None:
    order = {"kind": "api", "name": "laptop", "account": "lin", "expires_in_s": 3600}
    created = await node.call("POST", "/v1/tokens", kind="admin", json=order)
    assert (created.status_code, created.headers["cache-control"]) == (201, "no-store")
    made = created.json()
    assert made == {"id": made["id"], "kind": "api", "account": "lin", "name": "laptop", "token": made["token"]}
    mine = {"Authorization": f"Bearer {made['token']}"}
    assert (await node.http.get("/account", headers=mine)).json()["username"] == "lin"
    listed = (await node.call("GET", "/tokens", kind="admin")).json()["results"]
    (shown,) = [token for token in listed if token["id"] == made["id"]]
    assert (shown["account"], shown["hint"], shown["revoked_at"]) == ("lin", made["token"][:8], None)
    assert shown["expires_at"] > shown["created_at"]
    assert made["token"] not in str(listed)
    for _ in range(2):
        gone = await node.call("DELETE", f"/tokens/{made['id']}", kind="admin")
        assert (gone.status_code, gone.content) == (204, b"")
    assert (await node.http.get("/account", headers=mine)).status_code == 401
    listed = (await node.call("GET", "/tokens", kind="admin")).json()["results"]
    assert [token["revoked_at"] is not None for token in listed if token["id"] == made["id"]] == [True]


async def test_a_token_for_the_own_account(node: Node) -> None:
    made = (await node.call("POST", "/tokens", kind="admin", json={"kind": "worker", "name": "pc"})).json()
    assert (made["account"], made["kind"]) == ("ada", "worker")


async def test_tokens_take_an_admin(node: Node) -> None:
    order = {"kind": "admin", "name": "mine"}
    for method, path, body in (
        ("GET", "/tokens", None),
        ("POST", "/tokens", order),
        ("DELETE", f"/tokens/{'0' * 26}", None),
    ):
        assert (await node.call(method, path, json=body)).status_code == 403
        assert (await node.call(method, path, kind="worker", json=body)).status_code == 403
        assert (await node.http.request(method, path)).status_code == 401


async def test_bad_token_requests(node: Node) -> None:
    good = {"kind": "api", "name": "n"}
    for wrong in (
        {"kind": "root"},
        {"name": "a\0b"},
        {"name": ""},
        {"name": "x" * 101},
        {"account": "../x"},
        {"account": "a\0"},
        {"expires_in_s": 0},
        {"expires_in_s": 1e30},
        {"expires_in_s": 10**15},
        {"extra": 1},
    ):
        answer = await node.call("POST", "/tokens", kind="admin", json={**good, **wrong})
        assert (answer.status_code, answer.json()["title"]) == (422, "Input validation failed"), wrong
    assert answer.json()["invalid_fields"]
    assert (await node.call("POST", "/tokens", kind="admin", content=b"{")).status_code == 400
    for id in ("0" * 26, "x", "%00"):
        assert (await node.call("DELETE", f"/tokens/{id}", kind="admin")).status_code == 404


async def test_pages_of_tokens(node: Node) -> None:
    for number in range(PAGE + 1):
        await node.accounts.create("ada", "api", str(number))
    page = (await node.call("GET", "/tokens", kind="admin")).json()
    assert len(page["results"]) == PAGE
    assert page["next"].startswith(f"{BASE}/v1/tokens?cursor=")
    rest = (await node.call("GET", page["next"], kind="admin")).json()
    ids = [token["id"] for token in page["results"] + rest["results"]]
    assert (rest["next"], len(set(ids)), ids) == (None, PAGE + 2, sorted(ids))


# --- workers


async def test_workers_of_the_account_and_of_all(node: Node) -> None:
    worker = await node.worker(slots=3)
    await node.worker("eve")
    await node.create(await node.caller("ada"))
    await worker.next()
    (shown,) = (await node.call("GET", "/workers")).json()["results"]
    assert shown == {
        "id": worker.end.worker,
        "name": "rig",
        "account": "ada",
        "state": "online",
        "node": "node",
        "models": [{"model": "ada/noop", "version": VERSION, "slots": 3, "unmet": None}],
        "slots": 3,
        "busy": 1,
        "health": "ok",
        "quarantine": None,
        "agent": {},
        "machine": None,
        "setup_since": None,
        "connected_at": shown["connected_at"],
        "changed_at": shown["changed_at"],
    }
    everyone = (await node.call("GET", "/workers", kind="admin")).json()["results"]
    assert sorted(one["account"] for one in everyone) == ["ada", "eve"]
    await worker.disconnect()
    assert (await node.call("GET", "/workers")).json()["results"][0]["state"] == "away"


async def test_all_of_a_worker(node: Node) -> None:
    worker = await node.worker()
    path = f"/v1/workers/{worker.end.worker}"
    for stranger in (await node.call("GET", path, "eve"), await node.call("GET", "/workers/nobody")):
        assert stranger.status_code == 404
    assert (await node.call("GET", "/workers/%00", kind="admin")).status_code == 404
    shown = (await node.call("GET", path)).json()
    [listed] = (await node.call("GET", "/workers")).json()["results"]
    token = shown.pop("token")
    assert shown == listed
    assert token == {
        "id": worker.caller.token,
        "name": "test",
        "models": None,
        "max_connections": None,
        "connections": 1,
        "expires_at": None,
        "revoked_at": None,
    }
    card = Gpu("NVIDIA GeForce RTX 3070", 8_192, 7_000)
    worker.end.inventory(Machine((card,), "550.107.02", "12.4", 8, 32_000, 99_000, "Debian", "3.11.2", "eu", ("fast",)))
    await worker.pump()
    await node.settle()
    await node.call("PATCH", "/models/ada/noop", json={"requirements": {"min_vram_gb": 24}})
    await node.settle()
    shown = (await node.call("GET", path, "admin", "admin")).json()
    assert shown["machine"] == {
        "gpus": [{"name": "NVIDIA GeForce RTX 3070", "vram_mb": 8_192, "free_mb": 7_000}],
        "driver": "550.107.02",
        "cuda": "12.4",
        "cpus": 8,
        "ram_mb": 32_000,
        "disk_free_mb": 99_000,
        "os": "Debian",
        "python": "3.11.2",
        "region": "eu",
        "tags": ["fast"],
    }
    assert shown["models"][0]["unmet"] == "lacks 24 GB of VRAM (has 8)"


def is_draining(worker: RigWorker) -> bool:
    return any(isinstance(message, Drain) for message in worker.heard)


async def test_draining(node: Node) -> None:
    worker = await node.worker()
    path = f"/v1/workers/{worker.end.worker}/drain"
    for stranger in (await node.call("POST", path, "eve"), await node.call("POST", "/workers/nobody/drain")):
        assert stranger.status_code == 404
    assert (await node.call("POST", "/workers/%00/drain", kind="admin")).status_code == 404
    assert not is_draining(worker)
    assert (await node.call("POST", path)).status_code == 202
    await node.settle()
    assert is_draining(worker)
    assert (await node.call("POST", path, "admin", "admin")).status_code == 202
    await node.settle()
    await worker.disconnect()
    gone = await node.call("POST", path)
    assert (gone.status_code, gone.json()["detail"]) == (409, "The worker is not connected.")


async def test_a_worker_of_another_node(node: Node) -> None:
    elsewhere = Rig(node.db, node="far")
    worker = await elsewhere.worker()
    answer = await node.call("POST", f"/workers/{worker.end.worker}/drain")
    assert answer.status_code == 409
    assert "node far" in answer.json()["detail"]
    await elsewhere.settle()


async def test_a_worker_in_quarantine(node: Node) -> None:
    worker = await node.worker()
    worker.end.report("no GPU")
    await worker.pump()
    await node.settle()
    (shown,) = (await node.call("GET", "/workers")).json()["results"]
    assert (shown["state"], shown["health"]) == ("online", "quarantined")
    assert shown["quarantine"] == {"reason": "no GPU", "since": shown["quarantine"]["since"]}
    assert shown["quarantine"]["since"].endswith("Z")


# --- second lives


async def test_requeueing(node: Node) -> None:
    worker, assigned = await node.running()
    path = f"/v1/predictions/{assigned.prediction}/requeue"
    early = await node.call("POST", path)
    assert (early.status_code, early.json()["detail"]) == (409, "The prediction has not ended.")
    await worker.finish((assigned.prediction, assigned.attempt), status="failed", error="a bug")
    assert (await node.call("POST", path, "eve")).status_code == 404
    made = await node.call("POST", path)
    assert made.status_code == 201
    new = made.json()
    assert new["id"] != assigned.prediction
    assert new["status"] == "starting"
    assert made.headers["location"] == new["urls"]["get"]
    again = await node.call("POST", path)
    assert (again.status_code, again.json()["id"]) == (200, new["id"])
    old = (await node.call("GET", f"/predictions/{assigned.prediction}")).json()
    assert (old["status"], old["error"]) == ("failed", "a bug")


async def test_the_list_of_what_struck_out(node: Node) -> None:
    worker, assigned = await node.running()
    for attempt in (1, 2, 3):
        key = (assigned.prediction, attempt)
        if attempt > 1:
            await worker.start(await worker.next())
        await worker.finish(key, status="lost", error="it crashed")
    listed = await node.call("GET", "/predictions?struck_out=true")
    assert [one["id"] for one in listed.json()["results"]] == [assigned.prediction]
    assert listed.json()["results"][0]["status"] == "failed"
    assert (await node.call("GET", "/predictions?struck_out=true", "eve")).json()["results"] == []
    assert (await node.call("GET", "/predictions?struck_out=yes")).status_code == 400
    assert len((await node.call("GET", "/predictions?struck_out=false")).json()["results"]) == 1
    assert (await node.call("POST", f"/predictions/{assigned.prediction}/requeue")).status_code == 201
    assert (await node.call("GET", "/predictions?struck_out=true")).json()["results"] == []


# --- attempts


async def test_attempts(node: Node) -> None:
    worker, assigned = await node.running()
    path = f"/predictions/{assigned.prediction}/attempts"
    (first,) = (await node.call("GET", path)).json()["results"]
    assert first["worker"] == worker.end.worker
    assert first["claimed_at"].endswith("Z")
    assert (first["attempt"], first["ended_at"], first["outcome"]) == (1, None, None)
    await worker.finish((assigned.prediction, assigned.attempt))
    (first,) = (await node.call("GET", path)).json()["results"]
    assert (first["outcome"], first["reason"]) == ("succeeded", None)
    assert first["claimed_at"] <= first["started_at"] <= first["ended_at"] <= first["slot_freed_at"]
    assert (await node.call("GET", path, "eve")).status_code == 404
    assert (await node.call("GET", "/predictions/x/attempts")).status_code == 404


# --- limited tokens


async def test_the_limits_of_a_workers_token(node: Node) -> None:
    limits = {"models": ["ada/noop", "lin/*"], "max_connections": 2}
    order = {"kind": "worker", "name": "a friend's", "account": "ada", **limits}
    made = (await node.call("POST", "/v1/tokens", kind="admin", json=order)).json()
    assert made["join"] == f"{BASE}/join"
    assert {name: made[name] for name in limits} == limits
    caller = await node.accounts.caller(made["token"])
    assert caller is not None
    worker = RigWorker(node, caller, 1)
    await worker.connect()
    shown = (await node.call("GET", f"/v1/tokens/{made['id']}", kind="admin")).json()
    assert {name: shown[name] for name in limits} == limits
    assert (shown["connections"], shown["hint"]) == (1, made["token"][:8])
    assert "token" not in shown
    (listed,) = [
        t for t in (await node.call("GET", "/tokens", kind="admin")).json()["results"] if t["id"] == made["id"]
    ]
    assert listed | {"connections": 1} == shown
    open = (await node.call("POST", "/tokens", kind="admin", json={"kind": "worker", "name": "n"})).json()
    assert (open["models"], open["max_connections"]) == (None, None)


async def test_what_limits_may_not_be(node: Node) -> None:
    good = {"kind": "worker", "name": "n"}
    for wrong, field in (
        ({"models": []}, "models"),
        ({"models": ["noop"]}, "models[0]"),
        ({"models": ["ada/*", "*/*"]}, "models[1]"),
        ({"models": ["a/b\n"]}, "models[0]"),
        ({"models": ["a/b"] * 101}, "models"),
        ({"models": "a/b"}, "models"),
        ({"max_connections": 0}, "max_connections"),
        ({"max_connections": 10**9}, "max_connections"),
        ({"kind": "api", "models": ["a/b"]}, "models"),
        ({"kind": "admin", "max_connections": 3}, "max_connections"),
    ):
        answer = await node.call("POST", "/tokens", kind="admin", json={**good, **wrong})
        assert answer.status_code == 422, wrong
        assert answer.json()["invalid_fields"][0]["field"].startswith(field.partition("[")[0]), wrong


async def test_a_token_is_shown_to_admins_alone(node: Node) -> None:
    made = (await node.call("POST", "/tokens", kind="admin", json={"kind": "api", "name": "n"})).json()
    assert (await node.call("GET", f"/tokens/{made['id']}")).status_code == 403
    for id in ("0" * 26, "x", "%00"):
        assert (await node.call("GET", f"/tokens/{id}", kind="admin")).status_code == 404
