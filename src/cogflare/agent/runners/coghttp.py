"""Drives a Cog server that somebody else runs, by its URL: a container, a service, a server started by hand.

The server must reach this machine for its webhooks: ``hook_host`` is the address to listen on and ``hook_address`` the
one to tell it (for a container the address of its host), both loopback unless said otherwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec

from cogflare.agent.runners.base import Event, Job, LogSink, Offer, RestartRefused, RunLost, UploadSink
from cogflare.agent.runners.cogserver import CogServer
from cogflare.agent.runners.driver import Breakage, CogDriver, wait_ready
from cogflare.agent.runners.outputs import OutputShape
from cogflare.agent.runners.receiver import Receiver

_REACH_S = 60.0


class CogHttpRunner:
    """A runner over the Cog server at ``url``; its files come as data URLs. ``digest`` is the image's, where known."""

    def __init__(
        self,
        owner: str,
        name: str,
        url: str,
        sink: UploadSink,
        *,
        slots: int = 1,
        digest: str = "",
        hook_host: str = "127.0.0.1",
        hook_address: str | None = None,
        reach_s: float = _REACH_S,
    ) -> None:
        self._owner, self._name, self._url, self._slots, self._digest = owner, name, url, slots, digest
        self._sink, self._reach_s = sink, reach_s
        self._receiver = Receiver(sink, hook_host, hook_address)
        self._broken = Breakage()
        self._driver: CogDriver | None = None

    async def setup(self, log: LogSink) -> Offer:
        """Attach to the server and wait until it is ready; raises `SetupFailed`."""
        server = CogServer(self._url)
        try:
            health = await wait_ready(server, log, self._reach_s)
            schema = await server.schema()
            await self._receiver.start()
        except BaseException:
            await server.close()
            raise
        shape = OutputShape(schema)
        if shape.has_files and not health.is_coglet:
            log("This Cog server is older than 0.17: its files get out only if it was started with --upload-url\n")
        self._driver = CogDriver(server, self._receiver, self._sink, shape, health, self._slots, self._broken)
        return Offer(
            owner=self._owner,
            name=self._name,
            version=version_of(self._digest or f"{self._owner}/{self._name}", schema),
            schema=schema,
            cog_version=health.cog_version,
            slots=self._slots,
        )

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
        """Raise `RestartRefused`: the server belongs to somebody else."""
        raise RestartRefused(f"the Cog server at {self._url} was not started by this agent")

    async def wait_broken(self) -> str:
        """Wait until the server can take no further run; return why."""
        return await self._broken.wait()

    async def close(self) -> None:
        """Let go of the server, which stays up."""
        if self._driver:
            await self._driver.close("the agent is closing")
            self._driver = None
        await self._receiver.close()


def version_of(content: str, schema: dict[str, Any] | None) -> str:
    """The version (64 hex digits) of a model with that content and schema."""
    known = msgspec.json.encode([content, schema], order="sorted")
    return hashlib.sha256(known).hexdigest()
