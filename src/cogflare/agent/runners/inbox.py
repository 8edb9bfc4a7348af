"""What arrives for one run: its snapshots, and its files with the order they belong in.

Coglet uploads the files of an iterator side by side: neither the beginnings nor the ends of uploads of files yielded
within a few milliseconds are in the order of the yields. Files that arrive in one burst are therefore put into the
order of the numbers in their names where they are named alike (``out-0.png``, ``out-1.png``), else of their arrival.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

Deliver = Callable[[dict[str, Any]], None]
_NUMBER = re.compile(r"\d+")


class Inbox:
    """One run's inbox. A burst of files ends when none has arrived for ``settle_s`` seconds."""

    def __init__(self, prediction_id: str, deliver: Deliver, settle_s: float = 0.0) -> None:
        self.prediction_id = prediction_id
        self.deliver = deliver
        self._settle_s = settle_s
        self._burst: list[tuple[str, asyncio.Future[int]]] = []
        self._settling: asyncio.TimerHandle | None = None
        self._placed = 0
        self._files: dict[str, tuple[int, asyncio.Task[str]]] = {}

    def arrives(self, filename: str) -> asyncio.Future[int]:
        """A file begins to arrive; the future is its place among the run's files, known once its burst is over."""
        place: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._burst.append((filename, place))
        if self._settling:
            self._settling.cancel()
        self._settling = asyncio.get_running_loop().call_later(self._settle_s, self._settle)
        return place

    def _settle(self) -> None:
        for _, place in in_order(self._burst):
            if not place.done():  # its request may have been cancelled
                place.set_result(self._placed)
            self._placed += 1
        self._burst.clear()

    def keep(self, receipt: str, place: int, storing: asyncio.Task[str]) -> None:
        """Remember the file that was answered with ``receipt``, and the task that hands it to the sink."""
        self._files[receipt] = place, storing

    def place(self, item: object) -> int | None:
        """The place of the file that ``item`` is the receipt of, if it is one."""
        found = self._files.get(item) if isinstance(item, str) else None
        return found[0] if found else None

    async def stored(self, receipt: str) -> str:
        """Wait until the sink has the file; return its reference, or raise what the sink raised."""
        return await asyncio.shield(self._files[receipt][1])

    async def close(self) -> None:
        """Drop what is still on its way to the sink."""
        storing = [task for _, task in self._files.values()]
        for task in storing:
            task.cancel()
        await asyncio.gather(*storing, return_exceptions=True)
        if self._settling:
            self._settling.cancel()
            self._settle()


def in_order(burst: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """A burst in the order of the numbers in its names, or as it came where the names differ in more than numbers."""
    alike = {_NUMBER.sub("#", name) for name, _ in burst}
    if len(alike) != 1:
        return burst
    return sorted(burst, key=lambda file: [int(number) for number in _NUMBER.findall(file[0])])
