"""What servers of Replicate's API may answer: shapes of the service itself, and what nobody should answer."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from types import FunctionType
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from cogflare.app import SystemClock
from cogflare.domain.ids import new_key
from cogflare.net.addresses import PUBLIC, Reach
from cogflare.net.client import BLOT, Client
from cogflare.providers.base import Busy, Denied, Executor, Gone, Refused, Sight, Submission, Terms, Unanswered
from cogflare.providers.open import Executors
from providers.rig import HERE
from support.web import serving

pytestmark = pytest.mark.anyio

KEY = "r8_PLANTEDKEYOFTHESETESTS0123456789abcd"
OFFICIAL = {
    "owner": "black-forest-labs",
    "name": "flux-schnell",
    "is_official": True,
    "latest_version": {"id": "hidden", "cog_version": None, "openapi_schema": {"components": {"schemas": {}}}},
}
RUN = {"id": "gm3qorzdhgbfurvjtvhg6dckhu", "status": "succeeded", "output": "x", "urls": {}}
TERMS = Terms("o/n", "a" * 64)


class Web:
    """A server whose answers are set by path; it keeps the requests."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.requests: list[Request] = []
        self.bodies: list[bytes] = []
        methods = ["GET", "POST", "PUT"]
        self.app = Starlette(routes=[Route("/{path:path}", self.take, methods=methods)])

    async def take(self, request: Request) -> Response:
        self.requests.append(request)
        self.bodies.append(await request.body())
        answer = self.answers.get(f"/{request.path_params['path']}")
        if isinstance(answer, FunctionType):
            answer = answer(request)
        if answer is None:
            return JSONResponse({"detail": "The requested resource could not be found.", "status": 404}, 404)
        return answer if isinstance(answer, Response) else JSONResponse(answer)

    @property
    def authorizations(self) -> set[str | None]:
        return {request.headers.get("authorization") for request in self.requests}


Opened = Callable[..., Executor]


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def web() -> Web:
    return Web()


@pytest.fixture
async def here(stack: AsyncExitStack, web: Web) -> str:
    return await stack.enter_async_context(serving(web.app))


@pytest.fixture
async def opened(stack: AsyncExitStack, here: str) -> Opened:
    def open_one(kind: str = "replicate", base: str = here, key: str = KEY, reach: Reach = HERE) -> Executor:
        client = Client(reach)
        stack.push_async_callback(client.aclose)
        return Executors(client, SystemClock()).open(kind, base, key)

    return open_one


@pytest.fixture
async def executor(opened: Opened) -> Executor:
    return opened()


def order(terms: Terms = TERMS) -> Submission:
    return Submission(new_key(), terms, b'{"prompt": "a cat"}')


async def polled(web: Web, executor: Executor, **members: Any) -> Sight:
    web.answers["/v1/predictions/a"] = {**RUN, "id": "a", **members}
    return await executor.poll("a", TERMS)


# --- shapes of the service --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
async def test_an_address_may_end_in_v1(web: Web, here: str, opened: Opened, end: str) -> None:
    web.answers["/v1/account"] = {"type": "user", "username": "ada", "name": "Ada"}
    report = await opened(base=here + end).check()
    assert (report.ok, report.account, report.is_cogflare) == (True, "ada", False)


async def test_an_official_model_is_run_by_its_name(web: Web, executor: Executor) -> None:
    web.answers["/v1/models/black-forest-labs/flux-schnell"] = OFFICIAL
    web.answers["/v1/models/black-forest-labs/flux-schnell/predictions"] = JSONResponse(
        RUN | {"version": "hidden"}, 201
    )
    found = await executor.describe("me/flux", None, Terms("black-forest-labs/flux-schnell"))
    assert (found.owner, found.name) == ("me", "flux")
    assert found.terms == Terms("black-forest-labs/flux-schnell", None)
    assert json.loads(found.schema or b"") == {"components": {"schemas": {}}}
    again = await executor.describe("me/flux", found.version, Terms("black-forest-labs/flux-schnell"))
    assert (again.version, again.terms) == (found.version, found.terms)
    assert (await executor.submit(order(found.terms))).remote_id == RUN["id"]
    assert json.loads(web.bodies[-1]).keys() == {"input", "webhook", "webhook_events_filter"}


async def test_what_was_described_is_remembered_for_a_moment(web: Web, executor: Executor) -> None:
    web.answers["/v1/models/black-forest-labs/flux-schnell"] = OFFICIAL
    for _ in range(5):
        await executor.describe("black-forest-labs/flux-schnell", None, Terms(""))
    assert len(web.requests) == 1


