"""The HTTP dialect of 2022 beside Replicate's: what is recognized, what is shown, and what callbacks get."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from msgspec import Raw
from starlette.responses import Response

from api.test_webhooks import HERE
from cogflare.api import admin, dialect, predictions
from cogflare.api.context import Api
from cogflare.api.gateway import Gateway
from cogflare.api.origin import TrustedProxies
from cogflare.api.problems import Problem
from cogflare.api.routing import Application, table
from cogflare.api.wire import Links
from cogflare.engine.service import Tasks
from cogflare.engine.views import PredictionView
from cogflare.store import deliveries
from cogflare.store.base import Database, Statement
from cogflare.store.inquiries import Ran
from engine.hooked import ORIGIN, Hooked, Receiver, receiver
from engine.rig import VERSION, RigWorker

pytestmark = pytest.mark.anyio

OLD = {"model": "ada/noop", "input": {"prompt": "a nightmare"}}
CREATED = {"id", "urls", "source", "created_at", "version", "model", "status", "input"}
RESULT = {"output", "logs", "error", "metrics", "completed_at", "runner", "cogflare"}


class Bots(Hooked):
    """A node that speaks to bots of 2022 and to Replicate's clients."""

    token = ""

    def __init__(self, db: Database) -> None:
        async def render(view: PredictionView, origin: str | None) -> bytes:
            return await predictions.show(db, view, Links(origin or ""), "webhook")

        super().__init__(db, render=render)
        shared = self.predictions, self.catalog, self.accounts, self.fleet
        trusted = TrustedProxies()
        api = Api(*shared, None, db, self.clock, ORIGIN, trusted, 1_000_000, self.repeats, HERE)  # type: ignore[arg-type]
        routes = [*predictions.routes(api), *admin.routes(api)]
        app = Application(api, table(routes), Gateway(self.fleet))
        self.http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url=ORIGIN)

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> httpx2.Response:
        """Send a request; without headers it has the token as Replicate's clients send it."""
        sent = headers or {"authorization": f"Token {self.token}"}
        return await self.http.request(method, f"/v1{path}", json=body, headers=sent)

    async def shown(self, method: str, path: str, body: Any = None, **headers: str) -> dict[str, Any]:
        """Return the JSON of an answer that has to be a success."""
        answer = await self.call(method, path, body, **headers)
        assert answer.is_success, answer.text
        document: dict[str, Any] = answer.json()
        return document


@asynccontextmanager
async def _bots(store: Database) -> AsyncIterator[Bots]:
    node = Bots(store)
    created = await node.accounts.create("ada", "api", "bot")
    assert created is not None
    node.token = created.secret
    yield node
    await node.http.aclose()
    await node.aclose()


@pytest.fixture
async def bots(store: Database) -> AsyncIterator[Bots]:
    async with _bots(store) as node:
        yield node


@pytest.fixture
async def worker(bots: Bots) -> RigWorker:
    return await bots.worker(slots=5)


@pytest.fixture
async def taker() -> AsyncIterator[Receiver]:
    async with receiver() as taker:
        yield taker


