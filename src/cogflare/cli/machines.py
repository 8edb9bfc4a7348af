"""How the commands show what workers run on, and what models require of that."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from cogflare.cli.output import counted, time_of

Fields = Iterator[tuple[str, Any]]
_NONE: Final = "none"
_GB_MB: Final = 1_024


def required(model: Mapping[str, Any]) -> str:
    """Say what a model requires of its workers."""
    wanted = model.get("requirements") or {}
    vram = [f"{wanted['min_vram_gb']:g} GB of VRAM"] if wanted.get("min_vram_gb") else []
    return ", ".join([*vram, *(f"tag {tag}" for tag in wanted.get("tags", []))]) or "nothing"


def requiring(model: Mapping[str, Any], min_vram_gb: float | str | None, tags: Sequence[str]) -> dict[str, Any] | None:
    """Return what a model is to require: what it does now, but for what is given."""
    wanted = dict(model.get("requirements") or {})
    if min_vram_gb is not None:
        wanted["min_vram_gb"] = None if min_vram_gb == _NONE else min_vram_gb
    if tags:
        wanted["tags"] = [tag for tag in tags if tag != _NONE]
    return wanted if any(wanted.values()) else None


def hardware(worker: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the columns of a list: the GPUs, the memory of each kind, and the region."""
    machine = worker.get("machine") or {}
    kinds = Counter((gpu.get("name", ""), gpu.get("vram_mb", 0)) for gpu in machine.get("gpus", []))
    names = ", ".join(_times(many, name or "GPU") for (name, _), many in kinds.items())
    return names, ", ".join(_gb(vram) for _, vram in kinds), machine.get("region", "")


def beside(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], found: Sequence[tuple[str, str, str]]
) -> tuple[list[str], list[list[Any]]]:
    """Put those columns of hardware that say something before the last one."""
    names = ("gpu", "vram", "region")
    said = [place for place in range(len(names)) if any(one[place] for one in found)]
    wide = [*columns[:-1], *(names[place] for place in said), columns[-1]]
    return wide, [[*row[:-1], *(one[place] for place in said), row[-1]] for row, one in zip(rows, found, strict=True)]


def lacking(worker: Mapping[str, Any]) -> Iterator[str]:
    """Say of which models a worker gets nothing, and why."""
    for offer in worker["models"]:
        if offer.get("unmet"):
            yield f"gets nothing of {offer['model']}: it {offer['unmet']}"


def offers(worker: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Return the rows of what a worker runs."""
    idle = _idle(worker)
    return [
        (
            offer["model"],
            offer["version"][:12],
            offer["slots"],
            f"no: {why}" if (why := offer["unmet"] or idle) else "yes",
        )
        for offer in worker["models"]
    ]


def _idle(worker: Mapping[str, Any]) -> str | None:
    """Say why a worker gets nothing, whatever it offers."""
    if worker["quarantine"] is not None:
        return "it is quarantined"
    return None if worker["state"] == "online" else f"it is {worker['state']}"


def fields(worker: Mapping[str, Any]) -> Fields:
    """Say what a worker runs on, and what its token allows."""
    machine = worker["machine"]
    if machine is None:
        yield "machine", "its agent tells nothing of it"
    else:
        yield from _machine(machine)
    yield "agent", worker["agent"].get("version")
    yield from _token(worker["token"])


def _machine(machine: Mapping[str, Any]) -> Fields:
    for gpu in machine.get("gpus", []):
        free = "" if gpu.get("free_mb") is None else f", {_gb(gpu['free_mb'])} free"
        yield "gpu", f"{gpu.get('name') or 'GPU'}, {_gb(gpu.get('vram_mb', 0))}{free}"
    if not machine.get("gpus"):
        yield "gpu", _NONE
    cuda = f", CUDA {machine['cuda']}" if machine.get("cuda") else ""
    yield "driver", f"{machine['driver']}{cuda}" if machine.get("driver") else None
    yield "cpu", counted(machine["cpus"], "processor") if machine.get("cpus") else None
    yield "memory", _gb(machine["ram_mb"]) if machine.get("ram_mb") else None
    yield "disk", f"{_gb(machine.get('disk_free_mb', 0))} free"
    yield "system", machine.get("os")
    yield "python", machine.get("python")
    yield "region", machine.get("region")
    yield "tags", ", ".join(machine.get("tags", []))


def _token(token: Mapping[str, Any] | None) -> Fields:
    if token is None:
        yield "token", "gone"
        return
    yield "token", f"{token['name']} ({token['id']})" + (", revoked" if token["revoked_at"] else "")
    yield "may run", "anything" if token["models"] is None else ", ".join(token["models"])
    most = token["max_connections"]
    limit = "any number" if most is None else f"{counted(most, 'worker')} at a time"
    yield "may connect", f"{limit}, {token['connections']} now"
    yield "expires", "never" if token["expires_at"] is None else time_of(token["expires_at"])


def _times(many: int, name: str) -> str:
    return name if many == 1 else f"{many} x {name}"


def _gb(mb: int) -> str:
    return f"{mb / _GB_MB:.0f} GB" if mb >= 10 * _GB_MB or mb % _GB_MB == 0 else f"{mb / _GB_MB:.1f} GB"
