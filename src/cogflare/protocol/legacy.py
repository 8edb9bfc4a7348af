"""The link of the first Cogflare's workers (2022), sans I/O: what their frames say, and the frame that gives them work.

Such a worker gets a prediction as one text frame and answers with frames that each say everything so far: the whole
log, and the whole output, which is a growing list where the model generates. It says nothing of attempts, sends what
it has to say last twice (with `metrics` the second time), and whatever goes wrong inside may stand in a frame. So
nothing here trusts a frame: what has no meaning is passed over, positions only move forward, and the first terminal
status is the one that counts.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple

import msgspec
from msgspec import Raw

from cogflare.protocol.codec import checked
from cogflare.protocol.messages import MAX_VALUE

HOLDER: Final = "2022-"
"""What the ids of these workers begin with."""
MAX_JOB: Final = 1 << 20
"""Bytes of a frame that these workers take; they break the connection at a larger one."""
BUSY: Final = "Worker is already processing a job, cannot accept another"
"""The error with which one answers that still runs something else."""

MAX_VALUES: Final = 1_000_000
"""Values in a part of a frame, about: as objects they take fifty times the room of their text."""

_MAX_ITEMS: Final = 100_000  # values in an output that is told item by item
_MAX_ERROR: Final = 16_000  # characters
_MAX_TIMES: Final = 1_000  # bytes
_MAX_METRICS: Final = 64_000  # bytes
_LONGEST_S: Final = 1e9
_BAD_OUTPUT: Final = "the model's output cannot be kept"
_CROWDED: Final = f"more than {MAX_VALUES} values"

_BREAKS: Final = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_NULL: Final = Raw(b"null")

Terminal = Literal["succeeded", "failed"]
_TERMINAL: Final[dict[str, Terminal]] = {
    "succeeded": "succeeded",
    "failed": "failed",
    "canceled": "failed",
    "cancelled": "failed",
}


class Frame(msgspec.Struct, frozen=True):
    """What a worker sends; of all but `id` and `status` nothing is known, or made, before it is looked at."""

    id: str
    status: str = ""
    output: Raw = _NULL
    logs: Raw = _NULL
    error: Raw = _NULL
    metrics: Raw = _NULL
    times: Raw = msgspec.field(name="x-experimental-timestamps", default=_NULL)


class End(NamedTuple):
    """How a run ended. `output` None: the items that were told before are all of it."""

    status: Terminal
    output: Raw | None
    error: str | None
    run_s: float | None
    metrics: dict[str, Raw]
    is_last: bool
    """Whether nothing more is to come: this is the frame that is sent last."""


class News(NamedTuple):
    """What a frame adds to the ones before it."""

    log: str
    items: list[Raw]
    end: End | None


def worker_id(account: str, model: str, session: str) -> str:
    """Return the id of a worker: the same over its reconnects, and over restarts of the server."""
    digest = hashlib.sha256("\n".join((account, model, session)).encode(errors="replace")).hexdigest()
    return f"{HOLDER}{digest[:40]}"


def nameless_id(account: str, model: str, token: str, place: str, number: int) -> str:
    """Return the id of a worker without a session: the `number`th of those that a token has at a place."""
    # No account is empty, so that no session leads to such an id.
    digest = hashlib.sha256("\n".join(("", account, model, token, place, str(number))).encode()).hexdigest()
    return f"{HOLDER}{digest[:40]}"


def version_of(model: str) -> str:
    """Return the version of a model of which nothing but its name is known."""
    return hashlib.sha256(f"a model of 2022\n{model}".encode()).hexdigest()


def job(prediction: str, model: str, version: str, given: Raw) -> str:
    """Return the frame that gives a worker a prediction."""
    told = {"id": prediction, "model": model, "version": version, "input": given, "status": "starting"}
    return msgspec.json.encode(told).decode()


def read(text: str | bytes) -> Frame | None:
    """Return what a frame says; None for one without meaning."""
    try:
        return _frame.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        pass
    try:
        return _frame.decode(_mended(text.encode(errors="replace") if isinstance(text, str) else text))
    except (ValueError, TypeError, RecursionError):
        return None


def _mended(text: bytes) -> bytes:
    """Return as JSON what Python takes for JSON: it writes NaN too, and halves of characters. Raises `ValueError`."""
    if _is_crowded(text, MAX_VALUES):
        raise ValueError(_CROWDED)
    value = json.loads(text, parse_constant=lambda _: None)
    return json.dumps(value, ensure_ascii=False).encode(errors="replace")


_frame: Final = msgspec.json.Decoder(Frame)
_items: Final = msgspec.json.Decoder(list[Raw])
_figures: Final = msgspec.json.Decoder(dict[str, Raw] | None)


class Reader:
    """Reads the frames about one attempt."""

    def __init__(self) -> None:
        self._lines = 0
        self._told: list[int] = []
        self._is_whole = False

    def read(self, frame: Frame) -> News:
        """Return what the frame adds; what comes after the end adds nothing but that end's metrics."""
        status = _TERMINAL.get(frame.status)
        log = self._log(frame.logs)
        if status is None:
            return News(log, [] if self._is_whole else self._grown(self._items(frame.output)), None)
        items, output, fault = self._last(frame.output)
        error = _error_of(frame, fault)
        if fault is not None:
            status = "failed"
        metrics = _bounded(frame.metrics)
        is_last = bool(metrics)
        run_s = _seconds(metrics.pop("predict_time", None))
        if run_s is None:
            run_s = _between(frame.times)
        return News(log, items, End(status, output, error, run_s, metrics, is_last))

    def _log(self, told: Raw) -> str:
        """Return the lines that are new, each with its end."""
        logs = _value_of(told)
        lines = _lines(logs) if isinstance(logs, str) else logs if isinstance(logs, list) else []
        new, self._lines = lines[self._lines :], max(self._lines, len(lines))
        return "".join(_text(line).rstrip("\r\n") + "\n" for line in new)

    def _grown(self, items: Sequence[Raw]) -> list[Raw]:
        """Return the items that are new, as long as all before them stand and each fits a message."""
        if self._is_whole or not self._stands(items):
            self._is_whole = True
            return []
        taken: list[Raw] = []
        for item in items[len(self._told) :]:
            try:
                checked(item)
            except ValueError:
                self._is_whole = True
                break
            if len(memoryview(item)) > MAX_VALUE:
                self._is_whole = True
                break
            self._told.append(_mark(item))
            taken.append(item.copy())
        return taken

    def _items(self, output: Raw) -> list[Raw]:
        """Return the items of an output; one of too many is told as a whole, since each frame has all of them."""
        if _is_crowded(output, _MAX_ITEMS):
            self._is_whole = True
            return []
        try:
            return _items.decode(output)
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            return []

    def _stands(self, items: Sequence[Raw]) -> bool:
        """Say whether what was told of the output is still its beginning."""
        if not items:
            return True
        last = len(self._told) - 1
        return last < 0 or (last < len(items) and _mark(items[last]) == self._told[last])

    def _last(self, output: Raw) -> tuple[list[Raw], Raw | None, str | None]:
        """Return the last items, or the whole output, or what is wrong with it."""
        text = bytes(output)
        if text == b"null":
            return [], None, None
        if _is_crowded(text, MAX_VALUES):
            return [], None, f"{_BAD_OUTPUT}: {_CROWDED}"
        if self._told and not self._is_whole:
            items, told = self._items(output), list(self._told)
            new = self._grown(items)
            if not self._is_whole and len(items) == len(self._told) and _marks(items[: len(told)]) == told:
                return new, None, None
        try:
            return [], checked(Raw(text)), None
        except ValueError as error:
            return [], None, f"{_BAD_OUTPUT}: {error}"


