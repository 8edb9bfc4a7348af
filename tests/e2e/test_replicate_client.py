"""Replicate's own Python client, unmodified, against a server with workers: what its users call, as they call it."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from replicate.client import Client
from replicate.exceptions import ModelError, ReplicateError
from replicate.helpers import FileOutput
from replicate.pagination import async_paginate
from replicate.prediction import Prediction

from support.certificates import make_certificate
from support.processes import Server, Stage, version_of
from support.runners import MODELS
from support.scripted_worker import item, schema

pytestmark = pytest.mark.anyio

TEXT = f"me/text:{version_of('text')}"


@pytest.fixture(scope="module")
def server(shared_stage: Stage, cog_cache: Path) -> Server:
    """A server with scripted workers of every kind, and a real one that runs Cog's own server."""
    server = shared_stage.server()
    real = shared_stage.cog(server, "me/tokens", MODELS / "tokens", cog_cache)
    single = shared_stage.scripted(server, "single", slots=20)
    text = shared_stage.scripted(server, "text", slots=20)
    for worker in (single, text, real):
        worker.connected()
    return server


@pytest.fixture
async def client(server: Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    """The client as the environment alone makes it."""
    monkeypatch.setenv("REPLICATE_POLL_INTERVAL", "0.02")
    monkeypatch.setenv("REPLICATE_BASE_URL", server.url)
    monkeypatch.setenv("REPLICATE_API_TOKEN", server.token())
    client = Client()
    yield client
    await close(client)


async def close(client: Client) -> None:
    """Close the connections of a client, which has no method for it."""
    client._client.close()
    await client._async_client.aclose()


# --- run -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["me/single", f"me/single:{version_of('single')}"])
async def test_run_returns_the_output(client: Client, reference: str) -> None:
    answer = {"number": 1.5, "text": "é\u2028", "list": [None, True]}
    assert client.run(reference, input={"output": answer}) == answer
    assert await client.async_run(reference, input={"output": answer}) == answer


async def test_run_of_a_version_yields_what_an_iterator_yields(client: Client) -> None:
    expected = [item(index) for index in range(5)]
    for wait in (True, False):
        assert list(client.run(TEXT, input={"items": 5}, wait=wait)) == expected
        output = await client.async_run(TEXT, input={"items": 5}, wait=wait)
        assert [piece async for piece in output] == expected


async def test_run_of_a_model_joins_its_list(client: Client) -> None:
    assert client.run("me/text", input={"items": 3}) == [item(0), item(1), item(2)]


async def test_run_shows_what_is_yielded_while_it_runs(client: Client) -> None:
    pieces = client.run(TEXT, input={"items": 5, "seconds": 1}, wait=False)
    first = next(pieces)
    running = client.predictions.list().results[0]
    assert running.status == "processing"
    assert [first, *pieces] == [item(index) for index in range(5)]


async def test_run_drives_a_real_cog_model(client: Client) -> None:
    version = client.models.get("me/tokens").latest_version
    assert version is not None
    assert list(client.run(f"me/tokens:{version.id}", input={"count": 4})) == ["w0 ", "w1 ", "w2 ", "w3 "]
    assert client.run("me/tokens", input={"count": 2, "delay_s": 0.01}) == ["w0 ", "w1 "]
    assert client.predictions.list().results[0].logs == "first word\n"


async def test_run_goes_on_after_the_hold(client: Client) -> None:
    """A hold that ends before the model shows `starting`, and the client polls on to the result."""
    held = client.models.predictions.create("me/single", input={"seconds": 1.3}, wait=1)
    assert (held.status, held.output) == ("starting", None)
    assert client.predictions.get(held.id).status == "processing"
    assert client.run("me/single", input={"seconds": 1.3, "output": "late"}, wait=1) == "late"


@pytest.mark.parametrize("wait", [True, False])
async def test_a_failed_model_raises_its_message(client: Client, wait: bool) -> None:
    with pytest.raises(ModelError, match=r"^out of cheese$") as caught:
        client.run("me/single", input={"fail": "out of cheese", "log": 1}, wait=wait)
    failed = caught.value.prediction
    assert (failed.status, failed.logs, failed.output) == ("failed", "line 0\n", None)
    with pytest.raises(ModelError, match=r"^out of cheese$"):
        await client.async_run("me/single", input={"fail": "out of cheese"}, wait=wait)


# --- predictions -----------------------------------------------------------------------------------------------------


async def test_create_reload_and_wait(client: Client) -> None:
    made = client.predictions.create(version=version_of("single"), input={"seconds": 0.1, "log": 2, "output": 7})
    assert (made.status, made.output, made.logs, made.error) == ("starting", None, "", None)
    assert (made.model, made.version, made.input) == (
        "me/single",
        version_of("single"),
        {"seconds": 0.1, "log": 2, "output": 7},
    )
    made.wait()
    made.reload()
    assert (made.status, made.output, made.logs, made.error) == ("succeeded", 7, "line 0\nline 1\n", None)
    assert made.metrics is not None
    # The model's own clock may wake it a little early.
    assert made.metrics["total_time"] >= made.metrics["predict_time"] > 0.09
    assert made.created_at is not None
    assert made.started_at is not None
    assert made.completed_at is not None
    assert made.created_at <= made.started_at < made.completed_at
    assert client.predictions.get(made.id).dict() == made.dict()


async def test_create_reload_and_wait_asynchronously(client: Client) -> None:
    made = await client.predictions.async_create(model="me/single", input={"seconds": 0.1, "output": [1]})
    assert made.status == "starting"
    await made.async_wait()
    await made.async_reload()
    assert (made.status, made.output) == ("succeeded", [1])
    assert (await client.predictions.async_get(made.id)).dict() == made.dict()
    assert (await client.predictions.async_list()).results[0].id == made.id


async def test_create_of_a_model_holds_as_asked(client: Client) -> None:
    held = client.models.predictions.create("me/single", input={"seconds": 0.2}, wait=True)
    assert (held.status, held.output) == ("succeeded", "done")
    held = await client.models.predictions.async_create("me/single", input={"seconds": 0.2}, wait=5)
    assert (held.status, held.output) == ("succeeded", "done")
    assert client.models.predictions.create("me/single", input={"seconds": 0.2}).status == "starting"


async def test_cancel(client: Client, server: Server) -> None:
    made = client.predictions.create(version=version_of("text"), input={"seconds": 60, "items": 1000})
    server.processing(made.id)
    made.cancel()
    assert (made.status, made.error) == ("canceled", None)
    assert made.completed_at is not None
    assert client.predictions.cancel(made.id).dict() == made.dict()
    other = await client.predictions.async_create(model="me/single", input={"seconds": 60})
    await other.async_cancel()
    assert other.status == "canceled"
    assert (await client.predictions.async_cancel(other.id)).status == "canceled"


async def test_cancel_of_what_has_ended_changes_nothing(client: Client) -> None:
    ended = client.models.predictions.create("me/single", input={}, wait=True)
    assert client.predictions.cancel(ended.id).dict() == client.predictions.get(ended.id).dict()
    assert client.predictions.get(ended.id).status == "succeeded"


async def test_pages_show_every_prediction_once(client: Client, server: Server, shared_stage: Stage) -> None:
    shared_stage.scripted(server, "single", slots=20, account="pages").connected()
    url, token = server.url, server.token("api", "pages")
    pager = Client(api_token=token, base_url=url)
    made = [
        server.ask("POST", "/v1/models/pages/single/predictions", token=token, json={"input": {"output": number}})["id"]
        for number in range(250)
    ]
    page, seen, sizes = pager.predictions.list(), list[str](), list[int]()
    while True:
        seen += [shown.id for shown in page.results]
        sizes.append(len(page.results))
        if page.next is None:
            break
        page = pager.predictions.list(page.next)
    assert seen == made[::-1]
    assert sizes == [100, 100, 50]
    back = pager.predictions.list(page.previous)
    assert [shown.id for shown in back.results] == made[::-1][100:200]
    assert pager.predictions.list(back.previous).previous is None
    pages = async_paginate(pager.predictions.async_list)
    assert [shown.id async for one in pages for shown in one] == seen
    await close(pager)


# --- catalog and account ---------------------------------------------------------------------------------------------


async def test_models_and_versions(client: Client) -> None:
    model = client.models.get("me/text")
    assert (model.owner, model.name, model.visibility, model.default_example) == ("me", "text", "private", None)
    assert model.run_count >= 0
    assert model.latest_version is not None
    assert model.latest_version.id == version_of("text")
    assert model.latest_version.openapi_schema == schema("text")
    assert [version.id for version in model.versions.list()] == [version_of("text")]
    assert model.versions.get(version_of("text")).cog_version == "0.16.0"
    assert (await client.models.async_get("me", "text")).latest_version == model.latest_version
    assert [version.id for version in await model.versions.async_list()] == [version_of("text")]
    assert (await model.versions.async_get(version_of("text"))).id == version_of("text")
    assert {shown.name for shown in client.models.list()} == {"single", "text", "tokens"}


async def test_account(client: Client) -> None:
    for account in (client.accounts.current(), await client.accounts.async_current()):
        assert (account.type, account.username, account.name) == ("user", "me", "me")


# --- refusals --------------------------------------------------------------------------------------------------------


async def refused(act: Callable[[], Any]) -> ReplicateError:
    """Return the error that the client raises."""
    with pytest.raises(ReplicateError) as caught:
        act()
    return caught.value


async def test_bad_input_is_told_in_replicates_words(client: Client, server: Server) -> None:
    error = await refused(lambda: client.run("me/single", input={"seconds": "long", "items": -1}))
    lines = (
        "- input.items: Must be greater than or equal to 0\n"
        "- input.seconds: Invalid type. Expected: number, given: string\n"
    )
    assert (error.status, error.title) == (422, "Input validation failed")
    assert error.detail is not None
    assert sorted(error.detail.splitlines()) == lines.splitlines()
    answer = server.call("POST", "/v1/predictions", json={"version": version_of("single"), "input": {"items": 0.5}})
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "detail": "- input.items: Invalid type. Expected: integer, given: number\n",
        "status": 422,
        "title": "Input validation failed",
        "invalid_fields": [
            {
                "type": "invalid_type",
                "field": "input.items",
                "description": "Invalid type. Expected: integer, given: number",
            }
        ],
    }


