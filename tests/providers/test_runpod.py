"""What is special to RunPod, with real workers of the `runpod` package, and its local API server."""

import asyncio
import json
from base64 import b64decode
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cogflare.agent.runners.cogserver import CogServer
from cogflare.agent.runners.cogyaml import read_config
from cogflare.agent.runners.driver import wait_ready
from cogflare.agent.runners.environment import ensure, scrubbed
from cogflare.agent.runners.process import ServerProcess, free_port
from cogflare.agent.scratch import Scratch
from cogflare.app import SystemClock
from cogflare.domain.ids import is_version
from cogflare.net.client import Client
from cogflare.providers.base import Busy, Denied, Gone, Refused, Sight, Submission, Terms, Unanswered
from cogflare.providers.open import Executors
from cogflare.providers.runpod import RunPod
from providers.rig import HERE
from providers.runpod_place import RunPodPlace
from support.runners import MODELS
from support.runpod import KEY
from support.runpod_queue import Endpoint, Fault
from support.web import serving

pytestmark = pytest.mark.anyio

PATIENCE_S = 20
PLAIN = Terms("me/ours", endpoint="plain")
NOBODY = {"idle": 0, "initializing": 0, "ready": 0, "running": 0, "throttled": 0, "unhealthy": 0}


class LateClock(SystemClock):
    """A clock that can be set forward."""

    ahead_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_s


class Rig:
    """An executor, and the platform that it calls."""

    def __init__(self, place: RunPodPlace, client: Client) -> None:
        self.place = place
        self.clock = LateClock()
        self._executors = Executors(client, self.clock)
        self.executor = self.opened()

    def opened(self, key: str = KEY) -> RunPod:
        """Return another executor, as another server, or this one after a restart, has it."""
        executor = self._executors.open("runpod", self.place.url, key)
        assert isinstance(executor, RunPod)
        return executor

    def endpoint(self, terms: Terms = PLAIN) -> Endpoint:
        """Return the endpoint that the terms name."""
        return self.place.runpod.endpoint(terms.endpoint)

    async def submit(self, terms: Terms = PLAIN, **input: Any) -> Sight:
        """Make a run without limits."""
        return await self.executor.submit(Submission("m" * 26, terms, msgspec.json.encode(input)))

    async def until(self, sight: Sight, terms: Terms, holds: Callable[[Sight], object]) -> Sight:
        """Poll until it holds."""
        async with asyncio.timeout(PATIENCE_S):
            while not holds(found := await self.executor.poll(sight.remote_id, terms)):
                await asyncio.sleep(0.02)
        return found

    async def ended(self, terms: Terms = PLAIN, **input: Any) -> Sight:
        """Make a run and return its end."""
        return await self.until(await self.submit(terms, **input), terms, lambda seen: seen.is_ended)


@pytest.fixture
async def rig(runpod: RunPodPlace) -> AsyncIterator[Rig]:
    client = Client(HERE)
    yield Rig(runpod, client)
    runpod.heal()
    plain = runpod.runpod.endpoint("plain")
    plain.counts, plain.is_held, plain.hurry = None, False, 1.0
    await client.aclose()


@pytest.fixture(scope="module")
def generator(runpod: RunPodPlace) -> Terms:
    """An endpoint that tells each part of an output only once."""
    runpod.runpod.worker("generator", "generator")
    return Terms("me/parts", endpoint="generator")


@pytest.fixture(scope="module")
def aggregate(runpod: RunPodPlace) -> Terms:
    """An endpoint that tells each part of an output, and all of it at the end."""
    runpod.runpod.worker("aggregate", "aggregate")
    return Terms("me/parts", endpoint="aggregate")


def value(sight: Sight) -> Any:
    return None if sight.output is None else json.loads(bytes(sight.output))


# --- plain handlers ---------------------------------------------------------------------------------------------------


async def test_the_handler_gets_the_input_and_its_answer_is_the_output(rig: Rig) -> None:
    seen = await rig.ended(prompt="é", nested={"list": [None, 1]}, seconds=0.1)
    assert value(seen) == {"echo": {"prompt": "é", "nested": {"list": [None, 1]}, "seconds": 0.1}}
    assert (seen.state, seen.started, seen.error, seen.cost) == ("succeeded", True, None, None)
    job = rig.endpoint().jobs[seen.remote_id].shown()
    assert seen.run_s == job["executionTime"] / 1000 >= 0.1
    assert seen.queue_s == job["delayTime"] / 1000


