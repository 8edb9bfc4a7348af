"""What agents send and fetch by HTTP."""

import asyncio
import hashlib
from collections.abc import AsyncIterator

import msgspec
import pytest

from api.node import MAX_FILE_BYTES, MAX_FILES, MAX_RESULT_BYTES, Node, attempt_path
from cogflare import __version__
from cogflare.engine.accounts import Limits
from cogflare.engine.predictions import Order
from cogflare.protocol.messages import MAX_REASON, OLDEST, PROTOCOL
from engine.rig import RigWorker

pytestmark = pytest.mark.anyio


async def test_a_file_on_its_way_into_an_output(node: Node) -> None:
    worker, assigned = await node.running()
    order = {"filename": "cat.png", "content_type": "image/png", "size": 3}
    ordered = await node.work(worker, "POST", f"{attempt_path(assigned)}/files", json=order)
    assert ordered.status_code == 201
    answer = ordered.json()
    assert answer == {
        "id": answer["id"],
        "reference": f"cogflare-file:/f/{answer['id']}/cat.png",
        "upload": {
            "url": f"worker/v1/files/{answer['id']}",
            "method": "PUT",
            "headers": {},
            "parts": [],
            "part_bytes": 0,
            "upload": "",
        },
        "complete": None,
        "resume": {"url": f"worker/v1/files/{answer['id']}", "complete": f"worker/v1/files/{answer['id']}/complete"},
    }
    assert (await node.work(worker, "PUT", f"/{answer['upload']['url']}", content=b"cat")).status_code == 204
    await worker.finish((assigned.prediction, assigned.attempt), msgspec.json.encode([answer["reference"]]), files=1)
    shown = (await node.call("GET", f"/predictions/{assigned.prediction}")).json()
    assert shown["output"] == [f"https://api.example.net/f/{answer['id']}/cat.png"]
    assert (await node.http.get(shown["output"][0])).content == b"cat"
    late = await node.work(worker, "PUT", f"/{answer['upload']['url']}", content=b"dog")
    assert (late.status_code, late.headers["content-type"]) == (409, "application/problem+json")
    assert (await node.work(worker, "POST", f"{attempt_path(assigned)}/files", json=order)).status_code == 409


async def test_files_that_are_too_large(node: Node) -> None:
    worker, assigned = await node.running()
    order = {"filename": "f", "content_type": "", "size": MAX_FILE_BYTES + 1}
    assert (await node.work(worker, "POST", f"{attempt_path(assigned)}/files", json=order)).status_code == 413
    order["size"] = None
    ordered = await node.work(worker, "POST", f"{attempt_path(assigned)}/files", json=order)
    path = f"/{ordered.json()['upload']['url']}"

    async def endless(pieces: int = 100) -> AsyncIterator[bytes]:
        for _ in range(pieces):
            yield bytes(100_000)

    for content in (bytes(MAX_FILE_BYTES + 1), endless()):
        refused = await node.work(worker, "PUT", path, content=content)
        assert refused.status_code == 413
        assert refused.json()["detail"] == "Files must be less than 3MB in size"
    assert (await node.work(worker, "PUT", path, content=endless(30))).status_code == 204


async def test_there_is_nothing_to_confirm_where_bytes_come_through_us(node: Node) -> None:
    worker, assigned = await node.running()
    ordered = await node.work(worker, "POST", f"{attempt_path(assigned)}/files", json={"filename": "f"})
    path = f"/{ordered.json()['upload']['url']}/complete"
    proof = {"size": 3, "sha256": "a" * 64}
    assert (await node.work(worker, "POST", path, json=proof)).status_code == 409
    assert (await node.work(worker, "POST", path, json={**proof, "sha256": 'a"\r\n'})).status_code == 422


async def test_a_large_result(node: Node) -> None:
    worker, assigned = await node.running()
    output = msgspec.json.encode({"text": "ü€" * 300_000})
    path = f"{attempt_path(assigned)}/result"
    for _ in range(2):
        assert (await node.work(worker, "PUT", path, content=output)).status_code == 204
    for bad in (b"", b"{", b'"\xff"', rb'"\ud800"', b"[" * 200 + b"]" * 200):
        refused = await node.work(worker, "PUT", path, content=bad)
        assert (refused.status_code, refused.json()["title"]) == (400, "Malformed JSON")
    assert (await node.work(worker, "PUT", path, content=bytes(MAX_RESULT_BYTES + 1))).status_code == 413
    await worker.finish((assigned.prediction, assigned.attempt), uploaded=True)
    shown = await node.call("GET", f"/predictions/{assigned.prediction}")
    assert shown.json()["output"] == {"text": "ü€" * 300_000}
    assert (await node.work(worker, "PUT", path, content=b"1")).status_code == 409


