"""Group commit: each writer takes all units that wait and runs them as one transaction.

A group first runs without savepoints. If a unit is refused, the transaction is rolled back and the group runs again
with a savepoint around each unit. Deadlocks and serialization failures run the group again. When the connection is
lost before COMMIT was sent, the group runs again on a new one; when the answer to COMMIT is lost, the old session is
ended first, and then the database is asked whether the group has happened.
"""

import asyncio
import itertools
from collections.abc import Callable
from contextlib import suppress

import asyncpg

from cogflare.store.base import Conflict, Row, Unavailable
from cogflare.store.postgres.server import AGAIN, Connection, Server, is_lost, pause, translate
from cogflare.store.unit import Unit

_MAX_TRIES = 8

_END_SESSION = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1 AND pid <> pg_backend_pid()
"""


class _RefusedError(Exception):
    """A unit of a group without savepoints was refused."""


class Writer:
    """Owns one connection that writes. `name` must be its own in the whole cluster: it identifies the session.

    `release` is called with each group once it is decided.
    """

    def __init__(
        self,
        server: Server,
        name: str,
        queue: asyncio.Queue[Unit | None],
        release: Callable[[list[Unit]], None],
        group: int,
    ) -> None:
        self._server = server
        self._names = (f"{name}.{number}" for number in itertools.count(1))
        self._queue = queue
        self._release = release
        self._group = group
        self._connection: Connection | None = None
        self._session = ""

    async def run(self) -> None:
        """Decide units until None is taken from the queue."""
        try:
            while units := await self._take():
                try:
                    await self._decide(units)
                except Exception as error:
                    for unit in units:
                        # An exception collects the traceback of whoever raises it, so each caller gets its own.
                        told = translate(error)
                        unit.outcome = type(told)(*told.args)
                self._release(units)
        finally:
            await self._disconnect()

    async def _take(self) -> list[Unit]:
        units: list[Unit] = []
        unit = await self._queue.get()
        while unit is not None:
            units.append(unit)
            if len(units) >= self._group or self._queue.empty():
                return units
            unit = self._queue.get_nowait()
        if units:
            # The end is taken once more, after this group.
            self._queue.put_nowait(None)
        return units

    async def _decide(self, units: list[Unit]) -> None:
        """Give every unit its outcome; raises if none of them happened."""
        apart = False
        for tries in itertools.count(1):
            try:
                await self._transaction(units, apart)
                return
            except _RefusedError:
                apart = True
            except Exception as error:
                lost = is_lost(error)
                if tries >= _MAX_TRIES or not (lost or isinstance(error, AGAIN)):
                    raise
                if lost:
                    self._drop()
                else:
                    await pause(0.001, 0.005 * tries)

    async def _transaction(self, units: list[Unit], apart: bool) -> None:
        connection = await self._connected()
        try:
            await connection.execute("BEGIN")
            for unit in units:
                await (_run_apart if apart else _run_plain)(connection, unit)
            done = [unit for unit in units if not isinstance(unit.outcome, Exception)]
            xid = None
            if done and not any(unit.landed for unit in done):
                xid = await connection.fetchval("SELECT pg_current_xact_id()::text")
            await self._commit(connection, done, xid)
        except BaseException as error:
            await _roll_back(connection)
            if isinstance(error, _RefusedError) and len(units) == 1:
                return
            raise

    async def _commit(self, connection: Connection, done: list[Unit], xid: str | None) -> None:
        try:
            await connection.execute("COMMIT")
        except Exception as error:
            if not is_lost(error) or not done or not await self._happened(done, xid):
                raise

    async def _happened(self, done: list[Unit], xid: str | None) -> bool:
        """Find out whether a commit without an answer took place: all units of a group share one fate."""
        session = self._session
        self._drop()
        while True:
            try:
                connection = await self._connected()
                # A commit that is still under way must end before its traces mean anything.
                while await connection.fetch(_END_SESSION, session):
                    await pause(0.01, 0.03)
                probe = next((unit.landed for unit in done if unit.landed), None)
                if probe is not None:
                    return bool(await connection.fetch(probe.sql, *probe.values))
                status = await connection.fetchval("SELECT pg_xact_status($1::text::xid8)", xid)
                return bool(status == "committed")
            except asyncpg.InvalidParameterValueError:
                # A crash took the number back, and with it all that was done under it.
                return False
            except Unavailable as error:
                raise Unavailable(f"the answer to a commit was lost, so the unit may have happened: {error}") from error
            except Exception as error:
                self._drop()
                await self._server.endure(error)

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            self._session = next(self._names)
            self._connection = await self._server.connect(self._session)
        return self._connection

    def _drop(self) -> None:
        """Forget a connection that has failed."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _disconnect(self) -> None:
        if self._connection is not None:
            with suppress(Exception):
                await self._connection.close(timeout=2)
            self._drop()


async def _run_plain(connection: Connection, unit: Unit) -> None:
    """Run a unit with nothing around it; raises `_RefusedError` if the group has to be rolled back for it."""
    try:
        unit.outcome = await _run_steps(connection, unit)
    except Exception as error:
        if isinstance(error, AGAIN) or is_lost(error):
            raise
        unit.outcome = translate(error)
        raise _RefusedError from error


async def _run_apart(connection: Connection, unit: Unit) -> None:
    """Run a unit inside a savepoint, so that its refusal undoes only its own work."""
    await connection.execute("SAVEPOINT unit")
    try:
        unit.outcome = await _run_steps(connection, unit)
        await connection.execute("RELEASE SAVEPOINT unit")
    except Exception as error:
        if isinstance(error, AGAIN) or is_lost(error):
            raise
        unit.outcome = translate(error)
        await connection.execute("ROLLBACK TO SAVEPOINT unit; RELEASE SAVEPOINT unit")


async def _run_steps(connection: Connection, unit: Unit) -> list[list[Row]]:
    results: list[list[Row]] = []
    for name, sql, values, needs in unit.steps:
        records = await connection.fetch(sql, *values)
        results.append([tuple(record) for record in records])
        if not records and needs != "any":
            if needs == "row":
                raise Conflict(name)
            results.extend([] for _ in range(len(unit.steps) - len(results)))
            break
    return results


async def _roll_back(connection: Connection) -> None:
    if not connection.is_closed() and connection.is_in_transaction():
        with suppress(Exception):
            await connection.execute("ROLLBACK")
