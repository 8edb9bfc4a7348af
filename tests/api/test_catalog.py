"""Account, models and versions, as the real client's classes read them."""

import json
import re

import msgspec
import pytest
from replicate.account import Account
from replicate.model import Model
from replicate.version import Version

from api.node import BASE, Node
from cogflare.protocol.messages import Offer
from cogflare.store.base import Statement

pytestmark = pytest.mark.anyio
SCHEMA = {
    "openapi": "3.0.2",
    "components": {
        "schemas": {
            "Input": {"type": "object", "properties": {"prompt": {"type": "string", "x-order": 0}}},
            "Output": {"type": "array", "items": {"type": "string"}, "x-cog-array-type": "iterator"},
        }
    },
}


async def register(node: Node, account: str, *names: str, version: str = "a" * 64, now: int = 1_000_000) -> None:
    id = "shared" if account == "shared" else (await node.caller(account)).account
    schema = msgspec.Raw(json.dumps(SCHEMA).encode())
    for owner, name in (full.split("/") for full in names):
        await node.catalog.register(id, [Offer(owner, name, version, 1, schema, "0.17.1")], now)


async def test_the_account(node: Node) -> None:
    answer = await node.call("GET", "/v1/account")
    assert answer.json() == {"type": "user", "username": "ada", "name": "ada", "github_url": None}
    assert Account(**answer.json()).username == "ada"


async def test_a_model(node: Node) -> None:
    await register(node, "ada", "acme/llm")
    answer = await node.call("GET", "/models/acme/llm")
    model = Model(**answer.json())
    assert (model.url, model.visibility, model.run_count) == (f"{BASE}/acme/llm", "private", 0)
    assert model.default_example is None
    assert answer.json()["latest_version"] == {
        "id": "a" * 64,
        "created_at": "1970-01-01T00:00:01.000000Z",
        "cog_version": "0.17.1",
        "openapi_schema": SCHEMA,
    }
    await node.create(await node.caller("ada"), "acme/llm")
    assert (await node.call("GET", "/models/acme/llm")).json()["run_count"] == 1


async def test_a_model_without_a_schema_has_one_that_clients_can_read(node: Node) -> None:
    worker = await node.worker()
    worker.end.offers[0] = Offer("ada", "bare", "b" * 64, 1)
    await worker.disconnect()
    await worker.connect()
    answer = (await node.call("GET", "/models/ada/bare")).json()["latest_version"]
    version = Version(**answer)
    assert version.cog_version == "0.16.0"
    assert version.openapi_schema["components"]["schemas"]["Input"]["properties"] == {}
    assert "Output" in version.openapi_schema["components"]["schemas"]


async def test_a_model_without_a_version(node: Node) -> None:
    account = (await node.caller("ada")).account
    await node.db.write(Statement("register_model", {"account": account, "owner": "ada", "name": "empty", "now": 1}))
    answer = await node.call("GET", "/models/ada/empty")
    assert answer.json()["latest_version"] is None
    assert Model(**answer.json()).latest_version is None
    assert (await node.call("GET", "/models/ada/empty/versions")).json()["results"] == []
    assert (await node.call("GET", "/models/ada/empty/versions/undefined")).status_code == 404


async def test_own_and_shared_models(node: Node) -> None:
    await register(node, "ada", "acme/own", "acme/both")
    await register(node, "shared", "acme/both", "acme/common")
    await register(node, "eve", "acme/hidden")
    listed = (await node.call("GET", "/models?sort_by=model_created_at&sort_direction=asc")).json()
    assert [(model["name"], model["visibility"]) for model in listed["results"]] == [
        ("both", "private"),
        ("common", "public"),
        ("own", "private"),
    ]
    assert (listed["next"], listed["previous"]) == (None, None)
    assert (await node.call("GET", "/models/acme/hidden")).status_code == 404
    assert (await node.call("GET", f"/models/acme/hidden/versions/{'a' * 64}")).status_code == 404
    assert (await node.call("GET", "/models/acme/hidden/versions")).status_code == 404