async def test_a_large_input(node: Node) -> None:
    worker = await node.worker()
    values = {"prompt": "x" * 800_000}
    order = Order(msgspec.json.encode(values), values, "ada/noop")
    created = await node.predictions.create(await node.caller("ada"), order)
    assigned = await worker.next()
    got = await node.work(worker, "GET", f"{attempt_path(assigned)}/input")
    assert (got.status_code, got.headers["content-type"], got.json()) == (200, "application/json", values)
    await node.predictions.cancel(created.account, created.id)
    assert (await node.work(worker, "GET", f"{attempt_path(assigned)}/input")).status_code == 409


async def test_who_may_come_here(node: Node) -> None:
    worker, assigned = await node.running()
    other = await node.worker()
    path = f"{attempt_path(assigned)}/input"
    assert (await node.http.get(path)).status_code == 401
    for kind in ("api", "admin"):
        assert (await node.call("GET", path, kind=kind)).status_code == 403
    assert (await node.work(worker, "GET", path)).status_code == 200
    assert (await node.work(worker, "GET", path, "eve")).status_code == 404
    assert (await node.work(other, "GET", path)).status_code == 404
    for name in ("", "a b", "a" * 65, "x\xff"):
        refused = await node.call("GET", path, kind="worker", headers={"Cogflare-Worker": name.encode("latin-1")})
        assert refused.status_code == 400


async def test_bad_paths_and_bodies_are_refused(node: Node) -> None:
    worker, assigned = await node.running()
    id = assigned.prediction
    for attempt in ("0", "2", "x", "-1", "1.0", "9" * 5000, "\u0661"):
        assert (await node.work(worker, "GET", f"/worker/v1/attempts/{id}/{attempt}/input")).status_code == 404
    for prediction in ("x", "a" * 26, "%00" * 26, id.upper()):
        assert (await node.work(worker, "GET", f"/worker/v1/attempts/{prediction}/1/input")).status_code == 404
    for file in ("x", "a" * 40, "%00"):
        assert (await node.work(worker, "PUT", f"/worker/v1/files/{file}", content=b"x")).status_code == 404
    path = f"{attempt_path(assigned)}/files"
    for body, status in (
        (b"", 400),
        (b"[]", 422),
        (b"{}", 422),
        (b'{"filename":1}', 422),
        (b'{"filename":"f","size":-1}', 422),
        (b'{"filename":"f","size":1e300}', 422),
        (b'{"filename":"%b"}' % (b"x" * 100_000), 413),
    ):
        refused = await node.work(worker, "POST", path, content=body)
        assert refused.status_code == status, body[:50]
        assert refused.headers["content-type"] == "application/problem+json"


async def test_a_worker_whose_model_was_not_set_up(node: Node) -> None:
    worker = RigWorker(node, await node.caller("ada", "worker"), 1)
    report = {"name": "pc", "model": "ada/noop", "reason": "no module\0named torch"}
    assert (await node.work(worker, "POST", "/worker/v1/setup-failures", json=report)).status_code == 204
    (shown,) = (await node.call("GET", "/workers")).json()["results"]
    assert (shown["id"], shown["name"], shown["state"]) == (worker.end.worker, "pc", "offline")
    assert shown["models"] == [{"model": "ada/noop", "version": "", "slots": 0, "unmet": None}]
    assert (shown["health"], shown["connected_at"]) == ("quarantined", None)
    assert shown["quarantine"]["reason"] == "the model was not set up: no module named torch"
    await worker.connect()
    (shown,) = (await node.call("GET", "/workers")).json()["results"]
    assert (shown["state"], shown["health"], shown["quarantine"]) == ("online", "ok", None)
    assert shown["connected_at"] is not None


