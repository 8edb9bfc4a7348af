"""Output files over HTTP: what browsers and players ask for, and what no file may do under our origin."""

from collections.abc import Callable
from pathlib import Path

import pytest

from api.node import Node
from cogflare.blobs.base import Label
from cogflare.blobs.local import LocalBlobStore
from cogflare.store.open import open_database

pytestmark = pytest.mark.anyio
DIGITS = b"0123456789"


async def served(node: Node, content: bytes = DIGITS, name: str = "out.png", kind: str = "image/png") -> str:
    worker, assigned = await node.running()
    return await node.file(worker, assigned, content, name, kind)


async def test_a_file_is_served_to_whoever_knows_its_url(node: Node) -> None:
    path = await served(node)
    for headers in ({}, {"Authorization": "Bearer a stray one"}):
        answer = await node.http.get(path, headers=headers)
        assert (answer.status_code, answer.content) == (200, DIGITS)
    for prefix in ("/v1", "/v1/v1"):
        assert (await node.http.get(f"{prefix}{path}")).content == DIGITS
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-length"] == "10"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["cache-control"] == "public, max-age=3600"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"] == "inline; filename=\"out.png\"; filename*=UTF-8''out.png"
    assert "content-security-policy" not in answer.headers


async def test_head_says_the_same_without_the_bytes(node: Node) -> None:
    path = await served(node)
    got = await node.http.get(path)
    head = await node.http.head(path, headers={"Range": "bytes=0-3"})
    assert (head.status_code, head.content) == (200, b"")
    assert dict(head.headers) == dict(got.headers)


@pytest.mark.parametrize(
    ("asked", "wanted", "content_range"),
    [
        ("bytes=0-3", b"0123", "bytes 0-3/10"),
        ("bytes=4-", b"456789", "bytes 4-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"),
        ("bytes=-99", DIGITS, "bytes 0-9/10"),
        ("bytes=8-99", b"89", "bytes 8-9/10"),
        ("Bytes=9-9", b"9", "bytes 9-9/10"),
    ],
)
async def test_ranges(node: Node, asked: str, wanted: bytes, content_range: str) -> None:
    answer = await node.http.get(await served(node), headers={"Range": asked})
    assert (answer.status_code, answer.content) == (206, wanted)
    assert answer.headers["content-range"] == content_range
    assert answer.headers["content-length"] == str(len(wanted))


async def test_ranges_that_mean_the_whole_or_nothing(node: Node) -> None:
    path = await served(node)
    for asked in ("bytes=5-4", "bytes=0-1,3-4", "bytes=-", "bytes=a-b", "items=0-1", "", "bytes=" + "9" * 50 + "-"):
        answer = await node.http.get(path, headers={"Range": asked})
        assert (answer.status_code, answer.content) == (200, DIGITS), asked
    for asked in ("bytes=10-", "bytes=10-12", "bytes=-0"):
        answer = await node.http.get(path, headers={"Range": asked})
        assert answer.status_code == 416, asked
        assert answer.headers["content-range"] == "bytes */10"
        assert answer.json()["status"] == 416


async def test_entity_tags(node: Node) -> None:
    path = await served(node)
    tag = (await node.http.get(path)).headers["etag"]
    for listed in (tag, f'"other", W/{tag}', "*"):
        answer = await node.http.get(path, headers={"If-None-Match": listed})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == tag
    assert (await node.http.get(path, headers={"If-None-Match": '"other"'})).status_code == 200
    same = await node.http.get(path, headers={"Range": "bytes=0-1", "If-Range": tag})
    assert (same.status_code, same.content) == (206, b"01")
    changed = await node.http.get(path, headers={"Range": "bytes=0-1", "If-Range": '"other"'})
    assert (changed.status_code, changed.content) == (200, DIGITS)


async def test_an_empty_file(node: Node) -> None:
    path = await served(node, b"")
    assert (await node.http.get(path)).content == b""
    assert (await node.http.get(path, headers={"Range": "bytes=0-"})).status_code == 416