@pytest.mark.parametrize("answer", [None, [], False, 0, "", {"a": {}}, [1, {"b": None}]])
async def test_any_answer_is_an_output(rig: Rig, answer: Any) -> None:
    seen = await rig.ended(output=answer)
    assert (seen.state, value(seen)) == ("succeeded", answer)


async def test_an_exception_is_told_in_its_words_and_its_trace_is_in_the_logs(rig: Rig) -> None:
    seen = await rig.ended(fail="out of cheese")
    assert (seen.state, seen.error, seen.started) == ("failed", "out of cheese", True)
    assert seen.logs.startswith("Traceback")
    assert seen.logs.endswith("ValueError: out of cheese\n")


async def test_an_error_that_the_handler_returns_is_told(rig: Rig) -> None:
    seen = await rig.ended(error="no such style")
    assert (seen.state, seen.error, seen.logs) == ("failed", "no such style", "")


async def test_progress_is_told_in_the_logs(rig: Rig) -> None:
    made = await rig.submit(progress=["10 %", {"step": 2}], seconds=1, output=["done"])
    seen = await rig.until(made, PLAIN, lambda seen: seen.logs)
    assert (seen.state, seen.output) == ("running", None)
    seen = await rig.until(made, PLAIN, lambda seen: seen.is_ended)
    assert (seen.logs, value(seen)) == ('10 %\n{"step":2}\n', ["done"])


async def test_a_plain_handler_is_not_asked_for_parts_for_long(rig: Rig) -> None:
    for _ in range(2):
        rig.place.runpod.queue.calls.clear()
        await rig.ended(output="x", seconds=0.2)
    assert not [call for call in rig.place.runpod.queue.calls if "/stream/" in call]


async def test_limits_and_the_callback_go_along(rig: Rig) -> None:
    told: asyncio.Queue[Any] = asyncio.Queue()

    async def hear(request: Request) -> Response:
        await told.put(await request.json())
        return Response()

    async with serving(Starlette(routes=[Route("/hooks/mark", hear, methods=["POST"])])) as url:
        order = Submission("m" * 26, PLAIN, b'{"output":1}', 60.5, 30.0, f"{url}/hooks/mark")
        made = await rig.executor.submit(order)
        assert (await asyncio.wait_for(told.get(), PATIENCE_S))["id"] == made.remote_id
    request = rig.endpoint().jobs[made.remote_id].request
    assert request["policy"] == {"executionTimeout": 60_500, "ttl": 90_500}
    assert request["webhook"] == f"{url}/hooks/mark"


@pytest.mark.parametrize(
    ("run_s", "start_s", "policy"),
    [
        (None, None, None),
        (None, 60.0, None),
        (0.5, None, {"executionTimeout": 5_000}),
        (1.0, 1.0, {"executionTimeout": 5_000, "ttl": 10_000}),
        (1e9, 1e9, {"executionTimeout": 604_800_000, "ttl": 604_800_000}),
    ],
)
async def test_limits_stay_within_what_runpod_takes(
    rig: Rig, run_s: float | None, start_s: float | None, policy: Any
) -> None:
    made = await rig.executor.submit(Submission("m" * 26, PLAIN, b"{}", run_s, start_s))
    assert rig.endpoint().jobs[made.remote_id].request.get("policy") == policy


async def test_a_run_that_takes_too_long_fails_in_words(rig: Rig) -> None:
    rig.endpoint().hurry = 25
    made = await rig.executor.submit(Submission("m" * 26, PLAIN, b'{"seconds":600}', 5.0))
    seen = await rig.until(made, PLAIN, lambda seen: seen.is_ended)
    assert (seen.state, seen.started) == ("failed", True)
    assert seen.error is not None
    assert "longer than its time limit" in seen.error