async def test_a_community_model_is_run_by_its_version(web: Web, executor: Executor) -> None:
    web.answers["/v1/models/o/n"] = {"latest_version": {"id": "a" * 64, "cog_version": "0.9", "openapi_schema": None}}
    web.answers[f"/v1/models/o/n/versions/{'b' * 64}"] = {"id": "b" * 64, "openapi_schema": {}}
    web.answers["/v1/predictions"] = JSONResponse(RUN, 201)
    newest = await executor.describe("o/n", None, Terms(""))
    assert (newest.version, newest.schema, newest.cog_version) == ("a" * 64, None, "0.9")
    older = await executor.describe("o/n", "b" * 64, Terms(""))
    assert older.terms == Terms("o/n", "b" * 64)
    await executor.submit(order(older.terms))
    sent = json.loads(web.bodies[-1])
    assert (sent["version"], sent["input"]) == ("b" * 64, {"prompt": "a cat"})


async def test_what_a_run_took_and_cost(web: Web, executor: Executor) -> None:
    found = await polled(
        web,
        executor,
        created_at="2026-01-02T03:04:05.678000123Z",
        started_at="2026-01-02T03:04:07.678Z",
        completed_at="2026-01-02T03:04:10Z",
        logs=None,
        metrics={"predict_time": 2.25, "total_time": 4, "cost": 0.003, "image_count": 1},
    )
    assert (found.queue_s, found.run_s, found.cost) == (2.0, 2.25, 0.003)
    assert found.logs == ""
    assert bytes(found.metrics["image_count"]) == b"1"
    assert (await polled(web, executor, metrics={"cost": "much"})).cost is None


@pytest.mark.parametrize(
    ("status", "members", "state", "started"),
    [
        ("starting", {}, "waiting", False),
        ("queued", {}, "waiting", False),
        ("processing", {}, "running", True),
        ("succeeded", {}, "succeeded", True),
        ("failed", {"started_at": None}, "failed", False),
        ("failed", {"metrics": {"predict_time": 1.5}}, "failed", True),
        ("canceled", {"metrics": {"predict_time": 0}}, "canceled", False),
        ("canceled", {"started_at": "2026-01-02T03:04:07.678Z"}, "canceled", True),
        ("aborted", {}, "canceled", False),
    ],
)
async def test_states(web: Web, executor: Executor, status: str, members: Any, state: str, started: bool) -> None:
    found = await polled(web, executor, status=status, **members)
    assert (found.state, found.started) == (state, started)
    assert (found.error is None) == (state != "failed")


async def test_data_that_was_removed_is_gone(web: Web, executor: Executor) -> None:
    with pytest.raises(Gone):
        await polled(web, executor, data_removed=True, output=None)


async def test_a_list_may_leave_webhooks_out(web: Web, executor: Executor) -> None:
    mark = new_key()
    web.answers["/v1/predictions"] = {"next": None, "results": [RUN | {"id": "other"}, RUN | {"id": "mine"}]}
    web.answers["/v1/predictions/other"] = RUN | {"id": "other"}
    web.answers["/v1/predictions/mine"] = RUN | {"id": "mine", "webhook": f"https://a.example/v1/hooks/{mark}"}
    found = await executor.find(mark, 0)
    assert found is not None
    assert found.remote_id == "mine"
    assert await executor.find(new_key(), 0) is None


async def test_pages_are_asked_of_the_server_itself(web: Web, executor: Executor, stack: AsyncExitStack) -> None:
    other = Web()
    elsewhere = await stack.enter_async_context(serving(other.app))
    mark, cursor = new_key(), "cD0yMDI2LTAx+KzAz/DQ="
    web.answers["/v1/predictions/mine"] = RUN | {"id": "mine", "webhook": f"https://a.example/{mark}"}
    first = {"next": f"{elsewhere}/v1/predictions?cursor={cursor.replace('+', '%2B')}", "results": []}
    last = {"next": None, "results": [{"id": "mine", "webhook": f"https://a.example/{mark}"}]}
    web.answers["/v1/predictions"] = lambda request: last if request.query_params.get("cursor") == cursor else first
    assert await executor.find(mark, 0) is not None
    assert not other.requests


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "detail", "kind"),
    [
        (402, "You have insufficient credit to run this model.", Denied),
        (401, "You did not pass a valid authentication token", Denied),
        (403, "No permission", Denied),
        (404, "The requested resource could not be found.", Refused),
        (422, "- input: prompt is required\n", Refused),
        (500, "Search service error", Unanswered),
        (503, "Service unavailable", Unanswered),
        (302, "", Denied),
    ],
)
async def test_refusals_are_told_in_its_words(
    web: Web, executor: Executor, status: int, detail: str, kind: type[Exception]
) -> None:
    headers = {"location": "https://other.example/x?key=1"} if status == 302 else {}
    web.answers["/v1/predictions"] = JSONResponse({"title": "T", "detail": detail, "status": status}, status, headers)
    with pytest.raises(kind) as failed:
        await executor.submit(order())
    assert (detail.strip() or "https://other.example/x:") in str(failed.value)
    assert len(web.requests) == 1


