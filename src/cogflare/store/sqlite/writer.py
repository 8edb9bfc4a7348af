"""The writer thread: the only one that changes the database, and it commits many units at once.

Units that queue up while a commit waits for the disk become the next group, so the cost of one fsync is shared by
all callers of that moment. No caller hears anything before its group has been committed.

A group first runs without savepoints. A unit that fails before it has changed a row is simply out; one that fails
later has the group rolled back and run again with a savepoint around each unit, so that only its own work is undone.
"""

import queue
import threading
from collections.abc import Callable
from contextlib import suppress

import apsw

from cogflare.store.base import Conflict, Constraint, Row, StoreError
from cogflare.store.sqlite.connection import Connect, translate
from cogflare.store.unit import Unit

_MAX_PASSES = 8


class Task:
    """Work that needs the writer's connection for itself, outside of any transaction (a migration)."""

    def __init__(self, function: Callable[[apsw.Connection], None], done: Callable[[Exception | None], None]) -> None:
        self.function = function
        self.done = done


class Writer(threading.Thread):
    """Owns the connection that writes. `put` and `stop` may be called from any thread.

    `post` is called in this thread with each group once it is decided; it must not raise.
    """

    def __init__(self, connect: Connect, post: Callable[[list[Unit]], None], group: int) -> None:
        super().__init__(name="cogflare-sqlite-writer", daemon=True)
        self._connect = connect
        self._post = post
        self._group = group
        self._queue: queue.SimpleQueue[Unit | Task | None] = queue.SimpleQueue()
        self._connection: apsw.Connection | None = None

    def put(self, job: Unit | Task) -> None:
        self._queue.put(job)

    def stop(self) -> None:
        """End the thread once everything that was put before is done."""
        self._queue.put(None)

    def run(self) -> None:
        while True:
            units, last = self._take()
            if units:
                self._decide(units)
                self._post(units)
            if isinstance(last, Task):
                self._run_task(last)
            elif last is None:
                break
        if self._connection is not None:
            # What was answered is in the log; folding that into the file may wait for the next start.
            with suppress(apsw.Error):
                self._connection.close()

    def _take(self) -> tuple[list[Unit], Unit | Task | None]:
        """Wait for a job, then take all that wait, up to a group; the second is the job that ended the taking."""
        units: list[Unit] = []
        job = self._queue.get()
        with suppress(queue.Empty):
            while isinstance(job, Unit):
                units.append(job)
                if len(units) >= self._group:
                    break
                job = self._queue.get_nowait()
        return units, job

    def _open(self) -> apsw.Connection:
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def _run_task(self, task: Task) -> None:
        try:
            task.function(self._open())
        except Exception as error:
            task.done(translate(error, self._connection))
        else:
            task.done(None)

    def _decide(self, units: list[Unit]) -> None:
        """Give every unit its outcome, in as many passes as it takes."""
        left, apart = units, False
        error: Exception = StoreError("SQLite rolled this group of units back again and again")
        for _ in range(_MAX_PASSES):
            try:
                culprit = _run_group(self._open(), left, apart)
            except Exception as failure:
                error = failure
                break
            if culprit is None:
                return
            if apart or len(left) == 1:
                # Its own error stands; what the others did, or could not do, has been rolled back with it.
                left = [unit for unit in left if unit is not culprit]
            if not left:
                return
            apart = True
        for unit in left:
            unit.outcome = _told_anew(error, self._connection)


def _told_anew(error: Exception, connection: apsw.Connection | None) -> Exception:
    """Return an exception for one caller: it collects the traceback of whoever raises it, so it cannot be shared."""
    return translate(error, connection) if isinstance(error, apsw.Error) else type(error)(*error.args)


def _run_group(connection: apsw.Connection, units: list[Unit], apart: bool) -> Unit | None:
    """Run the units as one transaction; if it had to be rolled back because of one of them, return that unit.

    Raises if the transaction could not begin or be committed: then none of the units happened, and what a refused
    one saw never was.
    """
    cursor = connection.cursor()
    cursor.execute("BEGIN IMMEDIATE")
    run = _run_apart if apart else _run_plain
    for unit in units:
        if not run(connection, cursor, unit):
            _roll_back(connection)
            return unit
    try:
        cursor.execute("COMMIT")
    except apsw.Error:
        _roll_back(connection)
        raise
    return None


def _run_plain(connection: apsw.Connection, cursor: apsw.Cursor, unit: Unit) -> bool:
    """Run a unit with nothing around it; False if it failed after it may have changed something."""
    before = connection.total_changes()
    try:
        unit.outcome = _run_steps(cursor, unit)
    except Exception as error:
        unit.outcome = translate(error, connection)
        untouched = isinstance(unit.outcome, Conflict | Constraint) and connection.total_changes() == before
        return untouched and connection.in_transaction
    return True


def _run_apart(connection: apsw.Connection, cursor: apsw.Cursor, unit: Unit) -> bool:
    """Run a unit inside a savepoint; False if SQLite has rolled the whole transaction back."""
    try:
        cursor.execute("SAVEPOINT unit")
        unit.outcome = _run_steps(cursor, unit)
        cursor.execute("RELEASE unit")
    except Exception as error:
        unit.outcome = translate(error, connection)
        if not connection.in_transaction:
            return False
        try:
            cursor.execute("ROLLBACK TO unit")
            cursor.execute("RELEASE unit")
        except apsw.Error:
            return False
    return True


def _run_steps(cursor: apsw.Cursor, unit: Unit) -> list[list[Row]]:
    results: list[list[Row]] = []
    for name, sql, values, needs in unit.steps:
        rows: list[Row] = cursor.execute(sql, values).fetchall()
        results.append(rows)
        if not rows and needs != "any":
            if needs == "row":
                raise Conflict(name)
            results.extend([] for _ in range(len(unit.steps) - len(results)))
            break
    return results


def _roll_back(connection: apsw.Connection) -> None:
    # After FULL, IOERR or NOMEM SQLite may have rolled back by itself.
    if connection.in_transaction:
        with suppress(apsw.Error):
            connection.execute("ROLLBACK")
