"""Runners of every kind for the tests, over the real Cog server, functions and handlers, and images."""

from __future__ import annotations

import asyncio
import functools
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from cogflare.agent.runners.cogfolder import CogFolderRunner
from cogflare.agent.runners.coghttp import CogHttpRunner
from cogflare.agent.runners.cogserver import CogServer
from cogflare.agent.runners.cogyaml import read_config
from cogflare.agent.runners.driver import wait_ready
from cogflare.agent.runners.environment import ensure, scrubbed
from cogflare.agent.runners.function import FunctionRunner
from cogflare.agent.runners.process import ServerProcess, free_port
from cogflare.agent.scratch import Scratch
from cogflare.agent.sources import FunctionSource, HandlerSource
from support.oldcog import OldRigs
from support.runners import (
    KINDS,
    MODELS,
    OLD_COGS,
    MemorySink,
    Offspring,
    Rig,
    Rigger,
    children,
    family,
    function,
    handler,
)


@pytest.fixture(scope="session")
def cog_cache(cog_cache: Path) -> Path:
    """A cache directory with the test models' environment in it."""
    folder = MODELS / "noop"
    asyncio.run(ensure(cog_cache, folder, read_config(folder, None).wishes("0.23.1"), lambda text: None))
    return cog_cache


@pytest.fixture
def offspring() -> Offspring:
    """Lists the processes below this one, without the servers that the tests before had started and have kept."""
    kept = set(children(os.getpid()))

    def listed() -> list[int]:
        started = [child for child in children(os.getpid()) if child not in kept]
        return [member for child in started for member in [child, *family(child)]]

    return listed


@pytest.fixture
async def folder_rig(cog_cache: Path) -> AsyncIterator[Rigger]:
    """Makes rigs whose runner starts the model's folder itself."""
    rigs: list[Rig] = []

    async def make(model: str, slots: int | None = None) -> Rig:
        sink = MemorySink()
        rig = Rig(CogFolderRunner("acme", model, MODELS / model, cog_cache, sink, slots=slots), sink)
        rigs.append(rig)
        rig.offer = await rig.runner.setup(rig.setup_log.append)
        return rig

    yield make
    for rig in rigs:
        await rig.runner.close()


@asynccontextmanager
async def hosted(source: Callable[[str], FunctionSource | HandlerSource]) -> AsyncIterator[Rigger]:
    """Makes rigs whose runner hosts what ``source`` has for the model."""
    rigs: list[Rig] = []

    async def make(model: str, slots: int | None = None) -> Rig:
        sink = MemorySink()
        rig = Rig(FunctionRunner("acme", model, source(model), sink, slots=slots), sink)
        rigs.append(rig)
        rig.offer = await rig.runner.setup(rig.setup_log.append)
        return rig

    yield make
    for rig in rigs:
        await rig.runner.close()


@pytest.fixture
async def function_rig() -> AsyncIterator[Rigger]:
    """Makes rigs whose runner hosts the function that does as the model does."""
    async with hosted(function) as make:
        yield make


@pytest.fixture
async def handler_rig() -> AsyncIterator[Rigger]:
    """Makes rigs whose runner hosts the RunPod handler that does as the model does."""
    async with hosted(handler) as make:
        yield make


