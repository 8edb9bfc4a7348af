"""What only PostgreSQL can get wrong: other nodes, other transactions, and the way to the server."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import asyncpg
import pytest

from cogflare.store.base import Hint, Statement, Unavailable
from cogflare.store.open import open_database
from cogflare.store.postgres import PostgresDatabase
from cogflare.store.postgres.hints import _pack
from cogflare.store.postgres.writer import Writer
from cogflare.store.unit import Unit
from store.conftest import SQL
from store.test_database import add, insert, items
from support.postgres import PostgresServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def url(new_url: Callable[[str], str]) -> str:
    return new_url("postgres")


async def heard_by(sender: PostgresDatabase, receiver: PostgresDatabase, payload: str) -> None:
    """Return once a hint has come through; hints may be lost, for instance before the receiver listens."""
    heard = asyncio.Event()
    stop = receiver.listen(lambda hint: heard.set() if hint == Hint("test", payload) else None)
    async with asyncio.timeout(10):
        while not heard.is_set():
            await sender.write(hints=[Hint("test", payload)])
            try:
                async with asyncio.timeout(0.1):
                    await heard.wait()
            except TimeoutError:
                pass
    stop()


async def test_nodes_hear_each_other_once(url: str) -> None:
    one, two = PostgresDatabase(url, sql=SQL), PostgresDatabase(url, sql=SQL)
    await one.migrate()
    await two.migrate()
    await heard_by(one, two, "ready")
    await heard_by(two, one, "ready")
    seen: dict[str, list[str]] = {"one": [], "two": []}
    last = asyncio.Event()
    one.listen(lambda hint: seen["one"].append(hint.payload))
    two.listen(lambda hint: last.set() if hint.channel == "last" else seen["two"].append(hint.payload))
    await one.write(insert("a"), hints=[Hint("item", "a")])
    assert seen["one"] == ["a"]
    many = [f"é{number:03}" for number in range(500)]
    await asyncio.gather(*(one.write(add("a"), hints=[Hint("item", payload)] * 2) for payload in many))
    await one.write(hints=[Hint("last", "")])
    async with asyncio.timeout(10):
        await last.wait()
    assert seen["two"] == ["a", *many]
    assert seen["one"] == ["a", *many, ""]
    await one.aclose()
    await two.aclose()


def test_payloads_stay_below_the_limit_of_postgresql() -> None:
    hints = [Hint("channel", "\x01" * size) for size in range(0, 600, 7)] + [Hint("c", "x" * 4000)] * 3
    payloads = _pack("node", hints)
    assert max(len(payload.encode()) for payload in payloads) < 8000
    assert len(payloads) > 1


async def test_a_deadlock_is_run_again(postgres_server: PostgresServer, url: str) -> None:
    # The other session waits so long before it looks for deadlocks that ours is always the victim.
    database = PostgresDatabase(f"{url}&deadlock_timeout=300ms", sql=SQL)
    await database.migrate()
    await database.write(insert("a"), insert("b"))
    other = await asyncpg.connect(f"{url}&deadlock_timeout=30s")
    await other.execute("BEGIN; UPDATE items SET n = n + 10 WHERE id = 'b'")
    write = asyncio.ensure_future(database.write(add("a", 1, "row"), add("b", 1, "row")))
    waiting = 0
    while not waiting:
        waiting = await other.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted")
    await other.execute("UPDATE items SET n = n + 10 WHERE id = 'a'")
    await other.execute("COMMIT")
    assert await write == [[(11,)], [(11,)]]
    assert "deadlock detected" in postgres_server.log()
    await other.close()
    await database.aclose()


@pytest.mark.parametrize("stop", [PostgresServer.stop, PostgresServer.crash])
async def test_a_restarted_server_is_found_again(stop: Callable[[PostgresServer], None]) -> None:
    server = PostgresServer(durable=True).start()
    try:
        url = server.create_database()
        one, two = PostgresDatabase(url, sql=SQL), PostgresDatabase(url, sql=SQL)
        await one.migrate()
        await one.write(insert("a"))
        assert await items(two) == {"a": 0}
        await heard_by(one, two, "before")
        await asyncio.to_thread(stop, server)
        write, read = asyncio.ensure_future(one.write(add("a"))), asyncio.ensure_future(items(two))
        await asyncio.to_thread(server.start)
        assert await write == [[(1,)]]
        assert (await read)["a"] in (0, 1)
        await heard_by(one, two, "after")
        await one.aclose()
        await two.aclose()
    finally:
        server.close()


async def test_a_server_that_stays_away_is_told(tmp_path: Path) -> None:
    url = f"postgresql://postgres@/nothing?host={tmp_path}"
    database = PostgresDatabase(url, sql=SQL, patience_s=0.2)
    for call in (database.migrate(), database.write(insert("a")), database.read("list_items")):
        with pytest.raises(Unavailable):
            await call
    await database.aclose()


class Proxy:
    """Stands between a node and the server, and cuts the connection around a COMMIT on demand.

    `cut` is what happens to the next one: "before" the server gets it, or "after" it has answered.
    """

    def __init__(self, url: str) -> None:
        self.cut = ""
        self.cuts = 0
        parts = urlsplit(url)
        self._server = f"{parse_qs(parts.query)['host'][0]}/.s.PGSQL.5432"
        self._home = Path(tempfile.mkdtemp(prefix="pg-proxy-"))
        self.url = parts._replace(query=urlencode({"host": str(self._home)})).geturl()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Proxy":
        self._listener = await asyncio.start_unix_server(self._serve, self._home / ".s.PGSQL.5432")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        shutil.rmtree(self._home)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        server_reader, server_writer = await asyncio.open_unix_connection(self._server)
        backward = asyncio.create_task(self._pass(server_reader, writer))
        try:
            while data := await reader.read(65536):
                if self.cut and b"COMMIT" in data:
                    cut, self.cut = self.cut, ""
                    self.cuts += 1
                    backward.cancel()
                    await asyncio.gather(backward, return_exceptions=True)
                    if cut == "after":
                        server_writer.write(data)
                        await server_reader.read(65536)
                    break
                server_writer.write(data)
        finally:
            backward.cancel()
            await asyncio.gather(backward, return_exceptions=True)
            for end in (writer, server_writer):
                end.close()
            self._tasks.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()


@pytest.fixture
async def proxy(url: str) -> AsyncIterator[Proxy]:
    async with Proxy(url) as proxy:
        yield proxy


async def test_a_commit_whose_number_a_crash_took_back_did_not_happen(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened = Writer._happened

    async def of_the_future(self: Writer, done: list[Unit], xid: str | None) -> bool:
        return await happened(self, done, str(int(xid or 0) + 1_000_000))

    monkeypatch.setattr(Writer, "_happened", of_the_future)
    database = open_database(proxy.url, sql=SQL)
    await database.migrate()
    await database.write(insert("a"))
    proxy.cut = "before"
    assert await database.write(add("a"), insert("b")) == [[(1,)], []]
    assert await items(database) == {"a": 1, "b": 0}
    await database.aclose()


@pytest.mark.parametrize("cut", ["before", "after"])
@pytest.mark.parametrize("landed", [None, Statement("get_item", {"id": "b"})], ids=["by xid", "by landed"])
async def test_a_lost_answer_to_a_commit_is_settled(proxy: Proxy, cut: str, landed: Statement | None) -> None:
    database = open_database(proxy.url, sql=SQL)
    await database.migrate()
    await database.write(insert("a"))
    proxy.cut = cut
    assert await database.write(add("a"), insert("b"), landed=landed) == [[(1,)], []]
    assert proxy.cuts == 1
    assert await items(database) == {"a": 1, "b": 0}
    await database.aclose()
