"""The `Executor` seam: a hosted service that runs predictions of an account with that account's own key.

What a provider answers is shown as `Sight`s, in one vocabulary; what goes wrong is one of:

    ProviderError
    ├── Refused        it will never take this (bad input, unknown model or version)
    ├── Denied         the key does not work, or has no money: nothing goes there until somebody changes that
    ├── Busy           not now; `retry_after_s` says when, where it is known
    ├── Unanswered     no answer that can be used: whether anything was done there is not known
    └── Gone           the provider does not know the run (any more)

Every text is for people, names the provider's own words where it has some, and never has a key in it.
"""

from collections.abc import AsyncIterator
from typing import Literal, Protocol

import msgspec
from msgspec import Raw

State = Literal["waiting", "running", "succeeded", "failed", "canceled"]
ENDED: frozenset[str] = frozenset({"succeeded", "failed", "canceled"})


class ProviderError(Exception):
    """The provider did not do what was asked; the text says why."""


class Refused(ProviderError):
    """It will never take this."""


class Denied(ProviderError):
    """The key does not work, or has no money behind it."""


class Busy(ProviderError):
    """It takes nothing now; `retry_after_s` None: it did not say for how long."""

    def __init__(self, text: str, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class Unanswered(ProviderError):
    """No usable answer came; the request may have been carried out."""


class Gone(ProviderError):
    """The provider does not know this run."""


class Terms(msgspec.Struct, frozen=True):
    """Who runs it there: the provider's own names, frozen when the attempt is made.

    `model` is owner/name. `version` is None where the provider needs none. `endpoint` is RunPod's, else empty. `shape`
    says how input and output are mapped: `plain` (as they are) or `cog` (Cog's image behind a handler).
    """

    model: str
    version: str | None = None
    endpoint: str = ""
    shape: Literal["plain", "cog"] = "plain"


class Submission(msgspec.Struct, frozen=True):
    """A run to be made. `mark` is its unguessable name, the same however often it is submitted.

    `input` is a JSON object whose files the provider can read. Limits in seconds, None: none. `callback` is where the
    provider may tell us of the end (None: nobody reaches us); it has the mark in it. `hops` counts the servers before.
    """

    mark: str
    terms: Terms
    input: bytes
    run_limit_s: float | None = None
    start_limit_s: float | None = None
    callback: str | None = None
    hops: int = 0


class Sight(msgspec.Struct, frozen=True):
    """A run as the provider shows it.

    `output` is JSON text, of iterators the list so far. `started` says whether it has ever run. `run_s` is what is
    paid for, `queue_s` its wait there; `cost` is the provider's own figure in dollars. `stream` is where its events
    are.
    """

    remote_id: str
    state: State
    started: bool = False
    output: Raw | None = None
    logs: str = ""
    error: str | None = None
    metrics: dict[str, Raw] = {}
    run_s: float | None = None
    queue_s: float | None = None
    cost: float | None = None
    stream: str | None = None

    @property
    def is_ended(self) -> bool:
        """Whether nothing more happens to it there."""
        return self.state in ENDED


class Described(msgspec.Struct, frozen=True):
    """A model as the provider has it. `schema` is its OpenAPI document, None where there is none.

    `version` is a version id of the catalog (64 hex digits); `terms` are those of a run of that version.
    """

    owner: str
    name: str
    version: str
    schema: bytes | None
    cog_version: str
    terms: Terms


class Report(msgspec.Struct, frozen=True):
    """What a check of a provider found: whether the key works, who is behind it, and what is wrong if anything is.

    `is_cogflare`: it takes ids of our own. `workers`: machines that could run something now, None: it does not say.
    `is_denied`: the key was refused, or has no money behind it.
    """

    ok: bool
    text: str
    account: str | None = None
    is_cogflare: bool = False
    workers: int | None = None
    is_denied: bool = False


class File(msgspec.Struct, frozen=True):
    """A file that a provider hands out: its name and type, the size where it is known, and the bytes."""

    name: str
    content_type: str
    size: int | None
    body: AsyncIterator[bytes]


class Executor(Protocol):
    """One provider of one account. Safe to use from many tasks; it keeps to the provider's rate limits by itself."""

    @property
    def is_repeatable(self) -> bool:
        """Whether submitting again under the same mark makes no second run."""
        ...

    async def check(self, endpoint: str = "") -> Report:
        """Ask whether the provider works; never raises for what the provider says."""
        ...

    async def describe(self, model: str, version: str | None, terms: Terms) -> Described:
        """Return a model (owner/name of ours), in this version or the newest; `terms` are the route's own words.

        Raises `Refused` for what the provider does not have, else another `ProviderError`.
        """
        ...

    async def upload(self, name: str, content_type: str, size: int, body: AsyncIterator[bytes]) -> str:
        """Hand over an input file; return what stands for it in the input (a URL, or a data URL)."""
        ...

    async def submit(self, order: Submission) -> Sight:
        """Make a run. Only `Unanswered` leaves open whether there is one now."""
        ...

    async def find(self, mark: str, since: int) -> Sight | None:
        """Look for a run of this mark made after `since` (microseconds); None: there is none.

        Raises `Unanswered` where that cannot be told, be it for now or because the provider keeps no list.
        """
        ...

    async def poll(self, remote_id: str, terms: Terms) -> Sight:
        """Return a run as it is; raises `Gone` and others."""
        ...

    def changes(self, sight: Sight, terms: Terms) -> AsyncIterator[None]:
        """Yield whenever the run may have changed, until the provider ends that; nothing where it has no such thing.

        Hints only: they may be lost, doubled or late. Never raises a `ProviderError`.
        """
        ...

    async def cancel(self, remote_id: str, terms: Terms) -> None:
        """Ask that the run ends; one that has ended stays as it is. What came of it is seen by `poll`."""
        ...

    def is_file(self, text: str) -> bool:
        """Say whether this text of an output is the URL of a file that vanishes there."""
        ...

    async def fetch(self, url: str) -> File:
        """Open a file of an output; the caller reads its body to the end or closes it. Raises `Gone` and others."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...