def _is_crowded(told: Raw | bytes, limit: int) -> bool:
    """Say whether there may be more values in a JSON text; what is in its strings counts too."""
    text = bytes(told)
    return len(text) > limit and text.count(b",") + text.count(b"[") + text.count(b"{") > limit


def _value_of(told: Raw) -> Any:
    """Return the value of a JSON text; None where it has none, or too many values."""
    if _is_crowded(told, MAX_VALUES):
        return None
    try:
        return msgspec.json.decode(told)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        pass
    try:
        return msgspec.json.decode(_mended(bytes(told)))
    except (ValueError, TypeError, RecursionError):
        return None


def _lines(text: str) -> list[str]:
    """Return the lines of a text; none where they are very many."""
    return [] if sum(map(text.count, _BREAKS)) > MAX_VALUES else text.splitlines()


def _text(value: Any) -> str:
    """Return a value as text; what is nested too deep is none."""
    try:
        return str(value)
    except RecursionError:
        return "…"


def _mark(item: Raw) -> int:
    return hash(bytes(item))


def _marks(items: Sequence[Raw]) -> list[int]:
    return [_mark(item) for item in items]


def _error_of(frame: Frame, fault: str | None) -> str | None:
    if fault is not None:
        return fault
    if frame.status == "succeeded":
        return None
    error = _value_of(frame.error)
    if error is None and frame.status != "failed":
        return "the worker canceled it"
    return None if error is None else _text(error)[:_MAX_ERROR]


def _bounded(told: Raw) -> dict[str, Raw]:
    kept, room = dict[str, Raw](), _MAX_METRICS
    if _is_crowded(told, _MAX_METRICS):
        return kept
    try:
        metrics = _figures.decode(told)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return kept
    for name, value in (metrics or {}).items():
        room -= len(memoryview(value)) + len(name) * 6 + 4
        if room < 0:
            break
        with suppress(ValueError):
            kept[name] = checked(value).copy()
    return kept


def _seconds(value: Raw | None) -> float | None:
    if value is None:
        return None
    try:
        seconds = msgspec.json.decode(value, type=float)
    except (msgspec.DecodeError, UnicodeError):
        return None
    return seconds if 0 <= seconds <= _LONGEST_S and math.isfinite(seconds) else None


def _between(told: Raw) -> float | None:
    """Return the seconds between the two times of a worker's own clock, which says nothing of ours."""
    times = _value_of(told) if len(memoryview(told)) <= _MAX_TIMES else None
    if not isinstance(times, dict):
        return None
    try:
        began, ended = (datetime.fromisoformat(times[key]) for key in ("started_at", "completed_at"))
        seconds = (ended - began).total_seconds()
    except (KeyError, TypeError, ValueError):
        return None
    return seconds if 0 <= seconds <= _LONGEST_S else None
