"""What arrives for one run: its snapshots, and the files that the Cog server uploads for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

Deliver = Callable[[dict[str, Any]], None]


class FileLost(Exception):
    """The file was received by an earlier agent, and is not there any more."""


class Inbox:
    """The inbox of ``run_id``. What begins with ``receipts`` is a receipt of this agent or of an earlier one.

    ``refused`` says why a file was not taken, which some servers do not pass on. A name in ``torn`` is that of a file
    of which only a part came, until it comes again.
    """

    def __init__(self, prediction_id: str, run_id: str, deliver: Deliver, receipts: str = "") -> None:
        self.prediction_id = prediction_id
        self.run_id = run_id
        self.deliver = deliver
        self._receipts = receipts
        self._files: dict[str, asyncio.Task[str]] = {}
        self.refused: str | None = None
        self.torn: set[str] = set()

    @property
    def missing(self) -> str | None:
        """Why a file is not here that the server has sent."""
        return self.refused or next((f"only a part of {name} came" for name in self.torn), None)

    def keep(self, receipt: str, storing: asyncio.Task[str]) -> None:
        """Remember the file that was answered with ``receipt``, and the task that hands it to the sink."""
        self._files[receipt] = storing

    def has(self, receipt: str) -> bool:
        """Say whether the file with that receipt is here."""
        return receipt in self._files

    def holds(self, item: object) -> bool:
        """Say whether ``item`` is the receipt of a file."""
        return isinstance(item, str) and bool(self._receipts) and item.startswith(self._receipts)

    async def stored(self, receipt: str) -> str:
        """Wait until the sink has the file; return its reference, or raise `FileLost` or what the sink raised."""
        receipt = receipt.partition("#")[0]  # a name may have one, which the first servers put behind the receipt
        if receipt not in self._files:
            raise FileLost("its file went with an earlier worker")
        return await asyncio.shield(self._files[receipt])

    async def close(self) -> None:
        """Drop what is still on its way to the sink."""
        storing = list(self._files.values())
        for task in storing:
            task.cancel()
        await asyncio.gather(*storing, return_exceptions=True)
