"""Files of clients: typed functions over named queries.

An upload is seen from the moment that its bytes are complete until its end, or its deletion, which is an early end.
What a prediction is to read outlasts that: its use is noted in the unit that creates the prediction. A large data URL
becomes a file of its prediction, and goes with the prediction's data.
"""

from collections.abc import Sequence

import msgspec

from cogflare.domain.ids import HIGHEST_ID
from cogflare.store.base import Database, Statement, Value
from cogflare.store.files import FileRow


class Finished(msgspec.Struct, frozen=True):
    """What is known of an upload once it has ended; `metadata` is JSON text."""

    id: str
    name: str
    content_type: str
    metadata: str
    size: int
    sha256: str
    md5: str
    expires_at: int


def _text(ids: Sequence[str]) -> str:
    return msgspec.json.encode(ids).decode()


async def add(db: Database, id: str, account: str, name: str, content_type: str, now: int) -> None:
    """Note a file whose bytes are about to come."""
    fields: dict[str, Value] = {"id": id, "account": account, "name": name, "content_type": content_type, "now": now}
    await db.write(Statement("insert_upload", fields))


async def finish(db: Database, done: Finished) -> bool:
    """Note that an upload is complete; False if it was given up meanwhile."""
    rows = await db.write(Statement("finish_upload", msgspec.structs.asdict(done)))
    return bool(rows[0])


async def abandon(db: Database, ids: Sequence[str]) -> None:
    """Give files up that did not come to be; their bytes are swept."""
    await db.write(Statement("abandon_uploads", {"files": _text(ids)}))


async def page(
    db: Database, account: str, now: int, limit: int, before: str | None = None, after: str | None = None
) -> list[FileRow]:
    """Return uploads of an account, newest first: those before an id, or the nearest after one."""
    of: dict[str, Value] = {"account": account, "now": now, "limit": limit}
    if after is not None:
        return [FileRow(*row) for row in reversed(await db.read("list_uploads_upwards", **of, after=after))]
    return [FileRow(*row) for row in await db.read("list_uploads", **of, before=before or HIGHEST_ID)]


async def end(db: Database, id: str, account: str, now: int) -> bool:
    """End an upload now; False if the account has none of that id."""
    rows = await db.write(Statement("end_upload", {"id": id, "account": account, "now": now}))
    return bool(rows[0])


def use(file: str, prediction: str, account: str, now: int) -> Statement:
    """Return the statement that notes that a prediction reads a file; `Conflict` if that has ended."""
    fields: dict[str, Value] = {"file": file, "prediction": prediction, "account": account, "now": now}
    return Statement("use_file", fields, needs="row")


def bind(file: str, prediction: str) -> Statement:
    """Return the statement that makes a complete file one of a prediction's input; `Conflict` if it was given up."""
    return Statement("bind_input_file", {"file": file, "prediction": prediction}, needs="row")


async def of_input(db: Database, prediction: str) -> list[FileRow]:
    """Return the files of ours that the input of a prediction names."""
    return [FileRow(*row) for row in await db.read("files_of_input", prediction=prediction)]


async def moved(db: Database, prediction: str) -> list[FileRow]:
    """Return the files that data URLs in the input of a prediction became."""
    return [FileRow(*row) for row in await db.read("files_moved", prediction=prediction)]


async def is_used(db: Database, file: str) -> bool:
    """Say whether a prediction that has not ended reads the file."""
    return bool(await db.read("file_is_used", file=file))


async def expire(db: Database, before: int, limit: int) -> int:
    """Let up to `limit` files expire whose end lies before this time and that nothing is to read; returns how many."""
    rows = await db.write(Statement("expire_uploads", {"cutoff": before, "limit": limit}))
    return len(rows[0])
