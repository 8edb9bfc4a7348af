"""`SQLiteDatabase`: the event loop's side of the writer thread and the reader threads.

The threads start with the first call and belong to the event loop of that call. Hints reach the listeners of this
process only; another process that writes to the same file is noticed by polling.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib.resources.abc import Traversable
from typing import Self

import apsw

from cogflare.store.base import Hint, Listener, Row, Statement, Unavailable, Value
from cogflare.store.load import Bounds, Load
from cogflare.store.sql import Library, package_folder
from cogflare.store.sqlite.connection import Options, connect_reader, connect_writer, migrate, options_of
from cogflare.store.sqlite.reader import Query, Readers
from cogflare.store.sqlite.writer import Task, Writer
from cogflare.store.unit import Listeners, Rows, Unit, release


class SQLiteDatabase:
    """Durable storage in one file.

    `sql` is the folder of named SQL that holds `sqlite/`; `readers` is how many queries may run at once; `group` is
    the most units that one commit may carry, `bounds` how many may wait.
    """

    is_shared = False

    def __init__(
        self,
        options: Options,
        *,
        sql: Traversable | None = None,
        readers: int = 2,
        group: int = 256,
        bounds: Bounds | None = None,
    ) -> None:
        self._library = Library(sql or package_folder(), "sqlite")
        self._listeners = Listeners()
        self._load = Load(bounds)
        self._writer = Writer(partial(connect_writer, options), self._post_units, group)
        self._readers = Readers(partial(connect_reader, options), self._post_rows, readers)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    def from_url(cls, url: str, *, sql: Traversable | None = None) -> Self:
        """Make one from `sqlite:///relative/path` or `sqlite:////absolute/path`; raises `ValueError`.

        `?synchronous=full|normal|off` states how hard a commit is pressed onto the disk.
        """
        return cls(options_of(url), sql=sql)

    async def read(self, name: str, /, **params: Value) -> list[Row]:
        query = self._library.query(name)
        future: asyncio.Future[list[Row]] = self._running_loop().create_future()
        self._readers.put(Query(query.sql, query.order(params), future))
        return await future

    async def write(
        self,
        *statements: Statement,
        hints: Sequence[Hint] = (),
        landed: Statement | None = None,
        yields: bool = False,
    ) -> Rows:
        # `landed` is not needed: the answer of a commit in this process cannot be lost.
        future: asyncio.Future[Rows] = self._running_loop().create_future()
        steps = [self._library.step(statement) for statement in statements]
        unit = Unit(steps, hints, None, future)
        unit.size = self._load.admit(statements, yields)
        self._writer.put(unit)
        return await future

    def listen(self, listener: Listener) -> Callable[[], None]:
        return self._listeners.add(listener)

    async def migrate(self) -> None:
        migrations = self._library.migrations
        await self._run(lambda connection: migrate(connection, migrations))

    async def aclose(self) -> None:
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        if self._loop is not None:
            # The last connection to close folds the log into the file, which a reader may not.
            self._readers.stop()
            await asyncio.to_thread(self._readers.join)
            self._writer.stop()
            await asyncio.to_thread(self._writer.join)

    async def _run(self, function: Callable[[apsw.Connection], None]) -> None:
        """Run a function on the writer's connection, between two groups."""
        loop = self._running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def settle(error: Exception | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        self._writer.put(Task(function, lambda error: self._post(settle, error)))
        await future

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop, and start the threads if this is the first call."""
        if self._closing is not None:
            raise Unavailable("the database has been closed")
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._writer.start()
            self._readers.start()
        return self._loop

    def _post_units(self, units: list[Unit]) -> None:
        self._post(self._release, units)

    def _post_rows(self, query: Query, outcome: list[Row] | Exception) -> None:
        self._post(query.release, outcome)

    def _post(self, callback: Callable[..., None], *arguments: object) -> None:
        """Call back on the event loop, from a thread; if that loop has ended, nobody waits any more."""
        assert self._loop is not None
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _release(self, units: list[Unit]) -> None:
        self._load.leave(units)
        self._listeners.tell(release(units))
