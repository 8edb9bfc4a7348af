"""The real Cog server for the runners' tests: one environment a session, one server a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cogflare.agent.runners.cogfolder import CogFolderRunner
from cogflare.agent.runners.coghttp import CogHttpRunner
from cogflare.agent.runners.cogserver import CogServer
from cogflare.agent.runners.cogyaml import read_config
from cogflare.agent.runners.driver import wait_ready
from cogflare.agent.runners.environment import ensure, scrubbed
from cogflare.agent.runners.process import ServerProcess, free_port
from support.runners import MODELS, MemorySink, Rig, Rigger


@pytest.fixture(scope="session")
def cog_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache directory with the test models' environment in it."""
    cache = tmp_path_factory.mktemp("environments")
    folder = MODELS / "noop"
    asyncio.run(ensure(cache, folder, read_config(folder, None).wishes("0.23.1"), lambda text: None))
    return cache


@pytest.fixture
async def folder_rig(cog_cache: Path) -> AsyncIterator[Rigger]:
    """Makes rigs whose runner starts the model's folder itself."""
    rigs: list[Rig] = []

    async def make(model: str, **options: object) -> Rig:
        sink = MemorySink()
        rig = Rig(CogFolderRunner("acme", model, MODELS / model, cog_cache, sink, **options), sink)  # type: ignore[arg-type]
        rigs.append(rig)
        rig.offer = await rig.runner.setup(rig.setup_log.append)
        return rig

    yield make
    for rig in rigs:
        await rig.runner.close()


@pytest.fixture
async def http_rig(cog_cache: Path, tmp_path: Path) -> AsyncIterator[Rigger]:
    """Makes rigs whose runner is attached to a server that somebody else started, without an upload URL."""
    rigs: list[Rig] = []
    processes: list[ServerProcess] = []

    async def make(model: str, slots: int = 1) -> Rig:
        port, config = free_port(), read_config(MODELS / model, None)
        bin_dir = await ensure(cog_cache, MODELS / model, config.wishes("0.23.1"), lambda text: None)
        environ = scrubbed() | {"PATH": f"{bin_dir}:/usr/bin:/bin", "PORT": str(port)}
        environ |= {"COG_PREDICT_TYPE_STUB": config.entry, "COG_MAX_CONCURRENCY": str(slots)}
        process = await ServerProcess.start(
            bin_dir / "python",
            ["-m", "cog.server.http", "--host", "127.0.0.1"],
            folder=MODELS / model,
            environ=environ,
            output=tmp_path / "server.log",
        )
        processes.append(process)
        sink = MemorySink()
        rig = Rig(CogHttpRunner("acme", model, f"http://127.0.0.1:{port}", sink, slots=slots), sink)
        rigs.append(rig)
        server = CogServer(f"http://127.0.0.1:{port}")
        await wait_ready(server, lambda text: None, 30)
        await server.close()
        rig.offer = await rig.runner.setup(rig.setup_log.append)
        return rig

    yield make
    for rig in rigs:
        await rig.runner.close()
    for process in processes:
        await process.stop(3)


@pytest.fixture(params=["folder", "http"])
def rig(request: pytest.FixtureRequest) -> Rigger:
    """The rigs of every kind of runner, for what all of them promise."""
    made: Rigger = request.getfixturevalue(f"{request.param}_rig")
    return made
