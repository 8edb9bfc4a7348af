"""Runs a Cog image in a container, through the Docker API.

The runner owns its containers, which carry the worker's label, and the receiver. A container that a killed agent has
left is taken over if it is of the very same image and well; any other with that label is removed.
"""

from __future__ import annotations

import asyncio
import dataclasses
from contextlib import suppress
from pathlib import Path
from typing import Final

from cogflare.agent.depot import Depot
from cogflare.agent.gpu import is_gpu_here
from cogflare.agent.runners import dockercontainer, process
from cogflare.agent.runners.base import LogSink, Offer, SetupFailed, UploadSink
from cogflare.agent.runners.cogrelease import reach_s
from cogflare.agent.runners.cogserver import CogServer, Health
from cogflare.agent.runners.dockercontainer import Container
from cogflare.agent.runners.dockerhost import DockerHost
from cogflare.agent.runners.dockerimage import PORT, Network, Plan, gpu_requests, knows_gpus
from cogflare.agent.runners.driver import CogDriver, Driven, can_resume, told_shape, wait_up
from cogflare.agent.runners.handover import Handover, Takeover, fingerprint
from cogflare.agent.runners.open import Bench
from cogflare.agent.runners.outputs import OutputShape
from cogflare.agent.runners.process import free_port
from cogflare.agent.runners.receiver import Receiver
from cogflare.agent.shelf import Shelf
from cogflare.agent.sources import ImageSource

_REACH_S: Final = 120.0
_REACH_AGAIN_S: Final = 10.0
_STOP_GRACE_S: Final = 3.0


