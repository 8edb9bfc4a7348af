"""The runs of one model: what each has said so far, and the slots that they take. Their only owner.

A run's events are kept from its beginning, so that every stream can begin there. What has ended stays until its last
word has been taken (``forget``), or, where nobody is told, until ``_KEPT`` others have ended.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from .frames import encode

ENDED = ("succeeded", "failed", "canceled")
Event = tuple[str, dict[str, Any]]

_KEPT = 16
_MAX_LOG = 64 << 20  # characters of one run


class Run:
    """One run; changed by `Runs` alone."""

    def __init__(self, run_id: str, hook: str | None) -> None:
        self.id, self.hook = run_id, hook
        self.status = "starting"
        self.error: str | None = None
        self.output: Any = None
        self.metrics: dict[str, Any] = {}
        self.began = time.monotonic()
        self.log: list[str] = []
        self.log_room = _MAX_LOG
        self.events: list[Event] = []
        self.news = threading.Condition()

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come."""
        return self.status in ENDED

    def snapshot(self) -> dict[str, Any]:
        """Return the run as Cog shows it."""
        with self.news:  # an end is told whole
            known: dict[str, Any] = {"id": self.id, "status": self.status, "logs": "".join(self.log)}
            known["metrics"] = dict(self.metrics)
            if self.output is not None:
                known["output"] = list(self.output) if isinstance(self.output, list) else self.output
            if self.error is not None:
                known["error"] = self.error
            return known

    def follow(self) -> Iterator[list[Event]]:
        """Yield the events from the beginning, as many at a time as there are, until the run has ended."""
        told: list[Event] = []
        while not told or told[-1][0] != "completed":
            told += (fresh := self._beyond(len(told)))
            yield fresh

    def _beyond(self, count: int) -> list[Event]:
        """Wait for more than that many events; return those beyond."""
        with self.news:
            self.news.wait_for(lambda: len(self.events) > count)
            return self.events[count:]

    def wait(self) -> dict[str, Any]:
        """Wait for the end; return the last snapshot."""
        with self.news:
            self.news.wait_for(lambda: self.has_ended)
        return self.snapshot()

    def tell(self, event: str, data: dict[str, Any]) -> None:
        """Add an event; the caller holds ``news``."""
        self.events.append((event, data))
        self.news.notify_all()


class Runs:
    """All runs. ``post`` takes the frames that the model is told, ``on_end`` a run that has ended."""

    def __init__(self, post: Callable[[bytes], None], on_end: Callable[[Run], None]) -> None:
        self._post, self._on_end = post, on_end
        self._lock = threading.Lock()
        self._known: dict[str, Run] = {}
        self._running: dict[str, Run] = {}
        self._ended: deque[str] = deque()
        self.slots = 0

    @property
    def are_full(self) -> bool:
        """Whether no slot is free."""
        return len(self._running) >= self.slots

    def find(self, run_id: str) -> Run | None:
        """Return the run, if it is under way or its end is not taken yet."""
        return self._known.get(run_id)

    def only(self) -> Run | None:
        """Return the one run that is under way; None where there are several, or none."""
        with self._lock:
            return next(iter(self._running.values())) if len(self._running) == 1 else None

    def start(self, run_id: str, given: dict[str, Any], hook: str | None) -> Run | None:
        """Start a run, or return that of this id; None when no slot is free. Raises what `encode` raises."""
        frame = encode({"type": "run", "id": run_id, "input": given})
        with self._lock:
            if run_id in self._known:
                return self._known[run_id]
            if self.are_full:
                return None
            run = Run(run_id, hook)
            self._known[run_id] = self._running[run_id] = run
            with run.news:
                run.status = "processing"
                run.tell("start", {"id": run_id, "status": "processing"})
            self._post(frame)
            return run

    def cancel(self, run_id: str) -> bool:
        """Ask the model to stop that run; whether it is under way."""
        with self._lock:
            if run_id not in self._running:
                return False
            self._post(encode({"type": "cancel", "id": run_id}))
            return True

    def log(self, run: Run, text: str, source: str = "stdout") -> None:
        """Take in a piece of a run's log."""
        with run.news:
            if run.log_room < 0:
                return
            if len(text) > run.log_room:
                text = f"{text[: run.log_room]}\n(The log is cut off here.)\n"
            run.log_room -= len(text)
            run.log.append(text)
            run.tell("log", {"source": source, "data": text})

    def output(self, run: Run, item: Any) -> None:
        """Take in the next item of a run's output."""
        with run.news:
            run.output = run.output or []
            run.output.append(item)
            run.tell("output", {"chunk": item, "index": len(run.output) - 1})

    def running(self, run_id: str) -> Run | None:
        """Return the run if it is under way."""
        return self._running.get(run_id)

    def end(self, run: Run, status: str, output: Any, error: str | None, seconds: float | None = None) -> None:
        """Take in the end of a run; its slot is free from here on."""
        with self._lock:
            if self._running.pop(run.id, None) is None:
                return
            with run.news:
                run.status, run.error = status, error
                run.output = run.output if output is None else output
                run.metrics["predict_time"] = time.monotonic() - run.began if seconds is None else seconds
                run.tell("completed", run.snapshot())
            if run.hook is None:
                self._ended.append(run.id)
            while len(self._ended) > _KEPT:
                del self._known[self._ended.popleft()]
        self._on_end(run)

    def end_all(self, error: str) -> None:
        """End every run as failed, and take no further one."""
        with self._lock:
            self.slots = 0
            running = list(self._running.values())
        for run in running:
            self.end(run, "failed", None, error)

    def forget(self, run: Run) -> None:
        """Drop a run whose end has been taken."""
        with self._lock:
            self._known.pop(run.id, None)
