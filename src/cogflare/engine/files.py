"""What attempts send by HTTP: output files, and results that do not fit a frame.

A file is announced, then its bytes come, through this server (at once, or bit by bit so that a slow link may break) or
straight to a blob store; from then on it is served, and the finish of its attempt binds it. The key of its blob is its
id: unguessable, and all that a reader has to show.
"""

import asyncio
import re
from collections.abc import AsyncIterable
from typing import Annotated, Final
from urllib.parse import quote

import msgspec
from msgspec import Meta

from cogflare.blobs.base import (
    BlobMismatch,
    BlobMissing,
    BlobOffset,
    BlobReader,
    BlobStore,
    BlobTooLarge,
    Label,
    UploadTarget,
)
from cogflare.domain.clock import Clock
from cogflare.domain.downloads import disposition
from cogflare.domain.errors import NotFound, RequestError
from cogflare.domain.ids import new_key
from cogflare.domain.scopes import covers
from cogflare.engine.intake import Intakes
from cogflare.protocol.messages import AttemptKey, Count
from cogflare.store import files as store
from cogflare.store import predictions
from cogflare.store.base import Conflict, Database
from cogflare.store.files import FileRow

MAX_FILE_BYTES: Final = 2 << 30
MAX_FILES: Final = 1_000
MAX_NAME_BYTES: Final = 255
LINK_S: Final = 3600.0
UNKNOWN_TYPE: Final = "application/octet-stream"
_KEY: Final = re.compile(r"[0-9a-z]{40}", re.ASCII)
_WORD: Final = r"[A-Za-z0-9!#$&^_.+-]{1,100}"
_TYPE: Final = re.compile(rf"({_WORD}/{_WORD})((?:; ?{_WORD}={_WORD}){{0,3}})", re.ASCII)


class Superseded(RequestError):
    """The attempt is over, or another one has taken its place: nothing more of it is wanted."""