# --- what is recognized ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, {"callbackUrl": "https://bot.example/x", "model": "a/b", "input": {}}),
        ({}, {"callbackUrl": None, "model": "a/b", "version": None, "input": {}}),
        ({}, {"callbackUrl": "https://bot.example/x", "version": VERSION, "input": {}, "webhook": "https://x.example"}),
        ({}, {"model": "a/b", "input": {}}),
        ({}, {"model": "a/b", "version": VERSION, "input": {}, "stream": None}),
        ({dialect.HEADER: "t"}, {"version": VERSION, "input": {}}),
    ],
)
def test_bots_are_recognized(headers: dict[str, str], body: dict[str, Any]) -> None:
    assert dialect.is_spoken(headers, json.dumps(body).encode())


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, {"version": VERSION, "input": {}}),
        ({}, {"version": "a/b", "input": {}, "webhook": "https://x.example"}),
        ({}, {"model": "a/b", "input": {}, "webhook": "https://x.example"}),
        ({}, {"model": "a/b", "input": {}, "stream": True}),
        ({}, {"version": VERSION, "input": {}, "webhook": "https://x.example", "callbackUrl": None}),
        ({dialect.HEADER: "t"}, {"version": VERSION, "input": {}, "webhook_events_filter": ["completed"]}),
        ({}, ["callbackUrl"]),
        ({}, {"model": None, "input": {}}),
    ],
)
def test_others_are_not(headers: dict[str, str], body: Any) -> None:
    assert not dialect.is_spoken(headers, json.dumps(body).encode())


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"input": {}, "callbackUrl": "https://bot.example"}, 400, "Model and/or version must be specified"),
        ({"model": "", "version": None, "input": {}}, 400, "Model and/or version must be specified"),
        ({"model": "a/b"}, 422, "input is required"),
        ({"model": "a/b", "input": [1]}, 422, "input: Invalid type. Expected: object, given: array"),
        ({"model": 7, "input": {}}, 422, "model: Invalid type. Expected: string, given: integer"),
        ({"model": "noop", "input": {}}, 422, "model: Does not match format 'owner/name'"),
        ({"model": "a/b/c", "input": {}}, 422, "The specified version does not exist"),
        ({"version": "latest", "input": {}}, 422, "The specified version does not exist"),
        ({"model": "a/b", "input": {}, "callbackUrl": "ftp://bot.example"}, 422, "callbackUrl: Does not match format"),
        ({"model": "a/b", "input": {}, "callbackUrl": "http://127.0.0.1/x"}, 422, "callbackUrl: "),
        (
            {"model": "a/b", "input": {}, "callbackUrl": "https://bot.example", "webhook": "https://bot.example"},
            422,
            "webhook is not known beside callbackUrl: use the one or the other",
        ),
        ({"model": "a/b", "input": {}, "callbackUrl": "https://bot.example", "route": "classic"}, 422, "route is not"),
        ([], 422, "Invalid type. Expected: object"),
    ],
)
def test_wrong_creates_are_refused_in_words(body: Any, status: int, said: str) -> None:
    with pytest.raises(Problem) as refused:
        dialect.parse(json.dumps(body).encode())
    assert (refused.value.status, said in refused.value.detail) == (status, True), refused.value.detail


def test_fields_of_the_other_dialect_that_ask_for_nothing_are_passed_over() -> None:
    nothing: dict[str, Any] = {"webhook": None, "webhook_events_filter": [], "stream": False, "unknown": "x"}
    body: dict[str, Any] = {"model": "a/b", "input": {}, "callbackUrl": "https://bot.example/x", **nothing}
    order, model, _ = dialect.parse(json.dumps(body).encode())
    assert (order.webhook, model) == ("https://bot.example/x", "a/b")


# --- what is shown ---------------------------------------------------------------------------------------------------


async def test_a_bot_makes_a_prediction_and_reads_it_to_its_end(bots: Bots, worker: RigWorker) -> None:
    headers = {"X-Cogflare-Token": bots.token}
    made = await bots.shown("POST", "/predictions", {**OLD, "version": "1" * 64}, **headers)
    assert made.keys() == CREATED
    assert (made["status"], made["source"], made["model"], made["version"]) == (
        "creating",
        "cogflare",
        "ada/noop",
        VERSION,
    )
    url = f"{ORIGIN}/v1/predictions/{made['id']}"
    assert made["urls"] == {"get": url, "cancel": f"{url}/cancel"}
    path = f"/predictions/{made['id']}"
    work = await worker.next()
    assert (await bots.shown("GET", path, **headers))["status"] == "starting"
    assert isinstance(work.input, Raw)
    assert json.loads(bytes(work.input)) == OLD["input"]
    key = await worker.start(work)
    await bots.checkpoints.tick()
    running = await bots.shown("GET", path)
    assert (running["status"], running["output"]) == ("processing", None)
    assert "completed_at" not in running
    await worker.finish(key, b'["a","b"]')
    ended = await bots.shown("GET", path)
    assert ended.keys() == CREATED | RESULT
    assert (ended["status"], ended["output"], ended["error"]) == ("succeeded", ["a", "b"], None)
    assert (ended["runner"], ended["cogflare"]) == ("runpod", True)
    assert ended["metrics"]["predict_time"] >= 0


