"""Finishes on disk, and the state folder they live in."""

import asyncio
import sys
from pathlib import Path

import msgspec
import pytest
from msgspec import Raw

from cogflare.agent.identity import claim_state
from cogflare.agent.journal import Entry, Journal
from cogflare.domain.ids import is_id
from cogflare.protocol.agent_end import Kept
from cogflare.protocol.messages import Finish
from support.until import names, until

pytestmark = pytest.mark.anyio


def _entry(name: str = "p", attempt: int = 1, items: list[Raw] | None = None) -> Entry:
    return Entry(Finish(name, attempt, "succeeded", output=Raw(b'{"a": [1,\n2]}')), 7, 5, items or [], b"h\xc3\xa9")


def _journal(folder: Path, delay_s: float = 0.001) -> tuple[Journal, list[str]]:
    said: list[str] = []
    return Journal(folder, said.append, delay_s), said


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("finishes-*.json"))


async def test_what_is_kept_is_read_by_the_next_process(tmp_path: Path) -> None:
    journal, _ = _journal(tmp_path)
    entries = [_entry("p", items=[Raw(b"1"), Raw(b'"\\n"')]), _entry("q", 2)]
    for entry in entries:
        journal.keep(entry)
    await until(lambda: _files(tmp_path))  # no orderly end: this is what a killed process leaves
    assert len(_files(tmp_path)) == 1
    successor, said = _journal(tmp_path)
    assert successor.read() == entries
    assert said == []
    await journal.aclose()
    await successor.aclose()


async def test_what_is_answered_in_time_never_touches_the_disk(tmp_path: Path) -> None:
    journal, _ = _journal(tmp_path, 60)
    journal.keep(_entry())
    journal.forget(("p", 1))
    await journal.aclose()
    assert names(tmp_path) == []


async def test_closing_writes_what_is_due(tmp_path: Path) -> None:
    journal, _ = _journal(tmp_path, 60)
    journal.keep(_entry())
    await journal.aclose()
    assert len(_files(tmp_path)) == 1


async def test_a_file_goes_with_its_last_entry(tmp_path: Path) -> None:
    journal, _ = _journal(tmp_path)
    journal.keep(_entry("p"))
    journal.keep(_entry("q"))
    await until(lambda: _files(tmp_path))
    journal.forget(("p", 1))
    journal.forget(("p", 1))
    journal.forget(("stranger", 1))
    assert _files(tmp_path)
    journal.forget(("q", 1))
    await journal.aclose()
    assert names(tmp_path) == []


async def test_entries_that_were_read_can_be_forgotten_and_numbers_go_on(tmp_path: Path) -> None:
    first, _ = _journal(tmp_path, 60)
    first.keep(_entry("p"))
    await first.aclose()
    second, _ = _journal(tmp_path, 60)
    assert len(second.read()) == 1
    second.keep(_entry("q"))
    second.forget(("p", 1))
    await second.aclose()
    third, _ = _journal(tmp_path)
    assert [entry.finish.prediction for entry in third.read()] == ["q"]
    await third.aclose()


async def test_an_entry_forgotten_while_it_is_being_written_leaves_nothing(tmp_path: Path) -> None:
    journal, _ = _journal(tmp_path, 0)
    for number in range(50):
        journal.keep(_entry(f"p{number}"))
        await asyncio.sleep(0)
        journal.forget((f"p{number}", 1))
    await journal.aclose()
    assert names(tmp_path) == []


async def test_a_file_that_tells_nothing_new_is_removed(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"finishes-{number:010}.json").write_bytes(msgspec.json.encode([_entry()]))
    journal, _ = _journal(tmp_path)
    assert journal.read() == [_entry()]
    assert names(tmp_path) == ["finishes-0000000001.json"]
    await journal.aclose()


@pytest.mark.parametrize("damage", [b"", b"[", b'[{"finish":1}]', b"\xff\xfe", b"[" * 100_000])
async def test_a_damaged_file_is_set_aside(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "finishes-0000000003.json").write_bytes(damage)
    (tmp_path / "finishes-0000000004.new").write_bytes(b"half")
    journal, said = _journal(tmp_path)
    assert journal.read() == []
    assert "set aside" in said[0]
    assert (tmp_path / "finishes-0000000003.damaged").exists()
    await journal.aclose()


async def test_a_full_disk_is_said_and_does_not_stop_the_worker(tmp_path: Path) -> None:
    journal, said = _journal(tmp_path / "missing")
    journal.keep(_entry())
    await until(lambda: said)
    assert "cannot be kept" in said[0]
    journal.forget(("p", 1))
    await journal.aclose()


def test_times_survive_the_process() -> None:
    kept = Kept(
        0, started_at=100.0, items=[Raw(b"1")], log=bytearray(b"x"), finish=Finish("p", 1, "failed"), finished_at=103.0
    )
    entry = Entry.of(kept, wall=50_000_000, now=104.0)
    assert (entry.started, entry.finished, entry.items, entry.log) == (46_000_000, 49_000_000, [Raw(b"1")], b"x")


def _wall() -> int:
    return 1_700_000_000_000_000


def test_a_worker_keeps_its_id_per_server_and_model(tmp_path: Path) -> None:
    with claim_state(tmp_path, "https://a", "acme/m", _wall) as state:
        worker, folder = state.worker, state.path
    assert is_id(worker)
    with claim_state(tmp_path, "https://a", "acme/m", _wall) as state:
        assert (state.worker, state.path) == (worker, folder)
    for server, model in (("https://b", "acme/m"), ("https://a", "acme/n")):
        with claim_state(tmp_path, server, model, _wall) as state:
            assert state.worker != worker


def test_a_second_worker_on_the_machine_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    with claim_state(tmp_path, "s", "m", _wall) as first, claim_state(tmp_path, "s", "m", _wall) as second:
        assert second.path.name == f"{first.path.name}-2"
        assert first.worker != second.worker
    with claim_state(tmp_path, "s", "m", _wall) as third:
        assert third.path == first.path


def test_a_spoiled_id_is_made_anew(tmp_path: Path) -> None:
    with claim_state(tmp_path, "s", "m", _wall) as state:
        file = state.path / "worker"
    file.write_bytes(b"\xff rubbish")
    with claim_state(tmp_path, "s", "m", _wall) as state:
        assert is_id(state.worker)


async def test_the_lock_goes_with_its_process(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from cogflare.agent.identity import claim_state\n"
        "state = claim_state(Path(sys.argv[1]), 's', 'm', lambda: 1)\n"
        "print(state.worker, flush=True); sys.stdin.read()"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    worker = (await process.stdout.readline()).decode().strip()
    with claim_state(tmp_path, "s", "m", _wall) as other:
        assert other.worker != worker
    process.kill()
    await process.wait()
    with claim_state(tmp_path, "s", "m", _wall) as heir:
        assert heir.worker == worker
