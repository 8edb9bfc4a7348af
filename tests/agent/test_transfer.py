"""Large things by HTTP, against a real server that fails as told."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import msgspec
import pytest
from msgspec import Raw
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cogflare.agent.address import ServerAddress
from cogflare.agent.courier import Superseded, Ticket, TooLarge, TransferError
from cogflare.agent.transfer import Transfer
from cogflare.protocol.messages import MAX_REASON
from support.until import until
from support.web import serving

pytestmark = pytest.mark.anyio

KEY = ("p", 3)
BODY = b"0123456789" * 100_000


class Store:
    """The server's side: `fail` maps "METHOD leaf" to statuses to answer first; 0 breaks the connection."""

    def __init__(self) -> None:
        self.fail: dict[str, list[int]] = {}
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.upload_base = ""
        self.complete: str | None = "/done"
        self.headers = {"x-signed": "yes"}
        self.order_answer: object = None

    def app(self) -> Starlette:
        routes = [Route("/{path:path}", self._any, methods=["GET", "PUT", "POST"])]
        return Starlette(routes=routes)

    def seen(self, leaf: str) -> list[tuple[str, str, dict[str, str], bytes]]:
        return [request for request in self.requests if request[1].endswith(leaf)]

    async def _any(self, request: Request) -> Response:
        leaf = request.url.path.rpartition("/")[2]
        body = await request.body()
        self.requests.append((request.method, request.url.path, dict(request.headers), body))
        failures = self.fail.get(f"{request.method} {leaf}", [])
        if failures:
            status = failures.pop(0)
            if status == 0:
                raise ConnectionError("cut")
            return JSONResponse({"detail": "as told"}, status)
        if leaf == "files":
            answer = self.order_answer or {
                "id": "f1",
                "reference": "https://files/f1",
                "upload": {"url": f"{self.upload_base}/raw/f1", "method": "PUT", "headers": self.headers},
                "complete": self.complete,
            }
            return JSONResponse(answer, 201)
        if leaf == "input":
            return JSONResponse({"big": True})
        return Response(status_code=204)


@asynccontextmanager
async def moving() -> AsyncIterator[tuple[Store, Transfer, Ticket]]:
    store = Store()
    async with serving(store.app()) as url:
        transfer = Transfer(ServerAddress(url), lambda: "secret", "w1", first_pause_s=0.001, cap_s=0.002)
        try:
            yield store, transfer, transfer.open(KEY)
        finally:
            await transfer.aclose()


async def _body(content: bytes = BODY) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 65_536):
        yield content[start : start + 65_536]


async def test_a_file_is_ordered_sent_and_completed() -> None:
    async with moving() as (store, transfer, ticket):
        reference = await transfer.put("p", "a b.png", "image/png", _body(), len(BODY))
        assert reference == "https://files/f1"
        assert ticket.files == 1
        order, upload, done = store.requests
        assert order[:2] == ("POST", "/worker/v1/attempts/p/3/files")
        assert msgspec.json.decode(order[3]) == {"filename": "a b.png", "content_type": "image/png", "size": len(BODY)}
        assert (order[2]["authorization"], order[2]["cogflare-worker"]) == ("Bearer secret", "w1")
        assert upload[3] == BODY
        assert (upload[2]["x-signed"], upload[2]["content-length"]) == ("yes", str(len(BODY)))
        assert upload[2]["authorization"] == "Bearer secret"
        proof = {"size": len(BODY), "sha256": hashlib.sha256(BODY).hexdigest()}
        assert (done[1], msgspec.json.decode(done[3])) == ("/done", proof)


async def test_the_token_goes_to_no_other_origin() -> None:
    elsewhere = Store()
    async with moving() as (store, transfer, _), serving(elsewhere.app()) as url:
        store.upload_base, store.complete = url, None
        await transfer.put("p", "f", "text/plain", _body(b""), 0)
        [(method, _, headers, body)] = elsewhere.requests
        assert (method, body, headers["content-length"]) == ("PUT", b"", "0")
        assert "authorization" not in headers
        assert "cogflare-worker" not in headers
        assert len(store.requests) == 1


@pytest.mark.parametrize("step", ["POST files", "PUT f1", "POST done"])
@pytest.mark.parametrize("failure", [500, 503, 429, 0])
async def test_each_step_is_tried_again(step: str, failure: int) -> None:
    async with moving() as (store, transfer, _):
        store.fail[step] = [failure, failure]
        assert await transfer.put("p", "f", "text/plain", _body(), None) == "https://files/f1"
        assert store.seen("f1")[-1][3] == BODY


@pytest.mark.parametrize("status", [404, 409])
async def test_an_attempt_that_the_server_dropped_is_superseded(status: int) -> None:
    async with moving() as (store, transfer, ticket):
        store.fail["POST files"] = [status]
        with pytest.raises(Superseded):
            await transfer.put("p", "f", "text/plain", _body(), None)
        store.fail["PUT result"] = [status]
        with pytest.raises(Superseded):
            await transfer.put_result(ticket, Raw(b"1"))


