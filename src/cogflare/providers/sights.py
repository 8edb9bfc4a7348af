"""Predictions as servers of Replicate's API show them, read into `Sight`s. Pure."""

from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Raw

from cogflare.providers.base import Sight, State

_STATES: Final[dict[str, State]] = {
    "starting": "waiting",
    "processing": "running",
    "succeeded": "succeeded",
    "failed": "failed",
    "canceled": "canceled",
    "aborted": "canceled",
}
_RAN: Final = frozenset({"running", "succeeded"})
_MAX_METRICS: Final = 64 << 10  # bytes
_MOST_COST: Final = 1e6  # dollars
MOST_S: Final = 1e8  # that a run is believed to have taken

RemoteId = Annotated[str, Meta(pattern=r"^[0-9A-Za-z][0-9A-Za-z._:~-]{0,199}\Z")]
"""The name of a run there: stored, and a part of paths."""


class Unreadable(ValueError):
    """It is not a prediction."""


class Listed(msgspec.Struct, frozen=True):
    """What tells predictions of a list apart."""

    id: RemoteId
    created_at: str | None = None
    webhook: str | None = None

    @property
    def created_us(self) -> int | None:
        """When it was made, in microseconds since 1970."""
        return _us(self.created_at)

    def has(self, mark: str) -> bool:
        """Say whether it is the run of a mark."""
        return self.webhook is not None and mark in self.webhook


class Shown(Listed, frozen=True, kw_only=True):
    """A prediction, as far as it matters here."""

    status: str
    output: Raw = Raw(b"null")
    logs: str | None = None
    error: Any = None
    metrics: Raw = Raw(b"null")
    started_at: str | None = None
    completed_at: str | None = None
    data_removed: bool | None = None
    urls: dict[str, Any] | None = None

    @property
    def state(self) -> State:
        """Its state; one that nobody has heard of is a way to wait."""
        return _STATES.get(self.status, "waiting")

    @property
    def figures(self) -> dict[str, Raw]:
        """Its metrics, none where they are more than anybody counts."""
        return {} if len(memoryview(self.metrics)) > _MAX_METRICS else _metrics.decode(self.metrics) or {}


class Page(msgspec.Struct, frozen=True):
    """A page of a list, the newest first; `next` is the URL of the one after it."""

    results: list[Listed]
    next: str | None = None


_shown: Final = msgspec.json.Decoder(Shown)
_page: Final = msgspec.json.Decoder(Page)
_metrics: Final = msgspec.json.Decoder(dict[str, Raw] | None)
_anything: Final = msgspec.json.Decoder()


def read(body: bytes) -> Shown:
    """Read a prediction; raises `Unreadable`, for text that nobody could store too."""
    try:
        shown = _shown.decode(body)
        for raw in (shown.output, *shown.figures.values()):
            _anything.decode(raw)
    except (ValueError, RecursionError) as error:
        raise Unreadable(str(error)) from error
    return shown


def read_page(body: bytes) -> Page:
    """Read a page of predictions; raises `Unreadable`."""
    try:
        return _page.decode(body)
    except (ValueError, RecursionError) as error:
        raise Unreadable(str(error)) from error


def sight(shown: Shown) -> Sight:
    """Return what is seen of the run."""
    state, metrics = shown.state, shown.figures
    predict_s = _number(metrics.get("predict_time"), MOST_S)
    started = shown.started_at is not None or state in _RAN or bool(predict_s)
    run_s = _seconds(shown.started_at, shown.completed_at) if predict_s is None else predict_s
    if not started and state in ("failed", "canceled"):
        run_s = 0.0
    stream = (shown.urls or {}).get("stream")
    return Sight(
        remote_id=shown.id,
        state=state,
        started=started,
        output=None if shown.output == Raw(b"null") else shown.output,
        logs=shown.logs or "",
        error=_error(shown) if state == "failed" else None,
        metrics=metrics,
        run_s=run_s,
        queue_s=_seconds(shown.created_at, shown.started_at),
        cost=_number(metrics.get("cost"), _MOST_COST),
        stream=stream if isinstance(stream, str) else None,
    )


def _error(shown: Shown) -> str:
    if isinstance(shown.error, str) and shown.error.strip():
        return shown.error
    return "It failed without a message." if not shown.error else msgspec.json.encode(shown.error).decode()


def _number(raw: Raw | None, most: float) -> float | None:
    """Return a number that can be believed."""
    value = None if raw is None else _anything.decode(raw)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= most else None


def _seconds(since: str | None, until: str | None) -> float | None:
    began, ended = _us(since), _us(until)
    seconds = None if began is None or ended is None else max(0, ended - began) / 1e6
    return None if seconds is None or seconds > MOST_S else seconds


def _us(text: str | None) -> int | None:
    try:
        moment = datetime.fromisoformat(text or "")
        return round(moment.timestamp() * 1e6) if moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None
