"""What the runners' tests hold in their hands: the test models, a sink, a runner that is set up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from cogflare.agent.depot import Depot
from cogflare.agent.runners.base import Event, Finished, Job, Offer, Runner, UploadSink
from cogflare.agent.runners.handover import Takeover
from cogflare.agent.runners.open import Bench, open_runner
from cogflare.agent.shelf import Shelf
from cogflare.agent.sources import FunctionSource, HandlerSource, Source

MODELS = Path(__file__).parents[1] / "models"
OLD_COGS = {"cog06": "0.6.1", "cog08": "0.8.6", "cog09": "0.9.26", "cog014": "0.14.12", "cog016": "0.16.12"}
KINDS = ("folder", "http", "function", "handler", "image", *OLD_COGS)


def all_but(**reasons: str) -> pytest.MarkDecorator:
    """Run a test over the kinds of runners without these, each of which cannot have what it is about: say why."""
    assert set(reasons) <= set(KINDS)
    return pytest.mark.parametrize("rig", [kind for kind in KINDS if kind not in reasons], indirect=True)


def old_cogs(reason: str, *, since: str = "") -> dict[str, str]:
    """The kinds of Cog before coglet, of these the ones before `since`: none can have what a test is about."""
    kinds = list(OLD_COGS)
    return dict.fromkeys(kinds[: kinds.index(since)] if since else kinds, reason)


def function(model: str) -> FunctionSource:
    """The function that does as that test model does."""
    return FunctionSource(f"{model}:run", MODELS / "functions")


def handler(model: str) -> HandlerSource:
    """The RunPod handler that does as that test model does."""
    return HandlerSource(MODELS / "handlers" / f"{model}.py")


def family(pid: int) -> list[int]:
    """The processes below that one."""
    return [member for child in children(pid) for member in [child, *family(child)]]


def children(pid: int) -> list[int]:
    """The processes that this one has started."""
    return [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]


def finished(events: list[Event]) -> Finished:
    """The last event, which alone is a `Finished`."""
    assert [type(event) for event in events].count(Finished) == 1
    assert isinstance(events[-1], Finished)
    return events[-1]


class MemorySink:
    """An upload sink that keeps files in memory, under references that no server hands out."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.puts: list[tuple[str, str, str, int | None]] = []
        self.failure: Exception | None = None

    async def put(
        self, prediction_id: str, filename: str, content_type: str, body: AsyncIterator[bytes] | Path, size: int | None
    ) -> str:
        if self.failure:
            raise self.failure
        content = body.read_bytes() if isinstance(body, Path) else b"".join([chunk async for chunk in body])
        self.puts.append((prediction_id, filename, content_type, size))
        reference = f"stored:{len(self.puts)}:{filename}"
        self.files[reference] = content
        return reference


def runner_of(source: Source, cache: Path, sink: UploadSink, takeover: Takeover, depot: Path) -> Runner:
    """The runner that a worker would have for that source."""
    return open_runner(source, Bench("acme", "model", "w" * 26, None, cache, sink, takeover, Depot(depot), Shelf()))


class Rig:
    """A runner that is set up, with its sink and what its setup logged."""

    def __init__(self, runner: Runner, sink: MemorySink) -> None:
        self.runner, self.sink = runner, sink
        self.setup_log: list[str] = []
        self.offer: Offer | None = None

    async def events(self, input: dict[str, object], id: str = "p1", attempt: int = 1) -> list[Event]:
        return [event async for event in self.runner.run(Job(id=id, attempt=attempt, input=input))]


Rigger = Callable[..., Awaitable[Rig]]
Offspring = Callable[[], list[int]]
