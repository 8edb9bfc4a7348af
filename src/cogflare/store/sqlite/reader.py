"""The reader threads: each has a connection of its own and runs one query at a time."""

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import apsw

from cogflare.store.base import Row, Value
from cogflare.store.sqlite.connection import Connect, translate


class Query(NamedTuple):
    """One query under way and the future its caller waits on."""

    sql: str
    values: tuple[Value, ...]
    future: asyncio.Future[list[Row]]

    def release(self, outcome: list[Row] | Exception) -> None:
        if self.future.done():
            return
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


Post = Callable[[Query, list[Row] | Exception], None]


class Readers:
    """A few threads that share one queue. `put` and `stop` may be called from any thread."""

    def __init__(self, connect: Connect, post: Post, count: int) -> None:
        self._connect = connect
        self._post = post
        self._queue: queue.SimpleQueue[Query | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"cogflare-sqlite-reader-{number}", daemon=True)
            for number in range(count)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def put(self, query: Query) -> None:
        self._queue.put(query)

    def stop(self) -> None:
        """End the threads once every query that was put before is done."""
        for _ in self._threads:
            self._queue.put(None)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        connection: apsw.Connection | None = None
        while (query := self._queue.get()) is not None:
            try:
                connection = connection or self._connect()
                outcome: list[Row] | Exception = connection.execute(query.sql, query.values).fetchall()
            except Exception as error:
                outcome = translate(error, connection)
            self._post(query, outcome)
        if connection is not None:
            with suppress(apsw.Error):
                connection.close()