async def test_what_nobody_has_taken_is_creating(bots: Bots, worker: RigWorker) -> None:
    for _ in range(5):
        await bots.shown("POST", "/predictions", OLD)
    waiting = await bots.shown("POST", "/predictions", OLD)
    shown = await bots.shown("GET", f"/predictions/{waiting['id']}")
    assert (shown["status"], set(shown)) == ("creating", CREATED)


async def test_a_canceled_one_has_two_l(bots: Bots, worker: RigWorker) -> None:
    made = await bots.shown("POST", "/predictions", OLD)
    canceled = await bots.shown("POST", f"/predictions/{made['id']}/cancel")
    assert (canceled["status"], canceled["error"]) == ("cancelled", None)


async def test_each_is_shown_as_its_client_speaks(bots: Bots, worker: RigWorker) -> None:
    """Beside each other in a list, and whoever asks."""
    old = await bots.shown("POST", "/predictions", OLD)
    answer = await bots.call("POST", "/predictions", {"version": "ada/noop", "input": {}})
    new = answer.json()
    assert (answer.status_code, new["status"], new["logs"]) == (201, "starting", "")
    listed = {one["id"]: one for one in (await bots.shown("GET", "/predictions"))["results"]}
    assert listed[old["id"]]["source"] == "cogflare"
    assert listed[new["id"]]["source"] == "api"
    shown = await bots.shown("GET", f"/predictions/{new['id']}", **{"X-Cogflare-Token": bots.token})
    assert shown["urls"].keys() == {"get", "cancel", "web", "stream"}
    bodies: list[dict[str, Any]] = [
        {"version": "ada/noop", "input": {}, "model": "ada/noop", "webhook": "https://x.example"},
        {"input": {}},
    ]
    for body in bodies:
        refused = await bots.call("POST", "/predictions", body)
        assert (refused.status_code, refused.json()["title"]) == (422, "Input validation failed")


async def test_the_old_header_opens_what_authorization_does(bots: Bots, worker: RigWorker) -> None:
    assert (await bots.call("GET", "/predictions", **{"X-Cogflare-Token": bots.token})).status_code == 200
    assert (await bots.call("GET", "/predictions", **{"X-Cogflare-Token": "wrong"})).status_code == 401
    both = {"X-Cogflare-Token": bots.token, "Authorization": "Basic abc"}
    assert (await bots.call("GET", "/predictions", **both)).status_code == 200
    assert (await bots.call("GET", "/predictions", **{**both, "Authorization": "Token wrong"})).status_code == 401
    neither = await bots.call("POST", "/predictions", {"input": {}}, **{"X-Cogflare-Token": bots.token})
    assert (neither.status_code, neither.json()["detail"]) == (400, "Model and/or version must be specified")


async def test_a_version_alone_is_that_version(bots: Bots, worker: RigWorker) -> None:
    headers = {"X-Cogflare-Token": bots.token}
    made = await bots.shown("POST", "/predictions", {"version": VERSION, "input": {}}, **headers)
    assert (made["model"], made["version"]) == ("ada/noop", VERSION)
    unknown = await bots.call("POST", "/predictions", {"version": "1" * 64, "input": {}}, **headers)
    assert unknown.status_code == 422
    assert (await bots.call("POST", "/predictions", {**OLD, "model": "ada/unknown"})).status_code == 404


