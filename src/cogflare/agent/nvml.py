"""What NVIDIA's library tells of the GPUs here, as a program of its own that writes JSON.

The worker never calls the library itself: a driver that hangs would hold it up for ever, not even SIGKILL ends a
process inside of one, and a library that crashes takes its process with it.
"""

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import pynvml  # type: ignore[import-untyped]

_MB: Final = 1 << 20
_NONE: Final = {"driver": "", "cuda": "", "gpus": []}
_T = TypeVar("_T")


def found() -> dict[str, Any]:
    """Return the driver, and each GPU with its place, its unique name, and its memory in units of 2^20 bytes."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no library, no driver, or no permission
        return _NONE
    places = range(_told(pynvml.nvmlDeviceGetCount) or 0)
    wholes = [(place, _told(pynvml.nvmlDeviceGetHandleByIndex, place)) for place in places]
    return {
        "driver": _told(pynvml.nvmlSystemGetDriverVersion) or "",
        "cuda": _version(_told(pynvml.nvmlSystemGetCudaDriverVersion) or 0),
        "gpus": [_gpu(place, part) for place, whole in wholes if whole is not None for part in _parts(whole)],
    }


def _parts(whole: Any) -> Iterator[Any]:
    """Yield a GPU, or the instances into which it is divided: programs can use nothing else of it then."""
    mode = _told(pynvml.nvmlDeviceGetMigMode, whole)
    if not mode or mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
        yield whole
        return
    for place in range(_told(pynvml.nvmlDeviceGetMaxMigDeviceCount, whole) or 0):
        part = _told(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, whole, place)
        if part is not None:
            yield part


def _gpu(place: int, handle: Any) -> dict[str, Any]:
    memory = _told(pynvml.nvmlDeviceGetMemoryInfo, handle)
    return {
        "place": place,
        "uuid": _told(pynvml.nvmlDeviceGetUUID, handle) or "",
        "name": _told(pynvml.nvmlDeviceGetName, handle) or "",
        # One that shares the memory of its machine has none of its own to tell of.
        "vram_mb": None if memory is None else memory.total // _MB,
        "free_mb": None if memory is None else memory.free // _MB,
    }


def _told(ask: Callable[..., _T], *about: Any) -> _T | None:
    """Return the library's answer; None where it has none: older drivers lack functions, and some GPUs answers."""
    try:
        return ask(*about)
    except (pynvml.NVMLError, UnicodeDecodeError):
        return None


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}" if number else ""


if __name__ == "__main__":
    json.dump(found(), sys.stdout)
