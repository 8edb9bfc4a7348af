"""Looking names up in threads of their own: a name server that does not answer must hold up nothing else.

The threads of an event loop are few, serve files too, and are waited for when a process ends.
"""

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

Resolve = Callable[[str], Awaitable[list[str]]]
"""Looks a host up and returns its IP addresses; raises `OSError` or `UnicodeError` for one that has none."""

_AT_ONCE: Final = 256

_Outcome = list[str] | Exception


class Resolver:
    """The system's resolver, asked for each name once at a time; who has lost patience leaves the question standing."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._asked: dict[str, asyncio.Future[_Outcome]] = {}

    async def __call__(self, host: str) -> list[str]:
        """Return the addresses of a host; raises `OSError` or `UnicodeError`."""
        asked = self._asked.get(host)
        if asked is None:
            await self._room.acquire()
            # Somebody may have asked meanwhile; twice is harmless.
            asked = self._ask(host)
        outcome = await asyncio.shield(asked)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _ask(self, host: str) -> "asyncio.Future[_Outcome]":
        loop = asyncio.get_running_loop()
        asked = self._asked[host] = loop.create_future()

        def look() -> None:
            outcome = _look_up(host)
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(self._found, host, asked, outcome)

        try:
            threading.Thread(target=look, name="resolve", daemon=True).start()
        except RuntimeError as error:
            self._found(host, asked, OSError(str(error)))
        return asked

    def _found(self, host: str, asked: "asyncio.Future[_Outcome]", outcome: _Outcome) -> None:
        self._room.release()
        if self._asked.get(host) is asked:
            del self._asked[host]
        asked.set_result(outcome)


def _look_up(host: str) -> _Outcome:
    try:
        entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return error
    return list(dict.fromkeys(str(entry[4][0]) for entry in entries))