@pytest.mark.parametrize(
    ("headers", "body", "pause_s"),
    [
        ({"retry-after": "7"}, {"detail": "throttled"}, 7.0),
        ({}, {"detail": "Request was throttled. Your rate limit resets in ~30s."}, 30.0),
        ({}, {"detail": "throttled"}, 1.0),
    ],
)
async def test_how_long_to_leave_it_alone(web: Web, opened: Opened, headers: Any, body: Any, pause_s: float) -> None:
    executor = opened()
    web.answers["/v1/predictions"] = JSONResponse(body, 429, headers)
    with pytest.raises(Busy) as failed:
        await executor.submit(order())
    assert failed.value.retry_after_s == pytest.approx(pause_s, abs=0.5)
    # Creates are counted apart.
    assert (await polled(web, executor)).state == "succeeded"


@pytest.mark.parametrize(
    "answer",
    [
        PlainTextResponse("<html>Welcome</html>"),
        Response(b'{"id": "a", "status": "succeeded", "output": "\xff"}'),
        Response(b'{"id": "a", "status": "succeeded", "output": "\\ud800"}'),
        Response(b'{"id": "a", "status": "succeeded", "output": ' + b"[" * 5000 + b"]" * 5000 + b"}"),
        JSONResponse([]),
        JSONResponse({"id": 5, "status": "starting"}),
        Response(b""),
    ],
)
async def test_what_cannot_be_read_is_no_answer(web: Web, executor: Executor, answer: Response) -> None:
    web.answers["/v1/predictions"] = answer
    web.answers["/v1/predictions/a"] = answer
    with pytest.raises(Unanswered):
        await executor.submit(order())
    with pytest.raises(Unanswered):
        await executor.poll("a", TERMS)


async def test_an_inside_address_is_not_connected_to(web: Web, opened: Opened) -> None:
    executor = opened(reach=PUBLIC)
    with pytest.raises(Denied, match="internal network"):
        await executor.submit(order())
    assert "internal network" in (await executor.check()).text
    assert not web.requests


