"""Files: typed functions over named queries.

A file is pending until the finish that names it is committed, then bound. When its time is over it is expired: nobody
is served it any more, then its bytes go, and its row last, so that a crash in between leaves nothing behind.
"""

from collections.abc import Sequence

import msgspec

from cogflare.store.base import Conflict, Database, Statement, Value


class FileRow(msgspec.Struct, frozen=True):
    """A file as stored; `size` None while its bytes are not complete. Its id is the key of its URL: unguessable."""

    id: str
    account: str
    purpose: str
    prediction: str | None
    attempt: int | None
    name: str
    content_type: str
    size: int | None
    sha256: str | None
    md5: str | None
    metadata: str | None
    state: str
    created_at: int
    expires_at: int | None


async def add_output(
    db: Database,
    *,
    id: str,
    prediction: str,
    attempt: int,
    worker: str,
    name: str,
    content_type: str,
    now: int,
    most: int | None = None,
) -> bool | None:
    """Note an output file that is about to be written, one of at most so many of the attempt.

    None unless the worker holds the current attempt; False where it has as many already.
    """
    key: dict[str, Value] = {"prediction": prediction, "attempt": attempt}
    file: dict[str, Value] = {"id": id, "name": name, "content_type": content_type, "now": now, "most": most}
    try:
        _, added = await db.write(
            Statement("hold_attempt", {**key, "worker": worker}, needs="row"),
            Statement("insert_output_file", {**key, **file}),
        )
    except Conflict:
        return None
    return bool(added)


async def complete(db: Database, id: str, size: int, sha256: str, md5: str | None) -> bool:
    """Note that the file's bytes are stored; False if it is no longer pending."""
    rows = await db.write(Statement("complete_file", {"id": id, "size": size, "sha256": sha256, "md5": md5}))
    return bool(rows[0])


async def get(db: Database, id: str) -> FileRow | None:
    """Return the file of that id."""
    rows = await db.read("get_file", id=id)
    return FileRow(*rows[0]) if rows else None


async def expire_unbound(db: Database, before: int, limit: int) -> int:
    """Let up to `limit` files expire that were announced before this time and that no finish can bind any more."""
    rows = await db.write(Statement("expire_unbound_files", {"cutoff": before, "limit": limit}))
    return len(rows[0])


async def expired(db: Database, after: str, limit: int) -> list[str]:
    """Return files that have expired, by id."""
    return [id for (id,) in await db.read("expired_files", after=after, limit=limit)]


async def delete_expired(db: Database, files: Sequence[str]) -> None:
    """Forget files whose bytes are gone."""
    ids = {"files": msgspec.json.encode(files).decode()}
    await db.write(Statement("delete_expired_files", ids), Statement("drop_file_uses", ids))
