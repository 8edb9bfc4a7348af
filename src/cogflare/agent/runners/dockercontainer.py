"""One container that an agent made: started, watched, taken over, removed. A warden sees to its end without an agent.

The warden (`warden.py`) holds on to a cord, as the minder of a process does, so that a container outlives its agent by
a bounded time in which the next agent may take it over. Where the daemon has no Unix socket there is no warden, and an
abandoned container waits for the next agent.
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from aiodocker.containers import DockerContainer
from aiodocker.exceptions import DockerError
from aiohttp import ClientError

from cogflare.agent.runners import warden
from cogflare.agent.runners.base import SetupFailed
from cogflare.agent.runners.dockerhost import REMOVE_S, DockerHost, said
from cogflare.agent.runners.dockerimage import CORD_LABEL, Network, Plan
from cogflare.agent.runners.driver import last_lines
from cogflare.agent.runners.handover import LeftContainer
from cogflare.agent.runners.process import plain
from cogflare.agent.scratch import Scratch

_FOLDER: Final = "cogflare-container-"
_PAUSE_S: Final = 1.0
_TAIL_LINES: Final = 20
_GONE: Final = (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT)  # a conflict: somebody else is removing it
_TROUBLE: Final = (DockerError, ClientError, ValueError, OSError)


class Container:
    """A container that runs. ``left`` is how the next agent finds it, and where its server is."""

    def __init__(self, container: DockerContainer, left: LeftContainer, cord: Cord, *, is_new: bool) -> None:
        self.left = left
        self._container, self._cord = container, cord
        self._unsaid = b""
        self._listening = asyncio.create_task(self._listen()) if is_new else None
        self._ending: asyncio.Task[str] | None = None

    @classmethod
    async def start(cls, host: DockerHost, plan: Plan, network: Network, upload_url: str, keep_s: float) -> Container:
        """Make a container and start it; raises `SetupFailed`."""
        cord = Cord(Scratch.make("container"))
        container = None
        try:
            body = plan.body(network, upload_url)
            body["Labels"][CORD_LABEL] = str(cord.scratch.path)
            async with said("the model's container cannot be made"):
                container = await _create(host, body, plan.name())
            await cord.post_warden(host, container.id, keep_s)
            async with said("the model's container cannot be started"):
                await container.start()
                told = await container.show()
            left = LeftContainer(
                container.id, told["State"]["StartedAt"], _url(told, plan.server_port(network), network)
            )
        except BaseException:
            if container is None or await remove(container):
                cord.let_go()
            raise
        return cls(container, left, cord, is_new=True)

    @classmethod
    async def adopt(cls, host: DockerHost, left: LeftContainer, keep_s: float) -> Container | None:
        """Take the container of an earlier agent over; None when it does not run any more, or in another life."""
        try:
            async with said("the container of an earlier worker cannot be looked at"):
                container = await host.docker.containers.get(left.id)
                told = await container.show()
        except SetupFailed:
            return None
        if not told["State"]["Running"] or told["State"]["StartedAt"] != left.started:
            return None
        if (cord := _left_cord(told["Config"]["Labels"])) is None:
            return None
        if not cord.pick_up():
            await cord.post_warden(host, container.id, keep_s)
        return cls(container, left, cord, is_new=False)

    async def ended(self) -> str:
        """Wait until it has ended; return how, with the end of its output."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._end())
        return await asyncio.shield(self._ending)

    def news(self) -> str:
        """What it has written since the last call, in whole lines."""
        lines, newline, self._unsaid = self._unsaid.rpartition(b"\n")
        return plain(lines + newline)

    async def hush(self) -> None:
        """Listen to what it writes no longer."""
        if self._listening:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
            self._listening = None

    async def stop(self, grace_s: float) -> None:
        """Ask it to end, after ``grace_s`` seconds kill it, and remove it; its warden does where Docker does not."""
        await self.hush()
        if self._ending:
            self._ending.cancel()
            await asyncio.gather(self._ending, return_exceptions=True)
        if await remove(self._container, grace_s):
            self._cord.let_go()
        else:
            self._cord.drop()

    async def _listen(self) -> None:
        with suppress(*_TROUBLE):
            async for text in self._container.log(stdout=True, stderr=True, follow=True):
                self._unsaid += text.encode()

    async def _end(self) -> str:
        while True:
            try:
                told = await self._container.wait()
                break
            except _TROUBLE as error:
                if isinstance(error, DockerError) and error.status == HTTPStatus.NOT_FOUND:
                    return "the model's container was removed"
            await asyncio.sleep(_PAUSE_S)  # the daemon was started anew, and may have left its containers alone
        how, tail = f"ended with status {told.get('StatusCode')}", ""
        with suppress(*_TROUBLE):
            if (await self._container.show())["State"].get("OOMKilled"):
                how = "was killed because it needed more memory than it may have (--memory)"
            lines = await self._container.log(stdout=True, stderr=True, tail=_TAIL_LINES)
            tail = last_lines(plain("".join(lines).encode()))
        return f"the model's container {how}\n{tail}".rstrip()


