"""`PostgresDatabase`: writers with group commit, a pool for reads, and a link for hints.

Connections are made by the first call that needs them and belong to its event loop.
"""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.resources.abc import Traversable
from typing import Self

import asyncpg

from cogflare.store.base import Hint, Listener, Row, SchemaTooNew, Statement, Unavailable, Value
from cogflare.store.load import Bounds, Load
from cogflare.store.postgres.hints import HintLink
from cogflare.store.postgres.server import Connection, Pool, Server, is_lost, translate
from cogflare.store.postgres.writer import Writer
from cogflare.store.sql import Library, Migration, package_folder
from cogflare.store.unit import Listeners, Rows, Unit, release

_MIGRATION_LOCK = 0x636F67666C617265  # "cogflare"


class PostgresDatabase:
    """Durable storage in one PostgreSQL database.

    `sql` is the folder of named SQL that holds `postgres/`; `writers` and `readers` are numbers of connections;
    `group` is the most units that one commit may carry, `bounds` how many may wait; for `patience_s` and `answer_s`
    see `Server`.
    """

    is_shared = True

    def __init__(
        self,
        url: str,
        *,
        sql: Traversable | None = None,
        writers: int = 1,
        readers: int = 4,
        group: int = 256,
        patience_s: float = 10.0,
        answer_s: float = 10.0,
        bounds: Bounds | None = None,
    ) -> None:
        self._library = Library(sql or package_folder(), "postgres")
        self._node = secrets.token_hex(6)
        self._server = Server(url, patience_s=patience_s, answer_s=answer_s)
        self._listeners = Listeners()
        self._load = Load(bounds)
        # Its own, because an outage of the link alone must not use up the patience of the others.
        link_server = Server(url, patience_s=patience_s, answer_s=answer_s)
        self._link = HintLink(link_server, self._node, self._listeners.tell)
        self._queue: asyncio.Queue[Unit | None] = asyncio.Queue()
        self._writers = [
            Writer(self._server, f"cogflare {self._node} writer {number}", self._queue, self._release, group)
            for number in range(writers)
        ]
        self._readers = readers
        self._answer_s = answer_s
        self._pool: Pool | None = None
        self._starting = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._link_task: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    def from_url(cls, url: str, *, sql: Traversable | None = None) -> Self:
        """Make one from any URL that libpq understands; passwords may come from the usual files."""
        return cls(url, sql=sql)

    async def read(self, name: str, /, **params: Value) -> list[Row]:
        query = self._library.query(name)
        values = query.order(params)
        pool = await self._running_pool()
        while True:
            try:
                records = await pool.fetch(query.sql, *values)
            except Exception as error:
                # A query that took too long would take too long again.
                if isinstance(error, TimeoutError) or not is_lost(error):
                    raise translate(error) from error
                await self._server.endure(error)
            else:
                self._server.answered()
                return [tuple(record) for record in records]

    async def write(
        self,
        *statements: Statement,
        hints: Sequence[Hint] = (),
        landed: Statement | None = None,
        yields: bool = False,
    ) -> Rows:
        await self._running_pool()
        future: asyncio.Future[Rows] = asyncio.get_running_loop().create_future()
        steps = [self._library.step(statement) for statement in statements]
        unit = Unit(steps, hints, self._library.step(landed) if landed else None, future)
        unit.size = self._load.admit(statements, yields)
        self._queue.put_nowait(unit)
        return await future

    def listen(self, listener: Listener) -> Callable[[], None]:
        return self._listeners.add(listener)

    async def migrate(self) -> None:
        await self._running_pool()
        migrations = self._library.migrations
        connection = await self._server.connect(f"cogflare migration {self._node}", slow=True)
        try:
            # The lock ends with the session.
            await connection.execute("SELECT pg_advisory_lock($1)", _MIGRATION_LOCK)
            await _migrate(connection, migrations)
        except Exception as error:
            raise translate(error) from error
        finally:
            await connection.close(timeout=2)

    async def aclose(self) -> None:
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        for _ in self._tasks:
            self._queue.put_nowait(None)
        await asyncio.gather(*self._tasks)
        if self._link_task is not None:
            self._link_task.cancel()
            with suppress(asyncio.CancelledError):
                await self._link_task
        if self._pool is not None:
            try:
                async with asyncio.timeout(self._answer_s):
                    await self._pool.close()
            except Exception:
                self._pool.terminate()

    async def _running_pool(self) -> Pool:
        """Return the pool for reads, and start all parts if this is the first call."""
        if self._closing is not None:
            raise Unavailable("the database has been closed")
        if self._pool is None:
            async with self._starting:
                if self._pool is None:
                    self._pool = await self._start()
        return self._pool

    async def _start(self) -> Pool:
        loop = asyncio.get_running_loop()
        settings = self._server.settings(f"cogflare reads {self._node}")
        # A plan made without the bounds of a page takes any range for a narrow one, and would sort all of an account.
        settings["server_settings"]["plan_cache_mode"] = "force_custom_plan"
        pool = await asyncpg.create_pool(min_size=0, max_size=self._readers, reset=_keep, **settings)
        self._tasks = [loop.create_task(writer.run()) for writer in self._writers]
        self._link_task = loop.create_task(self._link.run())
        return pool

    def _release(self, units: list[Unit]) -> None:
        self._load.leave(units)
        hints = release(units)
        if hints:
            self._link.send(hints)
            self._listeners.tell(hints)


async def _keep(_connection: object) -> None:
    """Reset nothing when a connection returns to the pool: a read leaves nothing behind."""


async def _migrate(connection: Connection, migrations: Sequence[Migration]) -> None:
    await connection.execute("CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL PRIMARY KEY)")
    version = await connection.fetchval("SELECT coalesce(max(version), 0) FROM schema_version")
    if version > len(migrations):
        raise SchemaTooNew(f"the schema is at version {version}, and this program knows {len(migrations)}")
    for migration in migrations[version:]:
        async with connection.transaction():
            await connection.execute(migration.script)
            await connection.execute("INSERT INTO schema_version (version) VALUES ($1)", migration.number)