async def test_unknown_things(client: Client) -> None:
    unknown_version = await refused(lambda: client.predictions.create(version="f" * 64, input={}))
    assert (unknown_version.status, unknown_version.title) == (422, "Invalid version or not permitted")
    for act in (
        lambda: client.predictions.get("0" * 26),
        lambda: client.predictions.cancel("nonsense"),
        lambda: client.models.get("me/nothing"),
        lambda: client.run("me/nothing", input={}),
        lambda: client.models.get("me/text").versions.get("f" * 64),
    ):
        error = await refused(act)
        assert (error.status, error.detail) == (404, "The requested resource could not be found.")


async def test_a_wrong_token_is_refused(server: Server) -> None:
    for token, detail in (
        ("cft_wrong", "You did not pass a valid authentication token"),
        (None, "You did not pass an authentication token"),
    ):
        stranger = Client(api_token=token, base_url=server.url)
        error = await refused(lambda client=stranger: client.run("me/single", input={}))  # type: ignore[misc]
        assert (error.status, error.title, error.detail) == (401, "Unauthenticated", detail)
        await close(stranger)


# --- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_the_base_url_may_have_a_version(server: Server, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setenv("REPLICATE_BASE_URL", server.url + suffix)
    monkeypatch.setenv("REPLICATE_API_TOKEN", server.token())
    monkeypatch.setenv("REPLICATE_POLL_INTERVAL", "0.02")
    client = Client()
    assert client.run("me/single", input={"output": 1}) == 1
    made: Prediction = client.predictions.create(version=version_of("single"), input={"seconds": 0.05})
    made.wait()
    assert made.status == "succeeded"
    assert client.predictions.list().results[0].id == made.id
    await close(client)


