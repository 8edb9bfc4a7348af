"""Runs as tasks of one event loop in the main thread, as many at a time as there are slots. A cancel is a task's."""

import asyncio
import os
import threading
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from inspect import isawaitable
from typing import Any

from .frames import Channel, Frame
from .model import Model
from .reports import CANCELED, Ending, Reports


def run(model: Model, channel: Channel, reports: Reports) -> None:
    """Run what the channel brings, for ever; the process ends when the front is gone."""
    asyncio.run(_serve(_Tasks(model, reports), channel))


async def _serve(tasks: "_Tasks", channel: Channel) -> None:
    loop = asyncio.get_running_loop()

    def listen() -> None:
        for frame in channel:
            loop.call_soon_threadsafe(tasks.take, frame)
        os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    await loop.create_future()


class _Tasks:
    def __init__(self, model: Model, reports: Reports) -> None:
        self._model, self._reports = model, reports
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._begun: set[str] = set()
        self._canceled: set[str] = set()

    def take(self, frame: Frame) -> None:
        """Start a run, or cancel one."""
        run_id = frame["id"]
        if frame["type"] == "run":
            self._tasks[run_id] = asyncio.get_running_loop().create_task(self._run(frame))
        elif run_id in self._tasks:
            self._canceled.add(run_id)
            if run_id in self._begun:  # a task that is canceled before it begins would not even end
                self._tasks[run_id].cancel()

    async def _run(self, frame: Frame) -> None:
        run_id: str = frame["id"]
        self._begun.add(run_id)
        self._reports.begin(run_id)
        try:
            ending = CANCELED if run_id in self._canceled else await self._attempt(frame)
        except asyncio.CancelledError as error:  # the model may also cancel what it waits for itself
            ending = CANCELED if run_id in self._canceled else self._reports.failure(error)
        del self._tasks[run_id]
        for ids in (self._begun, self._canceled):
            ids.discard(run_id)
        self._reports.end(run_id, ending)

    async def _attempt(self, frame: Frame) -> Ending:
        run_id, model, reports = frame["id"], self._model, self._reports
        try:
            with reports.files(run_id) as files:
                result = (await asyncio.to_thread(model.bind, run_id, frame["input"], files))()
                if isawaitable(result):
                    result = await result
                if not model.is_iterator:
                    return "succeeded", await asyncio.to_thread(reports.settled, model, result, files), None
                count = 0
                async with _closing(result):
                    async for item in result:
                        reports.item(run_id, await asyncio.to_thread(reports.settled, model, item, files))
                        count += 1
                return "succeeded", None if count else [], None
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            return reports.failure(error)


def _closing(items: Any) -> AbstractAsyncContextManager[Any]:
    return aclosing(items) if hasattr(items, "aclose") else nullcontext()
