"""Files between a provider and our storage: those of outputs come here before they vanish there, those of inputs go.

A file of an output is one whose URL the provider says is, or a data URL too large to lie in every answer. It becomes a
file of the attempt, as if a worker had sent it. Within a process no file of an attempt is brought or handed over twice.
"""

import asyncio
import re
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from mimetypes import MimeTypes
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Raw

from cogflare.blobs.base import BlobError, BlobMissing, BlobStore, BlobTooLarge
from cogflare.engine.files import Files
from cogflare.engine.inputs import BadDataURL, Inputs, data_body, data_kind
from cogflare.engine.sizes import Sizes, too_large
from cogflare.protocol.messages import AttemptKey
from cogflare.providers.base import Busy, Executor, File, Gone, ProviderError, Refused, Unanswered
from cogflare.store.files import FileRow
from cogflare.store.predictions import PredictionRow

MAX_FILES: Final = 1_000
"""Files that one attempt may bring."""
AT_ONCE: Final = 4
STALL_S: Final = 60.0
LIMIT_S: Final = 1800.0
PAUSES_S: Final = (0.5, 2.0, 5.0)
"""Between the tries of one file; what the provider asks for counts where it is longer."""
LONGEST_PAUSE_S: Final = 30.0
_REMEMBERED: Final = 10_000  # attempts
_LONGEST_URL: Final = 8_192  # characters
_KINDS: Final = MimeTypes()
_TOKEN: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"(\s*+:)?', re.DOTALL)
_YIELD_EVERY: Final = 5_000  # strings of an output that are looked at in one turn
_URLS: Final = (b"https:", b"http:", b"data:")
_text: Final = msgspec.json.Decoder(str)


class ImportFailed(Exception):
    """A file could not be brought over. `place` says which (`output.2`); `may_pass`: trying later may help."""

    def __init__(self, place: str, text: str, *, may_pass: bool = False) -> None:
        super().__init__(f"{place}: {text}")
        self.place = place
        self.text = text
        self.may_pass = may_pass


class Imported(NamedTuple):
    """An output with our references in it, and how many different files they name."""

    output: Raw
    files: int


class _Known:
    """What became of the files of attempts: the text that stands for each."""

    def __init__(self) -> None:
        self._attempts: OrderedDict[AttemptKey, dict[str, str]] = OrderedDict()

    def of(self, key: AttemptKey) -> dict[str, str]:
        """Return what is known of an attempt, to be added to."""
        found = self._attempts.setdefault(key, {})
        self._attempts.move_to_end(key)
        while len(self._attempts) > _REMEMBERED:
            self._attempts.popitem(last=False)
        return found

    def forget(self, key: AttemptKey) -> None:
        """Drop what is known of an attempt."""
        self._attempts.pop(key, None)


