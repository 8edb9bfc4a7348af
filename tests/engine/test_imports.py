"""Files between a provider and our storage: what outputs bring, and what inputs hand over."""

import asyncio
import base64
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from pathlib import Path
from types import AsyncGeneratorType
from typing import Any, Final

import msgspec
import pytest
from msgspec import Raw

from cogflare.blobs.base import BlobMissing, BlobUnavailable, Label, Stored
from cogflare.blobs.local import LocalBlobStore
from cogflare.domain.errors import NotFound
from cogflare.domain.ids import new_id, new_key
from cogflare.engine.files import Files, Superseded
from cogflare.engine.imports import MAX_FILES, Imported, ImportFailed, Imports
from cogflare.engine.predictions import Order
from cogflare.engine.sizes import SIZES, Sizes
from cogflare.engine.uploads import About
from cogflare.protocol.messages import AttemptKey
from cogflare.providers.base import (
    Busy,
    Denied,
    Described,
    File,
    Gone,
    ProviderError,
    Refused,
    Report,
    Sight,
    Submission,
    Terms,
    Unanswered,
)
from cogflare.store import errands, predictions, providers
from cogflare.store.base import Database
from cogflare.store.errands import NewErrand
from cogflare.store.files import FileRow
from cogflare.store.providers import ProviderRow
from engine.rig import MovableClock, Rig

pytestmark = pytest.mark.anyio

FILE: Final = {"type": "string", "format": "uri"}
PROPERTIES: Final = {"image": FILE, "more": {"type": "array", "items": FILE}, "prompt": {"type": "string"}}
SCHEMA: Final = {"components": {"schemas": {"Input": {"type": "object", "properties": PROPERTIES}}}}
FAR: Final = "https://far.test/files/"
ORIGIN: Final = "https://api.example.net"
INLINE, LIMIT, STALL_S = 500, 10_000, 0.3


