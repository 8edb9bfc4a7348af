"""Files in inputs: those of ours that they name, and data URLs too large to lie in every answer and every frame.

An upload that an input names is kept until its prediction has ended. A large data URL goes to the storage as a file of
the prediction, and a reference takes its place. The worker gets URLs under the origin that it dialled.
"""

import asyncio
import base64
import binascii
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from mimetypes import MimeTypes
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import msgspec

from cogflare.blobs.base import BlobStore, BlobTooLarge
from cogflare.domain.clock import Clock
from cogflare.domain.errors import InvalidInput
from cogflare.domain.filefields import REFERENCE, file_places, has_marks, own_file
from cogflare.domain.ids import new_key
from cogflare.domain.inputs import FieldProblem
from cogflare.engine.downloads import Downloads
from cogflare.engine.files import label_of, reference, safe_type
from cogflare.engine.uploads import Uploads
from cogflare.store import catalog, files
from cogflare.store import uploads as store
from cogflare.store.base import Conflict, Database, Statement, StoreError
from cogflare.store.catalog import Account
from cogflare.store.files import FileRow

MAX_FILES: Final = 100
"""Uploads and large data URLs that one input may have."""
WORKER_URL_S: Final = 3600
_PIECE: Final = 1 << 20  # characters of base64 that are decoded at once: whole groups of four
_ESCAPED_PIECE: Final = 64 << 10  # and of text with escapes, which takes much more time and memory
_KINDS: Final = MimeTypes()
_json: Final = msgspec.json.Encoder(order="deterministic")
_GONE: Final = frozenset({"use_file", "bind_input_file"})


@dataclass
class Taken:
    """An input with its files accounted for: the text to be stored, and what the files need of the create's unit."""

    input: bytes
    uses: dict[str, str] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    strange: set[str] = field(default_factory=set)

    @property
    def files(self) -> int:
        """How many files were looked for."""
        return len(self.uses) + len(self.moved) + len(self.strange)

    def statements(self, prediction: str, account: str, now: int) -> list[Statement]:
        """Return what belongs into the unit that writes the prediction."""
        used = [store.use(file, prediction, account, now) for file in self.uses]
        return [*used, *(store.bind(file, prediction) for file in self.moved.values())]