class Cord:
    """What the warden of a container holds on to: a FIFO in ``scratch``."""

    def __init__(self, scratch: Scratch) -> None:
        self.scratch = scratch
        self._writer = -1

    async def post_warden(self, host: DockerHost, container: str, keep_s: float) -> None:
        """Start a warden for the container; where the daemon has no Unix socket there is none."""
        if (path := host.socket()) is None:
            return
        cord = self.scratch.path / "cord"
        cord.unlink(missing_ok=True)
        os.mkfifo(cord, 0o600)
        reader = os.open(cord, os.O_RDONLY | os.O_NONBLOCK)
        try:
            self._writer = os.open(cord, os.O_WRONLY | os.O_NONBLOCK)
            nowhere = asyncio.subprocess.DEVNULL
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", warden.__file__, str(keep_s), path, container, cord,
                cwd="/", env={}, start_new_session=True, stdin=reader, stdout=nowhere, stderr=nowhere,
                pass_fds=self.scratch.shared(),
            )  # fmt: skip
            await process.wait()
        finally:
            os.close(reader)

    def pick_up(self) -> bool:
        """Hold the cord instead of an agent that is gone; whether there is a warden at its other end."""
        try:
            self._writer = os.open(self.scratch.path / "cord", os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return False
        return True

    def let_go(self) -> None:
        """Tell the warden that the container is gone."""
        if self._writer >= 0:
            with suppress(OSError):
                os.write(self._writer, b".")
        self.drop()
        self.scratch.remove()

    def drop(self) -> None:
        """Leave the container to the warden."""
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1
        self.scratch.let_go()


async def sweep(host: DockerHost, worker: str) -> int:
    """Remove every container that agents of this worker have made; return how many there were."""
    found = await host.of_worker(worker)
    for container in found:
        if await remove(container) and (cord := _left_cord(container["Labels"])) is not None:
            cord.pick_up()
            cord.let_go()
    return len(found)


def _left_cord(labels: Mapping[str, str]) -> Cord | None:
    """The cord of a container that an earlier agent has made; None where its folder cannot be had."""
    path = Path(labels.get(CORD_LABEL, ""))
    if not path.name.startswith(_FOLDER):
        return None
    try:
        return Cord(Scratch.at(path))
    except OSError:
        return None


async def remove(container: DockerContainer, grace_s: float = 0.0) -> bool:
    """End the container and remove it with its nameless volumes; whether it is gone."""
    try:
        async with said("the model's container cannot be removed", REMOVE_S):
            if grace_s > 0:
                with suppress(DockerError):
                    await container.stop(t=math.ceil(grace_s))
            try:
                await container.delete(force=True, v=True)
            except DockerError as error:
                if error.status not in _GONE:
                    raise
    except SetupFailed:
        return False
    return True


async def _create(host: DockerHost, body: dict[str, Any], name: str) -> DockerContainer:
    """Make a container; one that is made while nobody waits for it any more is removed again."""
    making = asyncio.ensure_future(host.docker.containers.create(body, name=name))
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        with suppress(*_TROUBLE):
            await remove(await making)
        raise


def _url(told: dict[str, Any], port: str, network: Network) -> str:
    """Where the server of a container that has just been started is."""
    if network.port is None:
        bound = (told["NetworkSettings"].get("Ports") or {}).get(f"{port}/tcp")
        if not bound:
            raise SetupFailed("the model's container ended at once, or Docker does not publish its port")
        port = bound[0]["HostPort"]
    return f"http://127.0.0.1:{port}"
