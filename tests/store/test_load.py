"""The bound on what waits for a writer that stands still, over both databases."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cogflare.store.base import Database, Statement, Unavailable
from cogflare.store.load import Bounds
from cogflare.store.postgres import PostgresDatabase
from cogflare.store.sqlite import SQLiteDatabase
from cogflare.store.sqlite.connection import Options

pytestmark = pytest.mark.anyio

BOUNDS = Bounds(units=20, bytes=100_000, yielding_units=10, yielding_bytes=50_000)


def unit(data: str = "") -> Statement:
    """Return a write that any state of the store allows."""
    return Statement("put_result", {
        "prediction": "p", "attempt": 1, "worker": "w", "position": 0, "data": data,
    })  # fmt: skip


@asynccontextmanager
async def standing_still(url: str) -> AsyncIterator[tuple[Database, Callable[[], Awaitable[None]]]]:
    """Yield a database whose writer stands still, and what lets it go on."""
    db: Any
    if url.startswith("sqlite"):
        db = SQLiteDatabase(Options(url.removeprefix("sqlite:///"), "full"), bounds=BOUNDS)
        await db.migrate()
        gate = threading.Event()
        stalled = asyncio.create_task(db._run(lambda _: gate.wait() and None))

        async def go_on() -> None:
            gate.set()
            await stalled
    else:
        db = PostgresDatabase(url, bounds=BOUNDS)
        await db.migrate()
        connection = await db._server.connect("another")
        await connection.execute("BEGIN")
        await connection.execute("LOCK TABLE chunks")

        async def go_on() -> None:
            await connection.execute("ROLLBACK")
            await connection.close()

    try:
        yield db, go_on
    finally:
        await db.aclose()


async def settle(tasks: list["asyncio.Task[Any]"]) -> list[Exception | None]:
    """Return what became of each."""
    found = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
    return [result if isinstance(result, Exception) else None for result in found]


async def test_what_clients_ask_for_is_refused_before_what_workers_say(url: str) -> None:
    async with standing_still(url) as (db, go_on):
        creates = [asyncio.create_task(db.write(unit(), yields=True)) for _ in range(15)]
        await asyncio.sleep(0.05)
        assert sum(task.done() for task in creates) == 5
        finishes = [asyncio.create_task(db.write(unit())) for _ in range(15)]
        await asyncio.sleep(0.05)
        assert sum(task.done() for task in finishes) == 5
        await go_on()
        refused = [sum(isinstance(error, Unavailable) for error in await settle(part)) for part in (creates, finishes)]
        assert refused == [5, 5]
        # And all is well again.
        assert await settle([asyncio.create_task(db.write(unit(), yields=True)) for _ in range(10)]) == [None] * 10


async def test_the_bytes_that_wait_are_bounded_too(url: str) -> None:
    async with standing_still(url) as (db, go_on):
        tasks = [asyncio.create_task(db.write(unit("x" * 20_000), yields=True)) for _ in range(4)]
        await asyncio.sleep(0.05)
        assert [task.done() for task in tasks] == [False, False, True, True]
        await go_on()
        assert [error is None for error in await settle(tasks)] == [True, True, False, False]
        alone = asyncio.create_task(db.write(unit("x" * 300_000), yields=True))
        assert await settle([alone]) == [None], "one that is larger than the bound passes alone"
