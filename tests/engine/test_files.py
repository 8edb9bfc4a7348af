"""Output files and large results of attempts: who may send them, and what of them is kept."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest

from cogflare.blobs.base import BlobMismatch, BlobOffset, BlobTooLarge, Label, UploadTarget
from cogflare.blobs.local import LocalBlobStore
from cogflare.domain.errors import NotFound
from cogflare.domain.ids import new_id, new_key
from cogflare.engine.files import Files, NotUploaded, Proof, Sender, Superseded, safe_name, safe_type
from cogflare.store.base import Database
from engine.rig import Rig, RigWorker

pytestmark = pytest.mark.anyio
Key = tuple[str, int]
LIMIT = 1000


class Bucket(LocalBlobStore):
    """A store that takes uploads itself, as an object store with presigned URLs does."""

    async def upload_target(self, key: str, label: Label, size: int | None) -> UploadTarget | None:
        headers = {"content-type": label.content_type, "content-disposition": label.content_disposition}
        return UploadTarget(f"https://bucket.example.net/{key}", headers=headers)


class Parts(Bucket):
    """A store that takes a file in parts; `sent` are the tags of uploads that it has."""

    sent: Mapping[str, tuple[str, ...]] = {}

    async def complete(self, key: str, upload: str, tags: Sequence[str]) -> None:
        if self.sent.get(upload) != tuple(tags):
            raise BlobMismatch
        await self.put(key, body(b"hello"), LIMIT, Label(""))


async def body(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


class Scene:
    """A worker of ada that runs a prediction of hers."""

    def __init__(self, db: Database, blobs: LocalBlobStore) -> None:
        self.rig = Rig(db)
        self.db = db
        self.blobs = blobs
        self.files = Files(db, blobs, self.rig.clock, LIMIT)

    async def begin(self) -> tuple[RigWorker, Sender, Key]:
        worker = await self.rig.worker()
        await self.rig.create(await self.rig.caller("ada"))
        key = await worker.start(await worker.next())
        return worker, Sender(worker.caller.account, worker.end.worker), key

    async def read(self, id: str, name: str) -> bytes:
        reader = await self.files.open(await self.files.find(id, name))
        content = b"".join([piece async for piece in reader])
        await reader.aclose()
        return content


@pytest.fixture
def scene(store: Database, tmp_path: Path) -> Scene:
    return Scene(store, LocalBlobStore(tmp_path / "files"))


async def test_a_file_is_served_once_it_is_complete(scene: Scene) -> None:
    worker, sender, key = await scene.begin()
    ticket = await scene.files.announce(sender, key, "/tmp/x/a cat.PNG", "Image/PNG", 8)
    assert ticket.reference == f"cogflare-file:/f/{ticket.id}/a%20cat.PNG"
    assert ticket.upload is None
    with pytest.raises(NotFound):
        await scene.files.find(ticket.id, "a cat.PNG")
    await scene.files.receive(sender, ticket.id, body(b"some ", b"cat"), 8)
    row = await scene.files.find(ticket.id, "a cat.PNG")
    assert (row.state, row.content_type, row.size) == ("pending", "image/png", 8)
    assert row.sha256 == hashlib.sha256(b"some cat").hexdigest()
    assert await scene.read(ticket.id, "a cat.PNG") == b"some cat"
    await worker.finish(key, b'["%b"]' % ticket.reference.encode(), files=1)
    assert (await scene.files.find(ticket.id, "a cat.PNG")).state == "bound"
    with pytest.raises(NotFound):
        await scene.files.find(ticket.id, "another name")


async def test_a_repeated_upload_replaces_until_the_attempt_ends(scene: Scene) -> None:
    worker, sender, key = await scene.begin()
    ticket = await scene.files.announce(sender, key, "f", "text/plain")
    await scene.files.receive(sender, ticket.id, body(b"first"))
    await scene.files.receive(sender, ticket.id, body(b"second try"))
    assert (await scene.files.find(ticket.id, "f")).size == 10
    await worker.finish(key, files=1)
    with pytest.raises(Superseded):
        await scene.files.receive(sender, ticket.id, body(b"third"))
    assert await scene.read(ticket.id, "f") == b"second try"


async def test_an_attempt_that_ends_during_an_upload(scene: Scene) -> None:
    worker, sender, key = await scene.begin()
    ticket = await scene.files.announce(sender, key, "f", "text/plain")
    await scene.files.receive(sender, ticket.id, body(b"same"))

    async def slow() -> AsyncIterator[bytes]:
        yield b"sa"
        await worker.finish(key, files=1)
        yield b"me"

    with pytest.raises(Superseded):
        await scene.files.receive(sender, ticket.id, slow())
    assert (await scene.files.find(ticket.id, "f")).state == "bound"
    assert await scene.read(ticket.id, "f") == b"same"


async def test_only_the_holder_of_the_attempt_sends(scene: Scene) -> None:
    _, sender, key = await scene.begin()
    other = await scene.rig.worker()
    stranger = await scene.rig.caller("eve", "worker")
    ticket = await scene.files.announce(sender, key, "f", "text/plain")
    liars = [
        (Sender(sender.account, other.end.worker), key),
        (Sender(stranger.account, sender.worker), key),
        (sender, (key[0], key[1] + 1)),
        (sender, (new_id(0), 1)),
    ]
    for liar, claimed in liars:
        with pytest.raises(NotFound):
            await scene.files.announce(liar, claimed, "f", "text/plain")
        with pytest.raises(NotFound):
            await scene.files.put_result(liar, claimed, '"x"')
    for liar, _ in liars[:2]:
        with pytest.raises(NotFound):
            await scene.files.receive(liar, ticket.id, body(b"x"))
    with pytest.raises(NotFound):
        await scene.files.receive(sender, new_key(), body(b"x"))


async def test_nothing_more_of_an_attempt_that_was_lost(scene: Scene) -> None:
    _, sender, key = await scene.begin()
    ticket = await scene.files.announce(sender, key, "f", "text/plain")
    await scene.rig.losses.rescue(key, "it was lost", slot_free=True)
    with pytest.raises(Superseded):
        await scene.files.announce(sender, key, "g", "text/plain")
    with pytest.raises(Superseded):
        await scene.files.receive(sender, ticket.id, body(b"late"))
    with pytest.raises(Superseded):
        await scene.files.put_result(sender, key, '"late"')


async def test_files_have_a_largest_size(scene: Scene) -> None:
    _, sender, key = await scene.begin()
    with pytest.raises(BlobTooLarge):
        await scene.files.announce(sender, key, "f", "text/plain", LIMIT + 1)
    ticket = await scene.files.announce(sender, key, "f", "text/plain")
    with pytest.raises(BlobTooLarge):
        await scene.files.receive(sender, ticket.id, body(b"x"), LIMIT + 1)
    with pytest.raises(BlobTooLarge):
        await scene.files.receive(sender, ticket.id, body(bytes(LIMIT), b"x"))
    await scene.files.receive(sender, ticket.id, body(bytes(LIMIT)))


async def test_a_store_that_takes_uploads_itself(store: Database, tmp_path: Path) -> None:
    bucket = Bucket(tmp_path / "bucket")
    scene = Scene(store, bucket)
    _, sender, key = await scene.begin()
    ticket = await scene.files.announce(sender, key, "f.txt", "text/plain", 5)
    assert ticket.upload == UploadTarget(
        f"https://bucket.example.net/{ticket.id}",
        headers={
            "content-type": "text/plain",
            "content-disposition": "inline; filename=\"f.txt\"; filename*=UTF-8''f.txt",
        },
    )
    digest = hashlib.sha256(b"hello").hexdigest()
    with pytest.raises(NotUploaded):
        await scene.files.confirm(sender, ticket.id, Proof(5, digest))
    await bucket.put(ticket.id, body(b"hello"), LIMIT, Label("text/plain"))
    with pytest.raises(NotUploaded):
        await scene.files.confirm(sender, ticket.id, Proof(6, digest))
    await scene.files.confirm(sender, ticket.id, Proof(5, digest))
    assert await scene.read(ticket.id, "f.txt") == b"hello"


async def test_a_store_that_takes_parts_has_them_joined(store: Database, tmp_path: Path) -> None:
    blobs = Parts(tmp_path / "bucket")
    scene = Scene(store, blobs)
    _, sender, key = await scene.begin()
    ticket = await scene.files.announce(sender, key, "f.txt", "text/plain", 5)
    proof = Proof(5, hashlib.sha256(b"hello").hexdigest(), "upload-1", ["one", "two"])
    with pytest.raises(NotUploaded):
        await scene.files.confirm(sender, ticket.id, proof)
    blobs.sent = {"upload-1": ("one", "two")}
    for _ in range(2):
        await scene.files.confirm(sender, ticket.id, proof)
    assert await scene.read(ticket.id, "f.txt") == b"hello"


async def test_whoever_asks_where_to_go_on_ends_the_body_that_still_trickles_in(scene: Scene) -> None:
    _, sender, key = await scene.begin()
    ticket = await scene.files.announce(sender, key, "f", "text/plain")
    begun, more = asyncio.Event(), asyncio.Event()

    async def stalled() -> AsyncIterator[bytes]:
        yield b"first"
        begun.set()
        await more.wait()
        yield b" and late"

    stale = asyncio.create_task(scene.files.append(sender, ticket.id, 0, stalled()))
    await begun.wait()
    assert await scene.files.offset(sender, ticket.id) == 5
    more.set()
    assert await stale == 5
    assert await scene.files.append(sender, ticket.id, 5, body(b" and last")) == 14
    proof = Proof(14, hashlib.sha256(b"first and last").hexdigest())
    await asyncio.gather(*(scene.files.confirm(sender, ticket.id, proof) for _ in range(3)))
    assert await scene.read(ticket.id, "f") == b"first and last"
    with pytest.raises(NotUploaded):
        await scene.files.confirm(sender, ticket.id, Proof(14, "a" * 64))


async def test_what_came_before_a_break_is_kept(scene: Scene) -> None:
    _, sender, key = await scene.begin()
    ticket = await scene.files.announce(sender, key, "f", "text/plain")

    async def breaking() -> AsyncIterator[bytes]:
        yield b"some"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await scene.files.append(sender, ticket.id, 0, breaking())
    assert await scene.files.offset(sender, ticket.id) == 4
    with pytest.raises(BlobOffset):
        await scene.files.append(sender, ticket.id, 3, body(b"e"))
    with pytest.raises(BlobTooLarge):
        await scene.files.append(sender, ticket.id, 4, body(bytes(LIMIT)))
    with pytest.raises(BlobTooLarge):
        await scene.files.append(sender, ticket.id, 4, body(), LIMIT)


async def test_a_large_result_is_cut_and_joined(scene: Scene) -> None:
    worker, sender, key = await scene.begin()
    await scene.files.put_result(sender, key, '"an earlier try that was longer%s"' % ("x" * 900_000))
    text = '"%s"' % ("aü€😀" * 60_000)
    await scene.files.put_result(sender, key, text)
    sizes = [
        len(chunk[4].encode()) for chunk in await scene.db.read("read_chunks", attempts=f'[["{key[0]}",{key[1]}]]')
    ]
    assert sum(sizes) == len(text.encode())
    assert max(sizes) <= 256_000
    await worker.finish(key, uploaded=True)
    shown = await scene.rig.predictions.get(worker.caller.account, key[0])
    assert (shown.status, shown.output) == ("succeeded", text.encode())


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("cat.png", "cat.png"),
        ("/etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("../..", "file"),
        ("", "file"),
        ("a/", "file"),
        ("...", "file"),
        (" a\r\nb\0c\u202egnp.exe ", "abcgnp.exe"),
        ("bücher €.txt", "bücher €.txt"),
        ("a" * 300 + ".png", "a" * 251 + ".png"),
        ("€" * 100, "€" * 85),
        ("a." + "b" * 300, ("a." + "b" * 300)[:255]),
    ],
)
def test_safe_names(given: str, kept: str) -> None:
    assert safe_name(given) == kept
    assert len(kept.encode()) <= 255


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("image/PNG", "image/png"),
        ("text/plain; charset=utf-8", "text/plain; charset=utf-8"),
        ("image/svg+xml", "image/svg+xml"),
        ("", "application/octet-stream"),
        ("image", "application/octet-stream"),
        ("text/html\r\nSet-Cookie: a=b", "application/octet-stream"),
        ("text/plain; charset=ü", "application/octet-stream"),
    ],
)
def test_safe_types(given: str, kept: str) -> None:
    assert safe_type(given) == kept
