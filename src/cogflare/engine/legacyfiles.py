"""Files of workers of 2022: uploads that name neither a worker nor an attempt, and outputs that name the uploads.

Such an upload needs no token. It is taken only while a worker of 2022 runs that model, in whichever account, and within
bounds for each attempt; nobody is served it before an output names it. Whoever can name it has sent it, since its id
has 200 random bits, so the attempt whose output does is the one that it belongs to.

The bounds are those of the sender's address: where the workers that run the model dial from, there is room for their
attempts. Others find room too, as a worker may send its files by another way than it dials; all of them together find
twice as much, and take nothing from those.
"""

import re
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, Iterator
from contextlib import aclosing, suppress
from mimetypes import MimeTypes
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlsplit

import msgspec
from msgspec import Raw

from cogflare.blobs.base import BlobError, BlobStore, BlobTooLarge
from cogflare.domain.clock import Clock
from cogflare.domain.errors import RequestError
from cogflare.domain.filefields import REFERENCE
from cogflare.domain.ids import new_key
from cogflare.engine.files import (
    MAX_FILE_BYTES,
    MAX_FILES,
    UNKNOWN_TYPE,
    Files,
    TooManyFiles,
    label_of,
    reference,
    safe_name,
    safe_type,
)
from cogflare.engine.inputs import BadDataURL, data_body, data_kind
from cogflare.protocol.messages import AttemptKey
from cogflare.store import files as file_store
from cogflare.store import legacy as store
from cogflare.store.base import Database
from cogflare.store.legacy import Load, Sender, Sum, UnnamedFile

_SPILLED: Final = 16 << 10  # characters of a data URL in an input that is too large to be sent
_MARKS: Final = (b"/files/", b'"data:')
_UNSWEPT_US: Final = 24 * 3_600_000_000  # after which no such file is here any more
_STRANGERS: Final = 2  # senders from elsewhere that find as much room as they may take
_EARLIER: Final = 3  # attempts that are over, whose files may lie here until they are swept
_OWN: Final = re.compile(r"/models/([^/]+/[^/]+)/files/([0-9a-z]{40})/[^/]+\Z", re.ASCII)
_LONGEST_URL: Final = 4096
_KINDS: Final = MimeTypes()


class NotRunning(RequestError):
    """No worker of 2022 runs the model now."""


class Holding(NamedTuple):
    """An attempt, the worker of 2022 that runs it, and the model (`owner/name`) that it runs."""

    worker: str
    model: str
    key: AttemptKey


class Room(NamedTuple):
    """Where files of a sender may lie: for so many attempts its own, and those of its pool."""

    sender: Sender
    own: int
    pool: int
    load: Load

    def files(self, each: int) -> int:
        """Return how many more files may come, at `each` an attempt."""
        return min(limit * each - taken.files for limit, taken in self._bounds())

    def bytes(self, each: int) -> dict[str, int]:
        """Return how many more bytes may come of the sender, and of its pool, at `each` an attempt."""
        own, own_unnamed, pool, pool_unnamed = (limit * each - taken.bytes for limit, taken in self._bounds())
        return {
            self.sender.pool: min(pool, pool_unnamed),
            self.sender.origin: min(own, own_unnamed, pool, pool_unnamed),
        }

    def _bounds(self) -> Iterator[tuple[int, Sum]]:
        # What no output has named is swept late, so it is bounded as a whole too.
        load = self.load
        yield from ((self.own, load.own), (self.own + _EARLIER, load.own_unnamed))
        yield from ((self.pool, load.pool), (self.pool + _EARLIER, load.pool_unnamed))


