"""A store that refuses: said once, over when it is over, and no reason to take work away from anybody."""

import asyncio
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from cogflare.engine import storage as module
from cogflare.engine.leases import Leases
from cogflare.engine.storage import Storage
from cogflare.protocol.messages import Renewed
from cogflare.store import fleet
from cogflare.store.base import Full
from cogflare.store.open import open_database
from engine.rig import TIMES, Rig, SystemClock

pytestmark = pytest.mark.anyio


@contextmanager
def full(rig: Rig) -> Iterator[None]:
    """Let no file of this process grow beyond what the log of the database has already."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(open_database(f"sqlite:///{tmp_path}/x.db"), SystemClock())


@pytest.fixture
async def rig(storage: Storage) -> Rig:
    await storage.migrate()
    return Rig(storage)


async def test_a_full_disk_is_said_once_and_so_is_its_end(
    rig: Rig, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SETTLED_S", 0.05)
    began = rig.clock.monotonic()
    with capture_logs() as said:
        with full(rig):
            for _ in range(3):
                with pytest.raises(Full, match="File too large"):
                    await rig.accounts.create("ada", "api", "x")
            await storage.tick()
            assert storage.has_refused(began)
        await storage.tick()
        await asyncio.sleep(0.06)
        await storage.tick()
        await storage.tick()
    assert [entry["log_level"] for entry in said] == ["error", "warning"]
    assert "the disk is full" in said[0]["event"]
    assert "works again" in said[1]["event"]
    assert not storage.has_refused(rig.clock.monotonic())
    assert await rig.accounts.create("ada", "api", "x") is not None
    await storage.aclose()


async def test_what_changes_nothing_is_no_proof_of_room(rig: Rig, storage: Storage) -> None:
    with capture_logs() as said, full(rig):
        with pytest.raises(Full):
            await rig.accounts.create("ada", "api", "x")
        assert await storage.write(fleet.close_link("nobody", 1, "away", 1)) == [[]]
    assert len(said) == 1
    await storage.aclose()


async def test_nobody_loses_a_lease_that_could_not_be_renewed(rig: Rig, storage: Storage) -> None:
    leases = Leases(storage, rig.clock, rig.fleet, rig.losses, TIMES, storage.has_refused)
    worker = await rig.worker()
    await rig.create(await rig.caller("ada"))
    key = await worker.start(await worker.next())
    await rig.settle()
    await leases.tick()
    with full(rig):
        end = rig.clock.monotonic() + 2 * TIMES.lease_s
        while rig.clock.monotonic() < end:
            worker.heard.clear()
            await worker.heartbeat()
            # The link stays: its server is there.
            assert worker.heard in ([Renewed([])], [])
            await leases.tick()
            await asyncio.sleep(0.05)
    await leases.tick()
    state = await fleet.get_attempt(storage, *key)
    assert state is not None
    assert state.ended_at is None
    assert await worker.finish(key) == "committed"

    # Who is silent while the store works loses what it has.
    await rig.create(await rig.caller("ada"))
    silent = await worker.start(await worker.next())
    await rig.settle()
    end = rig.clock.monotonic() + 2 * TIMES.lease_s
    while rig.clock.monotonic() < end:
        await leases.tick()
        await asyncio.sleep(0.05)
    state = await fleet.get_attempt(storage, *silent)
    assert state is not None
    assert state.outcome == "lost"
    await storage.aclose()