class CogServers:
    """Cog servers that somebody else started, without an upload URL: one for each model and number of slots."""

    def __init__(self, cache: Path, logs: Path) -> None:
        self._cache, self._logs = cache, logs
        self._running: dict[tuple[str, int], tuple[str, ServerProcess]] = {}

    async def url(self, model: str, slots: int) -> str:
        """Return the URL of the model's server, which is ready."""
        if (model, slots) not in self._running:
            self._running[model, slots] = await self._start(model, slots)
        return self._running[model, slots][0]

    async def _start(self, model: str, slots: int) -> tuple[str, ServerProcess]:
        port, config = free_port(), read_config(MODELS / model, None)
        bin_dir = await ensure(self._cache, MODELS / model, config.wishes("0.23.1"), lambda text: None)
        environ = scrubbed() | {"PATH": f"{bin_dir}:/usr/bin:/bin", "PORT": str(port)}
        environ |= {"COG_PREDICT_TYPE_STUB": config.entry, "COG_MAX_CONCURRENCY": str(slots)}
        process = await ServerProcess.start(
            bin_dir / "python",
            ["-m", "cog.server.http", "--host", "127.0.0.1"],
            folder=MODELS / model,
            environ=environ,
            scratch=Scratch.at(Path(tempfile.mkdtemp(dir=self._logs))),
        )
        url = f"http://127.0.0.1:{port}"
        try:
            await wait_ready(server := CogServer(url), lambda text: None, 30)
            await server.close()
        except BaseException:
            await process.stop(0)
            raise
        return url, process

    async def drop_worn(self) -> None:
        """Stop the servers that the next test would not find as they began: busy, broken or gone."""
        for key, (url, process) in list(self._running.items()):
            server = CogServer(url)
            try:
                is_ready = (await server.health()).status == "READY"
            except httpx2.HTTPError:
                is_ready = False
            await server.close()
            if not is_ready:
                del self._running[key]
                await process.stop(3)

    async def close(self) -> None:
        """Stop them all."""
        for _, process in self._running.values():
            await process.stop(3)


@asynccontextmanager
async def attached(servers: CogServers) -> AsyncIterator[Rigger]:
    """Makes rigs whose runner is attached to one of the servers."""
    rigs: list[Rig] = []

    async def make(model: str, slots: int = 1) -> Rig:
        sink = MemorySink()
        rig = Rig(CogHttpRunner("acme", model, await servers.url(model, slots), sink, slots=slots), sink)
        rigs.append(rig)
        rig.offer = await rig.runner.setup(rig.setup_log.append)
        return rig

    yield make
    for rig in rigs:
        await rig.runner.close()


@pytest.fixture
async def http_rig(cog_cache: Path, tmp_path: Path) -> AsyncIterator[Rigger]:
    """Makes rigs whose runner is attached to a server that this test has to itself."""
    servers = CogServers(cog_cache, tmp_path)
    async with attached(servers) as make:
        yield make
    await servers.close()


@pytest.fixture(scope="module")
async def shared_servers(cog_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[CogServers]:
    """The servers that tests of a module leave for the next."""
    servers = CogServers(cog_cache, tmp_path_factory.mktemp("servers"))
    yield servers
    await servers.close()


@pytest.fixture
async def shared_http_rig(shared_servers: CogServers) -> AsyncIterator[Rigger]:
    """Makes rigs whose runner is attached to a server that has had other clients."""
    async with attached(shared_servers) as make:
        yield make
    await shared_servers.drop_worn()


_RIGS = {
    "folder": "folder_rig",
    "http": "shared_http_rig",
    "function": "function_rig",
    "handler": "handler_rig",
    "image": "image_rig",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests over one old Cog next to each other, behind all others of their module."""

    def place(item: pytest.Item) -> tuple[int, int]:
        called = getattr(item, "callspec", None)
        kind = called.params.get("rig") if called else None
        return modules[item.path], list(OLD_COGS).index(kind) + 1 if kind in OLD_COGS else 0

    modules = {path: number for number, path in enumerate(dict.fromkeys(item.path for item in items))}
    items.sort(key=place)


@pytest.fixture(scope="module")
async def old_rigs(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[OldRigs]:
    """Makes rigs whose runner has the model in a Cog server of the time before coglet."""
    rigs = OldRigs(tmp_path_factory.mktemp("old"))
    yield rigs
    await rigs.close()


@pytest.fixture(params=KINDS)
def rig(request: pytest.FixtureRequest) -> Rigger:
    """The rigs of every kind of runner, for what all of them promise."""
    if request.param in OLD_COGS:
        rigs: OldRigs = request.getfixturevalue("old_rigs")
        return functools.partial(rigs.make, OLD_COGS[request.param])
    made: Rigger = request.getfixturevalue(_RIGS[request.param])
    return made