class Imports:
    """Brings files of outputs here, and hands files of inputs over. A larger data URL than `max_inline` is a file."""

    def __init__(
        self,
        files: Files,
        inputs: Inputs,
        blobs: BlobStore,
        max_inline: int,
        pauses_s: tuple[float, ...] = PAUSES_S,
        limit_s: float = LIMIT_S,
        stall_s: float = STALL_S,
    ) -> None:
        self._files = files
        self._inputs = inputs
        self._blobs = blobs
        self._max_inline = max_inline
        self._pauses_s = pauses_s
        self._limit_s = limit_s
        self._stall_s = stall_s
        self._brought = _Known()
        self._handed = _Known()

    async def outputs(self, executor: Executor, holder: str, key: AttemptKey, raw: Raw, sizes: Sizes) -> Imported:
        """Return an output, or a part of one, with its files in our storage; safe to repeat.

        Raises `ImportFailed`, `Superseded` when the attempt is over, or a `StoreError`.
        """
        data = bytes(raw)
        tokens = [token async for token in _tokens(data) if self._is_file(executor, token.text)]
        wanted = list(dict.fromkeys(token.text for token in tokens))
        known = self._brought.of(key)
        missing = [text for text in wanted if text not in known]
        if len(known) + len(missing) > MAX_FILES:
            raise ImportFailed("output", f"more than {MAX_FILES} files")

        async def bring(text: str) -> None:
            known[text] = await self._bring(executor, holder, key, text, data)

        try:
            async with asyncio.timeout(self._limit_s):
                await _each(missing, bring)
        except TimeoutError:
            raise ImportFailed(
                "output", f"its files did not come within {self._limit_s:.0f} s", may_pass=True
            ) from None
        output = _spliced(data, tokens, known) if tokens else data
        # Where exactly an output is too large depends on whether it is an iterator's, which is not known here.
        limit = max(sizes.result_bytes, sizes.output_bytes)
        if len(output) > limit:
            raise ImportFailed("output", too_large(limit))
        return Imported(Raw(output), sum(known[text] != text for text in wanted))

    async def inputs(self, executor: Executor, row: PredictionRow, text: str) -> bytes:
        """Return an input (JSON text as stored) with files that the provider can read; safe to repeat.

        Raises `ImportFailed` for a file of ours that is not there, or a `ProviderError`.
        """
        known = self._handed.of((row.id, row.attempt))

        async def hand(file: FileRow) -> str:
            if file.id not in known:
                known[file.id] = await self._tried_hand_over(executor, file)
            return known[file.id]

        return (await self._inputs.handed_over(text, row.id, hand)).encode()

    def forget(self, key: AttemptKey) -> None:
        """Drop what is remembered of an attempt that is over."""
        self._brought.forget(key)
        self._handed.forget(key)

    # --- outputs ---------------------------------------------------------------------------------------------------

    def _is_file(self, executor: Executor, text: str) -> bool:
        if text[:5].lower() == "data:":
            return len(text) > self._max_inline and "," in text
        return len(text) <= _LONGEST_URL and executor.is_file(text)

    async def _bring(self, executor: Executor, holder: str, key: AttemptKey, text: str, data: bytes) -> str:
        """Store one file of an output (`data`) and return the reference to it."""
        try:
            if text[:5].lower() == "data:":
                return await self._stored_data(holder, key, text)
            return await self._repeated(lambda: self._fetched(executor, holder, key, text))
        except (Gone, Refused, BlobTooLarge) as error:
            raise ImportFailed(_place(data, text), f"its file cannot be fetched: {error}") from error
        except (ProviderError, BlobError, OSError) as error:
            raise ImportFailed(
                _place(data, text), f"its file could not be fetched: {_words(error)}", may_pass=True
            ) from error

    async def _stored_data(self, holder: str, key: AttemptKey, url: str) -> str:
        kind = data_kind(url)
        name = f"output{_KINDS.guess_extension(kind.partition(';')[0]) or ''}"
        try:
            return await self._repeated(lambda: self._files.keep(holder, key, name, kind, data_body(url)))
        except BadDataURL:
            return url  # a text that begins like one

    async def _fetched(self, executor: Executor, holder: str, key: AttemptKey, url: str) -> str:
        async with asyncio.timeout(self._stall_s):
            file = await executor.fetch(url)
        try:
            if file.size is not None and file.size > self._files.max_file_bytes:
                raise BlobTooLarge(self._files.max_file_bytes)
            return await self._files.keep(holder, key, file.name, file.content_type, _whole(file, self._stall_s))
        finally:
            await _close(file.body)

    # --- inputs ----------------------------------------------------------------------------------------------------

    async def _tried_hand_over(self, executor: Executor, row: FileRow) -> str:
        try:
            return await self._repeated(lambda: self._hand_over(executor, row))
        except BlobMissing as error:
            raise ImportFailed(f"input file {row.name}", "it is gone from the storage") from error
        except (BlobError, OSError) as error:
            place, text = f"input file {row.name}", f"it could not be handed over: {_words(error)}"
            raise ImportFailed(place, text, may_pass=True) from error

    async def _hand_over(self, executor: Executor, row: FileRow) -> str:
        reader = await self._blobs.open(row.id)
        try:
            return await executor.upload(row.name, row.content_type, row.size or 0, aiter(reader))
        finally:
            await reader.aclose()

    # --- both ------------------------------------------------------------------------------------------------------

    async def _repeated(self, step: Callable[[], Coroutine[Any, Any, str]]) -> str:
        """Do a step that may break; some times again, after pauses, while that can help."""
        for pause_s in self._pauses_s:
            try:
                return await step()
            except (BlobTooLarge, BlobMissing):
                raise
            except Busy as error:
                pause_s = min(max(pause_s, error.retry_after_s or 0.0), LONGEST_PAUSE_S)
            except (Unanswered, BlobError, OSError):
                pass
            await asyncio.sleep(pause_s)
        return await step()


def _words(error: Exception) -> str:
    return "nothing came for too long" if isinstance(error, TimeoutError) else str(error) or type(error).__name__


class _Token(NamedTuple):
    """A string in JSON text that may be a URL: where it stands, and what it says."""

    start: int
    end: int
    text: str


async def _tokens(data: bytes) -> AsyncIterator[_Token]:
    """Find the strings in JSON text, keys left out, that begin like a URL; others get their turn in between."""
    for count, found in enumerate(_TOKEN.finditer(data), 1):
        start, end = found.span()
        if found[1] is None and data[start + 1 : start + 7].lower().startswith(_URLS):
            yield _Token(start, end, _text.decode(data[start:end]))
        if count % _YIELD_EVERY == 0:
            await asyncio.sleep(0)


def _spliced(data: bytes, tokens: list[_Token], known: dict[str, str]) -> bytes:
    """Put what stands for files in their places; all else stays as it was written."""
    parts, at = [], 0
    for token in tokens:
        parts += [data[at : token.start], msgspec.json.encode(known[token.text])]
        at = token.end
    return b"".join([*parts, data[at:]])


def _place(data: bytes, text: str) -> str:
    """Return where in an output a string stands, as people call it."""
    try:
        return next((path for path, found in _strings(msgspec.json.decode(data), "output") if found == text), "output")
    except (msgspec.DecodeError, RecursionError):
        return "output"


def _strings(value: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict | list):
        for key, member in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _strings(member, f"{path}.{key}")


async def _each(texts: list[str], work: Callable[[str], Coroutine[Any, Any, None]]) -> None:
    """Do the work for each text, some at once; the first error ends all of it."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(text: str) -> None:
        async with room:
            await work(text)

    tasks = [asyncio.create_task(one(text)) for text in texts]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _whole(file: File, stall_s: float) -> AsyncIterator[bytes]:
    """Iterate over all of a file; raises `Unanswered` where it ends too early, `TimeoutError` where nothing comes."""
    come = 0
    pieces = aiter(file.body)
    while True:
        async with asyncio.timeout(stall_s):
            piece = await anext(pieces, None)
        if piece is None:
            break
        come += len(piece)
        yield piece
    if file.size is not None and come != file.size:
        raise Unanswered(f"{come} of {file.size} bytes came")


async def _close(body: AsyncIterator[bytes]) -> None:
    if isinstance(body, AsyncGenerator):
        await body.aclose()
