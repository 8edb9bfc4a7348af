"""What workers have left on a machine: models that run on without them, results not delivered, containers."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from cogflare.agent.identity import is_claimed
from cogflare.agent.runners.dockerimage import WORKER_LABEL
from cogflare.agent.runners.handover import Handover
from cogflare.agent.runners.process import Mark
from cogflare.cli.findings import Finding

_AGENTS: Final = "agent"


class Leftovers:
    """Looks below `root`, where workers of this user keep their state; a folder that is locked has a worker."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def folders(self) -> Iterator[Finding]:
        """Say how many workers run here, and what those left that do not."""
        folders = sorted(path.parent for path in self._root.glob("*/worker"))
        running = [folder for folder in folders if is_claimed(folder)]
        left = [finding for folder in folders if folder not in running for finding in _left(folder)]
        known = "none of them lacks anything" if not left else "what others left follows"
        yield Finding("workers", "ok", f"{len(running)} of {len(folders)} known here run now; {known}")
        yield from left
        if older := _older_agents(Path(sys.prefix)):
            todo = "remove those that no worker runs from"
            yield Finding("old agents", "warning", ", ".join(map(str, older)), todo)

    def containers(self, labels: Iterable[Mapping[str, str]]) -> Finding:
        """Say which containers have no worker here that runs, by the labels of all that workers have started."""
        running = {path.read_text().strip() for path in sorted(self._root.glob("*/worker")) if is_claimed(path.parent)}
        left = sorted(worker for each in labels if (worker := each.get(WORKER_LABEL, "")) not in running)
        if not left:
            return Finding("containers", "ok", "none without its worker")
        detail = f"{len(left)} of workers that do not run here as this user: {', '.join(left)}"
        todo = f"start the worker again, which takes them over; or remove them (label {WORKER_LABEL}=ID)"
        return Finding("containers", "warning", detail, todo)


def _left(folder: Path) -> Iterator[Finding]:
    """Yield what a worker has left that does not run."""
    if (model := _model(folder)) is not None:
        todo = "start the worker again, which takes it over; else it ends by itself (--keep-model)"
        yield Finding("left model", "warning", f"one runs on without its worker (process {model}, {folder})", todo)
    if unsent := len(list(folder.glob("finishes-*.json"))):
        what = f"{unsent} file{'' if unsent == 1 else 's'} with results that no server has confirmed, in {folder}"
        yield Finding("unsent", "warning", what, "start the worker again, which delivers them")


def _model(folder: Path) -> int | None:
    """Return the process that leads a model which runs on."""
    try:
        left = msgspec.json.decode((folder / "server.json").read_bytes(), type=Handover)
    except (OSError, msgspec.DecodeError):
        return None
    if left.server is None or Mark.of(left.server.minder.pid) != left.server.minder:
        return None
    return left.server.minder.pid


def _older_agents(own: Path) -> list[Path]:
    """Return the environments beside this one, which the join line has made for other versions."""
    if own.parent.name != _AGENTS or not (own / ".complete").exists():
        return []
    return sorted(path.parent for path in own.parent.glob("*/.complete") if path.parent != own)