async def test_it_is_given_up_after_30_minutes(bots: Bots, worker: RigWorker) -> None:
    made = await bots.shown("POST", "/predictions", OLD)
    await worker.start(await worker.next())
    await bots.checkpoints.tick()
    for seconds, status, error in (
        (29 * 60, "processing", None),
        (61, "cancelled", "It did not end in time and was given up."),
    ):
        bots.pass_by(seconds)
        for _ in range(2):  # the first look sees that time has jumped
            await bots.limits.tick()
        shown = await bots.shown("GET", f"/predictions/{made['id']}")
        assert (shown["status"], shown["error"]) == (status, error)


async def test_what_is_requeued_speaks_as_before(bots: Bots, worker: RigWorker) -> None:
    made = await bots.shown("POST", "/predictions", OLD)
    await worker.finish(await worker.start(await worker.next()), status="failed", error="no luck")
    assert (await bots.shown("GET", f"/predictions/{made['id']}"))["error"] == "no luck"
    again = await bots.shown("POST", f"/predictions/{made['id']}/requeue")
    assert (again["status"], again["source"]) == ("creating", "cogflare")


@pytest.mark.parametrize(
    ("ran", "fields"),
    [
        (Ran("w1", None, None), {"runner": "runpod", "cogflare": True}),
        (Ran("provider:p", "replicate", "xyz"), {"runner": "replicate", "replicateId": "xyz"}),
        (Ran("provider:p", "cogflare", None), {"runner": "replicate"}),
        (Ran("provider:p", "runpod", "job"), {"runner": "runpod"}),
        (None, {}),
    ],
)
def test_the_runner_is_named_in_the_words_of_then(ran: Ran | None, fields: dict[str, Any]) -> None:
    view = PredictionView("p", "a", "o/n", VERSION, "processing", 1, 0, Raw(b"{}"), dialect="2022")
    shown = json.loads(dialect.render(view, Links("http://x"), ran))
    assert {name: shown[name] for name in ("runner", "cogflare", "replicateId") if name in shown} == fields


# --- callbacks -------------------------------------------------------------------------------------------------------


async def test_a_callback_sees_every_change(bots: Bots, worker: RigWorker, taker: Receiver) -> None:
    made = await bots.shown("POST", "/predictions", {**OLD, "callbackUrl": taker.url})
    await bots.deliver()
    [(_, first)] = taker.got
    assert first == made
    key = await worker.start(await worker.next())
    await bots.tell()
    worker.end.log(key, "step 1\n")
    await worker.pump()
    bots.pass_by(1)
    await bots.tell()
    await worker.finish(key, b'"done"')
    await bots.deliver()
    bodies = [body for _, body in taker.got]
    assert [body["status"] for body in bodies] == ["creating", "processing", "processing", "succeeded"]
    assert [body.get("logs") for body in bodies] == [None, "", "step 1\n", "step 1\n"]
    assert bodies[-1]["output"] == "done"
    assert all(body["source"] == "cogflare" for body in bodies)
    assert all(count == 1 for count in taker.ids.values())
    assert all(headers["webhook-signature"].startswith("v1,") for headers in taker.headers)


async def test_one_that_is_over_at_once_is_told_of_in_order(bots: Bots, worker: RigWorker, taker: Receiver) -> None:
    await bots.shown("POST", "/predictions", {**OLD, "callbackUrl": taker.url})
    await worker.finish(await worker.start(await worker.next()), b'"done"')
    for _ in range(4):
        await bots.deliver()
    assert [body["status"] for _, body in taker.got] == ["creating", "processing", "processing", "succeeded"]
    assert not taker.overlaps
    assert taker.got[0][1].keys() == CREATED


