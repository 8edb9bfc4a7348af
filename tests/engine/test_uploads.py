"""Files of clients: what inputs may name, how workers get it, and how long it is kept."""

import base64
import hashlib
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cogflare.blobs.base import BlobMissing, BlobTooLarge
from cogflare.blobs.local import LocalBlobStore
from cogflare.domain.errors import InvalidInput, NotFound, QueueFull, Reused
from cogflare.engine.files import Files, Sender
from cogflare.engine.predictions import Order
from cogflare.engine.pruning import Terms
from cogflare.engine.repeats import Answer
from cogflare.engine.requeues import requeue
from cogflare.engine.retention import Retention
from cogflare.engine.sweeps import Sweeps
from cogflare.engine.uploads import About, TookTooLong
from cogflare.engine.views import PredictionView
from cogflare.store import files
from cogflare.store.base import Database
from cogflare.store.catalog import Caller
from cogflare.store.files import FileRow
from engine.rig import MovableClock, Rig, RigWorker

pytestmark = pytest.mark.anyio
FILE = {"type": "string", "format": "uri"}
PROPERTIES = {"image": FILE, "more": {"type": "array", "items": FILE}, "prompt": {"type": "string"}}
SCHEMA = {"components": {"schemas": {"Input": {"type": "object", "properties": PROPERTIES}}}}
ORIGIN, DIALLED = "https://api.example.net", "http://10.1.2.3:8000"
INLINE, LIMIT = 1_000, 100_000
HOUR_S, DAY_S = 3600.0, 86_400.0


class Sent:
    """An upload as it comes in."""

    def __init__(self, content: bytes, name: str, error: Exception | None = None) -> None:
        self._content, self._name, self._error = content, name, error

    async def content(self) -> AsyncIterable[bytes]:
        return self._pieces()

    async def _pieces(self) -> AsyncIterator[bytes]:
        yield self._content[:5]
        yield self._content[5:]

    def said(self) -> About:
        return About("not yet known", "")

    async def rest(self) -> About:
        if self._error is not None:
            raise self._error
        return About(self._name, "image/png", {"a": 1})


class Scene:
    """A node with a worker whose model takes files."""

    def __init__(self, store: Database, folder: Path) -> None:
        self.db = store
        self.clock = MovableClock()
        self.blobs = LocalBlobStore(folder)
        self.rig = Rig(
            store, clock=self.clock, blobs=self.blobs, max_upload_bytes=LIMIT, max_inline_bytes=INLINE, max_queued=3
        )
        self.sweeps = Sweeps(store, self.blobs)

    async def begin(self) -> tuple[Caller, RigWorker]:
        await self.rig.vault.unlock(self.db)
        return await self.rig.caller("ada"), await self.rig.worker(schema=msgspec.json.encode(SCHEMA))

    async def upload(self, account: str, content: bytes = b"some cat", name: str = "a cat.png") -> FileRow:
        return await self.rig.uploads.receive(account, Sent(content, name))

    async def create(self, caller: Caller, values: dict[str, Any], text: bytes | None = None) -> PredictionView:
        return await self.rig.predictions.create(caller, order(values, text))

    async def given(self, worker: RigWorker, prediction: str) -> Any:
        """Return the input of the next assignment, as the worker fetches it."""
        work = await worker.next()
        assert work.prediction == prediction
        assert work.input is msgspec.UNSET
        text = await self.rig.predictions.input_of(prediction, work.attempt, worker.end.worker, DIALLED)
        await worker.start(work)
        return msgspec.json.decode(text)

    async def read(self, url: str) -> bytes:
        """Download a file as a worker does, without any right but the URL."""
        path, _, query = url.removeprefix(f"{DIALLED}/v1/files/").partition("?")
        asked = dict(pair.split("=") for pair in query.replace("%3D", "\0").split("&"))
        signature = asked["signature"].replace("\0", "=").replace("%2F", "/").replace("%2B", "+")
        assert self.rig.inputs is not None
        row = await self.rig.inputs.downloads.find(path.partition("/")[0], asked["owner"], asked["expiry"], signature)
        return await self.bytes_of(row.id)

    async def bytes_of(self, id: str) -> bytes:
        reader = await self.blobs.open(id)
        content = b"".join([piece async for piece in reader])
        await reader.aclose()
        return content

    async def sweep(self) -> None:
        """Let everything go whose time is over."""
        for chore in (self.sweeps.unbound, self.sweeps.uploads, self.sweeps.expired):
            while await chore(self.clock.wall()):
                pass


