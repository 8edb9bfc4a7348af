"""Creates that are sent again, and what else a create may say in its headers: what clients see of it."""

import asyncio

import pytest

from api.node import BASE, Node

pytestmark = pytest.mark.anyio
BODY = {"input": {"prompt": "hello"}}
CREATE = "/v1/models/ada/noop/predictions"


async def test_a_key_is_answered_with_the_same_prediction(node: Node) -> None:
    await node.worker(slots=0)
    first = await node.call("POST", CREATE, json=BODY, headers={"Idempotency-Key": "order 66"})
    assert first.status_code == 201
    assert "idempotent-replayed" not in first.headers
    content = b'{"input" : {"prompt":"hello"}, "webhook": null}'
    again = await node.call(
        "POST", "/models/ada/noop/predictions", content=content, headers={"Idempotency-Key": "order 66"}
    )
    assert (again.status_code, again.headers["idempotent-replayed"]) == (201, "true")
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["location"] == first.headers["location"]
    by_body = {"version": "ada/noop", **BODY}
    elsewhere = await node.call("POST", "/v1/predictions", json=by_body, headers={"Idempotency-Key": "order 66"})
    assert elsewhere.json()["id"] == first.json()["id"]
    other = await node.call("POST", CREATE, json={"input": {}}, headers={"Idempotency-Key": "order 66"})
    assert (other.status_code, other.headers["x-should-retry"]) == (422, "false")
    assert "Idempotency-Key" in other.json()["detail"]


@pytest.mark.parametrize("key", ["", " ", "x" * 256, "tab\there", "\xe9"])
async def test_a_key_that_is_none_is_refused(node: Node, key: str) -> None:
    await node.worker(slots=0)
    answer = await node.call("POST", CREATE, json=BODY, headers={"Idempotency-Key": key.encode("latin-1")})
    assert answer.status_code == 400
    assert "Idempotency-Key" in answer.json()["detail"]
    assert (await node.call("GET", "/v1/predictions")).json()["results"] == []


async def test_a_refused_create_leaves_its_key(node: Node) -> None:
    headers = {"Idempotency-Key": "k"}
    assert (await node.call("POST", CREATE, json=BODY, headers=headers)).status_code == 404
    await node.worker(slots=0)
    assert (await node.call("POST", CREATE, json={"input": 5}, headers=headers)).status_code == 422
    assert (await node.call("POST", CREATE, json=BODY, headers=headers)).status_code == 201


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/models/ada/noop/predictions", BODY), ("/v1/predictions", {"version": "ada/noop", **BODY})],
)
async def test_put_creates_under_the_clients_id(node: Node, path: str, body: dict[str, object]) -> None:
    await node.worker(slots=0)
    first = await node.call("PUT", f"{path}/my-job:1", json=body)
    assert first.status_code == 201
    shown = first.json()
    assert (shown["id"], shown["status"]) == ("my-job:1", "starting")
    assert shown["urls"]["get"] == first.headers["location"] == f"{BASE}/v1/predictions/my-job:1"
    again = await node.call("PUT", f"{path}/my-job:1", json=body)
    assert (again.status_code, again.headers["idempotent-replayed"]) == (200, "true")
    assert again.json()["urls"] == shown["urls"]
    other = await node.call("PUT", f"{path}/my-job:1", json={**body, "input": {}})
    assert (other.status_code, other.headers["x-should-retry"]) == (422, "false")
    assert (await node.call("GET", shown["urls"]["get"])).json()["id"] == "my-job:1"
    assert (await node.call("GET", "/predictions/my-job:1", "eve")).status_code == 404
    assert (await node.call("GET", "/predictions/my-job:1/attempts")).json() == {"results": []}
    assert [one["id"] for one in (await node.call("GET", "/predictions")).json()["results"]] == ["my-job:1"]
    canceled = await node.call("POST", "/predictions/my-job:1/cancel")
    assert (canceled.json()["id"], canceled.json()["status"]) == ("my-job:1", "canceled")
    assert (await node.call("PUT", f"{path}/my-job:1", json=body)).json()["status"] == "canceled"


@pytest.mark.parametrize("id", ["a b", "x" * 201, "%00", "%2e%2e", "ä", "a%0ab"])
async def test_an_id_that_is_none_is_refused(node: Node, id: str) -> None:
    await node.worker(slots=0)
    for method, status in (("PUT", 400), ("GET", 404)):
        answer = await node.call(method, f"/v1/predictions/{id}", json={"version": "ada/noop", **BODY})
        assert answer.status_code in (status, 404), answer.text
        assert answer.headers["content-type"] == "application/problem+json"


