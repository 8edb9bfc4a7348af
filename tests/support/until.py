"""Waiting for what has no event of its own: a file on disk, a line on a console."""

import asyncio
from collections.abc import Callable
from pathlib import Path

PATIENCE_S = 10


async def until(holds: Callable[[], object]) -> None:
    """Wait until the condition holds, however long that takes within reason."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds():
            await asyncio.sleep(0.001)


def names(folder: Path) -> list[str]:
    """Return the names of the files in a folder, in order."""
    return sorted(entry.name for entry in folder.iterdir())
