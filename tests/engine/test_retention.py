"""House-keeping on a real store and real files: what goes, in which order, and what a wrong clock may not do."""

import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from cogflare.api.predictions import render
from cogflare.api.wire import Links
from cogflare.blobs.base import BlobUnavailable
from cogflare.blobs.local import LocalBlobStore
from cogflare.domain.errors import NotFound
from cogflare.domain.ids import new_key
from cogflare.domain.money import day_of
from cogflare.engine import pruning
from cogflare.engine.files import Files, Sender
from cogflare.engine.predictions import Order
from cogflare.engine.pruning import Terms
from cogflare.engine.retention import HOLD_S, PAUSE_S, Retention
from cogflare.protocol.messages import Assign
from cogflare.store import predictions as store_predictions
from cogflare.store import recovery, usage
from cogflare.store.base import Database, Statement
from cogflare.store.open import open_database
from cogflare.store.recovery import SetupFailure
from engine.rig import Rig, RigWorker
from store.test_nodes import uncommitted

pytestmark = pytest.mark.anyio
HOUR_S = 3600.0
DAY_S = 86_400.0
TERMS = Terms(data_s=HOUR_S, records_s=10 * DAY_S)


class MovableClock:
    """The clocks of this machine; the test lets time pass, or lets the wall clock alone jump."""

    def __init__(self) -> None:
        self._passed_s = 0.0
        self._jumped_s = 0.0

    def wall(self) -> int:
        return time.time_ns() // 1000 + int((self._passed_s + self._jumped_s) * 1e6)

    def monotonic(self) -> float:
        return time.monotonic() + self._passed_s

    def wait(self, seconds: float) -> None:
        self._passed_s += seconds

    def jump(self, seconds: float) -> None:
        self._jumped_s += seconds


class StuckBlobs(LocalBlobStore):
    """A store that cannot delete what it is told not to."""

    stuck: frozenset[str] = frozenset()

    async def delete(self, key: str) -> None:
        if key in self.stuck:
            raise BlobUnavailable("read-only file system")
        await super().delete(key)