async def test_pages_go_on_behind_ids_of_clients(node: Node) -> None:
    await node.worker(slots=0)
    names = [f"job-{number}" for number in range(130)]
    await asyncio.gather(*(node.call("PUT", f"{CREATE}/{name}", json=BODY) for name in names))
    page = (await node.call("GET", "/v1/predictions")).json()
    seen = [one["id"] for one in page["results"]]
    seen += [one["id"] for one in (await node.call("GET", page["next"])).json()["results"]]
    assert sorted(seen) == sorted(names)


async def test_a_client_that_counts_its_retries_meets_its_original(node: Node) -> None:
    await node.worker(slots=0)

    async def send(number: str) -> tuple[str, bool]:
        answer = await node.call("POST", CREATE, json=BODY, headers={"X-Stainless-Retry-Count": number})
        assert answer.status_code == 201
        return answer.json()["id"], "idempotent-replayed" in answer.headers

    one, two = [(await send("0"))[0] for _ in range(2)]
    assert one != two
    assert {await send("1"), await send("1")} == {(one, True), (two, True)}
    third, is_known = await send("1")
    assert third not in (one, two)
    assert not is_known
    assert (await send("-1"))[1] is False, "what is no count is passed over"
    held = await node.call("POST", CREATE, json=BODY, headers={"X-Stainless-Retry-Count": "2", "Prefer": "wait=1"})
    assert held.json()["id"] == one
    assert (held.json()["status"], held.headers["preference-applied"]) == ("starting", "wait=1")


# --- Cancel-After -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"), [("5", 5), ("90s", 90), ("1h30m45s", 5445), ("2M", 120), ("8760h", 31_536_000)]
)
async def test_cancel_after_is_shown_as_a_deadline(node: Node, text: str, seconds: int) -> None:
    await node.worker(slots=0)
    answer = (await node.call("POST", CREATE, json=BODY, headers={"Cancel-After": text})).json()
    row = await node.predictions.row((await node.caller("ada")).account, answer["id"])
    assert row.deadline == row.created_at + seconds * 1_000_000
    shown = (await node.call("GET", f"/predictions/{answer['id']}")).json()
    assert answer["deadline"] == shown["deadline"]
    plain = (await node.call("POST", CREATE, json=BODY)).json()
    assert "deadline" not in plain


@pytest.mark.parametrize("text", ["4", "0s", "", "soon", "1.5m", "-5", "5d", "8761h", "999999h", "1h 30m"])
async def test_another_cancel_after_is_refused(node: Node, text: str) -> None:
    await node.worker(slots=0)
    answer = await node.call("POST", CREATE, json=BODY, headers={"Cancel-After": text})
    assert (answer.status_code, answer.json()["title"]) == (400, "Invalid header")
    assert "Cancel-After" in answer.json()["detail"]
    assert (await node.call("GET", "/v1/predictions")).json()["results"] == []


# --- what owners set --------------------------------------------------------------------------------------------------


async def test_an_owner_sets_what_holds_for_a_model(node: Node) -> None:
    await node.worker(slots=0)
    unset = {"run_limit_s": None, "start_limit_s": None, "max_queued": None, "rerun": False}
    assert (await node.call("GET", "/models/ada/noop")).json()["limits"] == unset
    wanted = {"run_limit_s": 600, "start_limit_s": 0, "max_queued": 2, "rerun": True, "description": "does nothing"}
    answer = await node.call("PATCH", "/v1/models/ada/noop", json=wanted)
    assert answer.status_code == 200
    assert answer.json()["description"] == wanted.pop("description")
    assert answer.json()["limits"] == wanted
    made = (await node.call("POST", CREATE, json=BODY)).json()
    row = await node.predictions.row((await node.caller("ada")).account, made["id"])
    assert (row.run_limit_s, row.start_by) == (600.0, None)
    back = await node.call("PATCH", "/v1/models/ada/noop", json={"max_queued": None, "start_limit_s": 7.5})
    assert back.json()["limits"] == {**wanted, "max_queued": None, "start_limit_s": 7.5}
    assert back.json()["description"] == "does nothing"
    assert (await node.call("GET", "/models")).json()["results"][0]["limits"]["start_limit_s"] == 7.5
    made = (await node.call("POST", CREATE, json=BODY)).json()
    row = await node.predictions.row((await node.caller("ada")).account, made["id"])
    assert row.start_by == row.created_at + 7_500_000


