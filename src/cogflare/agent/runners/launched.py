"""Runs a model whose server the agent starts: a Cog server, or anything that speaks as one.

What is to be started is the business of a `Launch`. The runner owns the server's processes, the port, the receiver and
a temporary directory. A server that a killed agent has left is taken over if it is the very same and well, and ended
otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Protocol

from cogflare.agent.depot import Depot
from cogflare.agent.runners.base import LogSink, Offer, SetupFailed, UploadSink
from cogflare.agent.runners.coghttp import version_of
from cogflare.agent.runners.cogserver import CogServer, Health
from cogflare.agent.runners.cogyaml import digest_of
from cogflare.agent.runners.driver import CogDriver, Driven, can_resume, told_shape, wait_up
from cogflare.agent.runners.handover import Handover, Server, Takeover, fingerprint
from cogflare.agent.runners.outputs import OutputShape
from cogflare.agent.runners.process import ServerProcess, free_port, sweep
from cogflare.agent.runners.receiver import Receiver
from cogflare.agent.scratch import Scratch

_REACH_AGAIN_S = 10.0
_STOP_GRACE_S = 3.0


class Launch(Protocol):
    """How a model's server is started, as often as need be, and what the model is made of.

    ``folder`` is the server's working directory, ``root`` where the names of files begin. ``entry`` says what in the
    files is the model, where they do not. ``shape`` is None where the server alone knows the schema.
    Within ``reach_s`` seconds the server answers at all.
    """

    @property
    def python(self) -> Path: ...

    @property
    def folder(self) -> Path: ...

    @property
    def root(self) -> Path: ...

    @property
    def entry(self) -> str: ...

    @property
    def slots(self) -> int: ...

    @property
    def shape(self) -> OutputShape | None: ...

    @property
    def reach_s(self) -> float: ...

    def files(self) -> list[str]:
        """The names, from ``root``, of the files that the model is made of; may take a while."""

    def arguments(self, port: int, upload_url: str) -> list[str]:
        """What Python is given to serve the model."""

    def environ(self, port: int) -> Mapping[str, str]:
        """The server's environment variables."""