async def test_what_runpod_has_thrown_away_is_gone(rig: Rig) -> None:
    endpoint = rig.endpoint()
    endpoint.is_held, endpoint.hurry = True, 100
    made = await rig.executor.submit(Submission("m" * 26, PLAIN, b"{}", 5.0, 5.0))
    with pytest.raises(Gone):
        await rig.until(made, PLAIN, lambda seen: seen.is_ended)


# --- handlers that yield ----------------------------------------------------------------------------------------------


async def test_parts_are_seen_while_it_runs_and_kept_at_the_end(rig: Rig, generator: Terms) -> None:
    parts = ["a", {"b": [1]}, None, "ü"]
    made = await rig.submit(generator, parts=parts, seconds=0.4)
    seen = await rig.until(made, generator, lambda seen: seen.output)
    assert seen.state == "running"
    assert value(seen) == parts[: len(value(seen))]
    seen = await rig.until(made, generator, lambda seen: seen.is_ended)
    assert (seen.state, value(seen)) == ("succeeded", parts)
    assert await rig.executor.poll(made.remote_id, generator) == seen


async def test_parts_that_came_before_an_exception_are_kept(rig: Rig, generator: Terms) -> None:
    seen = await rig.ended(generator, parts=["a", "b"], fail="out of cheese")
    assert (seen.state, seen.error, value(seen)) == ("failed", "out of cheese", ["a", "b"])
    assert "ValueError: out of cheese" in seen.logs


async def test_a_handler_that_keeps_its_parts_outlasts_a_restart(rig: Rig, aggregate: Terms) -> None:
    made = await rig.submit(aggregate, parts=["a", "b", "c"], seconds=0.15)
    await rig.until(made, aggregate, lambda seen: seen.output)
    rig.executor = rig.opened()
    seen = await rig.until(made, aggregate, lambda seen: seen.is_ended)
    assert (seen.state, value(seen)) == ("succeeded", ["a", "b", "c"])


async def test_an_output_with_holes_is_not_shown_as_whole(rig: Rig, generator: Terms) -> None:
    made = await rig.submit(generator, parts=["a", "b", "c"], seconds=0.15)
    await rig.until(made, generator, lambda seen: seen.output)
    rig.executor = rig.opened()
    seen = await rig.until(made, generator, lambda seen: seen.is_ended)
    assert seen.state == "failed"
    assert seen.error is not None
    assert "return_aggregate_stream" in seen.error


async def test_parts_that_did_not_arrive_are_missed(rig: Rig, generator: Terms) -> None:
    made = await rig.submit(generator, parts=["a", "b", "c"], seconds=0.5)
    rig.place.runpod.queue.faults["stream"] = Fault(502, is_late=True, times=4)
    await rig.until(made, generator, lambda seen: seen.state == "running")
    rig.place.heal()
    seen = await rig.until(made, generator, lambda seen: seen.is_ended)
    assert seen.state == "failed"
    assert seen.error is not None
    assert "return_aggregate_stream" in seen.error


async def test_a_pause_loses_no_parts(rig: Rig, generator: Terms) -> None:
    made = await rig.submit(generator, parts=["a", "b", "c"], seconds=0.5)
    rig.place.runpod.queue.faults["stream"] = Fault(429, headers={"Retry-After": "1"})
    await rig.until(made, generator, lambda seen: seen.state == "running")
    rig.clock.ahead_s += 1
    seen = await rig.until(made, generator, lambda seen: seen.is_ended)
    assert (seen.state, value(seen)) == ("succeeded", ["a", "b", "c"])


async def test_a_cancel_frees_the_worker(rig: Rig, generator: Terms) -> None:
    made = await rig.submit(generator, parts=["a"], seconds=600)
    await rig.until(made, generator, lambda seen: seen.output)
    await rig.executor.cancel(made.remote_id, generator)
    seen = await rig.executor.poll(made.remote_id, generator)
    assert (seen.state, seen.started, value(seen)) == ("canceled", True, ["a"])
    assert value(await rig.ended(generator, parts=["next"])) == ["next"]


# --- the package's local API server -----------------------------------------------------------------------------------


async def test_the_local_api_server_runs_a_handler(rig: Rig) -> None:
    rig.place.runpod.local("local", "plain")
    terms = Terms("me/ours", endpoint="local")
    assert value(await rig.ended(terms, x=[1])) == {"echo": {"x": [1]}}
    failed = await rig.ended(terms, fail="out of cheese")
    assert (failed.state, failed.error) == ("failed", "out of cheese")


