"""What buckets do beyond the seam: signed URLs for workers and clients, uploads in parts, how a setup is refused."""

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cogflare.app import SystemClock
from cogflare.blobs import s3
from cogflare.blobs.base import BlobError, BlobMismatch, BlobMissing, BlobRefused, BlobStore, BlobUnavailable, Label
from cogflare.blobs.bucket import Bucket, Refusal, S3Options, find_bucket, refused
from cogflare.blobs.open import open_blobs
from cogflare.blobs.s3calls import S3Calls
from cogflare.domain.ids import new_key
from support.buckets import BUCKET, BucketServer, Miniflare, Moto
from support.web import serving

pytestmark = pytest.mark.anyio
LIMIT = 1 << 30
LABEL = Label("image/png", "inline; filename=\"_ x.png\"; filename*=UTF-8''%C3%BC%20x.png")
MEGABYTE = 1 << 20


class MovableClock(SystemClock):
    """The clock of this machine, some seconds off."""

    off_s = 0.0

    def wall(self) -> int:
        return super().wall() + int(self.off_s * 1e6)


@pytest.fixture(params=["moto", "miniflare"])
def server(request: pytest.FixtureRequest) -> BucketServer:
    found: BucketServer = request.getfixturevalue(request.param)
    return found


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient() as client:
        yield client


class Scene:
    """A bucket's store, and what it is made of."""

    def __init__(self, server: BucketServer, folder: Path, **changes: Any) -> None:
        self.clock = MovableClock()
        self.options = server.options(**changes)
        storage = server.storage()
        self.bucket = find_bucket(storage, self.options)
        self.calls = S3Calls(self.bucket, self.clock)
        self.blobs = open_blobs(folder, storage, self.options, self.clock)

    async def aclose(self) -> None:
        await self.blobs.aclose()
        await self.calls.aclose()


@pytest.fixture
async def scene(server: BucketServer, tmp_path: Path) -> AsyncIterator[Scene]:
    made = Scene(server, tmp_path)
    yield made
    await made.aclose()