class House:
    """A node with files, a clock that moves, and the role that keeps it."""

    def __init__(self, db: Database, folder: Path, terms: Terms = TERMS) -> None:
        self.db = db
        self.clock = MovableClock()
        self.rig = Rig(db, clock=self.clock)
        self.folder = folder
        self.blobs = StuckBlobs(folder)
        self.files = Files(db, self.blobs, self.clock)
        self.retention = Retention(db, self.blobs, self.clock, terms)

    async def keep(self) -> int:
        """Let the role work until it is done; returns how many looks that took."""
        looks = 1
        while await self.retention.tick() < 1:
            looks += 1
            self.clock.wait(PAUSE_S)
        return looks

    async def runs(self, worker: RigWorker, input: bytes = b"{}") -> Assign:
        caller = await self.rig.caller("ada")
        await self.rig.predictions.create(caller, Order(input, {}, "ada/noop"), None)
        assigned = await worker.next()
        await worker.start(assigned)
        return assigned

    async def file(self, worker: RigWorker, assigned: Assign, content: bytes = b"png") -> str:
        """Send an output file; return its id."""
        sender = Sender(worker.caller.account, worker.end.worker)
        key = assigned.prediction, assigned.attempt
        ticket = await self.files.announce(sender, key, "x.png", "image/png", len(content))

        async def body() -> AsyncIterator[bytes]:
            yield content

        await self.files.receive(sender, ticket.id, body())
        return ticket.id

    async def done(
        self,
        worker: RigWorker,
        *,
        input: bytes = b"{}",
        output: bytes = b'"out"',
        files: int = 0,
        status: str = "succeeded",
    ) -> str:
        """Run a prediction to its end; return its id."""
        assigned = await self.runs(worker, input)
        for _ in range(files):
            await self.file(worker, assigned)
        key = assigned.prediction, assigned.attempt
        worker.end.log(key, "some log")
        assert await worker.finish(key, output, files=files, status=status) == "committed"
        return assigned.prediction

    async def shown(self, prediction: str) -> dict[str, object]:
        view = await self.rig.predictions.get((await self.rig.caller("ada")).account, prediction)
        shown: dict[str, object] = msgspec.json.decode(render(view, Links("http://x")))
        return shown

    def stored(self) -> set[str]:
        """Return the keys of all blobs."""
        return {path.name for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture
def house(store: Database, tmp_path: Path) -> House:
    return House(store, tmp_path / "files")


# --- data -------------------------------------------------------------------------------------------------------------


async def test_data_goes_after_its_time_and_is_shown_as_replicate_shows_it(house: House) -> None:
    worker = await house.rig.worker(slots=4)
    large = b'{"prompt": "%b"}' % (b"x" * 20_000)
    old = await house.done(worker, input=large, output=b'"%b"' % (b"y" * 20_000), files=2)
    running = await house.runs(worker)
    house.clock.wait(HOUR_S / 2)
    young = await house.done(worker, files=1)
    await house.keep()
    assert (await house.shown(old))["output"] == "y" * 20_000
    house.clock.wait(HOUR_S / 2 + 1)
    await house.keep()
    shown = await house.shown(old)
    assert {name: shown[name] for name in ("status", "data_removed", "input", "output", "logs", "error")} == {
        "status": "succeeded",
        "data_removed": True,
        "input": {},
        "output": None,
        "logs": "",
        "error": None,
    }
    assert shown["completed_at"]
    assert "total_time" in shown["metrics"]  # type: ignore[operator]
    assert (await house.shown(young))["data_removed"] is False
    assert len(house.stored()) == 1
    assert await worker.finish((running.prediction, running.attempt)) == "committed"
    assert (await house.shown(running.prediction))["output"] == "done"


async def test_a_file_past_its_time_is_not_found(house: House) -> None:
    worker = await house.rig.worker()
    assigned = await house.runs(worker)
    id = await house.file(worker, assigned)
    await worker.finish((assigned.prediction, assigned.attempt), files=1)
    await house.files.find(id, "x.png")
    house.clock.wait(HOUR_S + 1)
    await house.keep()
    with pytest.raises(NotFound):
        await house.files.find(id, "x.png")
    assert house.stored() == set()
    assert await house.db.read("get_file", id=id) == []


async def test_many_go_in_several_bites(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = await house.rig.worker(slots=4)
    predictions = [await house.done(worker, output=b'"%b"' % (b"y" * 20_000)) for _ in range(5)]
    house.clock.wait(HOUR_S + 1)
    monkeypatch.setattr(pruning, "BITE_BYTES", 50_000)
    assert await house.keep() == 4
    assert [(await house.shown(one))["data_removed"] for one in predictions] == [True] * 5


async def test_what_is_larger_than_a_bite_is_hidden_and_goes_in_parts(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await house.rig.worker()
    small = await house.done(worker)
    large = await house.done(worker, output=b'"%b"' % (b"y" * 800_000))
    house.clock.wait(HOUR_S + 1)
    monkeypatch.setattr(pruning, "BITE_BYTES", 300_000)
    await house.retention.tick()
    assert ((await house.shown(small))["data_removed"], (await house.shown(large))["data_removed"]) == (True, False)
    house.clock.wait(PAUSE_S)
    await house.retention.tick()
    assert (await house.shown(large))["data_removed"] is True
    rest = await house.db.read("prunable_data", cutoff=store_predictions.FAR_FUTURE, limit=10)
    assert [(id, parts > 0) for id, _, parts, _ in rest] == [(large, True)], "some of it is still there"
    assert await store_predictions.chunks(house.db, [(large, 1)]) == [], "and is not shown by halves"
    # Whoever goes on after a crash finds it hidden.
    monkeypatch.setattr(pruning, "BITE_BYTES", 4_000_000)
    house.retention = Retention(house.db, house.blobs, house.clock, TERMS)
    await house.keep()
    assert await house.db.read("prunable_data", cutoff=store_predictions.FAR_FUTURE, limit=10) == []


async def test_nothing_of_what_another_node_holds_goes(
    new_url: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_url("postgres")
    store = open_database(url)
    await store.migrate()
    house = House(store, tmp_path / "files")
    failed = await house.done(await house.rig.worker(), output=b'"%b"' % (b"y" * 800_000), status="failed")
    whole = await store_predictions.chunks(store, [(failed, 1)])
    house.clock.wait(HOUR_S + 1)
    monkeypatch.setattr(pruning, "BITE_BYTES", 300_000)
    async with uncommitted(url, recovery.mark_requeued(failed, "the-new-one")):
        for _ in range(3):
            await house.retention.tick()
            house.clock.wait(PAUSE_S)
        assert (await house.shown(failed))["data_removed"] is False
        assert await store_predictions.chunks(store, [(failed, 1)]) == whole
    house.clock.wait(HOUR_S)
    await house.keep()
    assert (await house.shown(failed))["data_removed"] is True
    assert await store_predictions.chunks(store, [(failed, 1)]) == []
    await store.aclose()


async def test_nothing_goes_where_everything_is_kept(store: Database, tmp_path: Path) -> None:
    house = House(store, tmp_path / "files", Terms(data_s=0, records_s=DAY_S))
    prediction = await house.done(await house.rig.worker(), files=1)
    house.clock.wait(1000 * DAY_S)
    await house.keep()
    assert (await house.shown(prediction))["output"] == "out"
    assert len(house.stored()) == 1


# --- records ----------------------------------------------------------------------------------------------------------


async def test_records_go_later(house: House) -> None:
    prediction = await house.done(await house.rig.worker())
    await house.keep()
    house.clock.wait(10 * DAY_S - 60)
    await house.keep()
    assert (await house.shown(prediction))["data_removed"] is True
    house.clock.wait(120)
    await house.keep()
    with pytest.raises(NotFound):
        await house.shown(prediction)


@pytest.mark.parametrize(
    ("terms", "whole_s"),
    [
        (Terms(HOUR_S, 10 * DAY_S), 10 * DAY_S),
        (Terms(HOUR_S, 1.0), DAY_S),
        (Terms(5 * DAY_S, 2 * DAY_S), 5 * DAY_S),
        (Terms(0.0, DAY_S), 0.0),
        (Terms(HOUR_S, 0.0), 0.0),
    ],
)
def test_no_record_goes_before_its_data_nor_within_a_day(terms: Terms, whole_s: float) -> None:
    assert terms.whole_s == whole_s


# --- left-overs -------------------------------------------------------------------------------------------------------


async def test_files_that_no_finish_named_are_swept(house: House) -> None:
    worker = await house.rig.worker(slots=2)
    unnamed, live = await house.runs(worker), await house.runs(worker)
    swept = await house.file(worker, unnamed)
    kept = await house.file(worker, live)
    await worker.finish((unnamed.prediction, unnamed.attempt), files=0)
    await house.keep()
    assert house.stored() == {swept, kept}
    house.clock.wait(2 * HOUR_S)
    await house.keep()
    assert house.stored() == {kept}
    await worker.finish((live.prediction, live.attempt), files=1)
    await house.files.find(kept, "x.png")


async def test_a_crash_between_the_bytes_and_the_row_leaves_nothing(house: House) -> None:
    worker = await house.rig.worker()
    assigned = await house.runs(worker)
    half, whole = await house.file(worker, assigned), await house.file(worker, assigned)
    await worker.finish((assigned.prediction, assigned.attempt), files=2)
    await house.db.write(
        Statement("remove_data", {"predictions": f'["{assigned.prediction}"]', "state": 2}),
        Statement("expire_files", {"predictions": f'["{assigned.prediction}"]'}),
    )
    await house.blobs.delete(half)
    with pytest.raises(NotFound):
        await house.files.find(whole, "x.png")
    await house.keep()
    assert house.stored() == set()
    assert await house.db.read("expired_files", after="", limit=10) == []


async def test_a_file_that_cannot_be_deleted_holds_up_no_other(house: House) -> None:
    worker = await house.rig.worker()
    assigned = await house.runs(worker)
    first = min(await house.file(worker, assigned), await house.file(worker, assigned))
    await worker.finish((assigned.prediction, assigned.attempt), files=2)
    house.clock.wait(HOUR_S + 1)
    house.blobs.stuck = frozenset({first})
    await house.keep()
    assert house.stored() == {first}
    house.blobs.stuck = frozenset()
    house.clock.wait(HOUR_S)
    await house.keep()
    assert house.stored() == set()


async def test_parts_of_uploads_that_broke_off_are_swept(house: House) -> None:
    parts = house.folder / "parts"
    parts.mkdir(parents=True)
    (parts / f"{new_key()}.0").write_bytes(b"half")
    await house.keep()
    assert len(house.stored()) == 1
    # The age of a part is what the file system says.
    old = time.time() - 2 * DAY_S
    for part in parts.iterdir():
        os.utime(part, (old, old))
    house.clock.wait(HOUR_S + 1)
    await house.keep()
    assert house.stored() == set()


async def test_workers_long_gone_are_forgotten(house: House) -> None:
    worker = await house.rig.worker()
    await worker.disconnect()
    connected = await house.rig.worker()
    house.clock.wait(29 * DAY_S)
    await house.keep()
    rows = await house.db.read("list_workers", account=None, after="", limit=10)
    assert len(rows) == 2
    house.clock.wait(2 * DAY_S)
    await house.keep()
    rows = await house.db.read("list_workers", account=None, after="", limit=10)
    assert [row[0] for row in rows] == [connected.end.worker]


async def test_a_worker_that_says_why_it_does_not_come_is_not_forgotten(house: House) -> None:
    worker = await house.rig.worker()
    await worker.disconnect()
    house.clock.wait(31 * DAY_S)
    about = worker.end.worker, worker.caller.account, worker.caller.token, "rig", "[]"
    failure = SetupFailure(*about, "no such file", house.clock.wall())
    assert await recovery.note_setup_failure(house.db, failure)
    await house.keep()
    rows = await house.db.read("list_workers", account=None, after="", limit=10)
    assert [(row[0], row[10]) for row in rows] == [(worker.end.worker, "no such file")]


# --- a clock that is wrong --------------------------------------------------------------------------------------------


async def test_after_a_jump_of_the_clock_nothing_is_removed_for_an_hour(house: House) -> None:
    prediction = await house.done(await house.rig.worker())
    await house.keep()
    house.clock.jump(365 * DAY_S)
    await house.keep()
    house.clock.wait(HOLD_S - 60)
    await house.keep()
    assert (await house.shown(prediction))["output"] == "out"
    # Nobody has put it right, so it is right.
    house.clock.wait(120)
    await house.keep()
    with pytest.raises(NotFound):
        await house.shown(prediction)


async def test_a_jump_that_is_taken_back_costs_nothing(house: House) -> None:
    prediction = await house.done(await house.rig.worker())
    await house.keep()
    house.clock.jump(365 * DAY_S)
    await house.keep()
    house.clock.wait(60)
    house.clock.jump(-365 * DAY_S)
    await house.keep()
    house.clock.wait(HOLD_S - 120)
    await house.keep()
    assert (await house.shown(prediction))["output"] == "out"


async def test_small_corrections_of_the_clock_do_not_stop_the_work(house: House) -> None:
    prediction = await house.done(await house.rig.worker())
    await house.keep()
    house.clock.jump(200)
    house.clock.wait(HOUR_S)
    await house.keep()
    assert (await house.shown(prediction))["data_removed"] is True


async def test_a_node_that_starts_long_after_the_newest_prediction_waits_first(house: House) -> None:
    prediction = await house.done(await house.rig.worker())
    house.clock.wait(30 * DAY_S)
    await house.keep()
    assert (await house.shown(prediction))["output"] == "out"
    house.clock.wait(HOLD_S + 1)
    await house.keep()
    with pytest.raises(NotFound):
        await house.shown(prediction)


async def test_two_nodes_may_prune_at_once(store: Database, tmp_path: Path) -> None:
    house = House(store, tmp_path / "files")
    worker = await house.rig.worker()
    predictions = [await house.done(worker, files=1) for _ in range(3)]
    other = Retention(store, house.blobs, house.clock, TERMS)
    house.clock.wait(HOUR_S + 1)
    for _ in range(5):
        await house.retention.tick()
        await other.tick()
        house.clock.wait(PAUSE_S)
    assert [(await house.shown(one))["data_removed"] for one in predictions] == [True] * 3
    assert house.stored() == set()


# --- ledgers ----------------------------------------------------------------------------------------------------------


async def test_ledgers_and_run_times_that_are_old_go(house: House) -> None:
    caller = await house.rig.caller("ada")
    now = house.clock.wall()
    today = day_of(now)
    await usage.add(
        house.db, [(caller.account, "ada/noop", today, 1, 5)], [("shared", "ada/noop", "v", "", [1.0])], now
    )
    await house.keep()
    house.clock.wait(89 * DAY_S)
    await house.keep()
    assert await usage.run_times(house.db, "shared", "ada/noop") == [("v", "", [1.0])]
    house.clock.wait(2 * DAY_S)
    await house.keep()
    assert await usage.run_times(house.db, "shared", "ada/noop") == []
    house.clock.wait(308 * DAY_S)
    await house.keep()
    assert await usage.used(house.db, caller.account, today, today) == [("ada/noop", today, 1, 5)]
    house.clock.wait(2 * DAY_S)
    await house.keep()
    assert await usage.used(house.db, caller.account, today, today) == []
