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


class Load(NamedTuple):
    """The attempts of a model that workers of 2022 run now, with the files that have come of them.

    The files that no output has named, and their bytes, are those of earlier attempts too.
    """

    attempts: int
    files: int
    bytes: int
    unnamed_files: int
    unnamed_bytes: int


class UnnamedFile(msgspec.Struct, frozen=True):
    """A file of a model (`owner/name`) that is about to come."""

    id: str
    model: str
    name: str
    content_type: str
    now: int


async def begun_of(db: Database, worker: str) -> list[Begun]:
    """Return what a worker has begun and not ended."""
    return [Begun(*row) for row in await db.read("begun_of", worker=worker)]


async def add_file(db: Database, file: UnnamedFile, limit: int) -> bool:
    """Note a file that is about to come; False unless the model runs, with less than `limit` files for each attempt."""
    fields: dict[str, Value] = {**msgspec.structs.asdict(file), "origin": _origin(file.model), "limit": limit}
    rows = await db.write(Statement("insert_unnamed_file", fields))
    return bool(rows[0])


async def load(db: Database, model: str, since: int) -> Load:
    """Return what runs of a model, and what has come of it; files that no output has named are counted from `since`."""
    rows = await db.read("files_of_2022", model=model, origin=_origin(model), since=since)
    return Load(*rows[0])


async def name_file(db: Database, id: str, model: str, key: AttemptKey, worker: str) -> bool:
    """Make a file one of the attempt whose output names it; False if it is not there, or the attempt is over."""
    fields: dict[str, Value] = {
        "id": id,
        "origin": _origin(model),
        "prediction": key[0],
        "attempt": key[1],
        "worker": worker,
    }
    rows = await db.write(Statement("name_file", fields))
    return bool(rows[0])


def _origin(model: str) -> str:
    return msgspec.json.encode(model).decode()