async def test_pages_of_models(node: Node) -> None:
    names = [f"acme/m{number:03}" for number in range(60)]
    await register(node, "ada", *names)
    path, sizes, seen = "/v1/models?sort_by=x", [], []
    while path:
        answer = (await node.call("GET", path)).json()
        sizes.append(len(answer["results"]))
        seen += [f"{model['owner']}/{model['name']}" for model in answer["results"]]
        path = answer["next"]
        assert path is None or path.startswith(f"{BASE}/v1/models?sort_by=x&cursor=")
    assert (sizes, seen) == ([25, 25, 10], names)


async def test_versions_newest_first(node: Node) -> None:
    ids = [f"{number:064x}" for number in range(27)]
    for number, id in enumerate(ids):
        await register(node, "ada", "acme/llm", version=id, now=number)
    page = (await node.call("GET", "/models/acme/llm/versions")).json()
    rest = (await node.call("GET", page["next"])).json()
    assert re.fullmatch(rf"{BASE}/v1/models/acme/llm/versions\?cursor=\w+", page["next"])
    assert [version["id"] for version in page["results"] + rest["results"]] == ids[::-1]
    assert rest["next"] is None
    latest = await node.call("GET", "/models/acme/llm/versions/undefined")
    assert (
        latest.json() == page["results"][0] == (await node.call("GET", f"/models/acme/llm/versions/{ids[-1]}")).json()
    )


async def test_what_is_not_there(node: Node) -> None:
    await register(node, "ada", "acme/llm")
    for path in (
        "/models/acme/none",
        "/models/%00/llm",
        "/models/acme/-x",
        "/models/acme/none/versions",
        "/models/acme/llm/versions/latest",
        f"/models/acme/llm/versions/{'b' * 64}",
        f"/models/acme/none/versions/{'a' * 64}",
        "/models?cursor=x",
        "/models/acme/llm/versions?cursor=bjphYmM",
        "/models/acme/llm/versions?cursor=bjotMQ",
    ):
        answer = await node.call("GET", path)
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json"), path
    for path in ("/account", "/models", "/models/acme/llm"):
        assert (await node.http.get(path)).status_code == 401
        assert (await node.call("GET", path, kind="worker")).status_code == 403


async def test_what_a_model_requires(node: Node) -> None:
    await register(node, "ada", "ada/llm")
    assert (await node.call("GET", "/models/ada/llm")).json()["requirements"] is None
    wanted = {"min_vram_gb": 24.5, "tags": ["fast", "eu"]}
    changed = await node.call("PATCH", "/models/ada/llm", json={"requirements": wanted})
    assert (changed.status_code, changed.json()["requirements"]) == (200, wanted)
    assert (await node.call("PATCH", "/models/ada/llm", json={"rerun": True})).json()["requirements"] == wanted
    assert Model(**changed.json()).name == "llm", "the real client reads it"
    nothings: list[dict[str, object] | None] = [{}, {"min_vram_gb": None}, {"tags": []}, None]
    for nothing in nothings:
        await node.call("PATCH", "/models/ada/llm", json={"requirements": wanted})
        assert (await node.call("PATCH", "/models/ada/llm", json={"requirements": nothing})).json()[
            "requirements"
        ] is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_vram_gb": 0},
        {"min_vram_gb": "24"},
        {"min_vram_gb": 1e6},
        {"tags": ["two words"]},
        {"tags": [f"tag{number}" for number in range(33)]},
        {"tags": ["x" * 65]},
        {"vram": 24},
        "24 GB",
    ],
)
async def test_what_is_no_requirement_is_refused(node: Node, wrong: object) -> None:
    await register(node, "ada", "ada/llm")
    answer = await node.call("PATCH", "/models/ada/llm", json={"requirements": wrong})
    assert answer.status_code == 422
    assert (await node.call("GET", "/models/ada/llm")).json()["requirements"] is None


async def test_requirements_of_a_shared_model_are_not_everybodys_to_set(node: Node) -> None:
    await register(node, "shared", "acme/llm")
    wanted = {"requirements": {"tags": ["fast"]}}
    assert (await node.call("PATCH", "/models/acme/llm", json=wanted)).status_code == 403
    assert (await node.call("PATCH", "/models/acme/llm", "admin", "admin", json=wanted)).status_code == 200
    assert (await node.call("GET", "/models/acme/llm")).json()["requirements"] == {"tags": ["fast"]}
