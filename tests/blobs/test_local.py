"""Blobs in a folder, on a real file system."""

import asyncio
import hashlib
import os
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cogflare.blobs.base import BlobFull, BlobMissing, BlobRefused, BlobTooLarge, BlobUnavailable, Label
from cogflare.blobs.disk import PIECE
from cogflare.blobs.local import LocalBlobStore
from cogflare.domain.ids import new_key

pytestmark = pytest.mark.anyio
NO_LIMIT = 1 << 40
LABEL = Label("application/octet-stream")


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobStore:
    return LocalBlobStore(tmp_path / "files")


async def body(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def contents(blobs: LocalBlobStore, key: str, start: int = 0, end: int | None = None) -> bytes:
    reader = await blobs.open(key, start, end)
    try:
        return b"".join([piece async for piece in reader])
    finally:
        await reader.aclose()


def files_under(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system refuse to make any file of this process larger, as a full quota would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_what_was_put_is_read(blobs: LocalBlobStore, tmp_path: Path) -> None:
    key = new_key()
    stored = await blobs.put(key, body(b"one ", b"", b"two"), NO_LIMIT, LABEL)
    assert (stored.size, stored.sha256) == (7, hashlib.sha256(b"one two").hexdigest())
    assert stored.md5 == hashlib.md5(b"one two").hexdigest()
    assert await blobs.head(key) == 7
    assert await contents(blobs, key) == b"one two"
    assert files_under(tmp_path / "files") == [f"{key[:2]}/{key}"]


async def test_an_empty_blob(blobs: LocalBlobStore) -> None:
    key = new_key()
    assert (await blobs.put(key, body(), NO_LIMIT, LABEL)).size == 0
    assert await contents(blobs, key) == b""


async def test_large_blobs_travel_in_pieces(blobs: LocalBlobStore) -> None:
    key, chunk = new_key(), os.urandom(100_000)
    await blobs.put(key, body(*[chunk] * 35), NO_LIMIT, LABEL)
    reader = await blobs.open(key)
    sizes = [len(piece) async for piece in reader]
    await reader.aclose()
    assert sizes == [PIECE, PIECE, PIECE, 3_500_000 - 3 * PIECE]
    assert await contents(blobs, key) == chunk * 35


@pytest.mark.parametrize(
    ("start", "end", "wanted"), [(0, 3, b"012"), (3, 5, b"34"), (8, None, b"89"), (9, 10, b"9"), (4, 4, b"")]
)
async def test_ranges(blobs: LocalBlobStore, start: int, end: int | None, wanted: bytes) -> None:
    key = new_key()
    await blobs.put(key, body(b"0123456789"), NO_LIMIT, LABEL)
    assert await contents(blobs, key, start, end) == wanted


async def test_a_second_put_replaces_and_open_readers_keep_what_they_opened(blobs: LocalBlobStore) -> None:
    key = new_key()
    await blobs.put(key, body(b"old"), NO_LIMIT, LABEL)
    reader = await blobs.open(key)
    await blobs.put(key, body(b"new and longer"), NO_LIMIT, LABEL)
    assert b"".join([piece async for piece in reader]) == b"old"
    await reader.aclose()
    assert await contents(blobs, key) == b"new and longer"


async def test_too_large_changes_nothing(blobs: LocalBlobStore, tmp_path: Path) -> None:
    key = new_key()
    await blobs.put(key, body(b"12345"), 5, LABEL)
    with pytest.raises(BlobTooLarge) as caught:
        await blobs.put(key, body(b"123", b"456"), 5, LABEL)
    assert caught.value.limit == 5
    assert await contents(blobs, key) == b"12345"
    assert files_under(tmp_path / "files") == [f"{key[:2]}/{key}"]


async def test_a_full_disk_keeps_nothing(blobs: LocalBlobStore, tmp_path: Path) -> None:
    with largest_file(100_000), pytest.raises(BlobFull):
        await blobs.put(new_key(), body(*[bytes(50_000)] * 40), NO_LIMIT, LABEL)
    assert files_under(tmp_path / "files") == []


async def test_a_sender_that_breaks_off_leaves_nothing(blobs: LocalBlobStore, tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield bytes(2 * PIECE)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await blobs.put(new_key(), broken(), NO_LIMIT, LABEL)
    assert files_under(tmp_path / "files") == []


async def test_a_put_that_is_cancelled_leaves_nothing(blobs: LocalBlobStore, tmp_path: Path) -> None:
    reached, never = asyncio.Event(), asyncio.Event()

    async def stalled() -> AsyncIterator[bytes]:
        yield bytes(2 * PIECE)
        reached.set()
        await never.wait()

    task = asyncio.create_task(blobs.put(new_key(), stalled(), NO_LIMIT, LABEL))
    await reached.wait()
    assert len(files_under(tmp_path / "files")) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert files_under(tmp_path / "files") == []


async def test_what_is_missing(blobs: LocalBlobStore) -> None:
    key = new_key()
    with pytest.raises(BlobMissing):
        await blobs.open(key)
    with pytest.raises(BlobMissing):
        await blobs.head(key)
    await blobs.delete(key)
    await blobs.put(key, body(b"x"), NO_LIMIT, LABEL)
    await blobs.delete(key)
    with pytest.raises(BlobMissing):
        await blobs.head(key)


async def test_a_blob_that_is_shorter_than_it_was(blobs: LocalBlobStore, tmp_path: Path) -> None:
    key = new_key()
    await blobs.put(key, body(b"0123456789"), NO_LIMIT, LABEL)
    os.truncate(tmp_path / "files" / key[:2] / key, 4)
    with pytest.raises(BlobUnavailable):
        await contents(blobs, key, 0, 10)


@pytest.mark.parametrize(
    "key", ["", "a", "../" * 13 + "a", "A" * 40, "a" * 39 + "/", "a" * 41, "a" * 40 + "\n", "ü" * 40]
)
async def test_no_other_keys(blobs: LocalBlobStore, key: str) -> None:
    with pytest.raises(ValueError, match="40 characters"):
        await blobs.put(key, body(b"x"), NO_LIMIT, LABEL)
    with pytest.raises(ValueError, match="40 characters"):
        await blobs.open(key)


async def test_what_a_crash_left_is_swept(blobs: LocalBlobStore, tmp_path: Path) -> None:
    key = new_key()
    await blobs.put(key, body(b"x"), NO_LIMIT, LABEL)
    os.utime(tmp_path / "files" / key[:2] / key, (0, 0))
    parts = tmp_path / "files" / "parts"
    for name in ("old", "fresh"):
        (parts / name).write_bytes(b"half")
    os.utime(parts / "old", (0, 0))
    assert await blobs.sweep(60) == 1
    assert files_under(parts) == ["fresh"]
    assert await blobs.sweep(60) == 0
    assert await contents(blobs, key) == b"x"


async def test_an_upload_that_nobody_goes_on_with_is_swept(blobs: LocalBlobStore, tmp_path: Path) -> None:
    old, fresh = new_key(), new_key()
    for key in (old, fresh):
        await blobs.append(key, 0, body(b"half"), NO_LIMIT)
    (part,) = (tmp_path / "files" / "parts").glob(f"{old}*")
    os.utime(part, (0, 0))
    assert await blobs.sweep(60) == 1
    assert (await blobs.appended(old), await blobs.appended(fresh)) == (0, 4)


async def test_a_full_disk_keeps_what_of_an_upload_has_come(blobs: LocalBlobStore) -> None:
    key = new_key()
    with largest_file(700_000), pytest.raises(BlobFull):
        await blobs.append(key, 0, body(*[os.urandom(100_000)] * 9), NO_LIMIT)
    kept = await blobs.appended(key)
    assert 0 < kept <= 700_000
    assert await blobs.append(key, kept, body(b"x"), NO_LIMIT) == kept + 1


async def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "files").write_text("no folder")
    with pytest.raises(BlobRefused, match="let the server's user write there"):
        await LocalBlobStore(tmp_path / "files").check()


async def test_a_check_leaves_nothing(blobs: LocalBlobStore, tmp_path: Path) -> None:
    await blobs.check()
    assert files_under(tmp_path / "files") == []
    with largest_file(0), pytest.raises(BlobFull):
        await blobs.check()
    assert files_under(tmp_path / "files") == []


async def test_a_store_that_was_never_written_to_is_swept(blobs: LocalBlobStore) -> None:
    assert await blobs.sweep(0) == 0