class Inputs:
    """The files of inputs. A data URL of more than `max_inline` characters goes to the storage."""

    def __init__(
        self, db: Database, blobs: BlobStore, clock: Clock, uploads: Uploads, downloads: Downloads, max_inline: int
    ) -> None:
        self._db = db
        self._blobs = blobs
        self._clock = clock
        self.uploads = uploads
        self.downloads = downloads
        self._max_inline = max_inline

    # --- at the create ---------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def taking(
        self, account: str, text: bytes, schema: dict[str, Any], values: dict[str, Any], origin: str
    ) -> AsyncIterator[Taken]:
        """Account for the files of an input (JSON `text`, decoded `values`) while its prediction is created.

        `origin` is our own, under which an upload that does not exist is a mistake. Raises `InvalidInput`, also for an
        upload that goes in this moment, or a `BlobError`.
        """
        taken = Taken(text)
        if not any(self._concerns(place.url) for place in file_places(schema, values)):
            yield taken
            return
        try:
            await self._take(account, schema, origin, taken)
            yield taken
        except Conflict as error:
            await self._give_up(taken)
            if error.statement not in _GONE:
                raise
            gone = [path for id, path in taken.uses.items() if not await self._has(account, id)]
            raise InvalidInput([_unknown(path) for path in gone or ["input"]]) from None
        except Exception:
            await self._give_up(taken)
            raise

    def _concerns(self, url: str) -> bool:
        return self._is_large(url) or own_file(url) is not None

    def _is_large(self, url: str) -> bool:
        return len(url) > self._max_inline and url[:5].lower() == "data:"

    async def _take(self, account: str, schema: dict[str, Any], origin: str, taken: Taken) -> None:
        value = msgspec.json.decode(taken.input)
        problems: list[FieldProblem] = []
        for place in list(file_places(schema, value)):
            if not self._concerns(place.url):
                continue
            if taken.files >= MAX_FILES or len(problems) >= MAX_FILES:
                raise InvalidInput([FieldProblem("too_many_files", "input", f"At most {MAX_FILES} different files")])
            if self._is_large(place.url):
                try:
                    place.holder[place.key] = await self._move(account, place.url, taken)
                except BadDataURL as error:
                    problems.append(FieldProblem("format", place.path, str(error)))
            elif not await self._use(account, place.url, place.path, taken) and _is_own(place.url, origin):
                problems.append(_unknown(place.path))
        if problems:
            raise InvalidInput(problems)
        # The URL may be spelled with escapes, and it has to be found again in the text.
        if taken.moved or not all(_is_marked(id, taken.input) for id in taken.uses):
            taken.input = msgspec.json.encode(value)

    async def _use(self, account: str, url: str, path: str, taken: Taken) -> bool:
        """Note the file of ours that the URL names; False if the account has none of that id."""
        own = own_file(url)
        if own is None or own.id in taken.strange:
            return False
        if own.id not in taken.uses and not await self._has(account, own.id):
            taken.strange.add(own.id)
            return False
        taken.uses.setdefault(own.id, path)
        return True

    async def _has(self, account: str, id: str) -> bool:
        row = await files.get(self._db, id)
        if row is None or row.account != account or row.size is None or row.state == "expired":
            return False
        return row.prediction is not None or (row.expires_at or 0) > self._clock.wall()

    async def _move(self, account: str, url: str, taken: Taken) -> str:
        """Put the content of a data URL into the storage and return the reference to it."""
        kind = data_kind(url)
        name = f"file{_KINDS.guess_extension(kind.partition(';')[0]) or ''}"
        digest = hashlib.sha256(url.encode()).hexdigest()
        if digest not in taken.moved:
            id = new_key()
            await store.add(self._db, id, account, name, kind, self._clock.wall())
            taken.moved[digest] = id
            try:
                stored = await self._blobs.put(id, data_body(url), self.uploads.max_bytes, label_of(name, kind))
            except BlobTooLarge as error:
                raise BadDataURL(f"The file has {error}") from error
            if not await files.complete(self._db, id, stored.size, stored.sha256, stored.md5):
                raise Conflict("bind_input_file")
        return reference(taken.moved[digest], name)

    async def _give_up(self, taken: Taken) -> None:
        """Let what was moved be swept soon; where that fails, it is swept later."""
        if taken.moved:
            with suppress(StoreError):
                await store.abandon(self._db, list(taken.moved.values()))

    # --- afterwards ------------------------------------------------------------------------------------------------

    async def resolve(self, text: str, prediction: str, account: str, origin: str) -> str:
        """Return the input for a worker: its files under the origin that the worker dialled, uploads signed."""
        if not has_marks(text.encode()):
            return text
        value: Any = msgspec.json.decode(text)
        urls: dict[str, str] = {}
        if (owner := await catalog.get_account(self._db, account)) is not None:
            for row in await store.of_input(self._db, prediction):
                urls[row.id] = origin + await self._path(owner, row)
        for moved in await self._referred(value, prediction):
            urls[moved] = f"{origin}/{moved.removeprefix(REFERENCE)}"
        _replace(value, lambda url: _for_worker(url, urls))
        return msgspec.json.encode(value).decode()

    async def handed_over(self, text: str, prediction: str, hand: Callable[[FileRow], Awaitable[str]]) -> str:
        """Return the input for who cannot read from us: what `hand` returns for a file stands in the file's place."""
        if not has_marks(text.encode()):
            return text
        value: Any = msgspec.json.decode(text)
        named = await self._referred(value, prediction)
        used = {row.id: row for row in await store.of_input(self._db, prediction)}
        for url in _strings(value):
            own = own_file(url)
            if own is not None and own.id in used:
                named[url] = used[own.id]
        handed = {row.id: await hand(row) for row in {row.id: row for row in named.values()}.values()}
        _replace(value, lambda url: handed[named[url].id] if url in named else url)
        return msgspec.json.encode(value).decode()

    async def _path(self, owner: Account, row: FileRow) -> str:
        if row.prediction is not None:
            return reference(row.id, row.name).removeprefix(REFERENCE.rstrip("/"))
        return (await self.downloads.sign(owner.id, owner.username, row, WORKER_URL_S)).path

    async def as_sent(self, stored: str, prediction: str) -> str:
        """Return a stored input with its large data URLs in their places again; raises a `BlobError`."""
        if f'"{REFERENCE}' not in stored:
            return stored
        value: Any = msgspec.json.decode(stored)
        sent: dict[str, str] = {}
        for url, row in (await self._referred(value, prediction)).items():
            content = await self._read(row.id)
            sent[url] = f"data:{row.content_type};base64,{base64.b64encode(content).decode()}"
        _replace(value, lambda url: sent.get(url, url))
        return msgspec.json.encode(value).decode()

    async def is_same(self, stored: str, values: dict[str, Any], prediction: str) -> bool:
        """Say whether a stored input is what was sent, but for its large data URLs, which have been moved."""
        value: Any = msgspec.json.decode(stored)
        sums = {url: f"sha256:{row.sha256}" for url, row in (await self._referred(value, prediction)).items()}
        sent: Any = msgspec.json.decode(_json.encode(values))
        large = {url for both in (value, sent) for url in _strings(both) if self._is_large(url)}
        sums |= {url: f"sha256:{await _digest(url)}" for url in large}
        _replace(value, lambda url: sums.get(url, url))
        _replace(sent, lambda url: sums.get(url, url))
        return _json.encode(value) == _json.encode(sent)

    async def _referred(self, value: object, prediction: str) -> dict[str, FileRow]:
        """Return the files of a prediction that references in its input mean; a client may have written some itself."""
        known = {reference(row.id, row.name): row for row in await store.moved(self._db, prediction)}
        return {url: known[url] for url in _strings(value) if url in known}

    async def _read(self, id: str) -> bytes:
        reader = await self._blobs.open(id)
        try:
            return b"".join([piece async for piece in reader])
        finally:
            await reader.aclose()