async def test_a_receiver_that_fails_at_first_gets_the_rest(bots: Bots, worker: RigWorker, taker: Receiver) -> None:
    """A creation has one try, so that nothing waits for it; the end has as many as it takes."""
    taker.answer = lambda: Response(status_code=500)
    await bots.shown("POST", "/predictions", {**OLD, "callbackUrl": taker.url})
    await bots.deliver()
    taker.answer = Response
    await worker.finish(await worker.start(await worker.next()))
    for _ in range(3):
        await bots.deliver()
    caller = await bots.accounts.caller(bots.token)
    assert caller is not None
    found = {row.event: (row.state, row.tries) for row in await bots.log(caller)}
    assert found.pop("created") == ("failed", 1)
    assert found.keys() == {"start", "output", "completed"}
    assert set(found.values()) == {("delivered", 1)}


async def test_a_node_that_dies_over_a_creation_leaves_it_to_the_next(
    bots: Bots, worker: RigWorker, taker: Receiver
) -> None:
    made = await bots.shown("POST", "/predictions", {**OLD, "callbackUrl": taker.url})
    await bots.deliveries.stop(1)
    [waiting] = await deliveries.waiting(bots.db, "", 10)
    term = bots.deliveries._terms.of(bots.clock.wall())
    [claimed] = await deliveries.claim(bots.db, {waiting.host: 5}, term)
    assert (claimed.event, claimed.tries) == ("created", 1)
    await worker.finish(await worker.start(await worker.next()))
    assert await deliveries.claim(bots.db, {waiting.host: 5}, term) == []
    bots.pass_by(30)
    next_node = Bots(bots.db)
    next_node.moved.ahead_s, next_node.moved.wall_ahead_s = bots.moved.ahead_s, bots.moved.wall_ahead_s
    for _ in range(4):
        await next_node.deliver()
    assert [body["status"] for _, body in taker.got][:2] == ["creating", "processing"]
    assert taker.got[-1][1]["status"] == "succeeded"
    assert taker.got[0][1]["id"] == made["id"]
    await next_node.http.aclose()
    await next_node.aclose()


async def test_a_start_that_was_cut_off_is_told_before_the_end(bots: Bots, worker: RigWorker, taker: Receiver) -> None:
    """Also where it has ended meanwhile: as it was then."""
    await bots.shown("POST", "/predictions", {**OLD, "callbackUrl": taker.url})
    await bots.deliver()
    taker.gate.clear()
    key = await worker.start(await worker.next())
    await bots.checkpoints.tick()
    await taker.wait(2)
    # The node that was sending is gone, with what it would have noted.
    await bots.db.write(Statement("extend_delivery", {**await pending(bots, "start"), "until": bots.clock.wall() - 1}))
    await worker.finish(key, b'"done"')
    bots.deliveries._flights = Tasks()
    await bots.deliveries.tick()
    await taker.wait(3)
    taker.gate.set()
    for _ in range(4):
        bots.pass_by(1)
        await bots.deliver()
    assert [body["status"] for _, body in taker.got][:3] == ["creating", "processing", "processing"]
    assert taker.got[1][0] == taker.got[2][0]
    assert taker.got[2][1]["output"] is None
    assert taker.got[-1][1]["status"] == "succeeded"


async def pending(bots: Bots, event: str) -> dict[str, Any]:
    """Return the id and the tries of the pending message about this."""
    caller = await bots.accounts.caller(bots.token)
    assert caller is not None
    [row] = await bots.log(caller, event=event, state="pending")
    return {"id": row.id, "tries": row.tries}


async def test_webhooks_of_replicates_clients_hear_nothing_of_creations(
    bots: Bots, worker: RigWorker, taker: Receiver
) -> None:
    body = {"version": "ada/noop", "input": {}, "webhook": taker.url}
    await bots.shown("POST", "/predictions", body)
    await worker.finish(await worker.start(await worker.next()))
    for _ in range(3):
        await bots.deliver()
    assert [body["status"] for _, body in taker.got][-1] == "succeeded"
    assert all("logs" in body and "webhook" in body for _, body in taker.got)