class Shop:
    """A provider whose files vanish: `shelf` has them, `trouble` what goes wrong first, `taken` what it was given."""

    is_repeatable = True

    def __init__(self) -> None:
        self.shelf: dict[str, bytes] = {}
        self.trouble: list[Exception | str] = []
        self.fetched: list[str] = []
        self.taken: list[tuple[str, str, int, bytes]] = []
        self.bodies: list[AsyncGenerator[bytes, None]] = []  # so that nobody but their reader closes them
        self.open = 0
        self.most_open = 0

    @property
    def is_left(self) -> bool:
        """Whether every file that was opened was read to its end, or closed."""
        return self.open == 0 and all(
            isinstance(body, AsyncGeneratorType) and not body.ag_frame for body in self.bodies
        )

    def is_file(self, text: str) -> bool:
        return text.startswith(FAR)

    async def fetch(self, url: str) -> File:
        self.fetched.append(url)
        trouble = self.trouble.pop(0) if self.trouble else None
        if isinstance(trouble, Exception):
            raise trouble
        if url not in self.shelf:
            raise Gone("there is no such file any more")
        name = url.removeprefix(FAR).partition("?")[0]
        self.bodies.append(self._body(self.shelf[url], trouble))
        return File(name, "image/png", len(self.shelf[url]), self.bodies[-1])

    async def _body(self, content: bytes, trouble: str | None) -> AsyncGenerator[bytes, None]:
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            yield content[: len(content) // 2]
            await asyncio.sleep(0)
            if trouble == "breaks":
                raise ConnectionResetError("the connection was reset")
            if trouble == "ends":
                return
            if trouble == "stalls":
                await asyncio.Event().wait()
            yield content[len(content) // 2 :]
        finally:
            self.open -= 1

    async def upload(self, name: str, content_type: str, size: int, body: AsyncIterator[bytes]) -> str:
        content = b"".join([piece async for piece in body])
        trouble = self.trouble.pop(0) if self.trouble else None
        if isinstance(trouble, Exception):
            raise trouble
        self.taken.append((name, content_type, size, content))
        return f"{FAR}input-{len(self.taken)}"

    async def check(self, endpoint: str = "") -> Report:
        raise NotImplementedError

    async def describe(self, model: str, version: str | None, terms: Terms) -> Described:
        raise NotImplementedError

    async def submit(self, order: Submission) -> Sight:
        raise NotImplementedError

    async def find(self, mark: str, since: int) -> Sight | None:
        raise NotImplementedError

    async def poll(self, remote_id: str, terms: Terms) -> Sight:
        raise NotImplementedError

    async def changes(self, sight: Sight, terms: Terms) -> AsyncIterator[None]:
        for _ in ():
            yield

    async def cancel(self, remote_id: str, terms: Terms) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        raise NotImplementedError


class Cellar(LocalBlobStore):
    """A storage that does not answer some times first."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.refusals = 0

    async def put(self, key: str, body: Any, limit: int, label: Label) -> Stored:
        if self.refusals:
            self.refusals -= 1
            raise BlobUnavailable("the storage does not answer")
        return await super().put(key, body, limit, label)


class Sent:
    """An upload as it comes in."""

    def __init__(self, content: bytes, name: str) -> None:
        self._content, self._name = content, name

    async def content(self) -> AsyncIterator[bytes]:
        return self._pieces()

    async def _pieces(self) -> AsyncIterator[bytes]:
        yield self._content

    def said(self) -> About:
        return About(self._name, "image/png")

    async def rest(self) -> About:
        return self.said()


class Scene:
    """A prediction of ada's that a provider holds."""

    def __init__(self, db: Database, folder: Path) -> None:
        self.db = db
        self.blobs = Cellar(folder)
        self.clock = MovableClock()
        self.rig = Rig(db, clock=self.clock, blobs=self.blobs, max_upload_bytes=LIMIT, max_inline_bytes=INLINE)
        assert self.rig.inputs is not None
        self.files = Files(db, self.blobs, self.clock, LIMIT)
        self.imports = Imports(
            self.files, self.rig.inputs, self.blobs, INLINE, pauses_s=(0.0, 0.0), limit_s=20.0, stall_s=STALL_S
        )
        self.shop = Shop()

    async def begin(self, values: dict[str, Any] | None = None) -> AttemptKey:
        """Create a prediction, and give it to a provider."""
        worker = await self.rig.worker(schema=msgspec.json.encode(SCHEMA))
        await worker.disconnect()
        self.caller = await self.rig.caller("ada")
        text = msgspec.json.encode(values or {})
        order = Order(text, msgspec.json.decode(text), "ada/noop", webhook_origin=ORIGIN)
        created = await self.rig.predictions.create(self.caller, order)
        return await self.hand(created.id)

    async def hand(self, prediction: str) -> AttemptKey:
        """Let the provider hold the next attempt."""
        now, account = self.clock.wall(), self.caller.account
        row = ProviderRow(new_id(now), account, "far", "cogflare", FAR, "sealed", "", "{}", None, None, now, now)
        provider = await providers.put(self.db, row)
        self.holder = f"provider:{provider.id}"
        new = NewErrand(
            prediction, 0, account, "token", "ada/noop", provider.id, "far", self.holder, "node", new_id(now),
            new_key(), "{}", "{}", None, now, 9,
        )  # fmt: skip
        await self.db.write(*errands.claim(new, []))
        return prediction, 1

    async def outputs(self, key: AttemptKey, value: object, sizes: Sizes = SIZES) -> Imported:
        return await self.imports.outputs(self.shop, self.holder, key, Raw(msgspec.json.encode(value)), sizes)

    async def inputs(self, key: AttemptKey) -> Any:
        row = await predictions.get(self.db, key[0])
        assert row is not None
        text = await self.rig.predictions.input(row)
        assert text is not None
        return msgspec.json.decode(await self.imports.inputs(self.shop, row, text))

    def stock(self, *names: str) -> list[str]:
        """Put files on the shelf and return their URLs."""
        for name in names:
            self.shop.shelf[f"{FAR}{name}"] = f"content of {name}".encode()
        return [f"{FAR}{name}" for name in names]

    async def find(self, reference: str) -> FileRow:
        """Return the file that a reference names, as a reader finds it."""
        assert reference.startswith("cogflare-file:/f/")
        _, _, id, name = reference.split("/")
        return await self.files.find(id, name.replace("%20", " "))

    async def content(self, reference: str) -> bytes:
        reader = await self.files.open(await self.find(reference))
        content = b"".join([piece async for piece in reader])
        await reader.aclose()
        return content


@pytest.fixture
def scene(store: Database, tmp_path: Path) -> Scene:
    return Scene(store, tmp_path / "files")


def decoded(imported: Imported) -> Any:
    return msgspec.json.decode(imported.output)


def data_url(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


# --- outputs ---------------------------------------------------------------------------------------------------------


async def test_files_come_into_our_storage_and_outlast_the_prediction(scene: Scene) -> None:
    key = await scene.begin()
    one, two = scene.stock("a cat.png", "dog.png")
    imported = await scene.outputs(key, {"image": one, "more": [two, "just text"], "seed": 7})
    output = decoded(imported)
    assert imported.files == 2
    assert output["more"][1:] == ["just text"]
    assert output["seed"] == 7
    assert await scene.content(output["image"]) == b"content of a cat.png"
    assert await scene.content(output["more"][0]) == b"content of dog.png"
    row = await scene.find(output["image"])
    assert (row.state, row.name, row.content_type, row.prediction, row.attempt) == (
        "pending",
        "a cat.png",
        "image/png",
        *key,
    )
    scene.shop.shelf.clear()
    await scene.rig.predictions.cancel(scene.caller.account, key[0])
    assert (await scene.find(output["image"])).state == "bound"
    assert await scene.content(output["image"]) == b"content of a cat.png"
    assert scene.shop.is_left


@pytest.mark.parametrize("form", ["{0}", "[{0}]", '{{"a":[{{"b":{0}}}]}}', " [ {0} , 1.0 ] "])
async def test_a_file_may_stand_anywhere(scene: Scene, form: str) -> None:
    key = await scene.begin()
    [url] = scene.stock("cat.png")
    raw = Raw(form.format(f'"{url}"').encode())
    imported = await scene.imports.outputs(scene.shop, scene.holder, key, raw, SIZES)
    before, after = (part.encode() for part in form.format("|").split("|"))
    text = bytes(imported.output)
    assert text.startswith(before + b'"cogflare-file:/f/')
    assert text.endswith(b'/cat.png"' + after)


@pytest.mark.parametrize(
    "text",
    [
        b"null",
        b"[]",
        b'"some text"',
        b'["http://elsewhere.test/x.png", "data:,short", "https:", "data:"]',
        b'{"https://far.test/files/cat.png": 1}',
        b'{"https://far.test/files/cat.png" : "x"}',
        b'"a \\"https://far.test/files/cat.png\\" in a text"',
        b'"see https://far.test/files/cat.png"',
        b"[1.0, 1e400, 123456789012345678901234567890, -0.0]",
        b"[" * 5_000 + b"]" * 5_000,
        b'"data:' + b"x" * 600 + b'"',
        b'"data:image/png;base64,' + b"?" * 600 + b'"',
    ],
)
async def test_all_else_stays_as_it_was_written(scene: Scene, text: bytes) -> None:
    key = await scene.begin()
    scene.stock("cat.png")
    imported = await scene.imports.outputs(scene.shop, scene.holder, key, Raw(text), SIZES)
    assert (bytes(imported.output), imported.files) == (text, 0)
    assert scene.shop.fetched == []


async def test_an_escaped_url_is_one_too(scene: Scene) -> None:
    key = await scene.begin()
    scene.stock("cät.png")
    raw = Raw(b'"https:\\/\\/far.test\\/files\\/c\\u00e4t.png"')
    imported = await scene.imports.outputs(scene.shop, scene.holder, key, raw, SIZES)
    assert imported.files == 1
    assert decoded(imported).endswith("/c%C3%A4t.png")


async def test_the_same_file_is_fetched_once_however_often_it_comes(scene: Scene) -> None:
    key = await scene.begin()
    one, two = scene.stock("one.png", "two.png")
    first = decoded(await scene.outputs(key, [one, one]))
    assert first[0] == first[1]
    again = await scene.outputs(key, [one, two, one])
    assert decoded(again)[0] == first[0]
    assert again.files == 2
    assert scene.shop.fetched == [one, two]
    scene.imports.forget(key)
    assert decoded(await scene.outputs(key, one)) != first[0]
    assert scene.shop.fetched == [one, two, one]


async def test_large_data_urls_become_files(scene: Scene) -> None:
    key = await scene.begin()
    content = bytes(range(256)) * 3
    small = data_url(b"tiny")
    imported = await scene.outputs(key, {"a": data_url(content), "b": [data_url(content)], "c": small})
    output = decoded(imported)
    assert imported.files == 1
    assert output["a"] == output["b"][0]
    assert output["c"] == small
    assert await scene.content(output["a"]) == content
    row = await scene.find(output["a"])
    assert (row.name, row.content_type) == ("output.png", "image/png")


@pytest.mark.parametrize("trouble", [Unanswered("no answer"), Busy("slow down", 0.0), "breaks", "ends", "stalls"])
async def test_what_breaks_is_fetched_again(scene: Scene, trouble: Exception | str) -> None:
    key = await scene.begin()
    [url] = scene.stock("cat.png")
    scene.shop.trouble = [trouble, trouble]
    output = decoded(await scene.outputs(key, url))
    assert await scene.content(output) == b"content of cat.png"
    assert scene.shop.fetched == [url] * 3
    assert scene.shop.is_left


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (Unanswered("the line is dead"), "the line is dead"),
        (Busy("slow down"), "slow down"),
        ("breaks", "the connection was reset"),
        ("ends", "9 of 18 bytes came"),
        ("stalls", "nothing came for too long"),
    ],
)
async def test_what_breaks_again_and_again_may_pass_later(scene: Scene, trouble: Exception | str, words: str) -> None:
    key = await scene.begin()
    url, other = scene.stock("cat.png", "dog.png")
    assert decoded(await scene.outputs(key, other))
    scene.shop.trouble = [trouble] * 3
    with pytest.raises(ImportFailed) as failed:
        await scene.outputs(key, {"images": [other, url]})
    assert (failed.value.place, failed.value.may_pass) == ("output.images.1", True)
    assert words in failed.value.text
    assert scene.shop.is_left
    assert decoded(await scene.outputs(key, url)).endswith("/cat.png")
    assert scene.shop.fetched == [other, *[url] * 4]


@pytest.mark.parametrize(
    ("trouble", "may_pass"), [(Gone("it is gone"), False), (Refused("not for you"), False), (Denied("no key"), True)]
)
async def test_what_the_provider_does_not_hand_out_is_not_asked_for_again(
    scene: Scene, trouble: ProviderError, may_pass: bool
) -> None:
    key = await scene.begin()
    [url] = scene.stock("cat.png")
    scene.shop.trouble = [trouble]
    with pytest.raises(ImportFailed) as failed:
        await scene.outputs(key, url)
    assert (failed.value.place, failed.value.may_pass) == ("output", may_pass)
    assert str(trouble) in str(failed.value)
    assert scene.shop.fetched == [url]


async def test_a_storage_that_does_not_answer_is_asked_again(scene: Scene) -> None:
    key = await scene.begin()
    [url] = scene.stock("cat.png")
    scene.blobs.refusals = 2
    assert await scene.content(decoded(await scene.outputs(key, [url]))[0]) == b"content of cat.png"
    scene.blobs.refusals = 3
    with pytest.raises(ImportFailed, match="the storage does not answer") as failed:
        await scene.outputs(key, data_url(b"x" * 600))
    assert failed.value.may_pass


@pytest.mark.parametrize("says_size", [True, False])
async def test_a_file_that_is_too_large_is_not_kept(scene: Scene, says_size: bool, monkeypatch: Any) -> None:
    key = await scene.begin()
    [url] = scene.stock("cat.png")
    scene.shop.shelf[url] = b"x" * (LIMIT + 1)
    if not says_size:
        monkeypatch.setattr(scene.shop, "fetch", unsized(scene.shop))
    with pytest.raises(ImportFailed, match=f"more than {LIMIT} bytes") as failed:
        await scene.outputs(key, url)
    assert not failed.value.may_pass
    assert scene.shop.fetched == [url]
    assert scene.shop.is_left


def unsized(shop: Shop) -> Any:
    fetch = shop.fetch

    async def without(url: str) -> File:
        return msgspec.structs.replace(await fetch(url), size=None)

    return without


async def test_files_come_a_few_at_a_time_and_not_without_end(scene: Scene) -> None:
    key = await scene.begin()
    urls = scene.stock(*(f"{number}.png" for number in range(30)))
    assert (await scene.outputs(key, urls)).files == 30
    assert 2 <= scene.shop.most_open <= 4
    with pytest.raises(ImportFailed, match=f"more than {MAX_FILES} files"):
        await scene.outputs(key, [f"{FAR}{number}" for number in range(MAX_FILES)])
    assert len(scene.shop.fetched) == 30


async def test_an_output_beyond_every_limit_is_refused(scene: Scene) -> None:
    key = await scene.begin()
    sizes = Sizes(output_bytes=50, result_bytes=100)
    with pytest.raises(ImportFailed, match="Output is larger than 100 bytes"):
        await scene.outputs(key, "x" * 100, sizes)
    assert (await scene.outputs(key, "x" * 98, sizes)).files == 0
    # What becomes a file counts no more.
    assert (await scene.outputs(key, data_url(b"x" * 600), sizes)).files == 1


async def test_files_that_take_too_long_together_are_given_up(scene: Scene) -> None:
    assert scene.rig.inputs is not None
    key = await scene.begin()
    urls = scene.stock("one.png", "two.png")
    scene.shop.trouble = ["stalls", "stalls"]
    hasty = Imports(scene.files, scene.rig.inputs, scene.blobs, INLINE, limit_s=0.05)
    with pytest.raises(ImportFailed, match="did not come within") as failed:
        await hasty.outputs(scene.shop, scene.holder, key, Raw(msgspec.json.encode(urls)), SIZES)
    assert failed.value.may_pass
    assert scene.shop.is_left


async def test_a_task_that_is_given_up_leaves_nothing_open(scene: Scene) -> None:
    key = await scene.begin()
    [url] = scene.stock("cat.png")
    scene.shop.trouble = ["stalls"]
    task = asyncio.create_task(scene.outputs(key, url))
    async with asyncio.timeout(5):
        while not scene.shop.open:
            await asyncio.sleep(0)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert scene.shop.is_left


async def test_an_attempt_that_is_over_brings_nothing(scene: Scene) -> None:
    key = await scene.begin()
    one, two = scene.stock("one.png", "two.png")
    with pytest.raises(Superseded):
        await scene.imports.outputs(scene.shop, "provider:another", key, Raw(f'"{one}"'.encode()), SIZES)
    await scene.rig.predictions.cancel(scene.caller.account, key[0])
    with pytest.raises(Superseded):
        await scene.outputs(key, two)
    assert scene.shop.is_left
    assert await scene.db.read("expired_files", after="", limit=10) == []


# --- inputs ----------------------------------------------------------------------------------------------------------


async def test_files_of_ours_are_handed_over(scene: Scene) -> None:
    caller = await scene.rig.caller("ada")
    upload = await scene.rig.uploads.receive(caller.account, Sent(b"some cat", "a cat.png"))
    own, large, small = f"{ORIGIN}/v1/files/{upload.id}", data_url(b"y" * 600), data_url(b"tiny")
    public = "https://pictures.test/dog.png"
    key = await scene.begin({"image": own, "more": [large, own, small, public], "prompt": "hi"})
    given = await scene.inputs(key)
    first, second = given["image"], given["more"][0]
    assert given == {"image": first, "more": [second, first, small, public], "prompt": "hi"}
    assert {first, second} == {f"{FAR}input-1", f"{FAR}input-2"}
    assert sorted(scene.shop.taken) == [
        ("a cat.png", "image/png", 8, b"some cat"),
        ("file.png", "image/png", 600, b"y" * 600),
    ]
    assert await scene.inputs(key) == given
    assert len(scene.shop.taken) == 2
    scene.imports.forget(key)
    await scene.inputs(key)
    assert len(scene.shop.taken) == 4


async def test_outputs_of_before_are_handed_over_as_inputs(scene: Scene) -> None:
    first = await scene.begin()
    [url] = scene.stock("cat.png")
    reference = decoded(await scene.outputs(first, url))
    await scene.rig.predictions.cancel(scene.caller.account, first[0])
    key = await scene.begin({"image": reference.replace("cogflare-file:", ORIGIN)})
    assert await scene.inputs(key) == {"image": f"{FAR}input-1"}
    assert scene.shop.taken == [("cat.png", "image/png", 18, b"content of cat.png")]


async def test_an_input_without_files_goes_as_it_is(scene: Scene) -> None:
    key = await scene.begin()
    row = await predictions.get(scene.db, key[0])
    assert row is not None
    for text in ("{}", '{"a": 1.0,  "image": "https://pictures.test/files/x.png"}'):
        assert await scene.imports.inputs(scene.shop, row, text) == text.encode()


async def test_files_of_others_are_not_handed_over(scene: Scene) -> None:
    bob = await scene.rig.caller("bob")
    upload = await scene.rig.uploads.receive(bob.account, Sent(b"bob's", "secret.png"))
    foreign = f"https://pictures.test/v1/files/{upload.id}"
    key = await scene.begin({"image": foreign})
    assert await scene.inputs(key) == {"image": foreign}
    assert scene.shop.taken == []


async def test_an_upload_that_breaks_is_made_again(scene: Scene) -> None:
    key = await scene.begin({"image": data_url(b"y" * 600)})
    scene.shop.trouble = [Unanswered("no answer"), Busy("slow down", 0.0)]
    assert await scene.inputs(key) == {"image": f"{FAR}input-1"}
    scene.imports.forget(key)
    scene.shop.trouble = [Unanswered("no answer")] * 3
    with pytest.raises(Unanswered):
        await scene.inputs(key)
    scene.shop.trouble = [Refused("no such kind of file")]
    with pytest.raises(Refused):
        await scene.inputs(key)
    assert scene.shop.trouble == []


async def test_a_file_that_is_gone_from_the_storage_is_said(scene: Scene) -> None:
    key = await scene.begin({"image": data_url(b"y" * 600)})
    [(id,)] = [(row.id,) for row in await files_of(scene, key)]
    await scene.blobs.delete(id)
    with pytest.raises(BlobMissing):
        await scene.blobs.head(id)
    with pytest.raises(ImportFailed, match=r"input file file\.png: it is gone from the storage") as failed:
        await scene.inputs(key)
    assert not failed.value.may_pass
    with pytest.raises(NotFound):
        await scene.files.find(new_key(), "file.png")


async def files_of(scene: Scene, key: AttemptKey) -> list[FileRow]:
    return [FileRow(*row) for row in await scene.db.read("files_moved", prediction=key[0])]
