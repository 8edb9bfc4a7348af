"""A copy made while the database is written to: one moment of it, whole or not there."""

import asyncio
from pathlib import Path

import apsw
import pytest

from cogflare.store import predictions
from cogflare.store.base import StoreError
from cogflare.store.open import backup_database, has_backup, open_database
from cogflare.store.sqlite import backup
from store.scene import Scene

pytestmark = pytest.mark.anyio


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/source.db"


async def test_the_copy_is_one_moment_while_units_go_on(
    scene: Scene, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "_STEP", 16)
    for _ in range(50):
        await scene.create(input=f'{{"prompt": "{"x" * 100_000}"}}')
    moved: list[tuple[int, int]] = []

    def watch(what: str, done: int, of: int) -> None:
        if what == "copying":
            moved.append((done, of))

    written, stop = 0, asyncio.Event()

    async def write() -> None:
        nonlocal written
        while not stop.is_set():
            key = await scene.claim_key()
            await scene.finish(key, slot_free=True)
            await scene.create()
            written += 1

    writing = asyncio.create_task(write())
    report = await asyncio.to_thread(backup_database, url, tmp_path / "copy.db", watch)
    stop.set()
    await writing
    assert written > 0
    assert len(moved) > 1
    assert moved == sorted(moved)
    copy = apsw.Connection(str(tmp_path / "copy.db"), flags=apsw.SQLITE_OPEN_READONLY)
    # Each unit of the loop leaves 50 that wait, or 49 between its halves; entries and states agree.
    ((entries,),) = copy.execute("SELECT count(*) FROM queue_entries").fetchall()
    ((queued,),) = copy.execute("SELECT count(*) FROM predictions WHERE phase = 'queued'").fetchall()
    ((waiting,),) = copy.execute("SELECT sum(waiting) FROM flows").fetchall()
    assert entries == queued == waiting
    assert queued in (49, 50)
    assert copy.execute("SELECT count(*) FROM predictions").fetchall() == [(report.predictions,)]


async def test_a_copy_is_a_database_to_go_on_with(scene: Scene, url: str, tmp_path: Path) -> None:
    prediction = await scene.create()
    backup_database(url, tmp_path / "copy.db", lambda *_: None)
    copy = open_database(f"sqlite:///{tmp_path}/copy.db")
    await copy.migrate()
    assert await predictions.get(copy, prediction) == await scene.row(prediction)
    await copy.aclose()


async def test_what_is_not_sound_never_takes_the_place(scene: Scene, url: str, tmp_path: Path) -> None:
    for _ in range(20):
        await scene.create(input=f'{{"prompt": "{"x" * 8000}"}}')
    await scene.db.aclose()
    await scene.rows.aclose()
    (tmp_path / "copy.db").write_text("the last good one")
    source = tmp_path / "source.db"
    content = bytearray(source.read_bytes())
    content[8 * 4096 : 30 * 4096] = b"\xff" * (22 * 4096)
    source.write_bytes(content)
    with pytest.raises(StoreError):
        backup_database(url, tmp_path / "copy.db", lambda *_: None)
    assert (tmp_path / "copy.db").read_text() == "the last good one"
    assert sorted(path.name for path in tmp_path.iterdir() if "copy" in path.name) == ["copy.db"]


def test_only_sqlite_is_copied_by_us() -> None:
    assert has_backup("sqlite:///x.db")
    assert not has_backup("postgresql://host/x")