class BadDataURL(ValueError):
    """The data URL has no content that can be stored."""


def _is_own(url: str, origin: str) -> bool:
    """Say whether the URL is one of this server's that only the owner of the file may use."""
    own = own_file(url)
    return own is not None and own.kind == "upload" and url.startswith(f"{origin}/")


def _is_marked(id: str, text: bytes) -> bool:
    return f"/files/{id}".encode() in text or f"/f/{id}/".encode() in text


def _unknown(path: str) -> FieldProblem:
    return FieldProblem("file_not_found", path, "There is no such file; it may have expired: upload it again")


def data_kind(url: str) -> str:
    """Return the media type of a data URL."""
    head = url[5:].partition(",")[0]
    parts = [part for part in head.split(";") if part.lower() != "base64"]
    return safe_type(";".join(parts)) if parts and parts[0] else "text/plain"


def _content(url: str) -> Iterator[bytes]:
    """Decode a data URL, a piece at a time."""
    comma = url.index(",") + 1
    if not url[:comma].lower().endswith(";base64,"):
        yield from _unescaped(url, comma)
        return
    end = len(url.rstrip("="))
    try:
        for start in range(comma, end, _PIECE):
            piece = url[start : min(start + _PIECE, end)]
            yield binascii.a2b_base64(piece + "=" * (-len(piece) % 4), strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise BadDataURL("The data URL is not valid base64") from error


def _unescaped(text: str, start: int) -> Iterator[bytes]:
    while start < len(text):
        end = start + _ESCAPED_PIECE
        if end < len(text) and (escape := text.rfind("%", end - 2, end)) > 0:
            end = escape
        yield unquote_to_bytes(text[start:end])
        start = end


async def data_body(url: str) -> AsyncIterator[bytes]:
    """Decode a data URL (one with a comma), a piece at a time; raises `BadDataURL`."""
    for piece in _content(url):
        yield piece
        # What takes it may wait for nothing until it has enough; others get their turn between the pieces.
        await asyncio.sleep(0)


async def _digest(url: str) -> str:
    found = hashlib.sha256()
    try:
        for piece in _content(url):
            found.update(piece)
            await asyncio.sleep(0)
    except BadDataURL:
        return ""
    return found.hexdigest()


def _for_worker(url: str, urls: dict[str, str]) -> str:
    own = own_file(url)
    return urls.get(url if own is None else own.id, url)


def _pairs(value: object) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list) else ()


def _replace(value: Any, new: Callable[[str], str]) -> None:
    """Put another string in place of each that is a member of something."""
    for key, member in _pairs(value):
        if isinstance(member, str):
            value[key] = new(member)
        else:
            _replace(member, new)


def _strings(value: object) -> Iterator[str]:
    for _, member in _pairs(value):
        if isinstance(member, str):
            yield member
        else:
            yield from _strings(member)
