"""Bodies of requests that add to files, one at a time for each file: the later takes the place of the earlier.

A connection that broke far away looks alive here, and what was on its way may still trickle in. The sender who asks
where to go on has given it up; so its body ends there, and the place that is told stays the place.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager


class Intakes:
    """The bodies that are being read."""

    def __init__(self) -> None:
        self._open: dict[str, _Intake] = {}

    async def settle(self, file: str) -> None:
        """End the body that is being read for the file, if there is one; returns once what came of it is kept."""
        while intake := self._open.get(file):
            await intake.end()

    @asynccontextmanager
    async def read(self, file: str, body: AsyncIterable[bytes]) -> AsyncIterator[AsyncIterable[bytes]]:
        """Have the body to read, until it ends or another takes its place."""
        await self.settle(file)
        intake = self._open[file] = _Intake(body)
        try:
            yield intake
        finally:
            del self._open[file]
            intake.is_over.set()


class _Intake:
    """A body that may be ended from elsewhere."""

    def __init__(self, body: AsyncIterable[bytes]) -> None:
        self.is_over = asyncio.Event()
        self._body = body
        self._ending = asyncio.Event()

    async def end(self) -> None:
        self._ending.set()
        await self.is_over.wait()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = aiter(self._body)
        ending = asyncio.ensure_future(self._ending.wait())
        try:
            while True:
                coming = asyncio.ensure_future(_next(chunks))
                try:
                    await asyncio.wait({coming, ending}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    coming.cancel()
                    await asyncio.wait({coming})
                if coming.cancelled() or (chunk := coming.result()) is None:
                    return
                yield chunk
        finally:
            ending.cancel()


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    return await anext(chunks, None)
