"""The messages of the worker link, protocol version 1.

A text frame is a JSON array of messages, so that one frame carries everything an end has to say in one loop turn; the
bare texts `ping` and `pong` are the idle keep-alive. Each message is an object with a `type`. Positions are absolute:
`index` counts output items of the attempt, `offset` counts UTF-8 bytes of its log. Times cross the link as ages
(`ago_ms`, since clocks of two machines differ). `docs/reference/worker-protocol.md` is this file in prose.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from cogflare.domain.requirements import MAX_TAGS, Tag

PROTOCOL = 1
OLDEST = 1  # version of the protocol that this end still understands
SUBPROTOCOL = "cogflare.v1"
LINK_PATH = "/worker/v1/link"
PING = "ping"
PONG = "pong"
MAX_FRAME = 1_000_000  # bytes; what does not fit goes by HTTP
MAX_VALUE = 700_000  # bytes of one JSON value (an input, an output, an item) that travels in a message
MAX_REASON = 1_000  # characters of why a model is not well
MAX_DEPTH = 128  # levels of nesting of such a value; readers refuse somewhere beyond
MAX_LOG = 1 << 20  # bytes of an attempt's log, unless the server says otherwise
MAX_OUTPUT = 16 << 20  # bytes of an iterator's items together, unless the server says otherwise
MAX_ITEMS = 500_000  # items of an output

# `\Z` and not `$`, which would let a newline at the end pass.
Count = Annotated[int, Meta(ge=0, le=2**53 - 1)]
Id = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[0-9A-Za-z_-]+\Z")]
Name = Annotated[str, Meta(min_length=1, max_length=100, pattern=r"^[0-9A-Za-z][0-9A-Za-z._-]*\Z")]
AttemptKey = tuple[Id, Count]  # prediction id, attempt number
FinishStatus = Literal["succeeded", "failed", "canceled", "lost"]
Verdict = Literal["committed", "superseded", "unknown"]
Text = Annotated[str, Meta(max_length=200, pattern=r"^[^\0]*\Z")]


class Message(msgspec.Struct, frozen=True, tag_field="type", omit_defaults=True):
    """Base of every message: unknown fields of a newer end are ignored."""


class Offer(msgspec.Struct, frozen=True, omit_defaults=True):
    """One version of a model that the worker runs, with `slots` predictions at a time.

    `version` is 64 lower-case hex digits, `schema` the model's OpenAPI document (absent: inputs go unvalidated).
    """

    owner: Name
    name: Name
    version: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    slots: Annotated[int, Meta(ge=0, le=10_000)]
    schema: Raw | UnsetType = UNSET
    cog_version: str = ""


class Held(msgspec.Struct, frozen=True, omit_defaults=True):
    """An attempt that occupies a slot of offer `offer`; `ended` when only its answer or its slot is outstanding."""

    prediction: Id
    attempt: Count
    offer: Count = 0
    ended: bool = False


class Resume(msgspec.Struct, frozen=True, omit_defaults=True):
    """The server's word on a held attempt: go on after these committed positions, or drop it."""

    prediction: Id
    attempt: Count
    wanted: bool
    outputs: Count = 0
    log_bytes: Count = 0


class Gpu(msgspec.Struct, frozen=True, omit_defaults=True):
    """A GPU that models of the worker may use. Memory in units of 2^20 bytes; `free_mb` None: not known."""

    name: Text = ""
    vram_mb: Count = 0
    free_mb: Count | None = None