class LaunchedRunner(Driven):
    """A runner over what ``prepare`` makes ready; that raises `SetupFailed`.

    Without a ``takeover`` the model dies with the agent.
    """

    def __init__(
        self,
        owner: str,
        name: str,
        prepare: Callable[[LogSink], Awaitable[Launch]],
        sink: UploadSink,
        *,
        takeover: Takeover | None = None,
        depot: Depot | None = None,
    ) -> None:
        super().__init__()
        self._owner, self._name, self._prepare = owner, name, prepare
        self._sink, self._takeover = sink, takeover
        self._left: Handover | None = None
        self._depot = depot or Depot()
        self._receiver = Receiver(sink, depot=self._depot)
        self._process: ServerProcess | None = None
        self._watching: asyncio.Task[None] | None = None
        self._model: _Model | None = None

    async def setup(self, log: LogSink) -> Offer:
        """Make ready what the model needs, take over or start the server, wait for it; raises `SetupFailed`."""
        try:
            self._left = self._takeover.left(log) if self._takeover else None
            launch = await self._prepare(log)
            # Files that a model makes in its folder do not make another model of it.
            files = self._left.files if self._left else []
            model = await _Model.of(launch, files, log)
            health = await self._take_over(model)
            is_taken_over = health is not None
            if health is None:
                await self._sweep_left()
                if self._takeover:
                    self._takeover.forget()
                if files:
                    model = await _Model.of(launch, [], log)
                await self._receiver.start()
                health = await self._start(model)
            self._model = model
        except BaseException:
            await self.close()
            raise
        return Offer(
            owner=self._owner,
            name=self._name,
            version=version_of(model.digest, model.shape.document),
            schema=model.shape.document,
            cog_version=health.cog_version,
            slots=launch.slots,
            is_taken_over=is_taken_over,
        )

    async def _take_over(self, model: _Model) -> Health | None:
        """Go on with the server that an earlier agent has left, if it is ours, well, and runs nothing unknown."""
        left, takeover = self._left, self._takeover
        if left is None or left.server is None or takeover is None or takeover.held is None or not takeover.keep_s:
            return None
        if left.content != model.content() or (takeover.held and not model.can_resume()):
            model.log("an earlier worker left another model running here: it is ended, with what it runs\n")
            return None
        process = ServerProcess.adopt(left.server.minder, Path(left.server.scratch))
        if process is None:
            return None
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
            health = await self._attach(process, left.server.port, model, _REACH_AGAIN_S)
            if health.status == "BUSY" and not takeover.held:
                raise SetupFailed("it runs something unknown")
            if takeover.held and not can_resume(health, model.shape, model.launch.slots):
                raise SetupFailed("it does not say what has become of its runs")
        except (SetupFailed, OSError) as error:
            model.log(f"the model that an earlier worker left is not taken over: {error}\n")
            await self._stop("the model was not taken over", grace_s=0)
            await self._receiver.close()
            self._receiver = fresh
            return None
        model.log(f"took over the model that an earlier worker left running (process {process.pid})\n")
        self._left = None
        return health

    async def _sweep_left(self) -> None:
        """End what is left of the server of an earlier agent."""
        left, self._left = self._left, None
        if left is not None and left.server is not None:
            await sweep(left.server.minder, Path(left.server.scratch))

    async def _start(self, model: _Model) -> Health:
        """Start the server and wait until it is ready; raises `SetupFailed`."""
        try:
            port, scratch = free_port(), Scratch.make("model")
            process = await self._spawn(model.launch, port, scratch)
        except OSError as error:  # no disk space, no processes left: both pass
            raise SetupFailed(f"the model's server cannot be started: {error}") from error
        self._hand_over(process, port, model)
        return await self._attach(process, port, model, model.launch.reach_s)

    async def _spawn(self, launch: Launch, port: int, scratch: Scratch) -> ServerProcess:
        try:
            self._process = await ServerProcess.start(
                launch.python,
                launch.arguments(port, self._receiver.upload_url),
                folder=launch.folder,
                environ=launch.environ(port),
                scratch=scratch,
                keep_s=self._takeover.keep_s if self._takeover else 0,
            )
        except BaseException:
            scratch.remove()
            raise
        return self._process

    def _hand_over(self, process: ServerProcess, port: int, model: _Model) -> None:
        """Write down how the next agent can take the server over, or has to end it."""
        if self._takeover is None or process.mark is None:
            return
        server = Server(process.mark, port, str(process.scratch.path))
        left = Handover(model.content(), *self._receiver.address, server=server, files=model.files)
        self._takeover.leave(left, model.log)

    async def _attach(self, process: ServerProcess, port: int, model: _Model, reach_s: float) -> Health:
        """Wait until the server is ready, then drive it; raises `SetupFailed`."""
        server = CogServer(f"http://127.0.0.1:{port}")
        try:
            health = await wait_up(server, model.log, reach_s, process, self._receiver.hide)
            await model.describe(server)
        except BaseException:
            await server.close()
            raise
        shape, slots = model.shape, model.launch.slots
        self._driver = CogDriver(server, self._receiver, self._sink, shape, health, slots, self._broken)
        self._watching = asyncio.create_task(self._watch(process, self._driver))
        return health

    async def _watch(self, process: ServerProcess, driver: CogDriver) -> None:
        driver.broke(await process.ended())

    async def restart(self) -> None:
        """Kill the server at once and start it again; raises `SetupFailed`, and is broken then."""
        if not self._model:
            raise SetupFailed("the model is not set up")
        await self._stop("the model was restarted", grace_s=0)
        try:
            await self._start(self._model)
        except SetupFailed as error:
            self._broken.set(str(error))
            raise
        self._broken.clear()

    async def close(self) -> None:
        """End the server with all that it has started; may be called twice."""
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
            await asyncio.to_thread(self._process.scratch.remove)
            self._process = None
            if self._takeover:
                self._takeover.withdraw()


class _Model:
    """A launch, and what is known of the model: the files that it is made of, their digest, and its schema."""

    def __init__(self, launch: Launch, files: list[str], digest: str, log: LogSink) -> None:
        self.launch, self.files, self.digest, self.log = launch, files, digest, log
        self.shape = launch.shape or OutputShape(None)

    @classmethod
    async def of(cls, launch: Launch, files: list[str], log: LogSink) -> _Model:
        """Look at these files of the model, or at all."""
        files = files or await asyncio.to_thread(launch.files)
        digest = await asyncio.to_thread(digest_of, launch.root, files)
        return cls(launch, files, f"{digest} {launch.entry}".rstrip(), log)

    async def describe(self, server: CogServer) -> None:
        """Take the schema from the server, where it alone knows; raises `SetupFailed`."""
        if self.launch.shape is None:
            self.shape = await told_shape(server)

    def content(self) -> str:
        """What is the same for two servers when one can go on in place of the other."""
        launch = self.launch
        document = launch.shape.document if launch.shape else None
        command = str(launch.python), launch.arguments(0, "")
        return fingerprint(self.digest, document, *command, launch.slots, environ=launch.environ(0))

    def can_resume(self) -> bool:
        """Whether it can be found out what has become of a run: Cog tells of runs where there is a schema."""
        return self.launch.shape is None or bool(self.shape.schema) or self.launch.slots == 1
