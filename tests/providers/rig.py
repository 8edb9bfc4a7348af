"""What the conformance suite needs of a provider: a real one, an executor for it, and ways to make it fail."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import msgspec

from cogflare.app import SystemClock
from cogflare.domain.ids import new_key
from cogflare.net.addresses import Reach
from cogflare.net.client import Client
from cogflare.providers.base import Executor, Sight, Submission, Terms
from cogflare.providers.open import Executors
from support.processes import Server, Stage
from support.upstream import Kind, Upstream

HERE = Reach.of(["127.0.0.0/8"])
Where = Literal["plain", "cold", "absent"]
Call = Literal["submit", "poll", "cancel"]
Fault = Literal["busy", "error", "late_error"]


class Place(ABC):
    """Where a kind of provider is: a service that outlasts the tests of a module.

    `plain` runs have a worker; it does what the input says: `output`, after `seconds`, or `fail`. Those of `cold` wait
    for ever, those of `absent` are of a model that is not there.
    """

    kind: ClassVar[str]
    can_list: ClassVar[bool]  # whether `find` can tell
    can_describe: ClassVar[bool]
    can_hint: ClassVar[bool]
    key: str
    url: str

    @abstractmethod
    def terms(self, where: Where) -> Terms:
        """Return who runs it."""

    @abstractmethod
    def begun(self) -> int:
        """Return how many runs have begun."""

    @abstractmethod
    def fail(self, what: Fault, on: Call) -> None:
        """Let the next call fail: 429 with a pause of 60 s, or 500 before or after the work was done."""

    @abstractmethod
    def heal(self) -> None:
        """End all faults."""


class CogflarePlace(Place):
    """A Cogflare."""

    kind = "cogflare"
    can_list = True
    can_describe = True
    can_hint = True
    is_hidden: ClassVar[bool] = False

    def __init__(self, stage: Stage, server: Server) -> None:
        self.stage = stage
        self.server = server
        self.upstream = Upstream(server.url, hidden=self.is_hidden)
        self.url = self.upstream.url
        self.key = server.token()

    def terms(self, where: Where) -> Terms:
        model = {"plain": "me/single", "cold": "me/iterator", "absent": "me/nowhere"}[where]
        return Terms(model, {"plain": "1" * 64, "cold": "2" * 64, "absent": None}[where])

    def begun(self) -> int:
        return sum(self.stage.runs().values())

    def fail(self, what: Fault, on: Call) -> None:
        calls: dict[Call, Kind] = {"submit": "create", "poll": "poll", "cancel": "cancel"}
        self.upstream.fail(what, calls[on], times=1, retry_after_s=60)

    def heal(self) -> None:
        self.upstream.heal()


class HiddenPlace(CogflarePlace):
    """A Cogflare that looks like Replicate."""

    kind = "replicate"
    is_hidden = True


class Rig:
    """An executor at a place, for one test."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.client = Client(HERE)
        self._executors = Executors(self.client, SystemClock())
        self.executor = self.opened()

    def opened(self, *, key: str | None = None, url: str | None = None, kind: str | None = None) -> Executor:
        """Return an executor with another key, at another address, or of another kind."""
        return self._executors.open(kind or self.place.kind, url or self.place.url, key or self.place.key)

    def order(self, where: Where = "plain", *, mark: str | None = None, **script: Any) -> Submission:
        """Return an order of a run that does what the script says."""
        return Submission(mark or new_key(), self.place.terms(where), msgspec.json.encode(script), 600.0, 600.0)

    async def poll(self, sight: Sight, where: Where = "plain") -> Sight:
        """Return how a run is seen now."""
        return await self.executor.poll(sight.remote_id, self.place.terms(where))