async def body(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def is_refused(
    http: httpx2.AsyncClient, method: str, url: str, content: bytes = b"", headers: Mapping[str, str] | None = None
) -> bool:
    """Say whether the service refuses; it may do so without reading what is sent, and then the connection breaks."""
    for _ in range(10):
        try:
            answer = await http.request(method, url, content=content, headers=headers)
        except (httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError):
            continue
        return answer.status_code == 403
    raise AssertionError("there was no answer")


async def contents(blobs: BlobStore, key: str) -> bytes:
    reader = await blobs.open(key)
    try:
        return b"".join([piece async for piece in reader])
    finally:
        await reader.aclose()


async def test_a_download_from_the_bucket_itself(scene: Scene, http: httpx2.AsyncClient) -> None:
    key = new_key()
    await scene.blobs.put(key, body(b"0123456789"), LIMIT, LABEL)
    url = await scene.blobs.link(key, LABEL, 60)
    assert url is not None
    whole = await http.get(url)
    assert (whole.status_code, whole.content) == (200, b"0123456789")
    assert whole.headers["content-type"] == "image/png"
    assert whole.headers["content-disposition"] == LABEL.content_disposition
    assert whole.headers["etag"]
    part = await http.get(url, headers={"range": "bytes=2-4"})
    assert (part.status_code, part.content) == (206, b"234")
    assert part.headers["content-range"] == "bytes 2-4/10"
    assert await scene.blobs.link(key, LABEL, 60) == url


async def test_a_link_has_the_last_word_about_the_label(moto: Moto, tmp_path: Path, http: httpx2.AsyncClient) -> None:
    scene = Scene(moto, tmp_path)
    key = new_key()
    await scene.blobs.put(key, body(b"0123456789"), LIMIT, Label("text/html"))
    shown = await http.get(await scene.blobs.link(key, LABEL, 60) or "")
    assert shown.headers["content-type"] == "image/png"
    assert shown.headers["content-disposition"] == LABEL.content_disposition
    await scene.aclose()


async def test_a_label_is_kept_with_the_blob(scene: Scene, http: httpx2.AsyncClient) -> None:
    """A public domain of the bucket knows nothing but what was stored."""
    for content in (b"small", os.urandom(9 * MEGABYTE)):
        key = new_key()
        await scene.blobs.put(key, body(content), LIMIT, LABEL)
        shown = await http.get(scene.calls.link("GET", scene.bucket.object(key), {}, {}, 60))
        assert shown.content == content
        assert shown.headers["content-type"] == LABEL.content_type
        assert shown.headers["content-disposition"] == LABEL.content_disposition


async def test_an_upload_straight_to_the_bucket(scene: Scene, http: httpx2.AsyncClient) -> None:
    key = new_key()
    target = await scene.blobs.upload_target(key, LABEL, 5)
    assert target is not None
    assert target.parts == ()
    sent = await http.request(target.method, target.url, content=b"hello", headers=target.headers)
    assert sent.status_code == 200, sent.text
    assert await scene.blobs.head(key) == 5
    assert await contents(scene.blobs, key) == b"hello"
    shown = await http.get(scene.calls.link("GET", scene.bucket.object(key), {}, {}, 60))
    assert shown.headers["content-type"] == LABEL.content_type
    assert shown.headers["content-disposition"] == LABEL.content_disposition


async def test_an_upload_in_parts(scene: Scene, http: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "SINGLE", 10 * MEGABYTE)
    monkeypatch.setattr(s3, "WORKER_PART", 5 * MEGABYTE)
    key, content = new_key(), os.urandom(11 * MEGABYTE + 1)
    target = await scene.blobs.upload_target(key, LABEL, len(content))
    assert target is not None
    assert (len(target.parts), target.part_bytes) == (3, 5 * MEGABYTE)
    tags = []
    for number, url in enumerate(target.parts):
        begin = number * target.part_bytes
        for _ in range(2):  # a part may be sent again and again
            sent = await http.put(url, content=content[begin : begin + target.part_bytes])
            assert sent.status_code == 200, sent.text
        tags.append(sent.headers["etag"])
    with pytest.raises(BlobMismatch):
        await scene.blobs.complete(key, target.upload, [tags[0], tags[0], tags[2]])
    with pytest.raises(BlobMissing):
        await scene.blobs.head(key)
    for _ in range(2):
        await scene.blobs.complete(key, target.upload, tags)
    assert await scene.blobs.head(key) == len(content)
    assert hashlib.sha256(await contents(scene.blobs, key)).digest() == hashlib.sha256(content).digest()
    shown = await http.head(scene.calls.link("HEAD", scene.bucket.object(key), {}, {}, 60))
    assert shown.headers["content-disposition"] == LABEL.content_disposition


async def test_what_signed_urls_do_not_allow(miniflare: Miniflare, tmp_path: Path, http: httpx2.AsyncClient) -> None:
    scene = Scene(miniflare, tmp_path)
    key = new_key()
    target = await scene.blobs.upload_target(key, LABEL, 5)
    assert target is not None
    assert await is_refused(http, "PUT", target.url, b"longer than that", target.headers)
    assert await is_refused(http, "PUT", target.url, b"hello", target.headers | {"content-type": "text/html"})
    assert await is_refused(http, "PUT", target.url.replace(key, new_key()), b"hello", target.headers)
    assert await is_refused(http, "GET", target.url)
    with pytest.raises(BlobMissing):
        await scene.blobs.head(key)
    await scene.blobs.put(key, body(b"hello"), LIMIT, LABEL)
    url = await scene.blobs.link(key, LABEL, 60)
    assert url is not None
    assert await is_refused(http, "GET", url.replace("image", "text"))
    scene.clock.off_s = -3600
    late = await scene.blobs.link(key, LABEL, 60)
    assert late is not None
    assert await is_refused(http, "GET", late)
    await scene.aclose()


async def test_links_are_valid_as_long_as_asked_for(scene: Scene) -> None:
    key = new_key()
    for off_s in (0, 100, 450, 899):
        scene.clock.off_s = off_s
        url = httpx2.URL(await scene.blobs.link(key, LABEL, 3600) or "")
        signed = time.strptime(url.params["X-Amz-Date"] + "UTC", "%Y%m%dT%H%M%SZ%Z")
        begin = int(time.mktime(signed) - time.timezone)
        assert begin <= scene.calls.now_s()
        assert begin + int(url.params["X-Amz-Expires"]) >= scene.calls.now_s() + 3600


async def test_files_that_go_through_the_server(server: BucketServer, tmp_path: Path) -> None:
    scene = Scene(server, tmp_path, direct_uploads=False, direct_downloads=False)
    assert await scene.blobs.upload_target(new_key(), LABEL, 5) is None
    assert await scene.blobs.link(new_key(), LABEL, 60) is None
    await scene.aclose()


async def test_a_file_of_unknown_size_goes_through_the_server(scene: Scene) -> None:
    assert await scene.blobs.upload_target(new_key(), LABEL, None) is None


async def test_a_public_domain(server: BucketServer, tmp_path: Path) -> None:
    scene = Scene(server, tmp_path, public_url="https://files.example.com/")
    key = new_key()
    url = await scene.blobs.link(key, LABEL, 60)
    assert url == f"https://files.example.com/{scene.bucket.prefix}{key[:2]}/{key}"
    await scene.aclose()


async def test_uploads_in_parts_that_nobody_completes_are_swept(moto: Moto, tmp_path: Path) -> None:
    scene = Scene(moto, tmp_path)
    key = new_key()
    target = await scene.blobs.upload_target(key, LABEL, LIMIT)
    assert target is not None
    other = await scene.calls.begin(f"{scene.bucket.prefix}somebody-else", LABEL)
    begun = {partial.upload for partial in await scene.calls.uploads()}
    assert begun == {target.upload, other}
    assert await scene.blobs.sweep(60) == 1
    assert [partial.upload for partial in await scene.calls.uploads()] == [other]
    await scene.aclose()


async def test_nothing_is_left_of_a_put_that_is_cancelled_while_it_is_sent(
    moto: Moto, tmp_path: Path, http: httpx2.AsyncClient
) -> None:
    begun, never = asyncio.Event(), asyncio.Event()

    async def stuck(scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on all but parts, which get no answer."""
        request = Request(scope, receive)
        if "partNumber" in request.query_params:
            begun.set()
            await never.wait()
        target = f"{moto.url}{scope['raw_path'].decode()}?{request.url.query}"
        answer = await http.request(request.method, target, headers=dict(request.headers))
        await Response(answer.content, answer.status_code, dict(answer.headers))(scope, receive, send)

    async with serving(stuck) as url:
        scene = Scene(moto, tmp_path, endpoint=url)
        task = asyncio.create_task(scene.blobs.put(new_key(), body(bytes(9 * MEGABYTE)), LIMIT, LABEL))
        await begun.wait()
        assert len(await scene.calls.uploads()) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await scene.calls.uploads() == []
        assert not any((tmp_path / "scratch").iterdir())
        await scene.aclose()
        never.set()


async def test_nothing_is_left_of_a_put_that_broke_off(moto: Moto, tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield bytes(17 * MEGABYTE)
        raise ConnectionResetError

    scene = Scene(moto, tmp_path)
    with pytest.raises(ConnectionResetError):
        await scene.blobs.put(new_key(), broken(), LIMIT, LABEL)
    await scene.blobs.put(new_key(), body(bytes(9 * MEGABYTE)), LIMIT, LABEL)
    assert await scene.calls.uploads() == []
    assert not any((tmp_path / "scratch").iterdir())
    await scene.aclose()


class Lossy:
    """A way to a service on which the first answer to each request gets lost: something else is said instead."""

    def __init__(self, url: str, http: httpx2.AsyncClient) -> None:
        self._url = url
        self._http = http
        self.lost: set[tuple[str, str]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        target = f"{self._url}{scope['raw_path'].decode()}?{request.url.query}"
        # The host is part of what was signed.
        body, headers = await request.body(), dict(request.headers)
        answer = await self._http.request(request.method, target, content=body, headers=headers)
        key = (request.method, target)
        response = Response(answer.content, answer.status_code, dict(answer.headers))
        if key not in self.lost:
            self.lost.add(key)
            response = Response(status_code=503)
        await response(scope, receive, send)


async def test_answers_that_get_lost(server: BucketServer, tmp_path: Path, http: httpx2.AsyncClient) -> None:
    there = httpx2.URL(server.url)
    lossy = Lossy(f"http://{there.netloc.decode()}", http)
    async with serving(lossy) as url:
        scene = Scene(server, tmp_path, endpoint=url + there.path.rstrip("/"))
        for content in (b"small", os.urandom(9 * MEGABYTE)):
            key = new_key()
            await scene.blobs.put(key, body(content), LIMIT, LABEL)
            assert await contents(scene.blobs, key) == content
            await scene.blobs.delete(key)
            with pytest.raises(BlobMissing):
                await scene.blobs.head(key)
        await scene.aclose()
    assert len(lossy.lost) > 8


async def test_nothing_is_taken_from_the_environment(
    miniflare: Miniflare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "other",
        "AWS_SECRET_ACCESS_KEY": "other",
        "AWS_SESSION_TOKEN": "other",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1",
        "AWS_REGION": "eu-west-1",
        "AWS_SKIP_SIGNATURE": "true",
    }.items():
        monkeypatch.setenv(name, value)
    scene = Scene(miniflare, tmp_path)
    key = new_key()
    await scene.blobs.put(key, body(b"x"), LIMIT, LABEL)
    assert await contents(scene.blobs, key) == b"x"
    await scene.aclose()


# --- what is wrong with a setup ------------------------------------------------------------------------------------


async def said(blobs: BlobStore, kind: type[BlobError] = BlobRefused) -> str:
    with pytest.raises(kind) as caught:
        await blobs.check()
    await blobs.aclose()
    return str(caught.value)


@pytest.mark.parametrize(
    "changes", [{"secret_access_key": "not-the-secret"}, {"access_key_id": "NOTTHEKEY"}], ids=["secret", "id"]
)
async def test_bad_credentials(miniflare: Miniflare, tmp_path: Path, changes: dict[str, str]) -> None:
    scene = Scene(miniflare, tmp_path, **changes)
    text = await said(scene.blobs)
    assert "s3_access_key_id and s3_secret_access_key" in text
    assert scene.options.secret_access_key not in text
    for work in (scene.blobs.head(new_key()), scene.blobs.put(new_key(), body(b"x"), LIMIT, LABEL)):
        with pytest.raises(BlobRefused):
            await work
    await scene.aclose()


async def test_a_missing_bucket(server: BucketServer, tmp_path: Path) -> None:
    blobs = open_blobs(tmp_path, "s3://not-our-bucket", server.options(), SystemClock())
    assert "there is no bucket 'not-our-bucket'" in await said(blobs)


async def test_nobody_there(moto: Moto, tmp_path: Path) -> None:
    blobs = open_blobs(tmp_path, f"s3://{BUCKET}", moto.options(endpoint="http://127.0.0.1:9"), SystemClock())
    assert "127.0.0.1:9 does not answer" in await said(blobs, BlobUnavailable)


async def test_no_s3_service(miniflare: Miniflare, tmp_path: Path) -> None:
    other = miniflare.url.removesuffix("/cdn-cgi/local/r2/s3")
    blobs = open_blobs(tmp_path, f"s3://{BUCKET}", miniflare.options(endpoint=other), SystemClock())
    assert "is no S3 service" in await said(blobs)


@pytest.fixture
def guarded() -> Iterator[Moto]:
    """A service that asks everybody who they are."""
    server = Moto()
    try:
        yield server.start()
    finally:
        server.close()


async def test_rights_that_do_not_suffice(guarded: Moto, tmp_path: Path) -> None:
    reader = guarded.restricted(["s3:GetObject", "s3:ListBucket"])
    all_but_delete = guarded.restricted(["s3:GetObject", "s3:ListBucket", "s3:PutObject"])
    enough = guarded.restricted(["s3:*"])
    guarded.ask_everybody(0)

    def opened(keys: tuple[str, str]) -> BlobStore:
        options = guarded.options(access_key_id=keys[0], secret_access_key=keys[1])
        return open_blobs(tmp_path, f"s3://{BUCKET}", options, SystemClock())

    assert "lack rights" in await said(opened(reader))
    assert "lack rights" in await said(opened(all_but_delete))
    blobs = opened(enough)
    await blobs.check()
    await blobs.aclose()


@pytest.mark.parametrize(
    ("status", "body", "region", "kind", "words"),
    [
        pytest.param(
            400,
            "<Error><Code>AuthorizationHeaderMalformed</Code><Message>The authorization header is malformed; the region"
            " 'us-east-1' is wrong; expecting 'eu-west-1'</Message><Region>eu-west-1</Region></Error>",
            *("", BlobRefused, "set s3_region to eu-west-1"),
            id="another region",
        ),
        pytest.param(
            301,
            "<Error><Code>PermanentRedirect</Code><Endpoint>x.s3.eu-west-1.amazonaws.com</Endpoint></Error>",
            *("eu-west-1", BlobRefused, "set s3_region to eu-west-1"),
            id="moved",
        ),
        pytest.param(301, "", "eu-central-1", BlobRefused, "set s3_region to eu-central-1", id="moved without words"),
        pytest.param(
            403, "<Error><Code>RequestTimeTooSkewed</Code></Error>", "", BlobRefused, "clock", id="a wrong clock"
        ),
        pytest.param(403, "", "", BlobRefused, "lack rights", id="forbidden without words"),
        pytest.param(
            *(507, "<Error><Code>XMinioStorageFull</Code></Error>", "", BlobError, "the bucket is full"), id="full"
        ),
        pytest.param(503, "<Error><Code>SlowDown</Code></Error>", "", BlobUnavailable, "503 SlowDown", id="busy"),
        pytest.param(404, "", "", BlobMissing, "nothing", id="missing"),
        pytest.param(302, "<html>", "", BlobRefused, "no S3 service", id="another service"),
    ],
)
def test_what_refusals_mean(status: int, body: str, region: str, kind: type[BlobError], words: str) -> None:
    options = S3Options(access_key_id="id", secret_access_key="secret")
    error = refused(find_bucket("s3://bucket", options), Refusal.read(status, body, region))
    assert isinstance(error, kind)
    assert words in str(error)


# --- addresses -----------------------------------------------------------------------------------------------------


def found(storage: str, **changes: Any) -> Bucket:
    return find_bucket(storage, S3Options(**({"access_key_id": "id", "secret_access_key": "secret"} | changes)))


@pytest.mark.parametrize(
    ("storage", "endpoint", "url", "prefix", "region"),
    [
        ("s3://bucket", None, "https://bucket.s3.us-east-1.amazonaws.com", "", "us-east-1"),
        ("s3://my.bucket/a/b/", None, "https://s3.us-east-1.amazonaws.com/my.bucket", "a/b/", "us-east-1"),
        ("s3://bucket/x", "https://a.r2.example.net", "https://a.r2.example.net/bucket", "x/", "auto"),
        ("s3://bucket", "https://a.r2.example.net/bucket", "https://a.r2.example.net/bucket", "", "auto"),
        ("s3://bucket", "http://minio.local:9000/", "http://minio.local:9000/bucket", "", "auto"),
    ],
)  # fmt: skip
def test_where_a_bucket_is(storage: str, endpoint: str | None, url: str, prefix: str, region: str) -> None:
    bucket = found(storage, endpoint=endpoint)
    assert (bucket.url, bucket.prefix, bucket.signing.region) == (url, prefix, region)


@pytest.mark.parametrize(
    ("storage", "changes", "words"),
    [
        ("s3:/bucket", {}, "s3://BUCKET"),
        ("gs://bucket", {}, "s3://BUCKET"),
        ("s3://UPPER", {}, "s3://BUCKET"),
        ("s3://bucket/a b", {}, "s3://BUCKET"),
        ("/var/files", {}, "s3://BUCKET"),
        ("s3://bucket", {"access_key_id": ""}, "s3_access_key_id"),
        ("s3://bucket", {"secret_access_key": ""}, "s3_secret_access_key"),
        ("s3://bucket", {"endpoint": "minio:9000"}, "s3_endpoint"),
        ("s3://bucket", {"endpoint": "https://id:secret@minio"}, "s3_endpoint"),
    ],
)
def test_settings_that_cannot_be_used(storage: str, changes: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        found(storage, **changes)
    assert "secret@" not in str(caught.value)


def test_secrets_are_not_shown() -> None:
    options = S3Options(access_key_id="the-id", secret_access_key="the-secret")
    for shown in (repr(options), repr(find_bucket("s3://bucket", options))):
        assert "the-secret" not in shown
        assert "the-id" not in shown


def test_keys_of_objects() -> None:
    bucket, key = found("s3://bucket/files"), new_key()
    assert bucket.key(bucket.object(key)) == key
    for other in (key, f"files/{key}", f"files/{key[:2]}/{key}x", f"other/{key[:2]}/{key}"):
        assert bucket.key(other) is None
