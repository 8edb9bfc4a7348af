"""What a worker tells of its machine: GPUs as NVIDIA's library has them, bounds of the process, and what is news."""

import asyncio
import sys
import time
from pathlib import Path

import msgspec
import pytest

from cogflare.agent import gpu, machine
from cogflare.agent.machine import Card, Site, devices_of, inventoried, matters, survey, visible
from cogflare.agent.sources import FolderSource, ImageSource, UrlSource
from cogflare.protocol.agent_end import AgentEnd
from cogflare.protocol.codec import agent_frames
from cogflare.protocol.messages import Gpu, Hello, Inventory, Machine, Offer
from support.nvml import DIVIDED, GAMER, TWO_QUADROS, Library

pytestmark = pytest.mark.anyio
QUADRO = Gpu("Quadro RTX 4000", 8_192, 8_191)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def library(built: Library, monkeypatch: pytest.MonkeyPatch) -> Library:
    for name, value in built.environment.items():
        monkeypatch.setenv(name, value)
    return built


async def found(folder: Path, before: Machine | None = None, **site: object) -> Machine:
    return await survey(Site(folder, **site), before)  # type: ignore[arg-type]


# --- GPUs -------------------------------------------------------------------------------------------------------------


async def test_what_the_library_says(library: Library, tmp_path: Path) -> None:
    library.says(TWO_QUADROS)
    told = await found(tmp_path)
    assert (told.gpus, told.driver, told.cuda) == ((QUADRO, QUADRO), "535.129.03", "12.2")


async def test_a_gpu_that_is_divided_is_its_parts(library: Library, tmp_path: Path) -> None:
    library.says(DIVIDED)
    told = await found(tmp_path)
    assert [(one.name.split(" MIG ")[1], one.vram_mb) for one in told.gpus] == [("3g.20gb", 19_968), ("1g.5gb", 4_864)]
    assert told.cuda == "11.0"
    library.says(DIVIDED.split("part")[0])
    assert [one.name for one in (await found(tmp_path)).gpus] == ["A100-SXM4-40GB"]


async def test_a_gpu_without_memory_of_its_own_has_that_of_the_machine(library: Library, tmp_path: Path) -> None:
    library.says("driver 580.95.05\ncuda 13000\ngpu GPU-1 - - NVIDIA GB10\n")
    told = await found(tmp_path)
    assert told.gpus == (Gpu("NVIDIA GB10", told.ram_mb, None),)


@pytest.mark.parametrize("record", ["fails 9", "fails 4", ""])
async def test_a_driver_that_is_not_there_has_no_gpus(library: Library, tmp_path: Path, record: str) -> None:
    library.says(record)
    told = await found(tmp_path, Machine((QUADRO,), "535.129.03"))
    assert (told.gpus, told.driver) == ((), "")


async def test_a_machine_without_the_library_has_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    told = await found(tmp_path)
    assert told.gpus == ()
    assert told.cpus > 0


@pytest.mark.parametrize("record", ["hangs", "crashes"])
async def test_a_driver_that_hangs_or_crashes_takes_nobody_along(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: str
) -> None:
    monkeypatch.setattr(gpu, "_TIMEOUT_S", 1.0)
    library.says(record)
    before = Machine((QUADRO,), "535.129.03", "12.2")
    start = time.monotonic()
    told = await found(tmp_path, before)
    assert time.monotonic() - start < 10
    assert (told.gpus, told.driver, told.cuda) == (before.gpus, before.driver, before.cuda), "nothing new is known"
    assert (await found(tmp_path)).gpus == ()


