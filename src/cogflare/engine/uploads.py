"""Files of clients: uploaded once, named in inputs as often as wanted, gone after a while.

The row is written before the bytes and made visible after them, so that whatever a crash leaves is found and swept.
"""

import asyncio
from collections.abc import AsyncIterable
from contextlib import suppress
from typing import Any, Final, Protocol

import msgspec
import structlog

from cogflare.blobs.base import BlobError, BlobStore
from cogflare.domain.clock import Clock
from cogflare.domain.errors import NotFound, RequestError
from cogflare.domain.ids import is_key, new_file_id
from cogflare.engine.files import label_of, safe_name, safe_type
from cogflare.store import files
from cogflare.store import uploads as store
from cogflare.store.base import Database, StoreError
from cogflare.store.files import FileRow
from cogflare.store.uploads import Finished

log = structlog.get_logger()

PAGE: Final = 100


class TookTooLong(RequestError):
    """The upload took so long that it was given up."""


class About(msgspec.Struct, frozen=True):
    """What a client says of a file that it uploads."""

    name: str
    content_type: str
    metadata: dict[str, Any] = {}


class Source(Protocol):
    """An upload on its way in. What it raises passes through; then nothing is kept of it."""

    async def content(self) -> AsyncIterable[bytes]:
        """Read on to the bytes of the file, and return them as they come."""
        ...

    def said(self) -> About:
        """Return what is known of the file so far."""
        ...

    async def rest(self) -> About:
        """Read what comes after the bytes, and return all that is said of the file."""
        ...


class Uploads:
    """The uploads of all accounts; one may have `max_bytes`, and is kept for `kept_s` seconds."""

    def __init__(
        self, db: Database, blobs: BlobStore, clock: Clock, max_bytes: int = 100 << 20, kept_s: float = 86_400.0
    ) -> None:
        self._db = db
        self._blobs = blobs
        self._clock = clock
        self._kept_us = int(kept_s * 1_000_000)
        self.max_bytes = max_bytes

    async def receive(self, account: str, source: Source) -> FileRow:
        """Store an upload; raises what `source` raises, `TookTooLong`, or a `BlobError`."""
        body = await source.content()
        now = self._clock.wall()
        id, said = new_file_id(now), source.said()
        name, kind = safe_name(said.name), safe_type(said.content_type)
        await store.add(self._db, id, account, name, kind, now)
        try:
            stored = await self._blobs.put(id, body, self.max_bytes, label_of(name, kind))
            said = await source.rest()
            name, kind = safe_name(said.name), safe_type(said.content_type)
            metadata = msgspec.json.encode(said.metadata).decode()
            digests = stored.size, stored.sha256, stored.md5
            done = Finished(id, name, kind, metadata, *digests, self._clock.wall() + self._kept_us)
            if not await store.finish(self._db, done):
                raise TookTooLong("The upload took so long that it was given up; send it again.")
        except BaseException as error:
            await self._give_up(id)
            if isinstance(error, Exception) and not isinstance(error, StoreError):
                # Its row may have been swept before the bytes were there.
                with suppress(BlobError):
                    await self._blobs.delete(id)
            raise
        return await self.find(account, id)

    async def page(self, account: str, before: str | None = None, after: str | None = None) -> list[FileRow]:
        """Return uploads, newest first, and one more than `PAGE` where there are more."""
        return await store.page(self._db, account, self._clock.wall(), PAGE + 1, before, after)

    async def find(self, account: str, id: str) -> FileRow:
        """Return an upload of the account that has not ended; raises `NotFound`."""
        row = await files.get(self._db, id) if is_key(id) else None
        if row is None or row.account != account or not is_upload(row) or (row.expires_at or 0) <= self._clock.wall():
            raise NotFound
        return row

    async def delete(self, account: str, id: str) -> None:
        """End an upload; its bytes stay for predictions that are to read them. Raises `NotFound`."""
        if not (is_key(id) and await store.end(self._db, id, account, self._clock.wall())):
            raise NotFound

    async def find_signed(self, account: str, id: str) -> FileRow:
        """Return an upload for whoever has shown a signature: until its end, and while a prediction is to read it."""
        row = await files.get(self._db, id) if is_key(id) else None
        if row is None or row.account != account or not is_upload(row):
            raise NotFound
        if (row.expires_at or 0) <= self._clock.wall() and not await store.is_used(self._db, id):
            raise NotFound
        return row

    async def _give_up(self, id: str) -> None:
        """Let what did not come to be be swept soon; where that fails, it is swept later."""
        with suppress(StoreError):
            await asyncio.shield(store.abandon(self._db, [id]))


def is_upload(row: FileRow) -> bool:
    """Say whether the file is a complete upload, and not yet given up."""
    return row.purpose == "input" and row.prediction is None and row.state == "bound"