@pytest.mark.parametrize(
    ("kind", "base", "key"),
    [
        ("other", "http://a.example", KEY),
        ("replicate", "ftp://a.example", KEY),
        ("replicate", "a.example", KEY),
        ("replicate", f"http://{KEY}@a.example", KEY),
        ("replicate", "http://a.example?x", KEY),
        ("replicate", "http://a.example", ""),
        ("replicate", "http://a.example", f"{KEY} x"),
        ("replicate", "http://a.example", f"{KEY}\n"),
        ("replicate", "http://a.example", f"{KEY}ü"),
    ],
)
async def test_what_cannot_be_opened_is_told(opened: Opened, kind: str, base: str, key: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as failed:
        opened(kind, base, key)
    assert KEY not in repr(failed.value)


# --- the key ----------------------------------------------------------------------------------------------------------


async def test_an_echo_of_the_key_is_blotted_out(web: Web, executor: Executor) -> None:
    web.answers["/v1/predictions"] = JSONResponse({"detail": f"Bearer {KEY} is odd"}, 422)
    with pytest.raises(Refused) as failed:
        await executor.submit(order())
    assert f"Bearer {BLOT} is odd" in str(failed.value)
    found = await polled(
        web, executor, logs=f"env: {KEY}\n", output=[KEY], error=KEY, status="failed", metrics={"k": KEY}
    )
    assert KEY not in repr((found.logs, found.error, bytes(found.output or b""), bytes(found.metrics["k"])))
    web.answers["/v1/account"] = PlainTextResponse(f"no: {KEY}", 500)
    assert KEY not in repr(await executor.check())


async def test_the_key_goes_to_its_own_origin_only(
    web: Web, here: str, executor: Executor, stack: AsyncExitStack
) -> None:
    other = Web()
    elsewhere = await stack.enter_async_context(serving(other.app))
    other.answers["/out.png"] = PlainTextResponse("bytes")
    other.answers["/stream"] = StreamingResponse(iter([b"event: done\ndata: {}\n\n"]), media_type="text/event-stream")
    other.answers["/back"] = RedirectResponse(f"{here}/own.txt")
    web.answers["/away.png"] = RedirectResponse(f"{elsewhere}/out.png")
    web.answers["/own.txt"] = PlainTextResponse("own")
    web.answers["/v1/predictions"] = RedirectResponse(f"{elsewhere}/v1/predictions", 307)
    for url in (f"{elsewhere}/out.png", f"{here}/away.png", f"{elsewhere}/back"):
        file = await executor.fetch(url)
        assert [piece async for piece in file.body]
    with pytest.raises(Denied):
        await executor.submit(order())
    async with asyncio.timeout(5):
        assert [None async for _ in executor.changes(Sight("a", "running", stream=f"{elsewhere}/stream"), TERMS)] == [
            None
        ]
    assert other.authorizations == {None}
    assert len(other.requests) == 4
    told = {request.url.path: request.headers.get("authorization") for request in web.requests}
    # Whoever sends it on to its own server does not choose what is read there with the key.
    assert told == {"/away.png": f"Bearer {KEY}", "/own.txt": None, "/v1/predictions": f"Bearer {KEY}"}


async def test_nothing_of_the_interface_is_read_for_a_model(web: Web, here: str, executor: Executor) -> None:
    for path in ("/v1/account", "/v1/predictions", "/v1/webhooks/default/secret", "/v1/models/me/private.v1"):
        web.answers[path] = {"key": "secret"}
        assert not executor.is_file(f"{here}{path}")
        await executor.fetch(f"{here}{path}")
    web.answers["/files/out.png"] = RedirectResponse(f"{here}/v1/account")
    await executor.fetch(f"{here}/files/out.png")
    told = [request.headers.get("authorization") for request in web.requests]
    assert told == [None] * 4 + [f"Bearer {KEY}", None]


async def test_redirects_are_judged_like_other_addresses(web: Web, here: str, opened: Opened) -> None:
    web.answers["/inside.png"] = RedirectResponse("http://10.0.0.1/out.png")
    web.answers["/round.png"] = RedirectResponse("/round.png")
    web.answers["/odd.png"] = RedirectResponse("file:///etc/passwd")
    web.answers["/none.png"] = Response(status_code=302, headers={"location": "http://[1"})
    with pytest.raises(Refused, match="internal network"):
        await opened().fetch(f"{here}/inside.png")
    for path in ("round", "odd", "none"):
        with pytest.raises(Unanswered):
            await opened().fetch(f"{here}/{path}.png")


@pytest.mark.parametrize(("status", "kind"), [(404, Gone), (410, Gone), (403, Denied), (429, Busy), (500, Unanswered)])
async def test_files_that_are_not_handed_out(
    web: Web, here: str, executor: Executor, status: int, kind: type[Exception]
) -> None:
    web.answers["/out.png"] = Response(status_code=status)
    with pytest.raises(kind):
        await executor.fetch(f"{here}/out.png")


async def test_a_signed_url_that_has_expired_is_gone(web: Web, opened: Opened, here: str) -> None:
    web.answers["/out.png"] = Response(status_code=403)
    with pytest.raises(Gone):
        await opened(base="http://127.0.0.1:1").fetch(f"{here}/out.png")


@pytest.mark.parametrize("model", ["", "o", "o/n/../../account", "o/n?x", "o/n#", "a b/n"])
@pytest.mark.parametrize("kind", ["replicate", "cogflare"])
async def test_a_model_is_no_path(web: Web, opened: Opened, kind: str, model: str) -> None:
    with pytest.raises(Refused):
        await opened(kind).submit(order(Terms(model)))
    assert not web.requests


async def test_names_of_files(web: Web, here: str, executor: Executor) -> None:
    names = {
        None: "out%20put.png",
        'attachment; filename="a.png"': "a.png",
        "inline; filename*=UTF-8''c%C3%A4t.png": "cät.png",
        "inline; filename=../../etc/passwd": "passwd",
    }
    for told, name in names.items():
        headers = {} if told is None else {"content-disposition": told}
        web.answers["/out put.png"] = Response(b"x", headers=headers)
        file = await executor.fetch(f"{here}/out%20put.png?signature=1")
        assert file.name == name.replace("%20", " ")
        await file.body.aclose()  # type: ignore[attr-defined]
