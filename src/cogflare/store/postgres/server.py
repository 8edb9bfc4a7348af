"""The PostgreSQL server as seen from one node: how to reach it, for how long to try, and what its errors mean."""

import asyncio
import random
import time
from typing import Any, TypeAlias

import asyncpg

from cogflare.store.base import Constraint, Full, StoreError, Unavailable

# Generic in the stubs only.
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"

_JITTER = random.SystemRandom()

LOST = (
    OSError,  # timeouts too
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.IdleSessionTimeoutError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TooManyConnectionsError,
    # After a failover the old primary is a standby; the next connection may find the new one.
    asyncpg.ReadOnlySQLTransactionError,
)
"""Errors after which a connection is of no use and another attempt on a new one may succeed."""

AGAIN = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
"""Errors after which the same transaction may succeed on the same connection."""


class Server:
    """Makes connections to one database. `patience_s` is how long an outage may last before callers are told.

    `answer_s` is how long one statement may take before the connection counts as lost.
    """

    def __init__(self, url: str, *, patience_s: float, answer_s: float) -> None:
        self._url = url
        self._patience_s = patience_s
        self._answer_s = answer_s
        self._down_since: float | None = None

    def settings(self, name: str) -> dict[str, Any]:
        """Return the arguments of `asyncpg.connect` for a connection that calls itself `name`."""
        return {
            "dsn": self._url,
            "timeout": self._answer_s,
            "command_timeout": self._answer_s,
            "statement_cache_size": 512,
            "max_cached_statement_lifetime": 0,
            # Compiling short statements to machine code costs more than it saves.
            "server_settings": {"application_name": name, "jit": "off"},
        }

    async def connect(self, name: str, *, slow: bool = False) -> Connection:
        """Return a new connection; tries again while the outage is young, then raises `Unavailable`.

        `slow` is for statements that may take longer than an answer should.
        """
        settings = self.settings(name)
        if slow:
            del settings["command_timeout"]
        while True:
            try:
                connection: Connection = await asyncpg.connect(**settings)
            except Exception as error:
                await self.endure(error)
            else:
                self.answered()
                return connection

    async def endure(self, error: Exception) -> None:
        """Wait a little before another attempt; raises the store's error if it is no outage or has lasted too long."""
        if not is_lost(error):
            raise translate(error) from error
        now = time.monotonic()
        if self._down_since is None:
            self._down_since = now
        if now - self._down_since >= self._patience_s:
            raise translate(error) from error
        await pause(0.05, 0.2)

    def answered(self) -> None:
        """Note that the server works; the next outage is a new one."""
        self._down_since = None


async def pause(shortest_s: float, longest_s: float) -> None:
    """Sleep for a random time, so that nodes do not try again in step."""
    await asyncio.sleep(_JITTER.uniform(shortest_s, longest_s))


def is_lost(error: Exception) -> bool:
    """Say whether the connection that raised this is of no use any more."""
    if isinstance(error, asyncpg.InterfaceError):
        # "connection is closed" has no class of its own; a value of a wrong type is a `ValueError` as well.
        return "clos" in str(error) and not isinstance(error, ValueError)
    return isinstance(error, LOST)


def translate(error: Exception) -> Exception:
    """Return the store's word for an error of PostgreSQL; errors of the store and of Python stay what they are."""
    if isinstance(error, StoreError):
        return error
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, asyncpg.IntegrityConstraintViolationError):
        return Constraint(text)
    if isinstance(error, asyncpg.DiskFullError):
        return Full(text)
    if is_lost(error) or isinstance(error, (*AGAIN, asyncpg.InsufficientResourcesError)):
        return Unavailable(text)
    if isinstance(error, asyncpg.PostgresError | asyncpg.InterfaceError):
        return StoreError(text)
    return error