class Machine(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a worker runs on, as far as its agent knows; 0 and empty mean that it does not.

    `driver` and `cuda` are versions of NVIDIA's driver and of what it can run. `region` and `tags` are words of
    its owner.
    """

    gpus: Annotated[tuple[Gpu, ...], Meta(max_length=64)] = ()
    driver: Text = ""
    cuda: Text = ""
    cpus: Count = 0
    ram_mb: Count = 0
    disk_free_mb: Count = 0
    os: Text = ""
    python: Text = ""
    region: Text = ""
    tags: Annotated[tuple[Tag, ...], Meta(max_length=MAX_TAGS)] = ()


# --- agent to server ---------------------------------------------------------------------------------------------


class Hello(Message, frozen=True, tag="hello"):
    """Opens a link. `worker` is stable per machine and offer; `instance` is new with every agent process.

    The agent understands the versions `oldest` (0: no other) to `protocol`.
    """

    protocol: int
    worker: Id
    instance: Id
    name: Annotated[str, Meta(max_length=100)]
    offers: Annotated[list[Offer], Meta(min_length=1, max_length=64)]
    held: list[Held] = []
    agent: dict[str, str] = {}
    machine: Machine | None = None
    oldest: int = 0


class Started(Message, frozen=True, tag="started"):
    """The model began to run the attempt, `ago_ms` before this message was written."""

    prediction: Id
    attempt: Count
    ago_ms: Count = 0


class Output(Message, frozen=True, tag="output"):
    """Items of an iterator's output, the first of them at `index`."""

    prediction: Id
    attempt: Count
    index: Count
    items: list[Raw]


class Log(Message, frozen=True, tag="log"):
    """Log text that begins at byte `offset` of the attempt's log."""

    prediction: Id
    attempt: Count
    offset: Count
    text: str


class Metrics(Message, frozen=True, tag="metrics"):
    """Figures the model reports while it runs; a later value of a name replaces the earlier one."""

    prediction: Id
    attempt: Count
    values: dict[str, Raw]


class Finish(Message, frozen=True, tag="finish"):
    """The attempt ended; repeated on every link until it is answered.

    Exactly one of these gives the output: `output` (a value), `items` (the iterator's items were all sent, so many),
    or `uploaded` (the value was put to the result address because it does not fit a frame). `lost` means that the
    model's process died: the prediction may run again. `slot_free` returns the slot in the same breath.
    """

    prediction: Id
    attempt: Count
    status: FinishStatus
    output: Raw | UnsetType = UNSET
    items: Count | None = None
    uploaded: bool = False
    error: str | None = None
    metrics: dict[str, Raw] = {}
    log_bytes: Count = 0
    files: Count = 0
    ago_ms: Count = 0
    run_ms: float | None = None
    slot_free: bool = False


class SlotFree(Message, frozen=True, tag="slot_free"):
    """The slot that the attempt took can run something else now."""

    prediction: Id
    attempt: Count


class Capacity(Message, frozen=True, tag="capacity"):
    """The number of slots of an offer changed (0 while the model restarts, or while the agent drains)."""

    offer: Count
    slots: Annotated[int, Meta(ge=0, le=10_000)]


class Heartbeat(Message, frozen=True, tag="heartbeat"):
    """Renews the lease of every attempt that the worker holds; sent only while it holds any."""

    held: list[AttemptKey]


class Health(Message, frozen=True, tag="health"):
    """Whether the model could run something now, and if not why: answers a probe, and is said whenever it changes."""

    ok: bool
    reason: str = ""


class Inventory(Message, frozen=True, tag="inventory"):
    """What the worker runs on is not what its hello, or the last of these, said: at most once a minute."""

    machine: Machine


class Goodbye(Message, frozen=True, tag="goodbye"):
    """The agent leaves for good: what it holds may run elsewhere at once."""

    reason: str = ""


# --- server to agent ---------------------------------------------------------------------------------------------


class Welcome(Message, frozen=True, tag="welcome"):
    """Answers a hello. `epoch` numbers the worker's links; `held` has a word on each attempt of the hello.

    `protocol` is the version that holds for the link, `server` the release of Cogflare.

    What passes the limits on sizes the server cuts off; an agent need not send, or keep, much more.
    """

    protocol: int
    epoch: int
    node: str
    server: str
    heartbeat_s: float
    silence_s: float
    held: list[Resume] = []
    max_log_bytes: Count = MAX_LOG
    max_output_bytes: Count = MAX_OUTPUT


class Assign(Message, frozen=True, tag="assign"):
    """Run this. Without `input` the agent fetches it from the input address (it is large)."""

    prediction: Id
    attempt: Count
    offer: Count
    input: Raw | UnsetType = UNSET


class Answer(Message, frozen=True, tag="answer"):
    """Answers a finish; each verdict lets the agent forget the attempt."""

    prediction: Id
    attempt: Count
    verdict: Verdict


class Cancel(Message, frozen=True, tag="cancel"):
    """The attempt is no longer wanted: stop the model, then give the slot back."""

    prediction: Id
    attempt: Count


class Renewed(Message, frozen=True, tag="renewed"):
    """Answers a heartbeat with the attempts that are no longer wanted."""

    unwanted: list[AttemptKey] = []


class Probe(Message, frozen=True, tag="probe"):
    """Asks for the health of the model."""


class Drain(Message, frozen=True, tag="drain"):
    """The operator wants this worker to finish what it holds and leave."""


class Restarting(Message, frozen=True, tag="restarting"):
    """The server stops for a moment: run on, keep everything, come back."""


class Reject(Message, frozen=True, tag="reject"):
    """The link is refused or ended for `reason`; `retry` says whether to come back, not before `after_s` seconds."""

    reason: str
    retry: bool = False
    after_s: float = 0.0


AgentMessage = (
    Hello | Started | Output | Log | Metrics | Finish | SlotFree | Capacity | Heartbeat | Health | Inventory | Goodbye
)
ServerMessage = Welcome | Assign | Answer | Cancel | Renewed | Probe | Drain | Restarting | Reject
