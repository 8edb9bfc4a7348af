"""Workers of 2022: typed functions over named queries.

Their files come without a word on the attempt they belong to. Such a file has no prediction, and nobody is served it,
until an output names it; what no output names is swept like every file that no finish has bound.
"""

from typing import NamedTuple

import msgspec

from cogflare.store.base import Database, Statement, Value

AttemptKey = tuple[str, int]


class Begun(NamedTuple):
    """An attempt of a worker that has begun and not ended."""

    prediction: str
    attempt: int
    started_at: int


class Running(NamedTuple):
    """How many attempts of a model workers of 2022 run, and how many of them those at an address."""

    attempts: int
    here: int


class Sum(NamedTuple):
    """Files, and their bytes."""

    files: int
    bytes: int


class Load(NamedTuple):
    """What has come of the attempts of a model that run, and what lies here that no output has named.

    The latter is of earlier attempts too. Each is told of the sender, and of its whole `pool`.
    """

    own: Sum
    pool: Sum
    own_unnamed: Sum
    pool_unnamed: Sum


class Sender(NamedTuple):
    """Who sends files of a model (`owner/name`): an address, at home where a worker that runs it has dialled from it.

    Each at home is a pool of its own; all others together are one.
    """

    model: str
    address: str
    is_home: bool

    @property
    def origin(self) -> str:
        """What is written down of a file."""
        return f'{self._head}{self.address}"'

    @property
    def pool(self) -> str:
        """What the origins of the pool begin with."""
        return self.origin if self.is_home else self._head

    @property
    def _head(self) -> str:
        return f"{_of_model(self.model)}{'' if self.is_home else '? '}"


class UnnamedFile(msgspec.Struct, frozen=True):
    """A file of a model that is about to come."""

    id: str
    sender: Sender
    name: str
    content_type: str
    now: int


async def begun_of(db: Database, worker: str) -> list[Begun]:
    """Return what a worker has begun and not ended."""
    return [Begun(*row) for row in await db.read("begun_of", worker=worker)]


async def running_of(db: Database, model: str, address: str) -> Running:
    """Return what runs of a model."""
    rows = await db.read("running_of_2022", model=model, address=address)
    return Running(*rows[0])


async def add_file(db: Database, file: UnnamedFile, limit: int, pool_limit: int) -> bool:
    """Note a file that is about to come; False unless the model runs, with fewer files of its sender and its pool."""
    sender = file.sender
    fields: dict[str, Value] = {
        "id": file.id,
        "model": sender.model,
        "origin": sender.origin,
        "pool": sender.pool,
        "name": file.name,
        "content_type": file.content_type,
        "now": file.now,
        "limit": limit,
        "pool_limit": pool_limit,
    }
    rows = await db.write(Statement("insert_unnamed_file", fields))
    return bool(rows[0])


async def load(db: Database, sender: Sender, since: int) -> Load:
    """Return what has come; files that no output has named are counted from `since`."""
    named = {"model": sender.model, "origin": sender.origin, "pool": sender.pool}
    [row] = await db.read("files_of_2022", **named, since=since)
    return Load(Sum(*row[0:2]), Sum(*row[2:4]), Sum(*row[4:6]), Sum(*row[6:8]))


async def name_file(db: Database, id: str, model: str, key: AttemptKey, worker: str) -> bool:
    """Make a file one of the attempt whose output names it; False if it is not there, or the attempt is over."""
    fields: dict[str, Value] = {
        "id": id,
        "model": _of_model(model),
        "prediction": key[0],
        "attempt": key[1],
        "worker": worker,
    }
    rows = await db.write(Statement("name_file", fields))
    return bool(rows[0])


def _of_model(model: str) -> str:
    """Return what the origins of all files of a model begin with; origins are JSON texts."""
    return f'"{model} '
