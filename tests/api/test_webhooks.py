"""Webhooks over HTTP: the secret, the log of what became of each message, and sending one once more."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from replicate.webhook import Webhooks, WebhookSigningSecret
from starlette.responses import RedirectResponse, Response

from cogflare.api import predictions, webhooks
from cogflare.api.context import Api
from cogflare.api.gateway import Gateway
from cogflare.api.origin import TrustedProxies
from cogflare.api.routing import Application, table
from cogflare.engine.deliverylog import DeliveryLog
from cogflare.engine.secrets import Signer
from cogflare.engine.webhooks import Terms
from cogflare.net.addresses import Reach
from cogflare.store.base import Database
from cogflare.store.catalog import Caller
from engine.hooked import ORIGIN, Hooked, Receiver, receiver, render
from engine.rig import RigWorker

pytestmark = pytest.mark.anyio

ENDS = ["completed"]
HERE = Reach.of(["127.0.0.0/8"])


class Site(Hooked):
    """A node that delivers, behind an HTTP client."""

    ada: Caller
    worker_of_ada: RigWorker

    def __init__(self, db: Database) -> None:
        super().__init__(db)
        log = DeliveryLog(db, self.clock, self.predictions, Signer(self.secrets), render, Terms(5.0))
        api = Api(
            self.predictions,
            self.catalog,
            self.accounts,
            self.fleet,
            None,  # type: ignore[arg-type]
            db,
            self.clock,
            ORIGIN,
            TrustedProxies(),
            1_000_000,
            self.repeats,
            HERE,
        )
        routes = [*predictions.routes(api), *webhooks.routes(api, self.secrets, log)]
        app = Application(api, table(routes), Gateway(self.fleet))
        self.http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url=ORIGIN)
        self.tokens: dict[tuple[str, str], str] = {}

    async def call(self, method: str, path: str, account: str = "ada", kind: str = "api", **options: Any) -> Any:
        """Send a request as an account."""
        if (account, kind) not in self.tokens:
            created = await self.accounts.create(account, kind, "test")
            assert created is not None
            self.tokens[account, kind] = created.secret
        headers = {"Authorization": f"Bearer {self.tokens[account, kind]}"}
        return await self.http.request(method, f"/v1{path}", headers=headers, **options)

    async def get(self, path: str, account: str = "ada") -> Any:
        """Return the JSON at a path."""
        answer = await self.call("GET", path, account)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def ended(self, url: str, client_id: str | None = None, events: Sequence[str] = ENDS) -> str:
        """Run a prediction with this webhook, whose end is all that it tells, and return its id."""
        order = {"version": "ada/noop", "input": {}, "webhook": url, "webhook_events_filter": events}
        method, path = ("POST", "/predictions") if client_id is None else ("PUT", f"/predictions/{client_id}")
        created = await self.call(method, path, json=order)
        assert created.status_code in (200, 201), created.text
        work = await self.worker_of_ada.next()
        assert await self.worker_of_ada.finish(await self.worker_of_ada.start(work), '"hällo"'.encode()) == "committed"
        await self.deliver()
        return work.prediction


@asynccontextmanager
async def _site(store: Database) -> AsyncIterator[Site]:
    site = Site(store)
    site.ada, site.worker_of_ada = await site.caller("ada"), await site.worker(slots=20)
    yield site
    await site.http.aclose()
    await site.aclose()


@pytest.fixture
async def site(store: Database) -> AsyncIterator[Site]:
    async with _site(store) as site:
        yield site


@pytest.fixture
async def taker() -> AsyncIterator[Receiver]:
    async with receiver() as taker:
        yield taker


# --- secrets ---------------------------------------------------------------------------------------------------------


async def test_the_secret_is_the_accounts_own_and_stays(site: Site) -> None:
    answer = await site.call("GET", "/webhooks/default/secret")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json().keys() == {"key"}
    assert answer.json()["key"].startswith("whsec_")
    assert await site.get("/webhooks/default/secret") == answer.json()
    assert await site.get("/webhooks/default/secret", "bob") != answer.json()
    assert (await site.call("GET", "/webhooks/default/secret", kind="worker")).status_code == 403


async def test_the_validator_of_replicates_client_accepts_before_and_after_a_rotation(
    site: Site, taker: Receiver
) -> None:
    old = (await site.get("/webhooks/default/secret"))["key"]
    await site.ended(taker.url)
    rotated = (await site.call("POST", "/webhooks/default/secret/rotate")).json()
    assert (await site.get("/webhooks/default/secret"))["key"] == rotated["key"] != old
    assert rotated["previous_expires_at"] > rotated["created_at"]
    await site.ended(taker.url)
    accepted = [(0, old), (1, old), (1, rotated["key"])]
    for number, key in accepted:
        body = taker.bodies[number].decode()
        Webhooks.validate(headers=taker.headers[number], body=body, secret=WebhookSigningSecret(key=key), tolerance=60)
    assert "hällo" in taker.bodies[0].decode()


# --- the log ---------------------------------------------------------------------------------------------------------


async def test_a_message_is_shown_as_it_was_sent(site: Site, taker: Receiver) -> None:
    taker.answer = lambda: Response("ça va" * 1000, 202)
    prediction = await site.ended(f"{taker.url}?token=t")
    [listed] = (await site.get("/webhooks/deliveries"))["results"]
    shown = await site.get(f"/webhooks/deliveries/{listed['id']}")
    assert listed == {name: value for name, value in shown.items() if name not in ("request", "log")}
    assert (shown["event"], shown["prediction"], shown["state"]) == ("completed", prediction, "delivered")
    assert shown["next_try_at"] is None
    assert shown["ended_at"] >= shown["created_at"]
    sent = shown["request"]
    assert (sent["method"], sent["url"]) == ("POST", f"{taker.url}?token=t")
    assert sent["body"].encode() == taker.bodies[0]
    assert {name: taker.headers[0][name] for name in sent["headers"]} == sent["headers"]
    [tried] = shown["log"]
    assert (tried["try"], tried["status"], tried["error"]) == (1, 202, None)
    assert tried["answer"] == ("ça va" * 1000)[:1000]
    assert 0 <= tried["duration_s"] < 5


async def test_what_was_sent_before_the_end_is_not_shown_as_the_end(site: Site, taker: Receiver) -> None:
    await site.ended(taker.url, events=["start"])
    [listed] = (await site.get("/webhooks/deliveries"))["results"]
    shown = await site.get(f"/webhooks/deliveries/{listed['id']}")
    assert (shown["event"], shown["state"], shown["request"]) == ("start", "delivered", None)


async def test_a_redirect_is_an_error_that_says_what_to_do(site: Site, taker: Receiver) -> None:
    taker.answer = lambda: RedirectResponse("https://example.com/new", 301)
    await site.ended(taker.url)
    [listed] = (await site.get("/webhooks/deliveries?state=pending"))["results"]
    assert listed["status"] == 301
    assert listed["error"].startswith("answered 301 to https://example.com/new: redirects are not followed")
    assert listed["next_try_at"] > listed["created_at"]


async def test_lists_are_filtered_paged_and_private(
    site: Site, taker: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "PAGE", 2)
    ids = [f"msg_{await site.ended(taker.url)}" for _ in range(4)]
    named = await site.ended(taker.url, "order-7")
    ids.append(f"msg_{named}")
    page, found, path = 0, [], "/webhooks/deliveries?state=delivered"
    while path:
        answer = await site.get(path)
        assert answer["previous"] is None
        found += [delivery["id"] for delivery in answer["results"]]
        path = answer["next"].removeprefix(f"{ORIGIN}/v1") if answer["next"] else ""
        page += 1
    assert (found, page) == (sorted(ids, reverse=True), 3)
    for name in ("order-7", named):
        of_one = (await site.get(f"/webhooks/deliveries?prediction={name}"))["results"]
        assert [delivery["id"] for delivery in of_one] == [f"msg_{named}"]
    assert (await site.get("/webhooks/deliveries?state=failed"))["results"] == []
    for event, count in (("completed", 1), ("start", 0)):
        narrowed = await site.get(f"/webhooks/deliveries?event={event}&prediction=order-7")
        assert len(narrowed["results"]) == count
        assert bool((await site.get(f"/webhooks/deliveries?event={event}"))["results"]) == bool(count)
    assert (await site.get("/webhooks/deliveries", "bob"))["results"] == []
    for path, status in {
        "/webhooks/deliveries?state=lost": 400,
        "/webhooks/deliveries?event=end": 400,
        "/webhooks/deliveries?cursor=x": 404,
        "/webhooks/deliveries?prediction=unknown": 404,
        "/webhooks/deliveries/msg_unknown": 404,
        "/webhooks/deliveries/msg_%00": 404,
    }.items():
        assert (await site.call("GET", path)).status_code == status, path
    for method, path in (("GET", ids[0]), ("POST", f"{ids[0]}/replay")):
        assert (await site.call(method, f"/webhooks/deliveries/{path}", "bob")).status_code == 404


# --- once more -------------------------------------------------------------------------------------------------------


async def test_what_has_arrived_is_sent_once_more_under_its_id(site: Site, taker: Receiver) -> None:
    id = f"msg_{await site.ended(taker.url)}"
    again = await site.call("POST", f"/webhooks/deliveries/{id}/replay")
    assert (again.status_code, again.json()["state"]) == (202, "pending")
    await site.deliver()
    assert taker.ids == {id: 2}
    shown = await site.get(f"/webhooks/deliveries/{id}")
    assert (shown["state"], len(shown["log"])) == ("delivered", 2)


async def test_what_waits_for_its_next_try_is_sent_now(site: Site, taker: Receiver) -> None:
    taker.answer = lambda: Response("broken", 500, {"Retry-After": "3600"})
    id = f"msg_{await site.ended(taker.url)}"
    await site.deliver()
    assert len(taker.got) == 1
    taker.answer = Response
    answer = await site.call("POST", f"/webhooks/deliveries/{id}/replay")
    assert answer.status_code == 202
    await site.deliver()
    shown = await site.get(f"/webhooks/deliveries/{id}")
    assert (shown["state"], [tried["status"] for tried in shown["log"]]) == ("delivered", [500, 200])
    assert shown["error"] is None


async def test_what_is_being_tried_is_not_tried_twice_at_once(site: Site, taker: Receiver) -> None:
    taker.gate.clear()
    order = {"version": "ada/noop", "input": {}, "webhook": taker.url, "webhook_events_filter": ENDS}
    await site.call("POST", "/predictions", json=order)
    work = await site.worker_of_ada.next()
    await site.worker_of_ada.finish(await site.worker_of_ada.start(work))
    await site.deliveries.tick()
    await taker.wait(1)
    answer = await site.call("POST", f"/webhooks/deliveries/msg_{work.prediction}/replay")
    assert (answer.status_code, answer.json()["state"]) == (202, "pending")
    await site.deliveries.tick()
    taker.gate.set()
    await site.deliver()
    assert taker.ids == {f"msg_{work.prediction}": 1}


async def test_a_create_is_told_at_once_what_cannot_be_reached(site: Site) -> None:
    order = {"version": "ada/noop", "input": {}, "webhook": "http://169.254.169.254/latest"}
    refused = await site.call("POST", "/predictions", json=order)
    assert refused.status_code == 422
    [problem] = refused.json()["invalid_fields"]
    assert problem == {
        "type": "format",
        "field": "webhook",
        "description": "169.254.169.254 is an address of an internal network; the operator can allow it with"
        " outgoing_networks",
    }
