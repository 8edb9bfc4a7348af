"""Runs under way, on disk."""

import asyncio
import os
from pathlib import Path

import pytest

from cogflare.agent.ledger import HeldRun, Ledger
from support.until import names

pytestmark = pytest.mark.anyio


def _ledger(folder: Path) -> tuple[Ledger, list[str]]:
    said: list[str] = []
    return Ledger(folder, said.append), said


def _held(name: str, attempt: int = 1) -> HeldRun:
    return HeldRun(name, attempt, 0, 1_700_000_000_000_000)


async def _turn() -> None:
    await asyncio.sleep(0)


async def test_what_is_under_way_is_read_by_the_next_process(tmp_path: Path) -> None:
    ledger, _ = _ledger(tmp_path)
    ledger.open([_held("o")])
    for name in ("p", "q", "r"):
        ledger.hold(_held(name, 2))
    ledger.release(("q", 2))
    ledger.release(("stranger", 1))
    with_files = HeldRun("r", 2, 0, 7, ["http://127.0.0.1:9/x/a.png"], "/state/inputs/cogflare-input-1")
    ledger.hold(with_files)
    await _turn()  # no orderly end: this is what a killed process leaves
    successor, said = _ledger(tmp_path)
    assert successor.read() == [_held("o"), _held("p", 2), with_files]
    assert said == []


async def test_it_is_on_disk_before_a_task_of_the_same_turn_begins(tmp_path: Path) -> None:
    ledger, _ = _ledger(tmp_path)
    ledger.open([])
    seen: list[list[HeldRun] | None] = []

    async def run() -> None:
        seen.append(_ledger(tmp_path)[0].read())

    ledger.hold(_held("p"))
    task = asyncio.create_task(run())
    await task
    assert seen == [[_held("p")]]


async def test_an_orderly_end_leaves_nothing(tmp_path: Path) -> None:
    ledger, _ = _ledger(tmp_path)
    ledger.open([])
    ledger.hold(_held("p"))
    ledger.close()
    await _turn()
    assert names(tmp_path) == []
    assert ledger.read() is None


async def test_it_does_not_grow_for_ever(tmp_path: Path) -> None:
    ledger, _ = _ledger(tmp_path)
    ledger.open([_held("long")])
    for number in range(20_000):
        ledger.hold(_held(f"p{number}"))
        ledger.release((f"p{number}", 1))
        if number % 10 == 0:
            await _turn()
    await _turn()
    assert (tmp_path / "held.jsonl").stat().st_size < 300_000
    assert _ledger(tmp_path)[0].read() == [_held("long")]


def test_an_absent_ledger_tells_nothing(tmp_path: Path) -> None:
    ledger, said = _ledger(tmp_path)
    assert ledger.read() is None
    assert said == []


@pytest.mark.parametrize("damage", [b"{", b'{"prediction":"p"}\n', b"\xff\xfe", b"[" * 100_000, b"\n"])
async def test_a_damaged_ledger_is_set_aside(tmp_path: Path, damage: bytes) -> None:
    before, _ = _ledger(tmp_path)
    before.open([_held("p")])
    with (tmp_path / "held.jsonl").open("ab") as file:
        file.write(damage)
    ledger, said = _ledger(tmp_path)
    assert ledger.read() is None
    assert "set aside" in said[0]
    assert names(tmp_path) == ["held.damaged"]
    ledger.open([])
    assert ledger.read() == []


async def test_a_full_disk_is_said_once_and_leaves_no_half_truth(tmp_path: Path) -> None:
    ledger, said = _ledger(tmp_path)
    ledger.open([_held("o")])
    assert ledger._file is not None
    os.dup2(os.open("/dev/full", os.O_WRONLY), ledger._file)
    for name in ("p", "q", "r"):
        ledger.hold(_held(name))
        await _turn()
        ledger.release((name, 1))
        await _turn()
    assert len(said) == 1
    assert "No space left" in said[0]
    assert names(tmp_path) == []


async def test_a_ledger_that_cannot_take_its_place_is_let_go(tmp_path: Path) -> None:
    (tmp_path / "held.jsonl").mkdir()
    (tmp_path / "held.jsonl" / "x").touch()
    ledger, said = _ledger(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    ledger.open([_held("p")])
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(said) == 1


async def test_it_is_for_its_owner_alone(tmp_path: Path) -> None:
    """The URLs of input files are in it."""
    ledger, _ = _ledger(tmp_path)
    ledger.open([])
    assert (tmp_path / "held.jsonl").stat().st_mode & 0o777 == 0o600


async def test_a_state_folder_that_is_gone_does_not_stop_the_worker(tmp_path: Path) -> None:
    ledger, said = _ledger(tmp_path / "missing")
    ledger.open([])
    ledger.hold(_held("p"))
    ledger.release(("p", 1))
    await _turn()
    ledger.close()
    assert len(said) == 1
