"""Runs a folder with a ``cog.yaml`` without a container: its own Python environment and the real Cog server in it.

The runner owns the server's processes, the port, the receiver and a temporary directory; the environment stays in the
cache. System packages and GPU drivers that ``cog.yaml`` asks for are the machine's business. A server that a killed
agent has left is taken over if it is the very same and well, and ended otherwise.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from cogflare.agent.depot import Depot
from cogflare.agent.runners.base import Event, Job, LogSink, Offer, RunLost, SetupFailed, UploadSink
from cogflare.agent.runners.coghttp import version_of
from cogflare.agent.runners.cogserver import CogServer, Health
from cogflare.agent.runners.cogyaml import CogConfig, digest_of, read_config, read_schema, source_files
from cogflare.agent.runners.driver import Breakage, CogDriver, wait_ready
from cogflare.agent.runners.environment import ensure, scrubbed
from cogflare.agent.runners.handover import Handover, Server, Takeover, fingerprint
from cogflare.agent.runners.open import Bench
from cogflare.agent.runners.outputs import OutputShape
from cogflare.agent.runners.process import ServerProcess, free_port, sweep
from cogflare.agent.runners.receiver import Receiver
from cogflare.agent.sources import FolderSource

_REACH_S, _REACH_AGAIN_S = 60.0, 10.0
_STOP_GRACE_S = 3.0
COG_VERSION = "0.23.1"


class CogFolderRunner:
    """A runner over the model in ``folder``. ``slots`` and ``cog_version`` stand above what ``cog.yaml`` says.

    Without a ``takeover`` the model dies with the agent.
    """

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
        takeover: Takeover | None = None,
        depot: Depot | None = None,
    ) -> None:
        self._owner, self._name = owner, name
        self._folder, self._cache_dir = folder.resolve(), cache_dir.resolve()
        self._sink, self._slots, self._cog_version = sink, slots, cog_version
        self._takeover = takeover
        self._left: Handover | None = None
        self._depot = depot or Depot()
        self._receiver = Receiver(sink, depot=self._depot)
        self._broken = Breakage()
        self._driver: CogDriver | None = None
        self._process: ServerProcess | None = None
        self._watching: asyncio.Task[None] | None = None
        self._launch: _Launch | None = None

    async def setup(self, log: LogSink) -> Offer:
        """Build the environment, take over or start the server, wait for the model; raises `SetupFailed`."""
        try:
            self._left = self._takeover.left(log) if self._takeover else None
            config = read_config(self._folder, self._slots)
            for asked in config.unmet:
                log(f"cog.yaml asks for {asked}, which this machine has to bring\n")
            bin_dir = await ensure(self._cache_dir, self._folder, config.wishes(self._cog_version), log)
            schema = read_schema(self._folder)
            # Files that a model makes in its folder do not make another model of it.
            files = self._left.files if self._left else []
            launch = _Launch(config, bin_dir, OutputShape(schema), log, *await self._content(files))
            is_taken_over = await self._take_over(launch)
            if not is_taken_over:
                await self._sweep_left()
                if self._takeover:
                    self._takeover.forget()
                if files:
                    launch = _Launch(config, bin_dir, OutputShape(schema), log, *await self._content([]))
                await self._receiver.start()
                await self._start(launch)
            self._launch = launch
        except BaseException:
            await self.close()
            raise
        return Offer(
            owner=self._owner,
            name=self._name,
            version=version_of(launch.digest, schema),
            schema=schema,
            cog_version=self._cog_version,
            slots=config.slots,
            is_taken_over=is_taken_over,
        )

    async def _content(self, files: list[str]) -> tuple[list[str], str]:
        """The names of these files of the folder, or of all, and a digest of them."""
        files = files or await asyncio.to_thread(source_files, self._folder)
        return files, await asyncio.to_thread(digest_of, self._folder, files)

    async def _take_over(self, launch: _Launch) -> bool:
        """Go on with the server that an earlier agent has left, if it is ours, well, and runs nothing unknown."""
        left, takeover = self._left, self._takeover
        if left is None or left.server is None or takeover is None or takeover.held is None or not takeover.keep_s:
            return False
        if left.content != launch.content() or (takeover.held and not launch.can_resume()):
            launch.log("an earlier worker left another model running here: it is ended, with what it runs\n")
            return False
        process = ServerProcess.adopt(left.server.minder, Path(left.server.scratch))
        if process is None:
            return False
        self._process, fresh = process, self._receiver
        self._receiver = Receiver(
            self._sink,
            port=left.receiver_port,
            secret=left.receiver_secret,
            expected=takeover.held,
            depot=self._depot,
        )
        try:
            await self._receiver.start()
            health = await self._attach(process, left.server.port, launch, _REACH_AGAIN_S)
            if health.status == "BUSY" and not takeover.held:
                raise SetupFailed("it runs something unknown")
        except (SetupFailed, OSError) as error:
            launch.log(f"the model that an earlier worker left is not taken over: {error}\n")
            await self._stop("the model was not taken over", grace_s=0)
            await self._receiver.close()
            self._receiver = fresh
            return False
        launch.log(f"took over the model that an earlier worker left running (process {process.pid})\n")
        self._left = None
        return True

    async def _sweep_left(self) -> None:
        """End what is left of the server of an earlier agent."""
        left, self._left = self._left, None
        if left is not None and left.server is not None:
            await sweep(left.server.minder)
            _discard(Path(left.server.scratch))

    async def _start(self, launch: _Launch) -> None:
        """Start the server and wait until it is ready; raises `SetupFailed`."""
        try:
            port, scratch = free_port(), Path(tempfile.mkdtemp(prefix="cogflare-model-"))
            process = await self._spawn(launch, port, scratch)
        except OSError as error:  # no disk space, no processes left: both pass
            raise SetupFailed(f"the model's server cannot be started: {error}") from error
        self._hand_over(process, port, launch)
        await self._attach(process, port, launch, _REACH_S)

    async def _spawn(self, launch: _Launch, port: int, scratch: Path) -> ServerProcess:
        try:
            self._process = await ServerProcess.start(
                launch.bin_dir / "python",
                ["-m", "cog.server.http", *launch.arguments(self._receiver)],
                folder=self._folder,
                environ=launch.environ(port),
                scratch=scratch,
                keep_s=self._takeover.keep_s if self._takeover else 0,
            )
        except BaseException:
            _discard(scratch)
            raise
        return self._process

    def _hand_over(self, process: ServerProcess, port: int, launch: _Launch) -> None:
        """Write down how the next agent can take the server over, or has to end it."""
        if self._takeover is None or process.mark is None:
            return
        server = Server(process.mark, port, str(process.scratch))
        left = Handover(launch.content(), *self._receiver.address, server=server, files=launch.files)
        self._takeover.leave(left, launch.log)

    async def _attach(self, process: ServerProcess, port: int, launch: _Launch, reach_s: float) -> Health:
        """Wait until the server is ready, then drive it; raises `SetupFailed`."""
        server = CogServer(f"http://127.0.0.1:{port}")
        ready = asyncio.ensure_future(wait_ready(server, launch.log, reach_s, process.news))
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
        return health

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

    async def health(self) -> str | None:
        """Ask the server how it is; return what is wrong."""
        return await self._driver.health() if self._driver else self._broken.reason or "the model is not set up"

    async def close(self) -> None:
        """End the server's whole process group; may be called twice."""
        await self._stop("the agent is closing", grace_s=_STOP_GRACE_S)
        await self._receiver.close()
        await self._sweep_left()

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
            _discard(self._process.scratch)
            self._process = None
            if self._takeover:
                self._takeover.withdraw()


class _Launch:
    """What each start of the server needs."""

    def __init__(
        self, config: CogConfig, bin_dir: Path, shape: OutputShape, log: LogSink, files: list[str], digest: str
    ) -> None:
        self.config, self.bin_dir, self.shape, self.log = config, bin_dir, shape, log
        self.files, self.digest = files, digest

    def content(self) -> str:
        """What is the same for two servers when one can go on in place of the other."""
        return fingerprint(self.digest, self.shape.document, str(self.bin_dir), environ=self.environ(0))

    def can_resume(self) -> bool:
        """Whether it can be found out what has become of a run: Cog tells of runs where there is a schema."""
        return bool(self.shape.schema) or self.config.slots == 1

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


def _discard(scratch: Path) -> None:
    shutil.rmtree(scratch, ignore_errors=True)


def open_folder(source: FolderSource, bench: Bench) -> CogFolderRunner:
    """Return the runner for a folder."""
    return CogFolderRunner(
        bench.owner,
        bench.name,
        source.folder,
        bench.cache,
        bench.sink,
        slots=bench.slots,
        takeover=bench.takeover,
        depot=bench.depot,
    )
