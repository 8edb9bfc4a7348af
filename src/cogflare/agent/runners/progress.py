"""What is known of one run: snapshots and stream events in, events without gaps or repetitions out. No I/O.

A snapshot carries the whole log and the whole output so far; snapshots may overtake each other. A stream carries
differences, from the beginning of the run again after each attach. Both are held against what has been said already.
"""

from __future__ import annotations

from typing import Any

from cogflare.agent.runners.base import Event, Log, Metric, Output

_PREDICT_TIME = "predict_time"


class Progress:
    """The position of one run. Items of `Output` events are as the model gave them, files not yet stored."""

    def __init__(self, *, is_iterator: bool) -> None:
        self._is_iterator = is_iterator
        self._log_said = 0
        self._log_streamed = 0
        self._items_said = 0
        self._metrics: dict[str, Any] = {}
        self._metrics_streamed: dict[str, Any] = {}

    def snapshot(self, body: dict[str, Any]) -> list[Event]:
        """Take in a snapshot."""
        log = (body.get("logs") or "")[self._log_said :]
        output = body.get("output")
        events = self._log(log) + self._metrics_now(body.get("metrics") or {})
        if self._is_iterator and isinstance(output, list):
            events += self._items(output)
        return events

    def stream_begins(self) -> None:
        """The next stream event is the first of the run again."""
        self._log_streamed = 0
        self._metrics_streamed = {}

    def stream(self, event: str, data: dict[str, Any]) -> list[Event]:
        """Take in one event of the stream; ``completed`` is a snapshot and not for here."""
        if event == "log":
            text = data["data"]
            self._log_streamed += len(text)
            unsaid = self._log_streamed - self._log_said
            return self._log(text[-unsaid:]) if unsaid > 0 else []
        if event == "output" and self._is_iterator and data["index"] == self._items_said:
            self._items_said += 1
            return [Output(data["index"], data["chunk"])]
        if event == "metric":
            streamed = self._metrics_streamed
            streamed[data["name"]] = _accumulate(streamed.get(data["name"]), data["value"], data.get("mode"))
            return self._metrics_now({data["name"]: streamed[data["name"]]})
        return []

    def _log(self, text: str) -> list[Event]:
        self._log_said += len(text)
        return [Log(text)] if text else []

    def _items(self, items: list[Any]) -> list[Event]:
        events: list[Event] = [Output(index, items[index]) for index in range(self._items_said, len(items))]
        self._items_said += len(events)
        return events

    def _metrics_now(self, metrics: dict[str, Any]) -> list[Event]:
        changed = {k: v for k, v in metrics.items() if k != _PREDICT_TIME and self._metrics.get(k) != v}
        self._metrics.update(changed)
        return [Metric(name, value) for name, value in changed.items()]


def _accumulate(before: Any, value: Any, mode: str | None) -> Any:
    """A streamed metric is a difference in the modes ``incr`` and ``append``."""
    if mode == "incr":
        return (before or 0) + value
    if mode == "append":
        return [*(before or []), value]
    return value
