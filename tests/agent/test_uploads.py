"""Large output files on links that break: what was sent is not sent again, by this agent or the next."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cogflare.agent.address import ServerAddress
from cogflare.agent.courier import Superseded, Ticket, TooLarge, TransferError
from cogflare.agent.depot import Depot
from cogflare.agent.transfer import Transfer
from support.until import until
from support.web import serving

pytestmark = pytest.mark.anyio

KEY = ("p", 3)
LARGE = bytes(range(256)) * 160 * 1024  # 40 MiB
PART = 16 * 1024 * 1024


class Server:
    """Takes files as a Cogflare server does, or as a store in parts; `break_at` ends a connection there once."""

    def __init__(self, parts: int = 0) -> None:
        self.orders = 0
        self.files: dict[str, bytearray] = {}
        self.done: dict[str, bytes] = {}
        self.taken = 0
        self.break_at: list[int] = []
        self.statuses: list[int] = []
        self.store = ""
        self.tags: list[list[str]] = []
        self._parts = parts

    def app(self) -> Starlette:
        files = "/worker/v1/files/{id}"
        return Starlette(
            routes=[
                Route("/worker/v1/attempts/p/{attempt}/files", self.order, methods=["POST"]),
                Route(files, self.offset, methods=["HEAD"]),
                Route(files, self.append, methods=["PATCH"]),
                Route(files, self.whole, methods=["PUT"]),
                Route(files + "/complete", self.complete, methods=["POST"]),
                Route("/store/{id}/{part}", self.part, methods=["PUT"]),
            ]
        )

    async def order(self, request: Request) -> Response:
        self.orders += 1
        id = f"f{self.orders}"
        self.files[id] = bytearray()
        own = f"worker/v1/files/{id}"
        answer: dict[str, object] = {"id": id, "reference": f"ref:{id}", "upload": {"url": own}}
        if self._parts and (await request.json())["size"] > PART:
            urls = [f"{self.store}/store/{id}/{number}" for number in range(self._parts)]
            answer["upload"] = {"parts": urls, "part_bytes": PART, "upload": f"u-{id}"}
            answer["complete"] = f"{own}/complete"
        else:
            answer["resume"] = {"url": own, "complete": f"{own}/complete"}
        return JSONResponse(answer, 201)

    async def offset(self, request: Request) -> Response:
        return Response(status_code=204, headers={"upload-offset": str(len(self.files[request.path_params["id"]]))})

    async def append(self, request: Request) -> Response:
        file = self.files[request.path_params["id"]]
        if int(request.headers["upload-offset"]) != len(file):
            return Response(status_code=409, headers={"upload-offset": str(len(file))})
        if self.statuses:
            return JSONResponse({"detail": "as told"}, self.statuses.pop(0))
        await self._take(request, file)
        return Response(status_code=204, headers={"upload-offset": str(len(file))})

    async def whole(self, request: Request) -> Response:
        self.files[request.path_params["id"]] = bytearray(await request.body())
        return Response(status_code=204)

    async def part(self, request: Request) -> Response:
        assert "authorization" not in request.headers
        if self.statuses:
            return Response(status_code=self.statuses.pop(0))
        part, number = bytearray(), int(request.path_params["part"])
        await self._take(request, part)
        self.files[request.path_params["id"]][number * PART :] = part  # parts come in order here
        return Response(headers={"etag": f'"{number}"'})

    async def complete(self, request: Request) -> Response:
        id, proof = request.path_params["id"], await request.json()
        file = self.files[id]
        self.tags.append(proof.get("parts", []))
        if hashlib.sha256(file).hexdigest() != proof["sha256"]:
            file.clear()
            return Response(status_code=409, headers={"upload-offset": "0"})
        self.done[id] = bytes(file)
        return Response(status_code=204)

    async def _take(self, request: Request, file: bytearray) -> None:
        async for chunk in request.stream():
            file += chunk
            self.taken += len(chunk)
            if self.break_at and self.taken >= self.break_at[0]:
                self.break_at.pop(0)
                raise ConnectionError("cut")


@asynccontextmanager
async def moving(url: str, folder: Path | None = None) -> AsyncIterator[tuple[Transfer, Ticket]]:
    depot = None if folder is None else Depot(folder)
    transfer = Transfer(ServerAddress(url), lambda: "secret", "w1", depot=depot, first_pause_s=0.001, cap_s=0.002)
    try:
        yield transfer, transfer.open(KEY)
    finally:
        await transfer.aclose()


async def _body(content: bytes = LARGE) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 1 << 20):
        yield content[start : start + (1 << 20)]


async def test_a_link_that_breaks_goes_on_where_it_was() -> None:
    server = Server()
    server.break_at = [5_000_000, 20_000_000, 20_100_000, 39_000_000]
    async with serving(server.app()) as url, moving(url) as (transfer, _):
        assert await transfer.put("p", "a.bin", "", _body(), None) == "ref:f1"
    assert server.done["f1"] == LARGE
    assert server.taken == len(LARGE)


@pytest.mark.parametrize("statuses", [[503], [500, 429], [502] * 5])
async def test_a_server_that_is_away_for_a_while_is_asked_again(statuses: list[int]) -> None:
    server = Server()
    server.statuses = statuses
    async with serving(server.app()) as url, moving(url) as (transfer, _):
        assert await transfer.put("p", "a.bin", "", _body(), len(LARGE)) == "ref:f1"
    assert server.done["f1"] == LARGE


@pytest.mark.parametrize(
    ("status", "fault"), [(413, TooLarge), (409, Superseded), (404, Superseded), (400, TransferError)]
)
async def test_a_verdict_ends_it(status: int, fault: type[Exception]) -> None:
    server = Server()
    server.statuses = [status]
    async with serving(server.app()) as url, moving(url) as (transfer, _):
        with pytest.raises(fault):
            await transfer.put("p", "a.bin", "", _body(), None)
    assert server.done == {}


async def test_bytes_that_arrive_as_others_are_sent_again() -> None:
    server = Server()
    async with serving(server.app()) as url, moving(url) as (transfer, _):
        putting = asyncio.create_task(transfer.put("p", "a.bin", "", _body(), None))
        await until(lambda: len(server.files.get("f1", b"")) > 1_000)
        server.files["f1"][7:9] = b"XX"
        assert await putting == "ref:f1"
    assert server.done["f1"] == LARGE
    assert server.taken == 2 * len(LARGE)


async def test_small_files_go_in_one_request(tmp_path: Path) -> None:
    server = Server()
    small = tmp_path / "small"
    small.write_bytes(b"few")
    async with serving(server.app()) as url, moving(url) as (transfer, _):
        await transfer.put("p", "a.bin", "", small, 3)
    assert bytes(server.files["f1"]) == b"few"
    assert server.tags == []


async def test_parts_go_to_the_store_each_until_it_is_answered() -> None:
    server, store = Server(parts=3), Server(parts=3)
    store.files = server.files
    store.break_at, store.statuses = [1_000_000, 20_000_000], [503]
    async with serving(server.app()) as url, serving(store.app()) as server.store, moving(url) as (transfer, _):
        assert await transfer.put("p", "a.bin", "", _body(), None) == "ref:f1"
    assert server.done["f1"] == LARGE
    assert server.tags == [['"0"', '"1"', '"2"']]
    assert store.taken < len(LARGE) + 2 * PART


async def test_a_store_that_refuses_what_was_signed_gets_the_file_under_a_new_order() -> None:
    server, store = Server(parts=3), Server(parts=3)
    store.files, store.statuses = server.files, [403]
    async with serving(server.app()) as url, serving(store.app()) as server.store, moving(url) as (transfer, ticket):
        assert await transfer.put("p", "a.bin", "", _body(), None) == "ref:f2"
        assert ticket.files == 1
    assert server.done == {"f2": LARGE}


@pytest.mark.parametrize("parts", [0, 3])
async def test_the_next_agent_goes_on(tmp_path: Path, parts: int) -> None:
    server, store = Server(parts), Server(parts)
    store.files = server.files
    taking = store if parts else server
    async with serving(server.app()) as url, serving(store.app()) as server.store:
        async with moving(url, tmp_path) as (transfer, _):
            await transfer.put("p", "whole.bin", "", _body(b"whole"), None)
            taking.statuses = [503] * 1_000_000
            if not parts:
                server.files.setdefault("f2", bytearray())
            putting = asyncio.create_task(transfer.put("p", "a.bin", "", _body(), None))
            await until(lambda: server.orders == 2)
            taking.statuses = []
            await until(lambda: taking.taken > 18_000_000)
            putting.cancel()  # as a killed process: nothing is closed in order
            await asyncio.gather(putting, return_exceptions=True)
        sent = taking.taken
        async with moving(url, tmp_path) as (transfer, ticket):
            assert await transfer.put("p", "whole.bin", "", _body(b"whole"), None) == "ref:f1"
            assert await transfer.put("p", "a.bin", "", _body(), None) == "ref:f2"
            assert await transfer.put("p", "a.bin", "", _body(b"another"), None) == "ref:f3"
            assert ticket.files == 3
            transfer.close(ticket)
    assert server.done["f2"] == LARGE
    assert server.tags[:1] == ([['"0"', '"1"', '"2"']] if parts else [[]])
    assert taking.taken - sent < 30_000_000  # of 40 MiB
    assert list(tmp_path.iterdir()) == []


async def test_damaged_notes_only_cost_the_way(tmp_path: Path) -> None:
    server = Server()
    folder = tmp_path / "p-3"
    folder.mkdir()
    (folder / "files.jsonl").write_bytes(b'{"type":"part","reference":"x","tag":"y"}\n\xff')
    async with serving(server.app()) as url, moving(url, tmp_path) as (transfer, _):
        assert await transfer.put("p", "a.bin", "", _body(b"x"), None) == "ref:f1"
    lines = (folder / "files.jsonl").read_bytes().splitlines()
    assert msgspec.json.decode(lines[-1]) == {"type": "stored", "reference": "ref:f1"}


def test_a_depot_keeps_what_goes_on_and_nothing_else(tmp_path: Path) -> None:
    depot = Depot(tmp_path)
    for run in ("a-1", "b-1"):
        (depot.folder(run) / "file").write_bytes(b"x")
    depot.close()
    depot.sweep({"b-1", "c-1"})
    assert [folder.name for folder in tmp_path.iterdir()] == ["b-1"]
    assert (depot.left("a-1"), depot.left("b-1")) == (None, tmp_path / "b-1")
    own = Depot()
    folder = own.folder("a-1")
    assert own.left("a-1") == folder
    own.close()
    assert not folder.parent.exists()