# --- https -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that is its own authority, and its key."""
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def secure_server(shared_stage: Stage, cog_cache: Path, certificate: tuple[Path, Path]) -> Server:
    """A server that speaks https only, with workers that trust its certificate."""
    cert, key = certificate
    server = shared_stage.server(scheme="https", tls_cert=str(cert), tls_key=str(key))
    trust = {"SSL_CERT_FILE": str(cert)}
    real = shared_stage.cog(server, "me/frames", MODELS / "frames", cog_cache, environment=trust)
    scripted = shared_stage.scripted(server, environment=trust)
    for worker in (real, scripted):
        worker.connected()
    return server


async def test_files_come_back_as_file_output_over_https(
    secure_server: Server, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    monkeypatch.setenv("REPLICATE_POLL_INTERVAL", "0.02")
    client = Client(api_token=secure_server.token(), base_url=secure_server.url)
    answer = client.run("me/single", input={"file": "grüße"})
    assert isinstance(answer, FileOutput)
    assert answer.url.startswith(f"{secure_server.url}/f/")
    assert answer.read() == "grüße".encode()
    assert await answer.aread() == "grüße".encode()
    expected = [b"\x89PNG" + bytes([number]) for number in range(6)]
    frames = client.run("me/frames", input={"count": 6})
    assert {type(frame) for frame in frames} == {FileOutput}
    assert [b"".join(frame) for frame in frames] == expected
    version = client.models.get("me/frames").latest_version
    assert version is not None
    streamed = client.run(f"me/frames:{version.id}", input={"count": 6}, wait=False)
    assert [frame.read() for frame in streamed] == expected
    await close(client)
