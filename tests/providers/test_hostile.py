"""What a provider answers that means harm, or is broken: it ends in words, and takes no more than its share."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from cogflare.app import SystemClock
from cogflare.domain.ids import new_key
from cogflare.engine.mirror import items_of
from cogflare.net.base import OutgoingError
from cogflare.net.client import LARGE, SMALL, Client, NoEvents, Site, TooLarge
from cogflare.protocol.messages import MAX_ITEMS
from cogflare.providers.base import Executor, Refused, Sight, Submission, Terms, Unanswered
from cogflare.providers.jobs import Job, Run
from cogflare.providers.jobs import read as read_job
from cogflare.providers.open import Executors
from cogflare.providers.sights import Unreadable, read, sight
from providers.rig import HERE
from support.web import serving

pytestmark = pytest.mark.anyio

KEY = "r8_PLANTEDKEYOFTHESETESTS0123456789abcd"
TERMS = Terms("o/n", "a" * 64, "endpoint")


class Web:
    """A server whose answers are set by path."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.release = asyncio.Event()
        self.app = Starlette(routes=[Route("/{path:path}", self.take, methods=["GET", "POST"])])

    async def take(self, request: Request) -> Response:
        path = f"/{request.path_params['path']}"
        if path == "/held":
            return StreamingResponse(self._held())
        if path == "/events":
            return StreamingResponse(_forever(), media_type="text/event-stream")
        answer = self.answers.get(path, Response(status_code=404))
        return answer if isinstance(answer, Response) else JSONResponse(answer)

    async def _held(self) -> AsyncIterator[bytes]:
        yield b"x" * (2 * SMALL)
        await self.release.wait()


async def _forever() -> AsyncIterator[bytes]:
    while True:
        yield b"data: x\n\n"
        await asyncio.sleep(0.05)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def web() -> Web:
    return Web()


@pytest.fixture
async def site(stack: AsyncExitStack, web: Web) -> Site:
    here = await stack.enter_async_context(serving(web.app))
    client = Client(HERE)
    stack.push_async_callback(client.aclose)
    return client.site(here, KEY)


def opened(site: Site, kind: str = "replicate") -> Executor:
    return Executors(site._client, SystemClock()).open(kind, site.base, KEY)


def order() -> Submission:
    return Submission(new_key(), TERMS, b"{}")


def job(**members: Any) -> Job:
    return read_job(json.dumps({"id": "a", "status": "COMPLETED", **members}).encode())


# --- names, figures and words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", ["", "..", "a/b", "a\0b", "a\nb", "é", "x" * 201, "?x"])
async def test_the_id_of_a_run_is_no_path_and_can_be_stored(site: Site, web: Web, id: str) -> None:
    web.answers["/v1/predictions"] = {"id": id, "status": "starting"}
    with pytest.raises(Unanswered):
        await opened(site).submit(order())
    with pytest.raises(Unreadable):
        job(id=id)


@pytest.mark.parametrize("ms", [-5, 1e308, -1e308, 1e12])
def test_a_time_that_nobody_believes_is_none(ms: float) -> None:
    seen = Run("plain", is_whole=True).sight(job(output=1, executionTime=ms, delayTime=ms))
    assert (seen.state, seen.run_s, seen.queue_s) == ("succeeded", None, None)


@pytest.mark.parametrize("metric", [-1, 1e300, 10**400, True, None, [], "1"])
def test_a_figure_that_nobody_believes_is_none(metric: Any) -> None:
    shown = {"id": "a", "status": "succeeded", "metrics": {"predict_time": metric, "cost": metric}}
    shown |= {"started_at": "0001-01-01T00:00:00Z", "completed_at": "9999-12-31T23:59:59Z"}
    try:
        seen = sight(read(json.dumps(shown).encode()))
    except Unreadable:
        return
    assert (seen.run_s, seen.cost) == (None, None)


def test_metrics_that_nobody_counts_are_passed_over() -> None:
    many = {str(number): 1 for number in range(100_000)}
    assert sight(read(json.dumps({"id": "a", "status": "succeeded", "metrics": many}).encode())).metrics == {}


def test_an_error_may_be_nested_deeply() -> None:
    seen = Run("plain", is_whole=True).sight(job(status="FAILED", error='{"a":' + "[" * 5000 + "]" * 5000 + "}"))
    assert (seen.state, (seen.error or "")[:6]) == ("failed", '{"a":[')


async def test_words_can_be_stored_and_have_an_end(site: Site, web: Web) -> None:
    web.answers["/v1/account"] = PlainTextResponse(b"no\0thing " * 1000, 500)
    told = (await opened(site).check()).text
    assert "\0" not in told
    assert len(told) < 3_000
    web.answers["/v1/account"] = Response(status_code=302, headers={"location": f"http://a.example/{'x' * 5000}"})
    assert len((await opened(site).check()).text) < 500
    web.answers["/v1/account"] = {"username": "x" * 1_000}
    assert not (await opened(site).check()).ok


@pytest.mark.parametrize(
    "workers", [{"idle": -1}, {"idle": 10**30}, {"a\0b": 1}, {"x" * 5000: 1}, {f"s{n}": 1 for n in range(99)}]
)
async def test_workers_that_nobody_has_are_not_reported(site: Site, web: Web, workers: Any) -> None:
    web.answers["/endpoint/health"] = {"workers": workers}
    report = await opened(site, "runpod").check("endpoint")
    assert (report.ok, report.workers) == (False, None)
    assert len(report.text) < 300


