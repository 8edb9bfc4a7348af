"""What a node refuses, or answers at once, when it has too much to do."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from api.node import Node
from cogflare.api import routing
from cogflare.api.context import Bodies
from cogflare.api.routing import Application
from cogflare.engine import waiters
from cogflare.store.base import Database

pytestmark = pytest.mark.anyio

CREATE = "/v1/models/ada/noop/predictions"


def application(node: Node) -> Application:
    transport = node.http._transport
    assert isinstance(transport, httpx2.ASGITransport)
    assert isinstance(transport.app, Application)
    return transport.app


async def pieces(*sizes: int, gate: asyncio.Event | None = None) -> AsyncIterator[bytes]:
    """Send a body in pieces, the last of them once the gate is open."""
    for number, size in enumerate(sizes):
        if gate is not None and number == len(sizes) - 1:
            await gate.wait()
        yield b" " * size


async def test_large_bodies_share_a_room_and_small_ones_always_pass(store: Database, tmp_path: Path) -> None:
    node = Node(store, tmp_path)
    await node.worker()
    app = application(node)
    app.bodies = Bodies(200_000)
    gate = asyncio.Event()
    slow = asyncio.create_task(node.call("POST", CREATE, content=pieces(150_000, 10, gate=gate)))
    while app.bodies._left == 200_000:
        await asyncio.sleep(0)
    refused = await node.call("POST", CREATE, content=pieces(90_000))
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert (await node.call("POST", CREATE, json={"input": {"text": "x" * 1000}})).status_code == 201
    gate.set()
    assert (await slow).status_code == 400, "blanks are no JSON"
    assert app.bodies._left == 200_000
    assert (await node.call("POST", CREATE, content=pieces(90_000))).status_code == 400


async def test_too_many_requests_are_refused(store: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(store, tmp_path)
    await node.worker()
    monkeypatch.setattr(routing, "_MAX_REQUESTS", 1)
    order: dict[str, object] = {"input": {}}
    headers = {"Prefer": "wait=5"}
    held = asyncio.create_task(node.call("POST", CREATE, json=order, headers=headers))
    while not application(node)._requests:
        await asyncio.sleep(0)
    refused = await node.call("GET", "/v1/account")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    held.cancel()
    await asyncio.gather(held, return_exceptions=True)
    assert (await node.call("GET", "/v1/account")).status_code == 200


async def test_where_too_many_wait_nobody_is_held(
    store: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(store, tmp_path)
    await node.worker()
    monkeypatch.setattr(waiters, "_MAX_WAITING", 0)
    async with asyncio.timeout(5):
        made = await node.call("POST", CREATE, json={"input": {}}, headers={"Prefer": "wait=60"})
    assert (made.status_code, made.json()["status"]) == (201, "starting")