async def test_the_folder_of_the_worker_is_not_where_its_programs_come_from(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.says(TWO_QUADROS)
    for name in ("json", "pynvml", "cogflare"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    assert len((await found(tmp_path)).gpus) == 2


async def test_more_gpus_than_a_hello_may_name_are_left_out(library: Library, tmp_path: Path) -> None:
    library.says("driver 1\n" + "".join(f"gpu GPU-{number:036} 8192 8191 {'card ' * 18}\n" for number in range(70)))
    told = await found(tmp_path)
    assert len(told.gpus) == 64
    assert msgspec.convert(msgspec.to_builtins(told), Machine) == told


# --- which of them ----------------------------------------------------------------------------------------------------

CARDS = [Card(0, "GPU-aa", "a", 1, 1), Card(1, "GPU-bb", "b", 1, 1), Card(1, "MIG-cc", "c", 1, 1)]


@pytest.mark.parametrize(
    ("devices", "names"),
    [
        (None, "abc"),
        ("all", "abc"),
        ("", ""),
        ("-1", ""),
        ("NoDevFiles", ""),
        ("1", "b"),
        ("1, 0", "ba"),
        ("0,7,1", "a"),
        ("GPU-b", "b"),
        ("MIG-cc,GPU-aa", "ca"),
        ("0,0", "a"),
    ],
)
def test_the_gpus_that_a_model_may_use(devices: str | None, names: str) -> None:
    assert "".join(card.name for card in visible(CARDS, devices)) == names


def test_where_a_model_runs_says_which_gpus_it_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert devices_of(FolderSource(tmp_path)) == "1"
    assert devices_of(UrlSource("http://localhost:5000")) is None
    chosen = {gpus: devices_of(ImageSource("an/image", gpus)) for gpus in ("auto", "all", "none", "0,1")}
    assert chosen == {"auto": None, "all": None, "none": "", "0,1": "0,1"}


# --- the rest ---------------------------------------------------------------------------------------------------------


async def test_the_bounds_of_a_container_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_GROUP", tmp_path)
    free = await found(tmp_path, region="eu-west", tags=("fast", "home"))
    assert min(free.cpus, free.ram_mb, free.disk_free_mb) > 0
    assert (free.region, free.tags, free.python) == ("eu-west", ("fast", "home"), sys.version.split()[0])
    assert free.os
    (tmp_path / "memory.max").write_text(f"{512 << 20}\n")
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    bound = await found(tmp_path / "not" / "there" / "yet")
    assert (bound.ram_mb, bound.cpus) == (512, 1)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    unbound = await found(tmp_path)
    assert (unbound.ram_mb, unbound.cpus) == (free.ram_mb, free.cpus)


CALM = Machine((Gpu("a card", 24_000, 20_000),), "550", "12.4", 8, 32_000, 100_000, "Debian", "3.11", "eu", ("fast",))


@pytest.mark.parametrize(
    ("changes", "is_news"),
    [
        ({}, False),
        ({"gpus": (Gpu("a card", 24_000, 18_000),)}, False),
        ({"gpus": (Gpu("a card", 24_000, 16_000),)}, True),
        ({"gpus": (Gpu("a card", 24_000, None),)}, True),
        ({"gpus": ()}, True),
        ({"gpus": (Gpu("a card", 24_000, 20_000),) * 2}, True),
        ({"gpus": (Gpu("another", 24_000, 20_000),)}, True),
        ({"driver": "560"}, True),
        ({"disk_free_mb": 60_000}, False),
        ({"disk_free_mb": 40_000}, True),
        ({"disk_free_mb": 9_000}, True),
        ({"disk_free_mb": 300_000}, True),
        ({"tags": ()}, True),
        ({"ram_mb": 16_000}, True),
    ],
)
def test_what_is_news(changes: dict[str, object], is_news: bool) -> None:
    assert matters(CALM, msgspec.structs.replace(CALM, **changes)) is is_news


# --- telling it -------------------------------------------------------------------------------------------------------


def an_end() -> AgentEnd:
    return AgentEnd("worker", "instance", "name", [Offer("ada", "noop", "a" * 64, 1)], {})


async def test_the_hello_says_it_and_changes_are_told(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "LOOK_S", 0.05)
    library.says(TWO_QUADROS)
    end, woken = an_end(), asyncio.Event()
    async with inventoried(end, woken.set, Site(tmp_path)):
        [hello] = agent_frames().decode(end.connected()[0])
        assert isinstance(hello, Hello)
        assert hello.machine is not None
        assert hello.machine.gpus == (QUADRO, QUADRO)
        end.receive(WELCOME, 0.0)
        assert end.take_frames() == [], "it is not said twice"
        library.says(GAMER)
        await asyncio.wait_for(woken.wait(), 20)
        [told] = agent_frames().decode(end.take_frames()[0])
        assert isinstance(told, Inventory)
        assert told.machine.gpus[0].name == "NVIDIA GeForce RTX 4090 D"
        [again] = agent_frames().decode(end.connected()[0])
        assert isinstance(again, Hello)
        assert again.machine == told.machine


async def test_what_changes_between_hello_and_welcome_is_told_after_it() -> None:
    end = an_end()
    end.machine = CALM
    end.connected()
    end.inventory(msgspec.structs.replace(CALM, tags=()))
    assert end.take_frames() == []
    end.receive(WELCOME, 0.0)
    [told] = agent_frames().decode(end.take_frames()[0])
    assert isinstance(told, Inventory)
    assert told.machine.tags == ()


WELCOME = '[{"type":"welcome","protocol":1,"epoch":1,"node":"n","server":"s","heartbeat_s":5,"silence_s":15,"held":[]}]'