async def test_what_a_report_of_a_failed_setup_may_not_be(node: Node) -> None:
    worker = RigWorker(node, await node.caller("ada", "worker"), 1)
    good = {"name": "pc", "model": "ada/noop", "reason": "x"}
    path = "/worker/v1/setup-failures"
    for wrong in ({"model": "noop"}, {"model": "a/b/c"}, {"name": "x" * 101}, {"reason": None}):
        assert (await node.work(worker, "POST", path, json={**good, **wrong})).status_code == 422, wrong
    assert (await node.work(worker, "POST", path, json={**good, "reason": "x" * 70_000})).status_code == 413
    assert (await node.call("POST", path, json=good)).status_code == 403, "no token of a worker"
    assert (await node.call("GET", "/workers")).json()["results"] == []
    assert (await node.work(worker, "POST", path, json={**good, "reason": "x" * 5_000})).status_code == 204
    (shown,) = (await node.call("GET", "/workers")).json()["results"]
    assert len(shown["quarantine"]["reason"]) == MAX_REASON
    foreign = await node.work(worker, "POST", path, "eve", json=good)
    assert foreign.status_code == 403
    assert "another account" in foreign.json()["detail"]


async def test_a_worker_that_sets_its_model_up(node: Node) -> None:
    worker = RigWorker(node, await node.caller("ada", "worker"), 1)
    path, notice = "/worker/v1/setups", {"name": "pc", "model": "ada/noop"}

    async def setup_since() -> int | None:
        [row] = await node.db.read("fleet_of", catalogs=f'["{worker.caller.account}"]', owner="ada", name="noop")
        found: int | None = row[8]
        return found

    for wrong in ({"model": "noop"}, {"name": "x" * 101}, {"is_over": "yes"}):
        assert (await node.work(worker, "POST", path, json={**notice, **wrong})).status_code == 422, wrong
    assert (await node.call("POST", path, json=notice)).status_code == 403, "no token of a worker"
    assert (await node.work(worker, "POST", path, json={**notice, "is_over": True})).status_code == 204
    assert (await node.call("GET", "/workers")).json()["results"] == []
    assert (await node.work(worker, "POST", path, json=notice)).status_code == 204
    (shown,) = (await node.call("GET", "/workers")).json()["results"]
    assert (shown["name"], shown["state"], shown["connected_at"]) == ("pc", "offline", None)
    assert await setup_since() is not None
    assert (await node.work(worker, "POST", path, "eve", json=notice)).status_code == 403
    assert (await node.work(worker, "POST", path, "eve", json={**notice, "is_over": True})).status_code == 204
    assert await setup_since() is not None, "another account's word changes nothing"
    assert (await node.work(worker, "POST", path, json={**notice, "is_over": True})).status_code == 204
    assert await setup_since() is None
    assert (await node.work(worker, "POST", path, json=notice)).status_code == 204
    await worker.connect()
    assert await setup_since() is None


async def test_a_file_that_comes_bit_by_bit(node: Node) -> None:
    worker, assigned = await node.running()
    ordered = await node.work(worker, "POST", f"{attempt_path(assigned)}/files", json={"filename": "a.bin"})
    path, content = f"/{ordered.json()['resume']['url']}", bytes(range(256)) * 2_000

    async def offset() -> tuple[int, str]:
        told = await node.work(worker, "HEAD", path)
        return told.status_code, told.headers["upload-offset"]

    async def add(start: int, end: int) -> tuple[int, str]:
        headers = {"Upload-Offset": str(start)}
        told = await node.work(worker, "PATCH", path, headers=headers, content=content[start:end])
        return told.status_code, told.headers["upload-offset"]

    assert await offset() == (204, "0")
    assert await add(0, 300_000) == (204, "300000")
    assert await add(0, 300_000) == (409, "300000")
    assert await add(400_000, 512_000) == (409, "300000")
    proof = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    early = await node.work(worker, "POST", f"{path}/complete", json=proof)
    assert (early.status_code, early.headers["upload-offset"]) == (409, "300000")
    assert await add(300_000, 512_000) == (204, "512000")
    for _ in range(2):
        assert (await node.work(worker, "POST", f"{path}/complete", json=proof)).status_code == 204
    assert (await node.http.get(ordered.json()["reference"].removeprefix("cogflare-file:"))).content == content


async def test_bytes_that_are_not_what_was_made_are_sent_again(node: Node) -> None:
    worker, assigned = await node.running()
    ordered = await node.work(worker, "POST", f"{attempt_path(assigned)}/files", json={"filename": "a.bin"})
    path = f"/{ordered.json()['resume']['url']}"
    headers = {"Upload-Offset": "0"}
    assert (await node.work(worker, "PATCH", path, headers=headers, content=b"torn")).status_code == 204
    proof = {"size": 4, "sha256": hashlib.sha256(b"good").hexdigest()}
    refused = await node.work(worker, "POST", f"{path}/complete", json=proof)
    assert (refused.status_code, refused.headers["upload-offset"]) == (409, "0")
    assert (await node.work(worker, "HEAD", path)).headers["upload-offset"] == "0"
    assert (await node.work(worker, "PATCH", path, headers=headers, content=b"good")).status_code == 204
    assert (await node.work(worker, "POST", f"{path}/complete", json=proof)).status_code == 204