@pytest.mark.parametrize(
    "body",
    [
        {"run_limit_s": -1},
        {"run_limit_s": "10m"},
        {"run_limit_s": 1e12},
        {"max_queued": 0},
        {"max_queued": 1.5},
        {"rerun": None},
        {"description": "\0"},
        {"owner": "eve"},
        [],
    ],
)
async def test_what_cannot_be_set_is_refused(node: Node, body: object) -> None:
    await node.worker(slots=0)
    answer = await node.call("PATCH", "/v1/models/ada/noop", json=body)
    assert answer.status_code == 422, answer.text
    assert (await node.call("GET", "/models/ada/noop")).json()["limits"]["run_limit_s"] is None


async def test_shared_models_are_an_admins_to_change(node: Node) -> None:
    await node.worker("shared", slots=0)
    refused = await node.call("PATCH", "/v1/models/ada/noop", "eve", json={"max_queued": 1})
    assert refused.status_code == 403
    changed = await node.call("PATCH", "/v1/models/ada/noop", "root", "admin", json={"max_queued": 1})
    assert changed.json()["limits"]["max_queued"] == 1
    await node.worker("ada", slots=0)
    assert (await node.call("PATCH", "/v1/models/ada/noop", "eve", json={"max_queued": 5})).status_code == 403
    assert (await node.call("PATCH", "/v1/models/ada/noop", json={"max_queued": 9})).json()["visibility"] == "private"
    assert (await node.call("GET", "/v1/models/ada/noop", "eve")).json()["limits"]["max_queued"] == 1
    assert (await node.call("PATCH", "/v1/models/ada/none", json={})).status_code == 404


# --- full queues ------------------------------------------------------------------------------------------------------


async def test_a_full_queue_is_429(node: Node) -> None:
    await node.worker(slots=0)
    await node.call("PATCH", "/v1/models/ada/noop", json={"max_queued": 1})
    assert (await node.call("POST", CREATE, json=BODY)).status_code == 201
    headers = {"Idempotency-Key": "k"}
    refused = await node.call("POST", CREATE, json=BODY, headers=headers)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
    assert refused.json() == {
        "detail": "The model ada/noop has reached its limit of 1 waiting predictions. Try again later, or cancel some.",
        "status": 429,
        "title": "Too many waiting predictions",
        "retry_after": 5,
    }
    assert "x-should-retry" not in refused.headers
    assert (await node.call("PUT", f"{CREATE}/job", json=BODY)).status_code == 429
    assert (await node.call("POST", "/predictions/cancel?all=true")).json() == {"canceled": 1, "more": False}
    assert (await node.call("POST", CREATE, json=BODY, headers=headers)).status_code == 201


# --- cancel by filter -------------------------------------------------------------------------------------------------


async def test_filters_cancel(node: Node) -> None:
    await node.worker("shared", slots=0)
    made = [(await node.call("POST", CREATE, json=BODY)).json() for _ in range(3)]
    of_eve = (await node.call("POST", CREATE, "eve", json=BODY)).json()
    path = "/v1/predictions/cancel"
    assert (await node.call("POST", f"{path}?status=processing")).json() == {"canceled": 0, "more": False}
    assert (await node.call("POST", f"{path}?created_after={made[2]['created_at']}")).json()["canceled"] == 1
    assert (await node.call("POST", f"{path}?model=ada/noop&status=starting&all=true")).json()["canceled"] == 2
    assert (await node.call("GET", f"/predictions/{of_eve['id']}", "eve")).json()["status"] == "starting"


async def test_a_model_that_no_store_can_look_for_is_refused(node: Node) -> None:
    for query in ("model=%00", "model=%00&status=failed", "model=%00&struck_out=true"):
        assert (await node.call("GET", f"/v1/predictions?{query}")).status_code == 400


@pytest.mark.parametrize(
    "query",
    [
        "",
        "?all=yes",
        "?all=",
        "?modell=ada/noop&all=true",
        "?status=all",
        "?status=succeeded",
        "?created_after=",
        "?cursor=x",
        "?model=a%00b",
    ],
)
async def test_a_filter_that_is_none_cancels_nothing(node: Node, query: str) -> None:
    await node.worker(slots=0)
    made = (await node.call("POST", CREATE, json=BODY)).json()
    answer = await node.call("POST", f"/v1/predictions/cancel{query}")
    assert answer.status_code == 400, answer.text
    assert (await node.call("GET", f"/predictions/{made['id']}")).json()["status"] == "starting"