async def test_the_local_api_server_runs_a_handler_that_yields(rig: Rig) -> None:
    terms = Terms("me/ours", endpoint="localparts")
    endpoint = rig.place.runpod.local("localparts", "generator")
    for endpoint.is_streamed in (False, True):
        assert value(await rig.ended(terms, parts=["a", "b"])) == ["a", "b"]
        assert (await rig.ended(terms, parts=["a"], fail="x")).state == "failed"


# --- Cog's server behind a handler ------------------------------------------------------------------------------------


@pytest.fixture
async def cog(runpod: RunPodPlace, cog_cache: Path, tmp_path: Path) -> AsyncIterator[Terms]:
    """An endpoint whose handler passes its input on to Cog's own server with a real model."""
    folder, port = MODELS / "diarist", free_port()
    config = read_config(folder, None)
    bin_dir = await ensure(cog_cache, folder, config.wishes("0.23.1"), lambda text: None)
    environ = scrubbed() | {"PATH": f"{bin_dir}:/usr/bin:/bin", "COG_PREDICT_TYPE_STUB": config.entry}
    process = await ServerProcess.start(
        bin_dir / "python",
        ["-m", "cog.server.http", "--host", "127.0.0.1"],
        folder=folder,
        environ=environ | {"PORT": str(port)},
        scratch=Scratch.at(tmp_path),
    )
    try:
        await wait_ready(server := CogServer(url := f"http://127.0.0.1:{port}"), lambda text: None, 30)
        await server.close()
        runpod.runpod.worker("cog", "cog", {"COG_URL": url})
        yield Terms("me/diarist", endpoint="cog", shape="cog")
    finally:
        await process.stop(3)


async def test_a_cog_image_behind_a_handler_answers_as_cog_does(rig: Rig, cog: Terms, tmp_path: Path) -> None:
    seen = await rig.ended(cog, diary=f"{tmp_path}/diary", seconds=0.1)
    logs = "".join(f"step {number}\n" for number in range(10))
    assert (seen.state, value(seen), seen.logs, seen.error) == ("succeeded", "rested", logs, None)
    assert float(bytes(seen.metrics["predict_time"])) >= 0.1
    failed = await rig.ended(cog, diary=f"{tmp_path}/nowhere/diary", seconds=0)
    assert (failed.state, value(failed)) == ("failed", None)
    assert failed.error is not None
    assert "No such file" in failed.error
    assert "predict_time" in failed.metrics
    refused = await rig.ended(cog, diary=f"{tmp_path}/diary", seconds=-1)
    assert refused.state == "failed"
    assert refused.error is not None
    assert "seconds" in refused.error


async def test_a_handler_that_is_not_cogs_says_so(rig: Rig) -> None:
    seen = await rig.ended(msgspec.structs.replace(PLAIN, shape="cog"), output={"a": 1})
    assert seen.state == "failed"
    assert seen.error is not None
    assert "shape of its route to plain" in seen.error


# --- endpoints --------------------------------------------------------------------------------------------------------


async def test_an_endpoint_tells_of_its_workers(rig: Rig) -> None:
    report = await rig.executor.check("plain")
    assert (report.ok, report.workers) == (True, 1)
    report = await rig.executor.check("nowhere")
    assert not report.ok
    assert "no endpoint nowhere" in report.text
    report = await rig.executor.check()
    assert (report.ok, report.workers) == (True, None)


async def test_an_endpoint_without_workers_is_told_with_what_to_do(rig: Rig) -> None:
    rig.endpoint().counts = NOBODY
    report = await rig.executor.check("plain")
    assert (report.ok, report.workers) == (False, 0)
    for words in ("the endpoint plain has no workers", "7 days", "max workers"):
        assert words in report.text


@pytest.mark.parametrize(
    ("counts", "ok", "workers"),
    [
        ({"initializing": 1}, True, 0),
        ({"throttled": 2}, False, 0),
        ({"unhealthy": 1}, False, 0),
        ({"idle": 1, "ready": 1, "throttled": 2}, True, 1),
        ({"running": 2, "idle": 1, "ready": 3}, True, 3),
    ],
)
async def test_what_the_workers_of_an_endpoint_can_do(rig: Rig, counts: dict[str, int], ok: bool, workers: int) -> None:
    rig.endpoint().counts = counts
    report = await rig.executor.check("plain")
    assert (report.ok, report.workers) == (ok, workers)
    assert report.text