class LegacyFiles:
    """The files of all workers of 2022. `max_bytes` bounds all files of an attempt together."""

    def __init__(
        self,
        db: Database,
        blobs: BlobStore,
        clock: Clock,
        files: Files,
        *,
        max_files: int = MAX_FILES,
        max_bytes: int = MAX_FILE_BYTES,
        max_inline: int = 256 << 10,
    ) -> None:
        self._db = db
        self._blobs = blobs
        self._clock = clock
        self._files = files
        self._max_files = max_files
        self._max_bytes = max_bytes
        self._max_inline = max_inline
        self._coming: Counter[str] = Counter()

    # --- uploads ---------------------------------------------------------------------------------------------------

    async def receive(
        self, model: str, address: str, filename: str, content_type: str, body: AsyncIterable[bytes]
    ) -> str:
        """Store an upload from an address and return its path.

        Raises `NotRunning`, `TooManyFiles`, a `BlobError`, or what `body` does. What comes of one that breaks is swept.
        """
        room = await self.room(model, address)
        if room.files(self._max_files) <= 0:
            raise TooManyFiles(self._max_files)
        name = safe_name(filename)
        kind = safe_type(content_type)
        if kind == UNKNOWN_TYPE:
            kind = _KINDS.guess_type(name)[0] or UNKNOWN_TYPE
        id = new_key()
        file = UnnamedFile(id, room.sender, name, kind, self._clock.wall())
        if not await store.add_file(self._db, file, room.own * self._max_files, room.pool * self._max_files):
            await self.room(model, address)
            raise TooManyFiles(self._max_files)
        async with aclosing(self._bounded(body, room.bytes(self._max_bytes))) as bounded:
            stored = await self._blobs.put(id, bounded, self._files.max_file_bytes, label_of(name, kind))
        try:
            # Others have come meanwhile, and the run may be over.
            left = (await self.room(model, address)).bytes(self._max_bytes)
            if stored.size > min(left.values()):
                raise BlobTooLarge(self._max_bytes)
            if not await file_store.complete(self._db, id, stored.size, stored.sha256, stored.md5):
                raise NotRunning
        except (NotRunning, BlobTooLarge):
            with suppress(BlobError):
                await self._blobs.delete(id)
            raise
        return path_of(model, id, name)

    async def room(self, model: str, address: str) -> Room:
        """Return what may come of a model from an address; raises `NotRunning`."""
        attempts, here = await store.running_of(self._db, model, address)
        if not attempts:
            raise NotRunning
        sender = Sender(model, address, here > 0)
        load = await store.load(self._db, sender, self._clock.wall() - _UNSWEPT_US)
        own, pool = (here, here) if here else (attempts, attempts * _STRANGERS)
        return Room(sender, own, pool, load)

    async def _bounded(self, body: AsyncIterable[bytes], room: dict[str, int]) -> AsyncGenerator[bytes]:
        """Pass a body on while all that comes of its sender and pool at once finds room; raises `BlobTooLarge`."""
        come = 0
        try:
            async for piece in body:
                come += len(piece)
                self._coming.update(dict.fromkeys(room, len(piece)))
                if any(self._coming[key] > left for key, left in room.items()):
                    raise BlobTooLarge(self._max_bytes)
                yield piece
        finally:
            self._coming.subtract(dict.fromkeys(room, come))
            for key in room:
                if not self._coming[key]:
                    del self._coming[key]

    # --- outputs and inputs ----------------------------------------------------------------------------------------

    async def placed(self, holding: Holding, output: Raw, known: dict[str, str]) -> Raw:
        """Return an output, or a part of one, with references to our files in it.

        `known` has what became of the texts that were seen before, and is added to. Raises `Superseded` when the
        attempt is over, `TooManyFiles`, a `BlobError`, or a `StoreError`.
        """
        text = bytes(output)
        if not any(mark in text for mark in _MARKS):
            return output
        box: list[Any] = [msgspec.json.decode(text)]
        for place in _strings(box):
            if place.text not in known and (found := await self._file_of(holding, place.text)) is not None:
                self._add(known, place.text, found)
        return _with(box, known) or output

    async def spilled(self, holding: Holding, given: Raw, origin: str, known: dict[str, str]) -> Raw:
        """Return an input with URLs under `origin` for its data URLs; what comes in their place goes with the attempt.

        Raises like `placed`.
        """
        box: list[Any] = [msgspec.json.decode(given)]
        urls: dict[str, str] = {}
        for place in _strings(box):
            if place.text not in urls and _is_data(place.text, _SPILLED):
                found = await self._kept(holding, place.text)
                if found is not None:
                    self._add(known, place.text, found)
                    urls[place.text] = f"{origin}/{found.removeprefix(REFERENCE)}"
        return _with(box, urls) or given

    async def _file_of(self, holding: Holding, text: str) -> str | None:
        """Return the reference to the file that a text of an output is, or names; None if it is any other text."""
        if _is_data(text, self._max_inline):
            return await self._kept(holding, text, "output")
        found = _own(text)
        if found is None or found.model != holding.model:
            return None
        await store.name_file(self._db, found.id, holding.model, holding.key, holding.worker)
        row = await file_store.get(self._db, found.id)
        if row is None or (row.prediction, row.attempt) != holding.key or row.size is None or row.state == "expired":
            return None
        return reference(row.id, row.name)

    async def _kept(self, holding: Holding, url: str, stem: str = "input") -> str | None:
        kind = data_kind(url)
        name = f"{stem}{_KINDS.guess_extension(kind.partition(';')[0]) or ''}"
        try:
            return await self._files.keep(holding.worker, holding.key, name, kind, data_body(url))
        except BadDataURL:
            return None

    def _add(self, known: dict[str, str], text: str, found: str) -> None:
        if len(known) >= self._max_files:
            raise TooManyFiles(self._max_files)
        known[text] = found


def path_of(model: str, id: str, name: str) -> str:
    """Return where a file is served as the first Cogflare served it."""
    return f"/v1/models/{model}/files/{id}/{quote(name, safe='')}"


class _Own(NamedTuple):
    model: str
    id: str


def _own(url: str) -> _Own | None:
    """Return the upload that a URL of ours names, on whatever host; None for any other text."""
    if len(url) > _LONGEST_URL or "/files/" not in url or not url.startswith(("http://", "https://")):
        return None
    try:
        found = _OWN.search(urlsplit(url).path)
    except ValueError:
        return None
    return _Own(found[1], found[2]) if found else None


def _is_data(text: str, inline: int) -> bool:
    return len(text) > inline and text[:5].lower() == "data:" and "," in text


class _Place(NamedTuple):
    holder: Any
    key: Any
    text: str


def _strings(value: Any) -> Iterator[_Place]:
    """Find all texts in a value, keys left out."""
    for key, member in list(value.items() if isinstance(value, dict) else enumerate(value)):
        if isinstance(member, str):
            yield _Place(value, key, member)
        elif isinstance(member, dict | list):
            yield from _strings(member)


def _with(box: list[Any], known: dict[str, str]) -> Raw | None:
    """Return the value in the box with what is known in the place of its texts; None where nothing is to be put."""
    places = [place for place in _strings(box) if place.text in known]
    for place in places:
        place.holder[place.key] = known[place.text]
    return Raw(msgspec.json.encode(box[0])) if places else None