@pytest.mark.parametrize("host", ["xn--..", "xn--.%"])
async def test_the_address_of_a_file_may_be_none(site: Site, web: Web, host: str) -> None:
    with pytest.raises(Unanswered, match="is not a URL"):
        await opened(site).fetch(f"http://{host}/f/{'0' * 40}/out.png")
    web.answers["/out.png"] = Response(status_code=302, headers={"location": f"http://{host}/"})
    with pytest.raises(Unanswered, match="is not a URL"):
        await opened(site).fetch(f"{site.base}/out.png")


async def test_the_key_is_not_in_what_a_file_is_called(site: Site, web: Web) -> None:
    headers = {"content-disposition": f'attachment; filename="{KEY}.png"', "content-type": f"image/{KEY}"}
    web.answers["/out.png"] = Response(b"x", headers=headers)
    file = await opened(site).fetch(f"{site.base}/out.png")
    await file.body.aclose()  # type: ignore[attr-defined]
    assert KEY not in file.name + file.content_type


# --- sizes ------------------------------------------------------------------------------------------------------------


async def test_only_a_good_answer_may_be_large(site: Site, web: Web) -> None:
    web.answers["/large"] = Response(b"x" * (SMALL + 1))
    assert (await site.call("GET", "/large")).is_good
    with pytest.raises(TooLarge):
        await site.call("GET", "/large", most=SMALL)
    web.answers["/large"] = Response(b"x" * (SMALL + 1), 500)
    with pytest.raises(TooLarge):
        await site.call("GET", "/large")
    web.answers["/large"] = Response(b"x" * (LARGE + 1))
    with pytest.raises(TooLarge):
        await site.call("GET", "/large")


async def test_large_answers_of_a_site_take_turns(site: Site, web: Web) -> None:
    web.answers["/small"], web.answers["/large"] = Response(b"x"), Response(b"x" * (2 * SMALL))
    held = [asyncio.create_task(site.call("GET", "/held")) for _ in range(2)]
    while not site._large.locked():
        await asyncio.sleep(0.01)
    with pytest.raises(OutgoingError, match="did not answer"):
        await site.call("GET", "/large", timeout_s=0.3)
    assert (await site.call("GET", "/small")).is_good
    web.release.set()
    await asyncio.gather(*held)
    assert len((await site.call("GET", "/large")).body) == 2 * SMALL


async def test_streams_of_a_site_are_bounded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cogflare.net.client._MAX_STREAMS", 2)
    url = f"{site.base}/events"
    streams = [site.events(url) for _ in range(2)]
    for stream in streams:
        await anext(stream)
    with pytest.raises(NoEvents):
        await anext(site.events(url))
    await streams[0].aclose()
    third = site.events(url)
    await anext(third)
    for stream in (streams[1], third):
        await stream.aclose()


async def test_a_schema_may_be_too_large(site: Site, web: Web) -> None:
    version = {"id": "a" * 64, "openapi_schema": {"x": "y" * (1 << 20)}}
    web.answers["/v1/models/o/n"] = {"latest_version": version}
    with pytest.raises(Refused, match="schema"):
        await opened(site).describe("o/n", None, Terms(""))


@pytest.mark.parametrize("cog_version", ["x" * 101, "0.9\0", "0.9\n"])
async def test_the_version_of_cog_can_be_stored(site: Site, web: Web, cog_version: str) -> None:
    web.answers["/v1/models/o/n"] = {"latest_version": {"id": "a" * 64, "cog_version": cog_version}}
    with pytest.raises(Unanswered):
        await opened(site).describe("o/n", None, Terms(""))


async def test_a_list_of_runs_without_webhooks_is_left_early(site: Site, web: Web) -> None:
    page = {"results": [{"id": f"a{number}"} for number in range(201)], "next": f"{site.base}/v1/predictions?cursor=x"}
    asked = []

    async def take(request: Request) -> Response:
        asked.append(request)
        return JSONResponse(page)

    web.app.router.routes.insert(0, Route("/v1/predictions", take))
    with pytest.raises(Unanswered, match="too many"):
        await opened(site).find(new_key(), 0)
    assert len(asked) == 1


def test_what_a_handler_yields_is_bounded() -> None:
    run = Run("plain", is_whole=True)
    part = read_job(json.dumps({"id": "a", "status": "IN_PROGRESS", "stream": [{"output": "x" * (1 << 20)}]}).encode())
    for _ in range(20):
        run.add(part)
        assert run.size <= 17 << 20
    ended = run.sight(job(output=[]))
    assert (ended.state, ended.output is None or bytes(ended.output)) == ("failed", b"[]")
    assert "more than 16777216 bytes" in (ended.error or "")


async def test_what_is_kept_of_ended_runs_is_bounded(site: Site, web: Web) -> None:
    executor = opened(site, "runpod")
    for number in range(8):
        shown = {"id": f"a{number}", "status": "COMPLETED"}
        web.answers[f"/endpoint/status/a{number}"] = shown
        parts = [shown | {"stream": [{"output": "x" * (12 << 20)}]}, shown]
        web.app.router.routes.insert(0, Route(f"/endpoint/stream/a{number}", _in_turn(parts)))
        terms = msgspec.structs.replace(TERMS, shape="plain")
        run = executor._run(f"a{number}", terms, is_whole=True)  # type: ignore[attr-defined]
        assert isinstance(await executor.poll(f"a{number}", terms), Sight)
        assert run.size > 12 << 20
    assert sum(run.size for run in executor._runs.values()) <= 64 << 20  # type: ignore[attr-defined]


def _in_turn(answers: list[Any]) -> Any:
    async def take(request: Request) -> Response:
        return JSONResponse(answers.pop(0))

    return take


def test_a_list_of_too_many_items_is_one_value() -> None:
    few, many = b"[1" + b",1" * 9 + b"]", b"[1" + b",1" * (MAX_ITEMS + 1) + b"]"
    assert len(items_of(msgspec.Raw(few)) or []) == 10
    assert items_of(msgspec.Raw(many)) is None