async def test_nothing_is_sent_to_an_endpoint_that_has_lost_its_workers(rig: Rig) -> None:
    endpoint = rig.endpoint()
    jobs, endpoint.counts = len(endpoint.jobs), NOBODY
    with pytest.raises(Busy, match="no workers") as busy:
        await rig.submit()
    assert busy.value.retry_after_s is not None
    rig.clock.ahead_s += busy.value.retry_after_s + 0.1
    with pytest.raises(Refused, match="no workers"):
        await rig.submit()
    assert len(endpoint.jobs) == jobs
    endpoint.counts = None
    rig.clock.ahead_s += 15
    assert (await rig.ended(output=1)).state == "succeeded"


async def test_a_run_does_not_wait_for_workers_that_are_gone(rig: Rig) -> None:
    endpoint = rig.endpoint()
    endpoint.is_held = True
    made = await rig.submit()
    endpoint.counts = NOBODY
    for _ in range(2):
        assert (await rig.executor.poll(made.remote_id, PLAIN)).state == "waiting"
        rig.clock.ahead_s += 16
    seen = await rig.executor.poll(made.remote_id, PLAIN)
    assert (seen.state, seen.started) == ("canceled", False)
    assert seen.error is not None
    assert "no workers" in seen.error
    assert endpoint.jobs[made.remote_id].status == "CANCELLED"


async def test_a_health_that_does_not_answer_keeps_nothing_back(rig: Rig) -> None:
    rig.place.runpod.queue.faults["health"] = Fault(500, "", times=9)
    assert (await rig.ended(output=1)).state == "succeeded"


async def test_an_endpoint_stands_for_a_model(rig: Rig) -> None:
    terms = Terms("", "ignored", endpoint="plain", shape="cog")
    found = await rig.executor.describe("me/ours", None, terms)
    assert (found.owner, found.name, found.schema, found.cog_version) == ("me", "ours", None, "")
    assert is_version(found.version)
    assert found.version == (await rig.executor.describe("me/other", "0" * 64, PLAIN)).version
    assert found.terms == Terms("me/ours", None, "plain", "cog")
    with pytest.raises(Refused, match="no endpoint nowhere"):
        await rig.executor.describe("me/ours", None, Terms("me/ours", endpoint="nowhere"))
    with pytest.raises(Denied):
        await rig.opened("wrong_KEYTHATNOBODYKNOWS").describe("me/ours", None, PLAIN)


@pytest.mark.parametrize("endpoint", ["", "../plain", "plain/run", "plain?x=1", "ä", "x" * 101])
async def test_what_is_no_endpoint_is_refused(rig: Rig, endpoint: str) -> None:
    with pytest.raises(Refused, match="not the id of an endpoint"):
        await rig.submit(Terms("me/ours", endpoint=endpoint))


# --- nonsense ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body", ["", "null", "[]", "{}", '{"id": 1, "status": "X"}', '{"id": "x", "status": "X"', "<p>"]
)
async def test_an_answer_that_is_no_job_is_none(rig: Rig, body: str) -> None:
    made = await rig.submit()
    rig.place.runpod.queue.faults["status"] = Fault(200, body)
    with pytest.raises(Unanswered):
        await rig.executor.poll(made.remote_id, PLAIN)


@pytest.mark.parametrize(
    ("shown", "state", "error"),
    [
        ({"status": "PAUSED"}, "waiting", None),
        ({"status": "FAILED"}, "failed", "It failed without a message."),
        ({"status": "FAILED", "error": {"code": 7}}, "failed", '{"code":7}'),
        ({"status": "FAILED", "error": '{"error_message": "", "error_type": "KeyError"}'}, "failed", "KeyError"),
        ({"status": "FAILED", "error": "a\0b"}, "failed", "a\N{REPLACEMENT CHARACTER}b"),
        ({"status": "COMPLETED", "output": 1, "executionTime": 1.5, "delayTime": None}, "succeeded", None),
        ({"status": "CANCELLED", "executionTime": 0}, "canceled", None),
    ],
)
async def test_jobs_of_other_shapes_are_read(rig: Rig, shown: Any, state: str, error: str | None) -> None:
    made = await rig.submit(output=1)
    rig.place.runpod.queue.faults["status"] = Fault(200, json.dumps({"id": made.remote_id, **shown}))
    seen = await rig.executor.poll(made.remote_id, PLAIN)
    assert (seen.state, seen.error) == (state, error)