async def test_what_may_not_be_added_to_a_file(node: Node) -> None:
    worker, assigned = await node.running()
    other = await node.worker()
    ordered = await node.work(worker, "POST", f"{attempt_path(assigned)}/files", json={"filename": "a.bin"})
    path = f"/{ordered.json()['resume']['url']}"
    for told in ({}, {"Upload-Offset": "-1"}, {"Upload-Offset": "x"}, {"Upload-Offset": "9" * 20}):
        assert (await node.work(worker, "PATCH", path, headers=told, content=b"x")).status_code == 400
    start = {"Upload-Offset": "0"}
    for stranger, account in ((other, "ada"), (worker, "eve")):
        assert (await node.work(stranger, "HEAD", path, account)).status_code == 404
        assert (await node.work(stranger, "PATCH", path, account, headers=start, content=b"x")).status_code == 404
    too_far = {"Upload-Offset": str(MAX_FILE_BYTES)}
    assert (await node.work(worker, "PATCH", path, headers=too_far, content=b"x")).status_code == 413
    await worker.finish((assigned.prediction, assigned.attempt))
    for method in ("HEAD", "PATCH"):
        late = await node.work(worker, method, path, headers=start, content=b"x")
        assert (late.status_code, "upload-offset" in late.headers) == (409, False)


# --- what is refused of a worker that is not to be trusted


async def test_so_many_files_of_an_attempt_and_no_more(node: Node) -> None:
    worker, assigned = await node.running()
    path, order = f"{attempt_path(assigned)}/files", {"filename": "f.bin", "size": 1}
    answers = await asyncio.gather(*(node.work(worker, "POST", path, json=order) for _ in range(MAX_FILES + 10)))
    assert sorted(answer.status_code for answer in answers) == [201] * MAX_FILES + [413] * 10
    refused = next(answer for answer in answers if answer.status_code == 413)
    assert refused.json()["detail"] == f"Output has more than {MAX_FILES} files"
    (first, *_) = [answer.json() for answer in answers if answer.status_code == 201]
    assert (await node.work(worker, "PUT", f"/{first['upload']['url']}", content=b"x")).status_code == 204
    assert (await node.work(worker, "POST", path, json=order)).status_code == 413
    _, other = await node.running()
    assert (await node.work(_, "POST", f"{attempt_path(other)}/files", json=order)).status_code == 201, "each its own"


@pytest.mark.parametrize(
    ("told", "stored", "kind"),
    [
        ("image/PNG", "image/png", "inline"),
        ("text/html", "text/html", "attachment"),
        ("image/svg+xml", "image/svg+xml", "attachment"),
        ("text/html\r\nSet-Cookie: a=b", "application/octet-stream", "attachment"),
        ("image/png, text/html", "application/octet-stream", "attachment"),
        ("nonsense", "application/octet-stream", "attachment"),
        ("x" * 1000 + "/y", "application/octet-stream", "attachment"),
        ("", "application/octet-stream", "attachment"),
    ],
)
async def test_the_type_of_a_file_cannot_act_as_a_page_of_ours(node: Node, told: str, stored: str, kind: str) -> None:
    worker, assigned = await node.running()
    path = await node.file(worker, assigned, b"<script>", "../../x\r\n.png", told)
    got = await node.http.get(path)
    assert (got.status_code, got.headers["content-type"]) == (200, stored)
    assert got.headers["content-disposition"].startswith(kind)
    assert got.headers["x-content-type-options"] == "nosniff"
    assert "set-cookie" not in got.headers


async def test_nothing_is_taken_of_an_attempt_that_another_worker_has_taken_over(node: Node) -> None:
    worker, assigned = await node.running()
    ordered = await node.work(worker, "POST", f"{attempt_path(assigned)}/files", json={"filename": "f"})
    file = f"/{ordered.json()['upload']['url']}"
    await node.losses.rescue((assigned.prediction, assigned.attempt), "gone", slot_free=True)
    await node.settle()
    other = await node.worker()
    assert (await other.next()).prediction == assigned.prediction
    order, proof = {"filename": "f"}, {"size": 1, "sha256": "a" * 64}
    for method, path, options in (
        ("POST", f"{attempt_path(assigned)}/files", {"json": order}),
        ("PUT", f"{attempt_path(assigned)}/result", {"content": b"1"}),
        ("GET", f"{attempt_path(assigned)}/input", {}),
        ("PUT", file, {"content": b"x"}),
        ("PATCH", file, {"content": b"x", "headers": {"upload-offset": "0"}}),
        ("HEAD", file, {}),
        ("POST", f"{file}/complete", {"json": proof}),
    ):
        assert (await node.work(worker, method, path, **options)).status_code == 409, (method, path)
    for method, path in (("PUT", file), ("GET", f"{attempt_path(assigned)}/input")):
        assert (await node.work(other, method, path, content=b"x")).status_code == 404, "not given to that one so"