@pytest.mark.parametrize("step", ["POST files", "PUT f1", "POST done"])
async def test_a_refusal_is_told_in_the_servers_words_and_without_signatures(step: str) -> None:
    async with moving() as (store, transfer, ticket):
        store.fail[step] = [400]
        with pytest.raises(TransferError, match="400: as told") as refused:
            await transfer.put("p", "f", "text/plain", _body(), None)
        assert "secret" not in str(refused.value)
        assert ticket.files == 0


@pytest.mark.parametrize("step", ["POST files", "PUT f1", "POST done"])
async def test_what_is_too_large_is_refused_for_good_in_the_servers_own_words(step: str) -> None:
    async with moving() as (store, transfer, ticket):
        store.fail[step] = [413]
        with pytest.raises(TooLarge, match=r"\Aas told\Z"):
            await transfer.put("p", "f", "text/plain", _body(), None)
        assert ticket.files == 0


async def test_a_kept_connection_that_has_just_gone_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    send = httpx2.AsyncClient.send
    broken: list[httpx2.AsyncClient] = []

    async def break_once(self: httpx2.AsyncClient, request: httpx2.Request, **options: Any) -> httpx2.Response:
        if not broken:
            broken.append(self)
            raise AttributeError("'NoneType' object has no attribute 'getpeername'")  # as anyio says it on uvloop
        assert self is not broken[0]
        return await send(self, request, **options)

    monkeypatch.setattr(httpx2.AsyncClient, "send", break_once)
    async with moving() as (store, transfer, ticket):
        await transfer.put_result(ticket, Raw(b"1"))
        assert len(store.seen("result")) == 1
    assert broken[0].is_closed


async def test_an_answer_that_makes_no_sense_is_an_error() -> None:
    async with moving() as (store, transfer, _):
        store.order_answer = {"reference": 1}
        with pytest.raises(TransferError, match="not understood"):
            await transfer.put("p", "f", "text/plain", _body(), None)


async def test_a_size_that_is_not_kept_is_an_error() -> None:
    async with moving() as (_, transfer, _ticket):
        with pytest.raises(TransferError, match="announced"):
            await transfer.put("p", "f", "text/plain", _body(b"123"), 4)


async def test_a_file_of_no_attempt_is_superseded() -> None:
    async with moving() as (_, transfer, ticket):
        transfer.close(ticket)
        with pytest.raises(Superseded):
            await transfer.put("p", "f", "text/plain", _body(), None)


async def test_trying_ends_with_the_attempt() -> None:
    async with moving() as (store, transfer, ticket):
        store.fail["PUT result"] = [503] * 1_000_000
        putting = asyncio.create_task(transfer.put_result(ticket, Raw(b"1")))
        await until(lambda: len(store.requests) >= 3)
        transfer.close(ticket)
        with pytest.raises(Superseded):
            await putting


async def test_a_later_attempt_of_a_prediction_is_not_closed_by_the_earlier() -> None:
    async with moving() as (store, transfer, earlier):
        later = transfer.open(("p", 4))
        transfer.close(earlier)
        await transfer.put("p", "f", "text/plain", _body(b"x"), None)
        assert store.seen("files")[0][1] == "/worker/v1/attempts/p/4/files"
        assert (earlier.files, later.files) == (0, 1)


async def test_large_results_and_inputs() -> None:
    async with moving() as (store, transfer, ticket):
        await transfer.put_result(ticket, Raw(b'["big"]'))
        assert msgspec.json.decode(await transfer.fetch_input(ticket)) == {"big": True}
        put, got = store.requests
        assert (put[0], put[1], put[3]) == ("PUT", "/worker/v1/attempts/p/3/result", b'["big"]')
        assert (got[0], got[1]) == ("GET", "/worker/v1/attempts/p/3/input")


async def test_a_setup_is_told_of_and_nobody_has_to_listen() -> None:
    async with moving() as (store, transfer, _):
        store.fail["POST setups"] = [404, 0]
        await transfer.setting_up("pc", "acme/m")
        await transfer.setting_up("pc", "acme/m", is_over=True)
        begun, over = store.seen("/worker/v1/setups")
        assert begun[2]["cogflare-worker"] == "w1"
        assert msgspec.json.decode(begun[3]) == {"name": "pc", "model": "acme/m", "is_over": False}
        assert msgspec.json.decode(over[3])["is_over"] is True


async def test_why_a_worker_does_not_come_is_told_once() -> None:
    async with moving() as (store, transfer, _):
        store.fail["POST setup-failures"] = [503, 0]
        await transfer.setup_failed("pc", "acme/m", "first line" + "x" * 5_000 + "last line")
        [(method, path, headers, body)] = store.requests
        assert (method, path, headers["cogflare-worker"]) == ("POST", "/worker/v1/setup-failures", "w1")
        told = msgspec.json.decode(body)
        assert (told["name"], told["model"], len(told["reason"])) == ("pc", "acme/m", MAX_REASON)
        assert told["reason"].startswith("first line")
        assert told["reason"].endswith("last line")
        await transfer.setup_failed("pc", "acme/m", "nobody listens")
