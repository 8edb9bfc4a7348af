"""What only SQLite can get wrong: the disk, the process, and the thread that commits."""

import asyncio
import itertools
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from cogflare.store.base import Conflict, Full, StoreError, Unavailable
from cogflare.store.sqlite import SQLiteDatabase
from cogflare.store.sqlite.connection import Options, Synchronous
from store.conftest import SQL
from store.test_database import add, insert, items, set_if

pytestmark = pytest.mark.anyio


class _File(apsw.VFSFile):
    def __init__(self, disk: "Disk", filename: str | apsw.URIFilename | None, flags: list[int]) -> None:
        super().__init__("", filename, flags)
        self._disk = disk
        # Only the database itself comes with URI parameters.
        self._is_log = isinstance(filename, str) and filename.endswith("-wal")

    def xSync(self, flags: int) -> None:  # noqa: N802
        if self._is_log:
            self._disk.log_syncs += 1
            if self._disk.sync_error is not None:
                raise self._disk.sync_error("injected")
        super().xSync(flags)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        if self._is_log and self._disk.write_error is not None:
            raise self._disk.write_error("injected")
        super().xWrite(data, offset)


class Disk(apsw.VFS):
    """A file system that counts what is pressed onto the disk, and fails on demand."""

    numbers = itertools.count()

    def __init__(self) -> None:
        self.name = f"disk-{next(self.numbers)}"
        super().__init__(self.name, "")
        self.log_syncs = 0
        self.sync_error: type[apsw.Error] | None = None
        self.write_error: type[apsw.Error] | None = None

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        return _File(self, name, flags)


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk()
    yield disk
    disk.unregister()


async def open_on(disk: Disk, path: Path, synchronous: Synchronous = "full") -> SQLiteDatabase:
    database = SQLiteDatabase(Options(str(path / "x.db"), synchronous, vfs=disk.name), sql=SQL)
    await database.migrate()
    return database


@pytest.mark.parametrize(("synchronous", "syncs"), [("full", 10), ("normal", 0), ("off", 0)])
async def test_every_answered_unit_was_pressed_onto_the_disk(
    disk: Disk, tmp_path: Path, synchronous: Synchronous, syncs: int
) -> None:
    database = await open_on(disk, tmp_path, synchronous)
    before = disk.log_syncs
    for number in range(10):
        await database.write(insert(f"i{number}"))
        if synchronous == "full":
            assert disk.log_syncs == before + number + 1
    assert disk.log_syncs == before + syncs
    await database.aclose()


async def test_units_of_one_moment_share_a_commit(disk: Disk, tmp_path: Path) -> None:
    database = await open_on(disk, tmp_path)
    before = disk.log_syncs
    await asyncio.gather(*(database.write(insert(f"i{number}")) for number in range(500)))
    assert disk.log_syncs - before < 50
    await database.aclose()


@pytest.mark.parametrize(
    ("error", "told"), [(apsw.FullError, Full), (apsw.IOError, Unavailable), (apsw.NoMemError, Unavailable)]
)
@pytest.mark.parametrize("moment", ["write_error", "sync_error"])
async def test_a_failed_commit_fails_its_units_and_the_next_works(
    disk: Disk, tmp_path: Path, moment: str, error: type[apsw.Error], told: type[StoreError]
) -> None:
    database = await open_on(disk, tmp_path)
    await database.write(insert("a"))
    setattr(disk, moment, error)
    units = [database.write(insert(f"b{number}")) for number in range(5)]
    outcomes = await asyncio.gather(*units, database.write(add("a"), set_if("a", 0, 0)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes[:5]} == {told}
    assert len({id(outcome) for outcome in outcomes}) == 6
    assert type(outcomes[5]) in (told, Conflict)
    setattr(disk, moment, None)
    await database.write(insert("c"), add("a"))
    assert await items(database) == {"a": 1, "c": 0}
    await database.aclose()
    reopened = await open_on(disk, tmp_path)
    assert await items(reopened) == {"a": 1, "c": 0}
    await reopened.aclose()


async def test_a_unit_that_fills_the_disk_fails_alone(tmp_path: Path) -> None:
    database = SQLiteDatabase(Options(str(tmp_path / "x.db")), sql=SQL)
    await database.migrate()

    def leave_little_room(connection: apsw.Connection) -> None:
        connection.pragma("max_page_count", connection.pragma("page_count") + 30)

    await database._run(leave_little_room)
    big = "x" * 1_000_000
    units = [database.write(insert(f"i{number}", 0, big if number % 4 == 1 else None)) for number in range(12)]
    outcomes = await asyncio.gather(*units, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [list, Full, list, list] * 3
    await database.write(insert("more"))
    assert len(await items(database)) == 10
    await database.aclose()


async def test_another_process_may_hold_the_write_lock(tmp_path: Path) -> None:
    database = SQLiteDatabase(Options(str(tmp_path / "x.db"), busy_timeout_s=0.05), sql=SQL)
    await database.migrate()
    other = apsw.Connection(str(tmp_path / "x.db"))
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable):
        await database.write(insert("a"))
    assert await items(database) == {}
    other.execute("COMMIT")
    other.close()
    await database.write(insert("b"))
    assert await items(database) == {"b": 0}
    await database.aclose()


async def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    database = SQLiteDatabase(Options(str(tmp_path / "missing" / "x.db")), sql=SQL)
    for call in (database.migrate(), database.write(insert("a")), database.read("list_items")):
        with pytest.raises(Unavailable):
            await call
    (tmp_path / "missing").mkdir()
    await database.migrate()
    assert await items(database) == {}
    await database.aclose()


async def test_a_quota_is_a_full_disk_and_passes(tmp_path: Path) -> None:
    database = SQLiteDatabase(Options(str(tmp_path / "x.db")), sql=SQL)
    await database.migrate()
    await database.write(insert("a"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        for name in ("b", "c"):
            with pytest.raises(Full, match="File too large"):
                await database.write(insert(name))
        assert (await items(database)).keys() == {"a"}
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    await database.write(insert("b"))
    assert (await items(database)).keys() == {"a", "b"}
    await database.aclose()


_WRITE_FOREVER = """
import asyncio, os, sys
from pathlib import Path
from cogflare.store.base import Statement
from cogflare.store.open import open_database

async def client(database, number):
    for turn in range(10**9):
        id = f"{number}-{turn}"
        await database.write(
            Statement("insert_item", {"id": id, "n": 0, "body": None}),
            Statement("add_to_item", {"id": id, "by": 1}, "row"),
        )
        os.write(1, f"{id}\\n".encode())

async def main():
    database = open_database(sys.argv[1], sql=Path(sys.argv[2]))
    await database.migrate()
    await asyncio.gather(*(client(database, number) for number in range(50)))

asyncio.run(main())
"""


async def test_a_killed_process_loses_no_answered_unit(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _WRITE_FOREVER, url, str(SQL), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    answered = [await process.stdout.readline() for _ in range(2000)]
    process.send_signal(signal.SIGKILL)
    answered += (await process.stdout.read()).splitlines(keepends=True)
    await process.wait()
    ids = {line.decode().strip() for line in answered if line.endswith(b"\n")}
    database = SQLiteDatabase(Options(f"{tmp_path}/x.db"), sql=SQL)
    kept = await items(database)
    assert ids <= kept.keys()
    assert set(kept.values()) == {1}
    await database.aclose()