class TooManyFiles(RequestError):
    """The attempt has announced as many files as it may."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"an attempt may have {limit} files")
        self.limit = limit


class NotUploaded(RequestError):
    """The blob store does not have the bytes that were announced."""


class Sender(msgspec.Struct, frozen=True):
    """The worker that speaks, the account of the token it shows, and the models that this one is for (None: any)."""

    account: str
    worker: str
    models: tuple[str, ...] | None = None


class Proof(msgspec.Struct, frozen=True):
    """What a worker has sent of a file; of one that went to a store in parts also its `upload` and their tags."""

    size: Count
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    upload: Annotated[str, Meta(max_length=2_000)] = ""
    parts: Annotated[list[Annotated[str, Meta(max_length=200)]], Meta(max_length=10_000)] = []


class FileTicket(msgspec.Struct, frozen=True):
    """An announced file. `reference` stands for it in outputs; `upload` None: the bytes come through this server."""

    id: str
    reference: str
    upload: UploadTarget | None


class Files:
    """The files of all attempts. `max_file_bytes` bounds one, `max_files` how many a worker sends of an attempt."""

    def __init__(
        self,
        db: Database,
        blobs: BlobStore,
        clock: Clock,
        max_file_bytes: int = MAX_FILE_BYTES,
        max_files: int = MAX_FILES,
    ) -> None:
        self._db = db
        self._blobs = blobs
        self._clock = clock
        self._intakes = Intakes()
        self._sealing: dict[str, asyncio.Task[None]] = {}
        self._max_files = max_files
        self.max_file_bytes = max_file_bytes

    # --- workers ---------------------------------------------------------------------------------------------------

    async def require_held(self, sender: Sender, key: AttemptKey) -> None:
        """See to it that this worker holds the attempt now; raises `NotFound` if it never did, else `Superseded`."""
        held = await predictions.held_attempt(self._db, *key, sender.worker, sender.account)
        if held is None or not covers(sender.models, held[1]):
            raise NotFound
        if not held[0]:
            raise Superseded

    async def announce(
        self, sender: Sender, key: AttemptKey, filename: str, content_type: str, size: int | None = None
    ) -> FileTicket:
        """Note a file that is about to come.

        Raises `NotFound`, `Superseded`, `TooManyFiles`, or `BlobTooLarge` for its `size`.
        """
        await self.require_held(sender, key)
        self._limit(size)
        id, name, kind = await self._note(sender.worker, key, filename, content_type, self._max_files)
        return FileTicket(id, reference(id, name), await self._blobs.upload_target(id, label_of(name, kind), size))

    async def receive(self, sender: Sender, id: str, body: AsyncIterable[bytes], announced: int | None = None) -> None:
        """Store the bytes of an announced file; a repetition replaces them until the attempt ends.

        Raises `NotFound`, `Superseded` or a `BlobError`. `announced` is the size, where it is known beforehand.
        """
        row = await self._require_pending(sender, id)
        self._limit(announced)
        label = label_of(row.name, row.content_type)
        stored = await self._blobs.put(id, body, self.max_file_bytes, label)
        await self._complete(id, stored.size, stored.sha256, stored.md5)

    async def offset(self, sender: Sender, id: str) -> int:
        """Return how much has come of a file that is sent bit by bit; raises `NotFound`, `Superseded`, `BlobError`.

        Nothing more is taken of a body that is still being read for it.
        """
        await self._require_pending(sender, id)
        await self._intakes.settle(id)
        return await self._blobs.appended(id)

    async def append(
        self, sender: Sender, id: str, offset: int, body: AsyncIterable[bytes], announced: int | None = None
    ) -> int:
        """Add to a file that is sent bit by bit, and return its new offset; what comes is kept if `body` breaks off.

        Raises `NotFound`, `Superseded` or a `BlobError`: a `BlobOffset` where the file goes on at another place.
        """
        await self._require_pending(sender, id)
        self._limit(offset + (announced or 0))
        async with self._intakes.read(id, body) as taken:
            return await self._blobs.append(id, offset, taken, self.max_file_bytes)

    async def confirm(self, sender: Sender, id: str, proof: Proof) -> None:
        """Make a file of what was sent bit by bit, or lies in the blob store; safe to repeat.

        Raises `NotFound`, `Superseded`, `NotUploaded` or a `BlobError`: a `BlobOffset` where it has to be sent from
        there. Of what went straight to a store the sender's digest is taken, since the bytes never pass here.
        """
        row = await self._require_pending(sender, id)
        self._limit(proof.size)
        if id in self._sealing or await self._blobs.appended(id):
            await self._seal(row, proof)
            return
        # Another who asked may have made the file of it since the row was read.
        row = await self._require_pending(sender, id)
        if row.md5 is None:
            await self._require_stored(id, proof)
            await self._complete(id, proof.size, proof.sha256, None)
        elif (row.size, row.sha256) != (proof.size, proof.sha256):
            raise NotUploaded

    async def put_result(self, sender: Sender, key: AttemptKey, text: str) -> None:
        """Store the output (JSON text) of an attempt whose finish will say so; raises `NotFound` or `Superseded`."""
        await self.require_held(sender, key)
        try:
            await predictions.put_result(self._db, *key, sender.worker, text)
        except Conflict:
            raise Superseded from None

    # --- this server, for holders that are no workers ----------------------------------------------------------------

    async def keep(
        self, holder: str, key: AttemptKey, filename: str, content_type: str, body: AsyncIterable[bytes]
    ) -> str:
        """Store a file of an attempt and return its reference; raises `Superseded`, a `BlobError`, or what `body` does.

        What comes of a `body` that breaks is swept.
        """
        id, name, kind = await self._note(holder, key, filename, content_type)
        stored = await self._blobs.put(id, body, self.max_file_bytes, label_of(name, kind))
        await self._complete(id, stored.size, stored.sha256, stored.md5)
        return reference(id, name)

    # --- readers ---------------------------------------------------------------------------------------------------

    async def find(self, id: str, name: str) -> FileRow:
        """Return a file that may be read under this name; raises `NotFound`."""
        row = await store.get(self._db, id) if _KEY.fullmatch(id) else None
        # Uploads, which belong to no prediction, are read by signature.
        if row is None or row.prediction is None or row.name != name or row.size is None or row.state == "expired":
            raise NotFound
        return row

    async def link(self, row: FileRow) -> str | None:
        """Return where the storage itself hands the file out; None if it comes through us. Raises a `BlobError`."""
        return await self._blobs.link(row.id, label_of(row.name, row.content_type), LINK_S)

    async def open(self, row: FileRow, start: int = 0, end: int | None = None) -> BlobReader:
        """Open the bytes of a file from `start` up to, but not with, `end`; raises a `BlobError`."""
        return await self._blobs.open(row.id, start, row.size if end is None else end)

    # --- inside ----------------------------------------------------------------------------------------------------

    async def _note(
        self, holder: str, key: AttemptKey, filename: str, content_type: str, most: int | None = None
    ) -> tuple[str, str, str]:
        """Note a file that is about to come; returns its id, name and type.

        Raises `Superseded`, or `TooManyFiles` where the attempt has so many already.
        """
        id, name, kind = new_key(), safe_name(filename), safe_type(content_type)
        added = await store.add_output(
            self._db,
            id=id,
            prediction=key[0],
            attempt=key[1],
            worker=holder,
            name=name,
            content_type=kind,
            now=self._clock.wall(),
            most=most,
        )
        if added is None:
            raise Superseded
        if most is not None and not added:
            raise TooManyFiles(most)
        return id, name, kind

    async def _require_pending(self, sender: Sender, id: str) -> FileRow:
        row = await store.get(self._db, id) if _KEY.fullmatch(id) else None
        if row is None or row.prediction is None or row.attempt is None:
            raise NotFound
        await self.require_held(sender, (row.prediction, row.attempt))
        if row.state != "pending":
            raise Superseded
        return row

    async def _require_stored(self, id: str, proof: Proof) -> None:
        try:
            if proof.upload:
                await self._blobs.complete(id, proof.upload, proof.parts)
            found = await self._blobs.head(id)
        except (BlobMismatch, BlobMissing):
            raise NotUploaded from None
        if found != proof.size:
            raise NotUploaded

    async def _seal(self, row: FileRow, proof: Proof) -> None:
        """Make a blob of what was appended. Sealing takes long for large files; who asks again waits for the same."""
        sealing = self._sealing.get(row.id)
        if sealing is None:
            sealing = self._sealing[row.id] = asyncio.create_task(self._sealed(row, proof))
            sealing.add_done_callback(lambda _: self._sealing.pop(row.id, None))
        await asyncio.shield(sealing)

    async def _sealed(self, row: FileRow, proof: Proof) -> None:
        size = await self._blobs.appended(row.id)
        if size < proof.size:
            raise BlobOffset(size)
        stored = await self._blobs.seal(row.id, label_of(row.name, row.content_type))
        if (stored.size, stored.sha256) != (proof.size, proof.sha256):
            await self._blobs.delete(row.id)
            raise BlobOffset(0)
        await self._complete(row.id, stored.size, stored.sha256, stored.md5)

    async def _complete(self, id: str, size: int, sha256: str, md5: str | None) -> None:
        if await store.complete(self._db, id, size, sha256, md5):
            return
        # The attempt has ended meanwhile. What its finish has bound stays; bytes of a swept file would stay for ever.
        row = await store.get(self._db, id)
        if row is None or row.state == "expired":
            await self._blobs.delete(id)
        raise Superseded

    def _limit(self, size: int | None) -> None:
        if size is not None and size > self.max_file_bytes:
            raise BlobTooLarge(self.max_file_bytes)


def reference(id: str, name: str) -> str:
    """Return what stands for a file in stored outputs; answers put the base URL in place of its scheme."""
    return f"cogflare-file:/f/{id}/{quote(name, safe='')}"


def label_of(name: str, content_type: str) -> Label:
    """Return what is told of a file to whoever downloads it."""
    return Label(content_type, disposition(name, content_type))


def safe_name(filename: str) -> str:
    """Return the last part of a path as a plain file name: printable, at most `MAX_NAME_BYTES` bytes, never empty."""
    base = re.split(r"[/\\]", filename)[-1]
    name = "".join(char for char in base if char.isprintable()).strip()
    stem, dot, suffix = name.rpartition(".")
    room = MAX_NAME_BYTES - len(f"{dot}{suffix}".encode())
    if len(name.encode()) > MAX_NAME_BYTES:
        # The suffix says what a file is, so the cut goes before it, unless it is no suffix.
        name = _cut(stem, room) + dot + suffix if stem and room > MAX_NAME_BYTES // 2 else _cut(name, MAX_NAME_BYTES)
    return "file" if name.strip(".") == "" else name


def _cut(text: str, size: int) -> str:
    return text.encode()[:size].decode(errors="ignore")


def safe_type(content_type: str) -> str:
    """Return a media type that can stand in a header; `UNKNOWN_TYPE` for what is none."""
    found = _TYPE.fullmatch(content_type.strip())
    return found[1].lower() + found[2] if found else UNKNOWN_TYPE
