"""What every blob store does: a folder, memory, and buckets of two S3 services."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cogflare.app import SystemClock
from cogflare.blobs.base import (
    BlobMismatch,
    BlobMissing,
    BlobOffset,
    BlobStore,
    BlobTooLarge,
    BlobUnavailable,
    Label,
)
from cogflare.blobs.bucket import S3Options
from cogflare.blobs.open import open_blobs
from cogflare.domain.ids import new_key
from support.buckets import BucketServer
from support.memory_blobs import MemoryBlobStore

pytestmark = pytest.mark.anyio
LIMIT = 1 << 30
LABEL = Label("text/plain", 'attachment; filename="x.txt"')
MEGABYTE = 1 << 20


@pytest.fixture(params=["local", "memory", "moto", "miniflare"])
async def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BlobStore]:
    opened: BlobStore
    if request.param == "memory":
        opened = MemoryBlobStore()
    elif request.param == "local":
        opened = open_blobs(tmp_path, "", S3Options(access_key_id="", secret_access_key=""), SystemClock())
    else:
        server: BucketServer = request.getfixturevalue(request.param)
        opened = open_blobs(tmp_path, server.storage(), server.options(), SystemClock())
    yield opened
    await opened.aclose()
    await opened.aclose()


async def body(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def broken(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
    raise ConnectionResetError


async def contents(blobs: BlobStore, key: str, start: int = 0, end: int | None = None) -> bytes:
    reader = await blobs.open(key, start, end)
    try:
        return b"".join([piece async for piece in reader])
    finally:
        await reader.aclose()
        await reader.aclose()


async def is_missing(blobs: BlobStore, key: str) -> bool:
    with pytest.raises(BlobMissing):
        await blobs.open(key)
    with pytest.raises(BlobMissing):
        await blobs.head(key)
    return True


async def test_it_finds_itself_in_order(blobs: BlobStore) -> None:
    await blobs.check()


@pytest.mark.parametrize("chunks", [[b"one ", b"", b"two"], [], [b""]])
async def test_what_was_put_is_read(blobs: BlobStore, chunks: list[bytes]) -> None:
    key, whole = new_key(), b"".join(chunks)
    stored = await blobs.put(key, body(*chunks), LIMIT, LABEL)
    assert (stored.size, stored.sha256) == (len(whole), hashlib.sha256(whole).hexdigest())
    assert stored.md5 == hashlib.md5(whole).hexdigest()
    assert await blobs.head(key) == len(whole)
    assert await contents(blobs, key) == whole


@pytest.mark.parametrize("size", [8 * MEGABYTE - 1, 8 * MEGABYTE, 21_000_001])
async def test_large_blobs(blobs: BlobStore, size: int) -> None:
    key, content = new_key(), os.urandom(size)
    chunks = [content[begin : begin + 700_001] for begin in range(0, size, 700_001)]
    stored = await blobs.put(key, body(*chunks), LIMIT, LABEL)
    assert (stored.size, stored.sha256) == (size, hashlib.sha256(content).hexdigest())
    assert await blobs.head(key) == size
    assert await contents(blobs, key) == content
    assert await contents(blobs, key, 4_000_000, 7_654_321) == content[4_000_000:7_654_321]


@pytest.mark.parametrize(
    ("start", "end", "wanted"),
    [(0, 3, b"012"), (3, 5, b"34"), (8, None, b"89"), (9, 10, b"9"), (4, 4, b""), (10, None, b"")],
)
async def test_ranges(blobs: BlobStore, start: int, end: int | None, wanted: bytes) -> None:
    key = new_key()
    await blobs.put(key, body(b"0123456789"), LIMIT, LABEL)
    assert await contents(blobs, key, start, end) == wanted


async def test_a_blob_that_is_shorter_than_its_reader_thinks(blobs: BlobStore) -> None:
    key = new_key()
    await blobs.put(key, body(b"0123"), LIMIT, LABEL)
    with pytest.raises(BlobUnavailable):
        await contents(blobs, key, 0, 10)


async def test_a_reader_that_goes_away_early(blobs: BlobStore) -> None:
    key = new_key()
    await blobs.put(key, body(bytes(9 * MEGABYTE)), LIMIT, LABEL)
    reader = await blobs.open(key)
    async for piece in reader:
        assert piece
        break
    await reader.aclose()


async def test_a_second_put_replaces(blobs: BlobStore) -> None:
    key = new_key()
    await blobs.put(key, body(b"old"), LIMIT, LABEL)
    await blobs.put(key, body(b"new and longer"), LIMIT, LABEL)
    assert await contents(blobs, key) == b"new and longer"


@pytest.mark.parametrize("size", [1, 9 * MEGABYTE])
async def test_too_large_changes_nothing(blobs: BlobStore, size: int) -> None:
    key, content = new_key(), os.urandom(size)
    await blobs.put(key, body(content), size, LABEL)
    with pytest.raises(BlobTooLarge) as caught:
        await blobs.put(key, body(content, b"x"), size, LABEL)
    assert caught.value.limit == size
    assert await contents(blobs, key) == content


@pytest.mark.parametrize("size", [1, 9 * MEGABYTE])
async def test_a_sender_that_breaks_off_changes_nothing(blobs: BlobStore, size: int) -> None:
    key, other = new_key(), new_key()
    await blobs.put(key, body(b"old"), LIMIT, LABEL)
    for each in (key, other):
        with pytest.raises(ConnectionResetError):
            await blobs.put(each, broken(bytes(size)), LIMIT, LABEL)
    assert await contents(blobs, key) == b"old"
    assert await is_missing(blobs, other)


@pytest.mark.parametrize("size", [1, 17 * MEGABYTE])
async def test_a_put_that_is_cancelled_changes_nothing(blobs: BlobStore, size: int) -> None:
    key = new_key()
    reached, ended = asyncio.Event(), asyncio.Event()

    async def stalled() -> AsyncIterator[bytes]:
        yield bytes(size)
        reached.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = asyncio.create_task(blobs.put(key, stalled(), LIMIT, LABEL))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
    assert await is_missing(blobs, key)


async def test_what_is_removed_is_missing(blobs: BlobStore) -> None:
    key = new_key()
    assert await is_missing(blobs, key)
    await blobs.delete(key)
    await blobs.put(key, body(b"x"), LIMIT, LABEL)
    await blobs.delete(key)
    assert await is_missing(blobs, key)


async def test_an_upload_that_goes_on(blobs: BlobStore) -> None:
    key, content = new_key(), os.urandom(1_500_000)
    assert await blobs.appended(key) == 0
    with pytest.raises(ConnectionResetError):
        await blobs.append(key, 0, broken(content[:300_000], content[300_000:700_001]), LIMIT)
    assert await blobs.appended(key) == 700_001
    assert await is_missing(blobs, key)
    assert await blobs.append(key, 700_001, body(content[700_001:]), LIMIT) == len(content)
    stored = await blobs.seal(key, LABEL)
    assert (stored.size, stored.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert stored.md5 == hashlib.md5(content).hexdigest()
    assert await contents(blobs, key) == content
    assert await blobs.appended(key) == 0
    with pytest.raises(BlobMissing):
        await blobs.seal(key, LABEL)
    assert await contents(blobs, key) == content


async def test_an_upload_goes_on_only_where_it_is(blobs: BlobStore) -> None:
    key = new_key()
    for offset, size in ((1, 0), (5, 3), (2, 3), (0, 3)):
        if size and not await blobs.appended(key):
            await blobs.append(key, 0, body(b"abc"), LIMIT)
        with pytest.raises(BlobOffset) as caught:
            await blobs.append(key, offset, body(b"xyz"), LIMIT)
        assert caught.value.size == size
    assert (await blobs.seal(key, LABEL)).size == 3


async def test_two_senders_of_one_upload(blobs: BlobStore) -> None:
    """A dead connection gives what it has left while the upload already goes on: no byte is there twice."""
    key, part = new_key(), bytes(300_000)
    waiting, late = asyncio.Event(), asyncio.Event()

    async def dead() -> AsyncIterator[bytes]:
        yield part
        waiting.set()
        await late.wait()
        yield part

    first = asyncio.create_task(blobs.append(key, 0, dead(), LIMIT))
    await waiting.wait()
    assert await blobs.append(key, len(part), body(b"on"), LIMIT) == len(part) + 2
    late.set()
    with pytest.raises(BlobOffset) as caught:
        await first
    assert caught.value.size == len(part) + 2
    await blobs.seal(key, LABEL)
    assert await contents(blobs, key) == part + b"on"


async def test_a_late_sender_does_not_touch_a_blob_that_is_whole(blobs: BlobStore) -> None:
    key, part = new_key(), bytes(300_000)
    waiting, late = asyncio.Event(), asyncio.Event()

    async def dead() -> AsyncIterator[bytes]:
        yield part
        waiting.set()
        await late.wait()
        yield b"late"

    first = asyncio.create_task(blobs.append(key, 0, dead(), LIMIT))
    await waiting.wait()
    await blobs.seal(key, LABEL)
    late.set()
    with pytest.raises(BlobOffset):
        await first
    assert await contents(blobs, key) == part
    assert await blobs.appended(key) == 0


async def test_an_upload_has_a_largest_size(blobs: BlobStore) -> None:
    key = new_key()
    await blobs.append(key, 0, body(b"12345"), 10)
    with pytest.raises(BlobTooLarge) as caught:
        await blobs.append(key, 5, body(b"678901"), 10)
    assert caught.value.limit == 10
    await blobs.delete(key)
    assert await blobs.appended(key) == 0
    with pytest.raises(BlobMissing):
        await blobs.seal(key, LABEL)


async def test_parts_that_were_never_sent(blobs: BlobStore) -> None:
    key = new_key()
    target = await blobs.upload_target(key, LABEL, LIMIT)
    upload = "no-such-upload" if target is None else target.upload
    with pytest.raises(BlobMismatch):
        await blobs.complete(key, upload, ['"0cc175b9c0f1b6a831c399e269772661"'])
    assert await is_missing(blobs, key)


async def test_whole_blobs_are_not_swept(blobs: BlobStore) -> None:
    key = new_key()
    await blobs.put(key, body(b"x"), LIMIT, LABEL)
    await blobs.sweep(0)
    assert await contents(blobs, key) == b"x"


@pytest.mark.parametrize(
    "key", ["", "a", "../" * 13 + "a", "A" * 40, "a" * 39 + "/", "a" * 41, "a" * 40 + "\n", "ü" * 40]
)
async def test_no_other_keys(blobs: BlobStore, key: str) -> None:
    with pytest.raises(ValueError, match="40 characters"):
        await blobs.put(key, body(b"x"), LIMIT, LABEL)
    with pytest.raises(ValueError, match="40 characters"):
        await blobs.append(key, 0, body(b"x"), LIMIT)
    with pytest.raises(ValueError, match="40 characters"):
        await blobs.open(key)
    with pytest.raises(ValueError, match="40 characters"):
        await blobs.delete(key)