class ImageRunner(Driven):
    """A runner over an image. ``worker`` is the id by which its containers are known.

    Without a ``takeover`` the container dies with the agent.
    """

    def __init__(
        self,
        owner: str,
        name: str,
        source: ImageSource,
        worker: str,
        sink: UploadSink,
        *,
        slots: int | None = None,
        takeover: Takeover | None = None,
        depot: Depot | None = None,
        shelf: Shelf | None = None,
    ) -> None:
        super().__init__()
        self._owner, self._name, self._source, self._worker = owner, name, source, worker
        self._sink, self._slots, self._takeover = sink, slots, takeover
        self._depot, self._shelf = depot or Depot(), shelf
        self._receiver = Receiver(sink, depot=self._depot)
        self._host: DockerHost | None = None
        self._container: Container | None = None
        self._watching: asyncio.Task[None] | None = None
        self._model: _Model | None = None

    async def setup(self, log: LogSink) -> Offer:
        """Get the image, take over or start a container of it, wait for the model; raises `SetupFailed`."""
        try:
            left = self._takeover.left(log) if self._takeover else None
            host = self._host = await DockerHost.reach()
            model = self._model = await self._prepare(host, log)
            health = await self._take_over(host, model, left) if left else None
            is_taken_over = health is not None
            if health is None:
                if left and left.server:
                    await process.sweep(left.server.minder, Path(left.server.scratch))
                if removed := await dockercontainer.sweep(host, self._worker):
                    log(f"removed what an earlier worker left: {removed} container{'' if removed == 1 else 's'}\n")
                if self._takeover:
                    self._takeover.forget()
                self._receiver = self._new_receiver(model.network)
                await self._receiver.start()
                health = await self._start(host, model)
        except BaseException:
            await self.close()
            raise
        return Offer(
            owner=self._owner,
            name=self._name,
            version=model.plan.image.version(self._source.image),
            schema=model.shape.document,
            cog_version=health.cog_version or model.plan.image.cog_version(),
            slots=model.plan.places,
            is_taken_over=is_taken_over,
        )

    async def _prepare(self, host: DockerHost, log: LogSink) -> _Model:
        """Get the image, and find out how a container of it is to be made."""
        image = await host.image(self._source, log)
        gpus = gpu_requests(self._source.gpus, host.info, is_gpu_here=is_gpu_here())
        if not gpus and self._source.gpus == "auto" and (image.wants_gpu() or is_gpu_here()):
            missing = "its NVIDIA Container Toolkit" if is_gpu_here() and not knows_gpus(host.info) else "a GPU"
            log(f"the model runs without a GPU: Docker on this machine lacks {missing}\n")
        network = await host.network(self._source.network)
        if self._shelf:
            self._shelf.reach(network.listen, network.advertised)
        if network.port and image.runs_cog() and not image.release().takes_host:
            log("this image is of an old Cog: others on this network can reach its server; --network bridge hides it\n")
        schema = image.schema()
        shape = OutputShape(schema) if schema is not None else None
        about = self._owner, self._name, self._worker
        return _Model(Plan(*about, self._source, image, shape, self._slots, gpus), network, log)

    def _new_receiver(
        self, network: Network, left: Handover | None = None, expected: frozenset[str] = frozenset()
    ) -> Receiver:
        """A receiver where the container can reach it, or the one that an earlier agent had."""
        port, secret = (left.receiver_port, left.receiver_secret) if left else (0, "")
        return Receiver(
            self._sink,
            network.listen,
            network.advertised,
            port=port,
            secret=secret,
            expected=expected,
            depot=self._depot,
        )

    async def _take_over(self, host: DockerHost, model: _Model, left: Handover) -> Health | None:
        """Go on with the container that an earlier agent has left, if it is ours, well, and runs nothing unknown."""
        takeover = self._takeover
        if left.container is None or takeover is None or takeover.held is None or not takeover.keep_s:
            return None
        if left.content != model.content() or (takeover.held and not model.can_resume()):
            model.log("an earlier worker left another model running here: it is ended, with what it runs\n")
            return None
        container = self._container = await Container.adopt(host, left.container, takeover.keep_s)
        if container is None:
            return None
        self._receiver = self._new_receiver(model.network, left, takeover.held)
        try:
            await self._receiver.start()
            health = await self._attach(container, model, _REACH_AGAIN_S)
            if health.status == "BUSY" and not takeover.held:
                raise SetupFailed("it runs something unknown")
            if takeover.held and not can_resume(health, model.shape, model.plan.places):
                raise SetupFailed("it does not say what has become of its runs")
        except (SetupFailed, OSError) as error:
            model.log(f"the model that an earlier worker left is not taken over: {error}\n")
            await self._stop("the model was not taken over", grace_s=0)
            await self._receiver.close()
            return None
        model.log(f"took over the model that an earlier worker left running (container {left.container.id[:12]})\n")
        return health

    async def _start(self, host: DockerHost, model: _Model) -> Health:
        """Start a container and wait until its model is ready; raises `SetupFailed`."""
        network, keep_s = model.network, self._takeover.keep_s if self._takeover else 0.0
        if network.port is not None:
            port = free_port() if model.plan.image.release().takes_port else PORT
            network = dataclasses.replace(network, port=port)
        try:
            container = await Container.start(host, model.plan, network, self._receiver.upload_url, keep_s)
        except OSError as error:  # no disk space, no processes left: both pass
            raise SetupFailed(f"the model's container cannot be watched over: {error}") from error
        self._container = container
        if self._takeover:
            left = Handover(model.content(), *self._receiver.address, container=container.left)
            self._takeover.leave(left, model.log)
        return await self._attach(container, model, reach_s(model.plan.image.release(), _REACH_S))

    async def _attach(self, container: Container, model: _Model, reach_s: float) -> Health:
        """Wait until the container's server is ready, then drive it; raises `SetupFailed`."""
        server = CogServer(container.left.url)
        try:
            health = await wait_up(server, model.log, reach_s, container, self._receiver.hide)
            await model.describe(server)
        except BaseException:
            await server.close()
            raise
        await container.hush()
        if model.shape.has_files and not health.is_coglet and not model.plan.image.runs_cog():
            model.log("this image is not started as Cog's server: files that it makes may not get out\n")
        slots = model.plan.places
        self._driver = CogDriver(server, self._receiver, self._sink, model.shape, health, slots, self._broken)
        self._watching = asyncio.create_task(self._watch(container, self._driver))
        return health

    async def _watch(self, container: Container, driver: CogDriver) -> None:
        driver.broke(await container.ended())

    async def restart(self) -> None:
        """Remove the container at once and start another; raises `SetupFailed`, and is broken then."""
        if not self._model or not self._host:
            raise SetupFailed("the model is not set up")
        await self._stop("the model was restarted", grace_s=0)
        try:
            await self._start(self._host, self._model)
        except SetupFailed as error:
            self._broken.set(str(error))
            raise
        self._broken.clear()

    async def close(self) -> None:
        """Stop and remove the container; may be called twice."""
        await self._stop("the agent is closing", grace_s=_STOP_GRACE_S)
        await self._receiver.close()
        if self._host:
            host, self._host = self._host, None
            with suppress(SetupFailed):
                await dockercontainer.sweep(host, self._worker)
            await host.close()

    async def _stop(self, reason: str, grace_s: float) -> None:
        if self._watching:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None
        if self._driver:
            await self._driver.close(reason)
            self._driver = None
        if self._container:
            await self._container.stop(grace_s)
            self._container = None
            if self._takeover:
                self._takeover.withdraw()


class _Model:
    """How containers of the image are made, and what is known of the model in them."""

    def __init__(self, plan: Plan, network: Network, log: LogSink) -> None:
        self.plan, self.network, self.log = plan, network, log
        self.shape = plan.shape or OutputShape(None)

    async def describe(self, server: CogServer) -> None:
        """Take the schema from the server, where the image does not have it; raises `SetupFailed`."""
        if self.plan.shape is None:
            self.shape = await told_shape(server)

    def content(self) -> str:
        """What is the same for two containers when one can go on in place of the other."""
        plan = self.plan
        environ = plan.environ("")
        source = dataclasses.replace(plan.source, env=(), pull="missing")
        network = self.network.listen, self.network.advertised, self.network.port is None
        return fingerprint(plan.image.id, dataclasses.asdict(source), plan.places, plan.gpus, network, environ=environ)

    def can_resume(self) -> bool:
        """Whether it can be found out what has become of a run: Cog tells of runs where there is a schema."""
        return self.plan.shape is None or bool(self.shape.schema) or self.plan.places == 1


def open_image(source: ImageSource, bench: Bench) -> ImageRunner:
    """Return the runner for an image."""
    about = bench.owner, bench.name, source, bench.worker, bench.sink
    return ImageRunner(*about, slots=bench.slots, takeover=bench.takeover, depot=bench.depot, shelf=bench.shelf)