@pytest.fixture
def scene(store: Database, tmp_path: Path) -> Scene:
    return Scene(store, tmp_path / "files")


def order(values: dict[str, Any], text: bytes | None = None) -> Order:
    return Order(text or msgspec.json.encode(values), values, "ada/noop", webhook_origin=ORIGIN)


def url_of(row: FileRow, base: str = ORIGIN) -> str:
    return f"{base}/v1/files/{row.id}"


def data_url(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


# --- uploads ----------------------------------------------------------------------------------------------------------


async def test_an_upload_is_there_until_its_end(scene: Scene) -> None:
    caller, _ = await scene.begin()
    row = await scene.upload(caller.account)
    assert (row.name, row.content_type, row.size, row.metadata) == ("a cat.png", "image/png", 8, '{"a":1}')
    assert row.sha256 == hashlib.sha256(b"some cat").hexdigest()
    assert await scene.rig.uploads.find(caller.account, row.id) == row
    assert await scene.rig.uploads.page(caller.account) == [row]
    scene.clock.wall_ahead_s = DAY_S + 1
    with pytest.raises(NotFound):
        await scene.rig.uploads.find(caller.account, row.id)
    assert await scene.rig.uploads.page(caller.account) == []
    scene.clock.wall_ahead_s += HOUR_S
    await scene.sweep()
    with pytest.raises(BlobMissing):
        await scene.blobs.head(row.id)
    assert await scene.db.read("get_file", id=row.id) == []


async def test_an_upload_that_fails_leaves_nothing(scene: Scene) -> None:
    caller, _ = await scene.begin()
    for content, error in ((b"x" * 9, ValueError("a bad field")), (b"x" * (LIMIT + 1), None)):
        with pytest.raises((ValueError, BlobTooLarge)):
            await scene.rig.uploads.receive(caller.account, Sent(content, "x", error))
    assert await scene.rig.uploads.page(caller.account) == []
    await scene.sweep()
    assert not [path for path in scene.blobs._root.rglob("*") if path.is_file()]


async def test_an_upload_that_takes_too_long_leaves_nothing(scene: Scene) -> None:
    caller, _ = await scene.begin()

    class Slow(Sent):
        async def _pieces(self) -> AsyncIterator[bytes]:
            yield b"some "
            scene.clock.wall_ahead_s = 2 * HOUR_S
            await scene.sweep()
            yield b"cat"

    with pytest.raises(TookTooLong, match="send it again"):
        await scene.rig.uploads.receive(caller.account, Slow(b"", "x"))
    assert not [path for path in scene.blobs._root.rglob("*") if path.is_file()]


# --- inputs that name uploads -----------------------------------------------------------------------------------------


async def test_a_worker_gets_the_bytes_of_an_upload(scene: Scene) -> None:
    caller, worker = await scene.begin()
    row = await scene.upload(caller.account)
    values = {"image": url_of(row), "more": [url_of(row, "http://another.name:99"), "https://elsewhere.net/x.png"]}
    created = await scene.create(caller, values)
    assert msgspec.json.decode(created.input) == values
    given = await scene.given(worker, created.id)
    assert given["image"].startswith(f"{DIALLED}/v1/files/{row.id}/download/a%20cat.png?owner=ada&")
    assert given["more"] == [given["image"], "https://elsewhere.net/x.png"]
    assert await scene.read(given["image"]) == b"some cat"
    scene.clock.wall_ahead_s = HOUR_S + 1
    with pytest.raises(NotFound):
        await scene.read(given["image"])


async def test_an_upload_is_found_however_its_url_is_spelled(scene: Scene) -> None:
    caller, worker = await scene.begin()
    row = await scene.upload(caller.account)
    values = {"image": f"HTTPS://host/prefix/v1/files/{row.id}"}
    created = await scene.create(caller, values, msgspec.json.encode(values).replace(b"/", b"\\/"))
    assert msgspec.json.decode(created.input) == values
    assert await scene.read((await scene.given(worker, created.id))["image"]) == b"some cat"


async def test_text_that_looks_like_an_upload_stays(scene: Scene) -> None:
    caller, worker = await scene.begin()
    eve = await scene.rig.caller("eve")
    mine, hers = await scene.upload(caller.account), await scene.upload(eve.account)
    values = {"prompt": url_of(mine), "image": url_of(hers, "https://elsewhere.net")}
    created = await scene.create(caller, values)
    assert await scene.given(worker, created.id) == values


@pytest.mark.parametrize("whose", ["nobody's", "eve's", "expired"])
async def test_an_upload_that_the_account_does_not_have(scene: Scene, whose: str) -> None:
    caller, _ = await scene.begin()
    eve = await scene.rig.caller("eve")
    row = await scene.upload(eve.account if whose == "eve's" else caller.account)
    url = f"{ORIGIN}/v1/files/{'0' * 40}" if whose == "nobody's" else url_of(row)
    if whose == "expired":
        scene.clock.wall_ahead_s = DAY_S + 1
    with pytest.raises(InvalidInput) as refused:
        await scene.create(caller, {"more": [url]})
    assert [(one.type, one.field) for one in refused.value.problems] == [("file_not_found", "input.more.0")]


async def test_an_upload_that_ends_while_a_prediction_is_created(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    caller, _ = await scene.begin()
    row, other = await scene.upload(caller.account), await scene.upload(caller.account)
    found = files.get

    async def last_look(db: Database, id: str) -> FileRow | None:
        seen = await found(db, id)
        if id == row.id:
            with suppress(NotFound):
                await scene.rig.uploads.delete(caller.account, id)
        return seen

    monkeypatch.setattr(files, "get", last_look)
    with pytest.raises(InvalidInput) as refused:
        await scene.rig.repeats.keyed(caller, order({"image": url_of(row), "more": [url_of(other)]}), "key", None)
    assert [one.field for one in refused.value.problems] == ["input.image"]


async def test_what_a_prediction_is_to_read_outlasts_its_end(scene: Scene) -> None:
    caller, worker = await scene.begin()
    rows = [await scene.upload(caller.account) for _ in range(2)]
    created = await scene.create(caller, {"more": [url_of(row) for row in rows]})
    await scene.rig.uploads.delete(caller.account, rows[0].id)
    scene.clock.wall_ahead_s = 2 * DAY_S
    await scene.sweep()
    given = await scene.given(worker, created.id)
    assert [await scene.read(url) for url in given["more"]] == [b"some cat"] * 2
    await worker.finish((created.id, 1))
    for url in given["more"]:
        with pytest.raises(NotFound):
            await scene.read(url)
    await scene.sweep()
    assert await scene.db.read("files_of_input", prediction=created.id) == []
    for row in rows:
        with pytest.raises(BlobMissing):
            await scene.blobs.head(row.id)


async def test_an_output_is_an_input_of_the_next_prediction(scene: Scene) -> None:
    caller, worker = await scene.begin()
    first = await scene.create(caller, {})
    work = await worker.next()
    key = await worker.start(work)
    made = Files(scene.db, scene.blobs, scene.clock)
    sender = Sender(worker.caller.account, worker.end.worker)
    ticket = await made.announce(sender, key, "a cat.png", "image/png")
    await made.receive(sender, ticket.id, Sent(b"a new cat", "")._pieces())
    await worker.finish(key, b'"%b"' % ticket.reference.encode(), files=1)
    assert first.id == work.prediction
    shown = ticket.reference.replace("cogflare-file:", ORIGIN)
    second = await scene.create(caller, {"image": shown, "prompt": shown})
    given = await scene.given(worker, second.id)
    assert given["image"] == ticket.reference.replace("cogflare-file:", DIALLED)


# --- data URLs --------------------------------------------------------------------------------------------------------


async def test_a_large_data_url_moves_to_the_storage(scene: Scene) -> None:
    caller, worker = await scene.begin()
    content = bytes(range(256)) * 20
    small, large = data_url(b"x" * 50), data_url(content)
    created = await scene.create(caller, {"image": large, "more": [small, large], "prompt": large})
    stored = msgspec.json.decode(created.input)
    reference = stored["image"]
    assert reference.startswith("cogflare-file:/f/")
    assert reference.endswith("/file.png")
    assert (stored["more"], stored["prompt"]) == ([small, reference], large)
    given = await scene.given(worker, created.id)
    assert given["image"] == reference.replace("cogflare-file:", DIALLED)
    assert await scene.bytes_of(reference.split("/")[2]) == content
    row = FileRow(*(await scene.db.read("get_file", id=reference.split("/")[2]))[0])
    assert (row.prediction, row.state, row.content_type) == (created.id, "bound", "image/png")
    assert await scene.rig.uploads.page(caller.account) == []


async def test_other_spellings_of_data_urls(scene: Scene) -> None:
    caller, _ = await scene.begin()
    content = b"\0\xff" * 1_001
    padded = data_url(content, "application/octet-stream")
    urls = [padded, padded.rstrip("="), "DATA:,%00" + "a" * 2_000, "data:text/html;charset=utf-8," + "b" * 2_000]
    urls += ["data:,a" + "%2c" * 50_000, "data:,ab" + "%2c" * 50_000, "data:," + "x%" * 50_000]
    created = await scene.create(caller, {"more": urls})
    rows = []
    for reference in msgspec.json.decode(created.input)["more"]:
        row = FileRow(*(await scene.db.read("get_file", id=reference.split("/")[2]))[0])
        rows.append((row.content_type, await scene.bytes_of(row.id)))
    assert rows == [
        ("application/octet-stream", content),
        ("application/octet-stream", content),
        ("text/plain", b"\0" + b"a" * 2_000),
        ("text/html;charset=utf-8", b"b" * 2_000),
        ("text/plain", b"a" + b"," * 50_000),
        ("text/plain", b"ab" + b"," * 50_000),
        ("text/plain", b"x%" * 50_000),
    ]


async def test_data_urls_that_are_refused(scene: Scene) -> None:
    caller, _ = await scene.begin()
    good = data_url(b"x" * 2_000)
    broken = [good[:-8] + "!" + good[-7:], good[:-1] + "\u00e4", good + "A", good[:500] + "=" + good[500:]]
    broken.append(data_url(b"x" * (LIMIT + 1)))
    for url in broken:
        with pytest.raises(InvalidInput) as refused:
            await scene.create(caller, {"more": [good, url]})
        assert [one.field for one in refused.value.problems] == ["input.more.1"], url[-20:]
    await scene.sweep()
    assert not [path for path in scene.blobs._root.rglob("*") if path.is_file()]


async def test_the_files_of_a_refused_create_go(scene: Scene) -> None:
    caller, _ = await scene.begin()
    for _ in range(4):
        await scene.create(caller, {})
    with pytest.raises(QueueFull):
        await scene.create(caller, {"image": data_url(b"x" * 2_000)})
    await scene.sweep()
    assert not [path for path in scene.blobs._root.rglob("*") if path.is_file()]


async def test_they_go_with_the_data_of_their_prediction(scene: Scene) -> None:
    caller, worker = await scene.begin()
    created = await scene.create(caller, {"image": data_url(b"x" * 2_000)})
    await scene.given(worker, created.id)
    await worker.finish((created.id, 1))
    id = msgspec.json.decode(created.input)["image"].split("/")[2]
    keeper = Retention(scene.db, scene.blobs, scene.clock, Terms(HOUR_S))
    await keeper.tick()
    await scene.sweep()
    assert await scene.blobs.head(id) == 2_000
    scene.clock.wall_ahead_s = 2 * HOUR_S
    await Retention(scene.db, scene.blobs, scene.clock, Terms(HOUR_S)).tick()
    await scene.sweep()
    with pytest.raises(BlobMissing):
        await scene.blobs.head(id)


async def test_too_many_files(scene: Scene) -> None:
    caller, _ = await scene.begin()
    with pytest.raises(InvalidInput, match="1 fields"):
        await scene.create(caller, {"more": [data_url(b"%d" % number * 600) for number in range(100, 201)]})


async def test_what_looks_like_an_upload_is_looked_for_once_and_not_without_end(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller, _ = await scene.begin()
    looked: list[str] = []
    found = files.get

    async def get(db: Database, id: str) -> FileRow | None:
        looked.append(id)
        return await found(db, id)

    monkeypatch.setattr(files, "get", get)
    lookalikes = [f"https://elsewhere.net/files/{number:040}" for number in range(500)]
    await scene.create(caller, {"more": lookalikes[:50] * 20})
    assert len(looked) == 50
    with pytest.raises(InvalidInput) as refused:
        await scene.create(caller, {"more": lookalikes})
    assert [one.type for one in refused.value.problems] == ["too_many_files"]
    assert len(looked) == 150
    with pytest.raises(InvalidInput) as refused:
        await scene.create(caller, {"more": [f"{ORIGIN}/v1/files/{'0' * 40}"] * 5_000})
    assert len(refused.value.problems) <= 100


# --- creates that are sent again --------------------------------------------------------------------------------------


async def test_a_create_with_a_large_data_url_is_known_again(scene: Scene) -> None:
    caller, _ = await scene.begin()
    prompt = data_url(b"a text, for the schema" * 100)
    sent = order({"image": data_url(b"x" * 2_000), "prompt": prompt})
    other = order({"image": data_url(b"y" * 2_000), "prompt": prompt})
    repeats = scene.rig.repeats

    async def twice(create: Callable[[Order, str], Awaitable[Answer]], name: str) -> None:
        first, again = await create(sent, name), await create(sent, name)
        assert (first.is_new, again.is_new) == (True, False)
        assert first.view.id == again.view.id
        with pytest.raises(Reused):
            await create(other, name)

    await twice(lambda what, key: repeats.keyed(caller, what, key, None), "key")
    await twice(lambda what, name: repeats.named(caller, what, name, None), "name")


async def test_text_that_looks_like_a_reference_stays(scene: Scene) -> None:
    caller, worker = await scene.begin()
    theirs = msgspec.json.decode((await scene.create(caller, {"image": data_url(b"x" * 2_000)})).input)["image"]
    first = await worker.next()
    await worker.finish(await worker.start(first))
    for prompt in ("cogflare-file:/f/\0/x", "cogflare-file:/worker/v1/inputs", theirs):
        values = {"image": data_url(b"y" * 2_000), "prompt": prompt}
        created = await scene.rig.repeats.named(caller, order(values), f"of-{len(prompt)}", None)
        given = await scene.given(worker, created.view.id)
        assert given["prompt"] == prompt
        assert await scene.bytes_of(given["image"].split("/")[4]) == b"y" * 2_000
        await worker.finish((created.view.id, 1), status="failed", error="no")
        again = await scene.rig.repeats.named(caller, order(values), f"of-{len(prompt)}", None)
        assert not again.is_new
        with pytest.raises(Reused):
            await scene.rig.repeats.named(caller, order(values | {"image": "https://x"}), f"of-{len(prompt)}", None)
        second, _ = await requeue(scene.rig.predictions, caller, created.view.id)
        assert (await scene.given(worker, second.id))["prompt"] == prompt
        await worker.finish((second.id, 1))


async def test_a_second_life_has_the_files_of_the_first(scene: Scene) -> None:
    caller, worker = await scene.begin()
    row = await scene.upload(caller.account)
    first = await scene.create(caller, {"image": data_url(b"x" * 2_000), "more": [url_of(row)]})
    await scene.given(worker, first.id)
    await worker.finish((first.id, 1), status="failed", error="no")
    second, is_new = await requeue(scene.rig.predictions, caller, first.id)
    assert is_new
    given = await scene.given(worker, second.id)
    assert given["image"] != msgspec.json.decode(first.input)["image"]
    assert await scene.bytes_of(given["image"].split("/")[4]) == b"x" * 2_000
    assert await scene.read(given["more"][0]) == b"some cat"
