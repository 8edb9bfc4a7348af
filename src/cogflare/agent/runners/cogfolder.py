"""Runs a folder with a ``cog.yaml`` without a container: its own Python environment and the real Cog server in it.

The runner owns the server's processes, the port, the receiver and a temporary directory; the environment stays in the
cache. System packages and GPU drivers that ``cog.yaml`` asks for are the machine's business.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from cogflare.agent.runners.base import Event, Job, LogSink, Offer, RunLost, SetupFailed, UploadSink
from cogflare.agent.runners.coghttp import version_of
from cogflare.agent.runners.cogserver import CogServer
from cogflare.agent.runners.cogyaml import CogConfig, digest_of, read_config, read_schema
from cogflare.agent.runners.driver import Breakage, CogDriver, wait_ready
from cogflare.agent.runners.environment import ensure, scrubbed
from cogflare.agent.runners.outputs import OutputShape
from cogflare.agent.runners.process import ServerProcess, free_port
from cogflare.agent.runners.receiver import Receiver

_REACH_S = 60.0
_STOP_GRACE_S = 3.0
COG_VERSION = "0.23.1"


class CogFolderRunner:
    """A runner over the model in ``folder``. ``slots`` and ``cog_version`` stand above what ``cog.yaml`` says."""

    def __init__(
        self,
        owner: str,
        name: str,
        folder: Path,
        cache_dir: Path,
        sink: UploadSink,
        *,
        slots: int | None = None,
        cog_version: str = COG_VERSION,
    ) -> None:
        self._owner, self._name = owner, name
        self._folder, self._cache_dir = folder.resolve(), cache_dir.resolve()
        self._sink, self._slots, self._cog_version = sink, slots, cog_version
        self._receiver = Receiver(sink)
        self._broken = Breakage()
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._driver: CogDriver | None = None
        self._process: ServerProcess | None = None
        self._watching: asyncio.Task[None] | None = None
        self._launch: _Launch | None = None

    async def setup(self, log: LogSink) -> Offer:
        """Build the environment, start the server, wait until the model is ready; raises `SetupFailed`."""
        try:
            config = read_config(self._folder, self._slots)
            for asked in config.unmet:
                log(f"cog.yaml asks for {asked}, which this machine has to bring\n")
            bin_dir = await ensure(self._cache_dir, self._folder, config.wishes(self._cog_version), log)
            digest = await asyncio.to_thread(digest_of, self._folder)
            schema = read_schema(self._folder)
            await self._receiver.start()
            self._scratch = tempfile.TemporaryDirectory(prefix="cogflare-model-")
            self._launch = _Launch(config, bin_dir, OutputShape(schema), log)
            await self._start(self._launch)
        except BaseException:
            await self.close()
            raise
        return Offer(
            owner=self._owner,
            name=self._name,
            version=version_of(digest, schema),
            schema=schema,
            cog_version=self._cog_version,
            slots=config.slots,
        )

    async def _start(self, launch: _Launch) -> None:
        """Start the server and wait until it is ready; raises `SetupFailed`."""
        assert self._scratch is not None
        port = free_port()
        self._process = process = await ServerProcess.start(
            launch.bin_dir / "python",
            ["-m", "cog.server.http", *launch.arguments(self._receiver)],
            folder=self._folder,
            environ=launch.environ(port),
            output=Path(self._scratch.name) / "server.log",
        )
        server = CogServer(f"http://127.0.0.1:{port}")
        ready = asyncio.ensure_future(wait_ready(server, launch.log, _REACH_S, process.news))
        ended = asyncio.ensure_future(process.ended())
        try:
            await asyncio.wait((ready, ended), return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                raise SetupFailed(ended.result())
            health = ready.result()
        except BaseException:
            await server.close()
            raise
        finally:
            for task in (ready, ended):
                task.cancel()
            await asyncio.gather(ready, ended, return_exceptions=True)
        self._driver = CogDriver(
            server, self._receiver, self._sink, launch.shape, health, launch.config.slots, self._broken
        )
        self._watching = asyncio.create_task(self._watch(process, self._driver))

    async def _watch(self, process: ServerProcess, driver: CogDriver) -> None:
        driver.broke(await process.ended())

    async def run(self, job: Job) -> AsyncGenerator[Event, None]:
        """Run the job; raises `RunLost`."""
        if not self._driver:
            raise RunLost("the model is not set up")
        async with aclosing(self._driver.run(job)) as events:
            async for event in events:
                yield event

    async def cancel(self, prediction_id: str) -> None:
        """Ask the model to stop that prediction."""
        if self._driver:
            await self._driver.cancel(prediction_id)

    async def restart(self) -> None:
        """Kill the server at once and start it again; raises `SetupFailed`, and is broken then."""
        if not self._launch:
            raise SetupFailed("the model is not set up")
        await self._stop("the model was restarted", grace_s=0)
        try:
            await self._start(self._launch)
        except SetupFailed as error:
            self._broken.set(str(error))
            raise
        self._broken.clear()

    async def wait_broken(self) -> str:
        """Wait until the model can take no further run; return why."""
        return await self._broken.wait()

    async def close(self) -> None:
        """End the server's whole process group; may be called twice."""
        await self._stop("the agent is closing", grace_s=_STOP_GRACE_S)
        await self._receiver.close()
        if self._scratch:
            self._scratch.cleanup()
            self._scratch = None

    async def _stop(self, reason: str, grace_s: float) -> None:
        if self._watching:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None
        if self._driver:
            await self._driver.close(reason)
            self._driver = None
        if self._process:
            await self._process.stop(grace_s)
            self._process = None


class _Launch:
    """What each start of the server needs."""

    def __init__(self, config: CogConfig, bin_dir: Path, shape: OutputShape, log: LogSink) -> None:
        self.config, self.bin_dir, self.shape, self.log = config, bin_dir, shape, log

    def arguments(self, receiver: Receiver) -> list[str]:
        """The server's command line."""
        # Files of a list or iterator come as data URLs: uploaded ones coglet lists as their uploads end, in disorder.
        uploads = [] if self.shape.items_are_files else ["--upload-url", receiver.upload_url]
        return ["--host", "127.0.0.1", *uploads]

    def environ(self, port: int) -> dict[str, str]:
        """The server's environment variables."""
        inherited = scrubbed()
        return inherited | {
            "PATH": f"{self.bin_dir}{os.pathsep}{inherited.get('PATH', os.defpath)}",
            "VIRTUAL_ENV": str(self.bin_dir.parent),
            "PORT": str(port),
            "PYTHONUNBUFFERED": "1",
            "COG_PREDICT_TYPE_STUB": self.config.entry,
            "COG_MAX_CONCURRENCY": str(self.config.slots),
            "COG_LOG_LEVEL": "warn",
            # Each snapshot of a file iterator has all its files so far in it.
            "COG_THROTTLE_RESPONSE_INTERVAL": "0.5" if self.shape.items_are_files else "0.05",
            "COG_STREAM_HISTORY_CAPACITY": "65536",
        }
