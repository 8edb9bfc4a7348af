"""Runs one by one in the main thread, where a cancel is raised as `Canceled`."""

import asyncio
import os
import queue
import threading
from contextlib import AbstractContextManager, closing, nullcontext
from inspect import isawaitable
from typing import Any

from .frames import Channel, Frame
from .model import Model, awaited
from .reports import CANCELED, Ending, Reports
from .stopping import Canceled, Interrupts


def run(model: Model, channel: Channel, reports: Reports, interrupts: Interrupts) -> None:
    """Run what the channel brings, for ever; the process ends when the front is gone."""
    turns = _Turns(model, reports, interrupts)
    threading.Thread(target=turns.listen, args=(channel,), daemon=True).start()
    while True:
        turns.take_one()


class _Turns:
    def __init__(self, model: Model, reports: Reports, interrupts: Interrupts) -> None:
        self._model, self._reports, self._interrupts = model, reports, interrupts
        self._waiting: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._current: str | None = None
        self._canceled: set[str] = set()

    def listen(self, channel: Channel) -> None:
        """Take frames until the front is gone."""
        for frame in channel:
            if frame["type"] == "run":
                self._waiting.put(frame)
            else:
                self._cancel(frame["id"])
        os._exit(1)

    def _cancel(self, run_id: str) -> None:
        with self._lock:
            if run_id == self._current:
                self._interrupts.request()
            else:
                self._canceled.add(run_id)

    def take_one(self) -> None:
        """Wait for a run, and run it."""
        frame = self._waiting.get()
        run_id: str = frame["id"]
        with self._lock:
            is_canceled = run_id in self._canceled
            self._current = None if is_canceled else run_id
            self._canceled.clear()
        self._reports.begin(run_id)
        ending = CANCELED if is_canceled else self._stoppable(frame)
        self._reports.end(run_id, ending)

    def _stoppable(self, frame: Frame) -> Ending:
        try:
            try:
                self._interrupts.open()
                return self._attempt(frame)
            finally:
                self._close()
        except Canceled:
            self._close()
            return CANCELED

    def _close(self) -> None:
        """Take no cancel for the run any more: what comes late is not meant for the next one."""
        with self._lock:
            self._current = None
        self._interrupts.close()

    def _attempt(self, frame: Frame) -> Ending:
        run_id = frame["id"]
        try:
            with self._reports.files(run_id) as files:
                result = self._model.bind(run_id, frame["input"], files)()
                if isawaitable(result):
                    result = asyncio.run(awaited(result))
                if not self._model.is_iterator:
                    return "succeeded", self._reports.settled(self._model, result, files), None
                count = 0
                with _closing(result):
                    for item in result:
                        self._reports.item(run_id, self._reports.settled(self._model, item, files))
                        count += 1
                return "succeeded", None if count else [], None
        except Canceled:
            raise
        except BaseException as error:
            return self._reports.failure(error)


def _closing(items: Any) -> AbstractContextManager[Any]:
    return closing(items) if hasattr(items, "close") else nullcontext()
