"""Many small pieces of work, some at a time: enough for the store to commit them together, few enough to share it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

WIDTH = 32

T = TypeVar("T")


async def each(items: Iterable[T], work: Callable[[T], Awaitable[bool]], width: int = WIDTH) -> int:
    """Do the work for every item, `width` at a time; returns for how many it returned True.

    After an error nothing more is begun; it is raised once everything that was begun is over.
    """
    left = iter(items)
    errors: list[Exception] = []

    async def go_on() -> int:
        done = 0
        for item in left:
            try:
                done += await work(item)
            except Exception as error:
                errors.append(error)
            if errors:
                break
        return done

    counts = await asyncio.gather(*(go_on() for _ in range(width)))
    if errors:
        raise errors[0]
    return sum(counts)
