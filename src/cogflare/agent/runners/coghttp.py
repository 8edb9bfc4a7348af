"""Drives a Cog server that somebody else runs, by its URL: a container, a service, a server started by hand.

The server must reach this machine for its webhooks: ``hook_host`` is the address to listen on and ``hook_address`` the
one to tell it (for a container the address of its host), both loopback unless said otherwise. The server outlives the
agent by nature; an agent that comes after a killed one goes on with the runs that are still in it.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import Any

import httpx2
import msgspec

from cogflare.agent.depot import Depot
from cogflare.agent.runners.base import LogSink, Offer, RestartRefused, UploadSink
from cogflare.agent.runners.cogrelease import CogRelease
from cogflare.agent.runners.cogserver import CogServer, Health
from cogflare.agent.runners.driver import CogDriver, Driven, can_resume, told_shape, wait_ready
from cogflare.agent.runners.following import Manner
from cogflare.agent.runners.handover import Handover, Takeover, fingerprint
from cogflare.agent.runners.open import Bench
from cogflare.agent.runners.outputs import OutputShape
from cogflare.agent.runners.receiver import Receiver
from cogflare.agent.sources import UrlSource

_REACH_S = 60.0


class CogHttpRunner(Driven):
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
        takeover: Takeover | None = None,
        depot: Depot | None = None,
    ) -> None:
        super().__init__()
        self._owner, self._name, self._url, self._slots, self._digest = owner, name, url, slots, digest
        self._sink, self._reach_s = sink, reach_s
        self._takeover = takeover
        self._hook = (hook_host, hook_address)
        self._depot = depot or Depot()
        self._receiver = Receiver(sink, *self._hook, depot=self._depot)

    async def setup(self, log: LogSink) -> Offer:
        """Attach to the server and wait until it is ready; raises `SetupFailed`."""
        server = CogServer(self._url)
        try:
            health = await wait_ready(server, log, self._reach_s)
            if not health.goes_on:
                self._slots = 1  # it fails at a second run
            shape = await told_shape(server)
            is_taken_over = await self._take_over(server, shape, health, log)
            if not is_taken_over:
                if self._takeover:
                    self._takeover.forget()
                await self._receiver.start()
        except BaseException:
            await server.close()
            raise
        if self._takeover:
            self._takeover.leave(Handover(self._content(), *self._receiver.address, boot=health.boot), log)
        manner = _manner(health, shape)
        if shape.has_files and manner == "goes on" and not health.can_poll:
            log("this Cog server is an old one: its files get out only if it was started with --upload-url\n")
        self._driver = CogDriver(server, self._receiver, self._sink, shape, health, self._slots, self._broken, manner)
        return Offer(
            owner=self._owner,
            name=self._name,
            version=version_of(self._digest or f"{self._owner}/{self._name}", shape.document),
            schema=shape.document,
            cog_version=health.cog_version,
            slots=self._slots,
            is_taken_over=is_taken_over,
        )

    async def _take_over(self, server: CogServer, shape: OutputShape, health: Health, log: LogSink) -> bool:
        """Take an earlier agent's place as the receiver of its runs, or ask the server to stop those runs."""
        takeover = self._takeover
        left = takeover.left(log) if takeover else None
        if takeover is None or left is None or not takeover.held or left.boot != health.boot:
            return False
        is_known = can_resume(health, shape, self._slots) and (self._slots == 1 or shape.schema)
        if left.content == self._content() and is_known:
            receiver = Receiver(
                self._sink,
                *self._hook,
                port=left.receiver_port,
                secret=left.receiver_secret,
                expected=takeover.held,
                depot=self._depot,
            )
            try:
                await receiver.start()
            except OSError as error:
                log(f"the runs of an earlier worker cannot be resumed: {error}\n")
            else:
                self._receiver = receiver
                return True
        for run_id in takeover.held:
            with suppress(httpx2.HTTPError):
                await server.cancel(run_id)
        return False

    def _content(self) -> str:
        return fingerprint(self._owner, self._name, self._url, self._slots, *self._hook, environ={})

    async def restart(self) -> None:
        """Raise `RestartRefused`: the server belongs to somebody else."""
        raise RestartRefused(f"the Cog server at {self._url} was not started by this agent")

    async def close(self) -> None:
        """Let go of the server, which stays up."""
        if self._driver:
            await self._driver.close("the agent is closing")
            self._driver = None
            if self._takeover:
                self._takeover.withdraw()
        await self._receiver.close()


def _manner(health: Health, shape: OutputShape) -> Manner:
    """How runs are had of a server that nobody has told where files go.

    Before coglet, only a request that waits for the end of its run is answered with the files. Of the servers that
    tell their version, those that are older answer nothing else meanwhile.
    """
    if not health.goes_on:
        return "bare"
    is_able = bool(health.cog_version) and CogRelease.of(health.cog_version).answers_while_waiting
    return "waits" if shape.has_files and is_able and not health.can_poll else "goes on"


def version_of(content: str, schema: dict[str, Any] | None) -> str:
    """The version (64 hex digits) of a model with that content and schema."""
    known = msgspec.json.encode([content, schema], order="sorted")
    return hashlib.sha256(known).hexdigest()


def open_url(source: UrlSource, bench: Bench) -> CogHttpRunner:
    """Return the runner for a server that somebody else runs."""
    slots = bench.slots or 1
    about = bench.owner, bench.name, source.url, bench.sink
    return CogHttpRunner(*about, slots=slots, takeover=bench.takeover, depot=bench.depot)
