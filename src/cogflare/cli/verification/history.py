"""The history of one run: what clients were told, what workers did, which faults came, what the store said at the end.

Every `at` is CLOCK_MONOTONIC in microseconds (`now()`): one clock for all processes of a machine, and no jump of the
wall clock moves it. A file of history holds one event a line; several processes may write to one file.
"""

import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

TAG: Final = re.compile(r"(tag-[0-9a-z-]+)/([0-9]+)")
"""What everything that a model writes carries: the tag of the prediction, and the attempt that wrote it."""

FILE_PREFIX: Final = "cogflare-file:/f/"
"""How the store writes the URL of a file; in the history all do."""

MISSING: Final = "missing"
"""The status of a `Seen` that was no such thing: the read of an accepted prediction was refused with its `error`."""


def now() -> int:
    """The moment an event carries: microseconds of the machine's monotonic clock."""
    return time.monotonic_ns() // 1000


def named_files(output: Any) -> Any:
    """Return an output with the URLs of files as the store writes them, wherever the node was."""
    if isinstance(output, str) and output.startswith("http"):
        _, separator, name = output.partition("/f/")
        return FILE_PREFIX + name if separator else output
    if isinstance(output, list):
        return [named_files(item) for item in output]
    return output


class Moment(msgspec.Struct, frozen=True, tag_field="event", tag=True):
    """What every event has: when it was noted."""

    at: int


class Asked(Moment, frozen=True):
    """Before a create is sent, each time that it is.

    The tag is its own, and is in the input: the `script` that a model of this kind runs. `again` is how the server may
    know it when it is sent again: never, by its key, or by its count of retries. `events` are those that its webhook is
    to hear of; None where it has no webhook.
    """

    client: str
    tag: str
    kind: str = "single"
    script: dict[str, Any] | None = None
    again: str = "never"
    events: list[str] | None = None


class Accepted(Moment, frozen=True):
    """A create was answered 2xx."""

    client: str
    tag: str
    prediction: str
    status: str


class Refused(Moment, frozen=True):
    """A create was answered 4xx or 5xx."""

    client: str
    tag: str
    code: int
    title: str


class Unanswered(Moment, frozen=True):
    """A create ended in a connection error or a timeout: the prediction may exist or not."""

    client: str
    tag: str
    reason: str


class Seen(Moment, frozen=True):
    """What a later read of a prediction said. `asked_at` is when the read began; files are named as the store does."""

    asked_at: int
    client: str
    prediction: str
    status: str
    output: Any
    logs: str | None
    error: str | None


class CancelAsked(Moment, frozen=True):
    """Before a cancel is sent."""

    client: str
    prediction: str


class CancelTold(Moment, frozen=True):
    """A cancel was answered 2xx with this status."""

    client: str
    prediction: str
    status: str


class BadInput(Moment, frozen=True):
    """The answer to a hostile request. A tag, where its body had one, must never be stored."""

    asked_at: int
    client: str
    kind: str
    code: int
    is_problem: bool
    tag: str = ""


class Foreign(Moment, frozen=True):
    """Another account tried to see or cancel a prediction."""

    asked_at: int
    client: str
    prediction: str
    verb: str
    code: int


class Told(Moment, frozen=True):
    """A message came to a webhook. `begun_at` is its first byte; `at` when the receiver was done with it.

    `tag` is the one of the address that it was sent to, empty where no webhook has that address. `code` is what it was
    answered; None where no answer, or half of one, was written. `is_moved`: it came to where a redirect leads.
    """

    begun_at: int
    receiver: str
    message: str
    is_signed: bool
    tag: str
    prediction: str
    status: str
    output: Any
    logs: str | None
    error: str | None
    code: int | None
    is_moved: bool = False


class Streamed(Moment, frozen=True):
    """What one reader of a prediction's stream was shown, over all its connections; `asked_at` is before the first.

    `items` are the data of its `output` events; `logs` is None where it did not ask for logs; `error` is the detail of
    its `error` event. `done` is the reason of the last event, empty where that gave none, None where there was no such
    event. `refusal` is an answer that was no stream. `breaks` counts the connections after the first.
    """

    asked_at: int
    client: str
    prediction: str
    items: list[str]
    logs: str | None
    error: str | None
    done: str | None
    refusal: str | None
    breaks: int


class Begun(Moment, frozen=True):
    """The first thing a model does in a run."""

    worker: str
    agent_pid: int
    model_pid: int
    prediction: str
    attempt: int
    tag: str


class Over(Moment, frozen=True):
    """A model left a run: `how` is done, failed or canceled."""

    worker: str
    model_pid: int
    prediction: str
    attempt: int
    how: str


class Fault(Moment, frozen=True):
    """A fault, noted when it is over. `until` is `at` where it took no time, else when it was lifted.

    `kind`: kill, stop, cut, reset, slow, half_open, disk_full, clock_jump, db_restart or restart.
    `target`: server-N, worker-N, model-N, link-N or database.
    """

    until: int
    kind: str
    target: str
    detail: str


class Born(Moment, frozen=True):
    """A process was started. `what` is server, agent or model."""

    what: str
    name: str
    pid: int


class Died(Moment, frozen=True):
    """A process was seen to be gone."""

    what: str
    name: str
    pid: int
    how: str


class Stored(Moment, frozen=True):
    """A prediction as the store had it after quiet."""

    prediction: str
    account: str
    tag: str | None
    phase: str
    status: str
    attempt: int
    strikes: int
    completed_at: int | None
    output: Any
    error: str | None
    logs: str


class StoredAttempt(Moment, frozen=True):
    """An attempt as the store had it after quiet. `started` and `ended` are in microseconds of the wall clock."""

    prediction: str
    attempt: int
    holder: str
    started: int | None
    ended: int | None
    outcome: str | None
    freed: bool


class StoredFile(Moment, frozen=True):
    """A file that an ended prediction names. `state` is None where the store does not know it.

    `says` is the attempt that its text names, where it names one.
    """

    prediction: str
    file: str
    state: str | None
    is_there: bool
    size: int
    sha256_matches: bool
    says: int | None = None


class StoredDelivery(Moment, frozen=True):
    """The message about the end of a prediction as the store had it after quiet."""

    prediction: str
    message: str
    state: str
    tries: int


class Leftover(Moment, frozen=True):
    """A row that should be gone after quiet: a slot held, a queue entry, a flow that counts wrong, a live attempt."""

    kind: str
    row: str


Event = (
    Asked
    | Accepted
    | Refused
    | Unanswered
    | Seen
    | CancelAsked
    | CancelTold
    | BadInput
    | Foreign
    | Told
    | Streamed
    | Begun
    | Over
    | Fault
    | Born
    | Died
    | Stored
    | StoredAttempt
    | StoredFile
    | StoredDelivery
    | Leftover
)

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Event)


class Recorder:
    """Appends events to a file of history. Each line is one write, so that several processes may share the file."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, event: Event) -> None:
        """Append an event. The empty line before it keeps it apart from the half line that a killed process left."""
        line = b"\n" + _encoder.encode(event) + b"\n"
        if os.write(self._fd, line) != len(line):
            raise OSError("The file of history takes no more.")

    def close(self) -> None:
        os.close(self._fd)


def read(paths: Iterable[Path]) -> list[Event]:
    """The events of these files in the order of their moments. Half lines are dropped."""
    events: list[Event] = []
    for path in paths:
        for line in path.read_bytes().split(b"\n"):
            if line:
                try:
                    events.append(_decoder.decode(line))
                except msgspec.DecodeError:
                    continue
    return sorted(events, key=lambda event: event.at)
