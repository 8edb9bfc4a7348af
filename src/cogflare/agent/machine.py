"""What the worker runs on: told in its hello, and again when something that matters has changed.

Models may use a part of the machine: the GPUs that a container or CUDA's variable leaves them, the memory and the
processors that the group of the process has. That part is what counts here. Nothing of it can fail: what is not known
is left out.
"""

import asyncio
import os
import platform
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from cogflare.agent.gpu import answer_of
from cogflare.agent.sources import ImageSource, Source, UrlSource
from cogflare.protocol.agent_end import AgentEnd
from cogflare.protocol.messages import Gpu, Machine

LOOK_S: Final = 60.0
_ASK_NVML: Final = (sys.executable, "-I", "-m", "cogflare.agent.nvml")
_MB: Final = 1 << 20
_LOW_DISK_MB: Final = 10_000
_STEP_MB: Final = 1_024  # of free GPU memory; or an eighth of it all, where that is more
_MAX_GPUS: Final = 64
_GROUP: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Site:
    """Where a worker is, in the words of its owner, and what of the machine its model may use.

    `devices` names GPUs as CUDA_VISIBLE_DEVICES does; None: all. `folder` is on the disk that is filled.
    """

    folder: Path
    region: str = ""
    tags: tuple[str, ...] = ()
    devices: str | None = None


class Card(msgspec.Struct, frozen=True):
    """A GPU, or an instance of one, as NVIDIA's library tells of it; it may share the memory of the machine."""

    place: int
    uuid: str
    name: str
    vram_mb: int | None
    free_mb: int | None


class _Driver(msgspec.Struct, frozen=True):
    """All that the library tells."""

    driver: str
    cuda: str
    gpus: list[Card]


def devices_of(source: Source) -> str | None:
    """Return which GPUs a model from there may use; None: all."""
    if isinstance(source, ImageSource):
        return {"auto": None, "all": None, "none": ""}.get(source.gpus, source.gpus)
    return None if isinstance(source, UrlSource) else os.environ.get("CUDA_VISIBLE_DEVICES")


@asynccontextmanager
async def inventoried(end: AgentEnd, wake: Callable[[], None], site: Site) -> AsyncIterator[None]:
    """Have the hello say what the worker runs on, and tell of changes until the context is left."""
    end.machine = await survey(site, None)
    watching = asyncio.create_task(_watch(end, wake, site))
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.wait({watching})


async def _watch(end: AgentEnd, wake: Callable[[], None], site: Site) -> None:
    while True:
        await asyncio.sleep(LOOK_S)
        found = await survey(site, end.machine)
        if end.machine is None or matters(end.machine, found):
            end.inventory(found)
            wake()


async def survey(site: Site, before: Machine | None) -> Machine:
    """Return what is there now; of GPUs that cannot be asked about, what was known `before`."""
    ram_mb = _ram_mb()
    known = before or Machine()
    told = _read(await answer_of(*_ASK_NVML))
    gpus, driver, cuda = known.gpus, known.driver, known.cuda
    if told is not None:
        usable = visible(told.gpus, site.devices)[:_MAX_GPUS]
        gpus, driver, cuda = tuple(_gpu(card, ram_mb) for card in usable), _clean(told.driver), _clean(told.cuda)
    return Machine(
        gpus,
        driver,
        cuda,
        _cpus(),
        ram_mb,
        _disk_free_mb(site.folder),
        _clean(_system()),
        platform.python_version(),
        _clean(site.region),
        site.tags,
    )


def matters(told: Machine, found: Machine) -> bool:
    """Say whether what was found differs from what was told by more than what comes and goes."""
    steady = {"disk_free_mb": 0, "gpus": tuple(msgspec.structs.replace(gpu, free_mb=None) for gpu in told.gpus)}
    same = {"disk_free_mb": 0, "gpus": tuple(msgspec.structs.replace(gpu, free_mb=None) for gpu in found.gpus)}
    if msgspec.structs.replace(told, **steady) != msgspec.structs.replace(found, **same):
        return True
    if any(_is_other(old, new) for old, new in zip(told.gpus, found.gpus, strict=True)):
        return True
    old_mb, new_mb = told.disk_free_mb, found.disk_free_mb
    return (old_mb < _LOW_DISK_MB) != (new_mb < _LOW_DISK_MB) or new_mb * 2 < old_mb or old_mb * 2 < new_mb


def visible(cards: Sequence[Card], devices: str | None) -> list[Card]:
    """Return the GPUs that these devices are, by number or by the beginning of their unique name.

    As CUDA does, what follows one that is not there does not count.
    """
    if devices is None or devices.strip() == "all":
        return list(cards)
    found: list[Card] = []
    for device in (part.strip() for part in devices.split(",")):
        card = next((card for card in cards if _is_called(card, device)), None)
        if card is None or card in found:
            break
        found.append(card)
    return found


def _is_called(card: Card, device: str) -> bool:
    if device.isdecimal():
        return int(device) == card.place
    return device.startswith(("GPU-", "MIG-")) and card.uuid.startswith(device)


def _read(answer: bytes) -> _Driver | None:
    try:
        return msgspec.json.decode(answer, type=_Driver)
    except msgspec.DecodeError:
        return None


def _gpu(card: Card, ram_mb: int) -> Gpu:
    # One without memory of its own uses that of the machine.
    return Gpu(_clean(card.name), ram_mb if card.vram_mb is None else card.vram_mb, card.free_mb)


def _is_other(old: Gpu, new: Gpu) -> bool:
    if old.free_mb is None or new.free_mb is None:
        return old.free_mb is not new.free_mb
    return abs(old.free_mb - new.free_mb) >= max(_STEP_MB, new.vram_mb // 8)


def _cpus() -> int:
    with suppress(AttributeError, OSError):
        return min(len(os.sched_getaffinity(0)), _group_cpus())
    return os.cpu_count() or 0


def _group_cpus() -> int:
    with suppress(OSError, ValueError):
        quota, period = (_GROUP / "cpu.max").read_text().split()
        return max(1, int(quota) // int(period))  # "max" is no number: there is no bound
    return sys.maxsize


def _ram_mb() -> int:
    whole = 0
    with suppress(AttributeError, OSError, ValueError):
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):
        whole = min(whole, int((_GROUP / "memory.max").read_text()))
    return whole // _MB


def _disk_free_mb(folder: Path) -> int:
    with suppress(OSError):
        there = next((parent for parent in (folder, *folder.parents) if parent.exists()), folder)
        return shutil.disk_usage(there).free // _MB
    return 0


def _system() -> str:
    with suppress(OSError, AttributeError):
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {platform.system()} {platform.release()}"
    return platform.platform()


def _clean(text: str) -> str:
    return " ".join(text.replace("\0", " ").split())[:200]