# --- files ------------------------------------------------------------------------------------------------------------


async def bytes_of(size: int) -> AsyncIterator[bytes]:
    for begin in range(0, size, 1 << 20):
        yield b"\xff" * min(1 << 20, size - begin)


async def test_a_file_goes_along_as_text(rig: Rig) -> None:
    url = await rig.executor.upload("a.png", "image/png", 7_000_000, bytes_of(7_000_000))
    head, _, content = url.partition(",")
    assert head == "data:image/png;base64"
    assert b64decode(content) == b"\xff" * 7_000_000
    assert value(await rig.ended(image=url, output="taken")) == "taken"
    assert (await rig.executor.upload("a", "evil\r\n,", 1, bytes_of(1))).startswith("data:application/octet-stream;")


@pytest.mark.parametrize(("told", "size"), [(7_000_001, 0), (1, 7_000_001)])
async def test_a_large_file_is_refused_with_what_to_do(rig: Rig, told: int, size: int) -> None:
    with pytest.raises(Refused, match=r"a\.png has 7\.0 MB.*give it as a URL"):
        await rig.executor.upload("a.png", "image/png", told, bytes_of(size))


async def test_a_large_input_is_refused_with_what_to_do(rig: Rig) -> None:
    jobs = len(rig.endpoint().jobs)
    with pytest.raises(Refused, match=r"the input has 11\.0 MB.*give large files as URLs"):
        await rig.submit(text="x" * 11_000_000)
    assert len(rig.endpoint().jobs) == jobs


@pytest.mark.parametrize(
    ("text", "is_file"),
    [
        ("https://bucket.s3.us-east-1.amazonaws.com/a.png?X-Amz-Algorithm=x&X-Amz-Expires=9&X-Amz-Signature=00", True),
        ("https://1234.r2.cloudflarestorage.com/bucket/a.png?x-amz-signature=00", True),
        ("https://bucket.s3.amazonaws.com/a.png?AWSAccessKeyId=A&Signature=b%3D&Expires=1700000000", True),
        ("https://storage.googleapis.com/b/a.png?X-Goog-Signature=00", True),
        ("https://a.blob.core.windows.net/b/a.png?se=2030&sig=x", True),
        ("https://bucket.s3.amazonaws.com/a.png", False),
        ("https://example.com/a.png?expires=1", False),
        ("https://example.com/ a.png?X-Amz-Signature=00", False),
        ("ftp://example.com/a.png?X-Amz-Signature=00", False),
        ("https://[nowhere/a.png?X-Amz-Signature=00", False),
        ("data:image/png;base64,AAAA", False),
        ("text", False),
    ],
)
async def test_signed_urls_are_files(rig: Rig, text: str, is_file: bool) -> None:
    assert rig.executor.is_file(text) is is_file


async def test_a_file_is_fetched_without_the_key(rig: Rig) -> None:
    asked: list[dict[str, str]] = []

    async def file(request: Request) -> Response:
        asked.append(dict(request.headers))
        return Response(b"content", media_type="image/png")

    async with serving(Starlette(routes=[Route("/a.png", file)])) as url:
        found = await rig.executor.fetch(f"{url}/a.png?X-Amz-Signature=00")
        assert (found.name, found.content_type, found.size) == ("a.png", "image/png", 7)
        assert b"".join([piece async for piece in found.body]) == b"content"
        with pytest.raises(Gone):
            await rig.executor.fetch(f"{url}/other.png?X-Amz-Signature=00")
    with pytest.raises(Gone):
        await rig.executor.fetch(f"{rig.place.url}/plain/health?X-Amz-Signature=00")
    assert KEY not in repr(asked)