@pytest.mark.parametrize(
    "kind", ["image/webp", "video/mp4", "audio/wav", "text/plain; charset=utf-8", "application/json", "application/pdf"]
)
async def test_what_a_browser_may_show(node: Node, kind: str) -> None:
    answer = await node.http.get(await served(node, kind=kind))
    assert answer.headers["content-type"] == kind
    assert answer.headers["content-disposition"].startswith("inline;")


@pytest.mark.parametrize(
    "kind",
    [
        "text/html",
        "TEXT/HTML; charset=utf-8",
        "image/svg+xml",
        "image/SVG+xml; a=b",
        "image/x+xml",
        "video/xml; a=b",
        "application/xhtml+xml",
        "text/xml",
        "text/javascript",
        "text/css",
        "application/zip",
        "nonsense",
    ],
)
async def test_what_a_browser_may_only_download(node: Node, kind: str) -> None:
    answer = await node.http.get(await served(node, b"<script>alert(1)</script>", "page.html", kind))
    assert answer.headers["content-disposition"].startswith("attachment;")
    assert answer.headers["content-security-policy"] == "sandbox"
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_names_that_need_quoting(node: Node) -> None:
    path = await served(node, name='sub/100% "gr\u00fcn"\r\n?#\u20ac.png')
    assert path.endswith("/100%25%20%22gr%C3%BCn%22%3F%23%E2%82%AC.png")
    answer = await node.http.get(path)
    assert (answer.status_code, answer.content) == (200, DIGITS)
    assert answer.headers["content-disposition"] == (
        "inline; filename=\"100% _gr_n_?#_.png\"; filename*=UTF-8''100%25%20%22gr%C3%BCn%22%3F%23%E2%82%AC.png"
    )


async def test_what_is_not_there(node: Node) -> None:
    path = await served(node)
    id = path.split("/")[2]
    for missing in (
        f"/f/{id}/other.png",
        f"/f/{'a' * 40}/out.png",
        "/f/a/b",
        "/f/%00/out.png",
        f"/f/{id[:39]}%2E/out.png",
    ):
        answer = await node.http.get(missing)
        assert (answer.status_code, answer.json()["detail"]) == (404, "File not found")
    for blob in node.folder.rglob("*"):
        if blob.is_file():
            blob.unlink()
    assert (await node.http.get(path)).status_code == 404
    assert (await node.call("PUT", path, content=b"x")).status_code == 405


class Bucket(LocalBlobStore):
    """A store that hands its blobs out itself."""

    async def link(self, key: str, label: Label, expires_s: float) -> str | None:
        return f"https://bucket.example.net/{key}?type={label.content_type}&for={expires_s:.0f}"


async def test_requests_are_sent_on_to_a_storage_that_hands_files_out(
    new_url: Callable[[str], str], tmp_path: Path
) -> None:
    db = open_database(new_url("sqlite"))
    await db.migrate()
    node = Node(db, tmp_path, Bucket(tmp_path / "files"))
    path = await served(node)
    answer = await node.http.get(path, headers={"Range": "bytes=0-3"})
    assert (answer.status_code, answer.content) == (302, b"")
    assert answer.headers["location"] == f"https://bucket.example.net/{path.split('/')[2]}?type=image/png&for=3600"
    assert answer.headers["cache-control"] == "private, no-store"
    assert answer.headers["access-control-allow-origin"] == "*"
    head = await node.http.head(path)
    assert (head.status_code, head.headers["content-length"]) == (200, "10")
    assert (await node.http.get(path, headers={"If-None-Match": head.headers["etag"]})).status_code == 304
    assert (await node.http.get(f"{path}x")).status_code == 404
    await node.http.aclose()
    await node.settle()
    await db.aclose()


async def test_a_large_file(node: Node) -> None:
    content = bytes(range(256)) * 11_000
    path = await served(node, content)
    assert (await node.http.get(path)).content == content
    assert (await node.http.get(path, headers={"Range": "bytes=1000000-2500000"})).content == content[
        1_000_000:2_500_001
    ]