async def test_a_limited_token_reaches_nothing_of_other_models(node: Node) -> None:
    """Not even as the very worker that has the attempt, whose id it has come to know."""
    worker, assigned = await node.running()
    ordered = await node.work(worker, "POST", f"{attempt_path(assigned)}/files", json={"filename": "f"})
    file = f"/{ordered.json()['upload']['url']}"

    async def tried(*models: str) -> list[int]:
        created = await node.accounts.create("ada", "worker", "a friend's", limits=Limits(models=models))
        assert created is not None
        headers = {"Authorization": f"Bearer {created.secret}", "Cogflare-Worker": worker.end.worker}
        notice = {"name": "pc", "model": "ada/noop"}
        asked = [
            await node.http.get(f"{attempt_path(assigned)}/input", headers=headers),
            await node.http.post(f"{attempt_path(assigned)}/files", headers=headers, json={"filename": "f"}),
            await node.http.put(file, headers=headers, content=b"x"),
            await node.http.put(f"{attempt_path(assigned)}/result", headers=headers, content=b"1"),
            await node.http.post("/worker/v1/setups", headers=headers, json=notice),
            await node.http.post("/worker/v1/setup-failures", headers=headers, json={**notice, "reason": "x"}),
            await node.http.get("/worker/v1/link?model=ada/noop", headers=headers),
        ]
        return [answer.status_code for answer in asked]

    assert await tried("ada/other") == [404, 404, 404, 404, 403, 403, 403]
    (shown,) = (await node.call("GET", "/workers")).json()["results"]
    assert (shown["state"], shown["health"], shown["name"]) == ("online", "ok", "rig")
    assert await tried("ada/noop") == [200, 201, 204, 204, 204, 204, 426]


async def test_a_limited_token_cannot_say_that_a_worker_of_other_models_is_broken(node: Node) -> None:
    worker = await node.worker()
    created = await node.accounts.create("ada", "worker", "a friend's", limits=Limits(models=("ada/other",)))
    assert created is not None
    headers = {"Authorization": f"Bearer {created.secret}", "Cogflare-Worker": worker.end.worker}
    report = {"name": "pc", "model": "ada/other", "reason": "a lie"}
    refused = await node.http.post("/worker/v1/setup-failures", headers=headers, json=report)
    assert refused.status_code == 403
    assert "has served models" in refused.json()["detail"]
    (shown,) = (await node.call("GET", "/workers")).json()["results"]
    assert shown["health"] == "ok"


async def test_a_worker_that_asks_beforehand_is_told_what_is_spoken_here(node: Node) -> None:
    worker = RigWorker(node, await node.caller("ada", "worker"), 1)
    answer = await node.work(worker, "GET", "/worker/v1/link?model=ada/noop")
    assert (answer.status_code, answer.headers["upgrade"]) == (426, "websocket")
    told = answer.json()
    assert (told["server"], told["protocol"]) == (__version__, {"oldest": OLDEST, "newest": PROTOCOL})
    assert (await node.http.get("/worker/v1/link")).status_code == 401


async def test_a_workers_token_reads_nothing_of_the_api(node: Node) -> None:
    worker, assigned = await node.running()
    id = assigned.prediction
    for method, path in (
        ("GET", "/v1/predictions"),
        ("GET", f"/v1/predictions/{id}"),
        ("POST", f"/v1/predictions/{id}/cancel"),
        ("GET", f"/v1/predictions/{id}/attempts"),
        ("POST", "/v1/models/ada/noop/predictions"),
        ("GET", "/v1/models"),
        ("GET", "/v1/workers"),
        ("GET", f"/v1/workers/{worker.end.worker}"),
        ("GET", "/v1/tokens"),
        ("GET", "/v1/account"),
        ("GET", "/v1/files"),
    ):
        assert (await node.call(method, path, kind="worker")).status_code == 403, path
