"""Files of clients over HTTP: every form in which clients send them, and who may read them afterwards."""

import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest

from api.node import BASE, MAX_UPLOAD_BYTES, Node
from cogflare.engine.secrets import FILES

pytestmark = pytest.mark.anyio
CAT = b"\x89PNG\r\n\x1a\n--not a boundary\r\n\r\n"


def form(*parts: tuple[str, bytes], boundary: str = "b0undary") -> dict[str, Any]:
    """Return a form of (the head after `form-data; `, content) as it goes over the wire."""
    body = b"".join(
        b"--%b\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (boundary.encode(), head.encode(), content)
        for head, content in parts
    )
    kind = f"multipart/form-data; boundary={boundary}"
    return {"content": body + f"--{boundary}--\r\n".encode(), "headers": {"Content-Type": kind}}


async def upload(node: Node, content: bytes = CAT, account: str = "ada", **fields: str) -> dict[str, Any]:
    head = 'name="content"; filename="cat.png"\r\nContent-Type: image/png'
    parts = [(f'name="{name}"', value.encode()) for name, value in fields.items()]
    answer = await node.call("POST", "/v1/files", account, **form((head, content), *parts))
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def test_a_name_is_read_as_it_was_before_it_was_quoted(node: Node) -> None:
    head = 'name="content"; filename="a%22b%0A 100%25.txt"\r\nContent-Type: text/plain'
    answer = await node.call("POST", "/v1/files", "ada", **form((head, b"x")))
    assert answer.json()["name"] == 'a"b 100%25.txt'


async def test_what_is_told_of_a_file(node: Node) -> None:
    file = await upload(node)
    assert len(file["id"]) == 40
    assert file["name"] == "cat.png"
    assert (file["content_type"], file["size"]) == ("image/png", len(CAT))
    md5, sha256 = hashlib.md5(CAT).hexdigest(), hashlib.sha256(CAT).hexdigest()
    assert file["etag"] == md5
    assert file["checksums"] == {"sha256": sha256, "md5": md5}
    assert file["metadata"] == {}
    assert file["created_at"] < file["expires_at"]
    assert file["urls"] == {"get": f"{BASE}/v1/files/{file['id']}"}
    assert (await node.call("GET", f"/v1/files/{file['id']}")).json() == file


async def test_the_forms_of_the_clients(node: Node) -> None:
    plain = 'name="content"; filename="upload"\r\nContent-Type: application/octet-stream'
    blob = 'name="metadata"; filename="blob"\r\nContent-Type: application/json'
    sent = [
        # replicate 1.x for Python: the head tells, metadata is a field of JSON.
        (('name="content"; filename="a.txt"\r\nContent-Type: text/plain', b"x"), ('name="metadata"', b'{"a": "b"}')),
        # replicate for JavaScript: metadata is a file.
        (('name="content"; filename="a.txt"\r\nContent-Type: text/plain', b"x"), (blob, b'{"a": "b"}')),
        # replicate 2.x for Python: fields come first, the head of the content says nothing.
        (
            ('name="filename"', b"a.txt"),
            ('name="type"', b"text/plain"),
            ('name="metadata[a]"', b"b"),
            (plain, b"x"),
        ),
        ((plain, b"x"), ('name="filename"', b"a.txt"), ('name="type"', b"text/plain"), ('name="metadata[a]"', b"b")),
    ]
    for parts in sent:
        answer = await node.call("POST", "/v1/files", **form(*parts))
        assert answer.status_code == 201, answer.text
        file = answer.json()
        told = {key: file[key] for key in ("name", "content_type", "metadata", "size")}
        assert told == {"name": "a.txt", "content_type": "text/plain", "metadata": {"a": "b"}, "size": 1}


async def test_metadata_in_brackets(node: Node) -> None:
    fields = {"metadata[a][b]": "1", "metadata[a][c]": "2", "metadata[tags][]": "x", "metadata": '{"d": 3}'}
    file = await upload(node, CAT, "ada", **fields)
    assert file["metadata"] == {"a": {"b": "1", "c": "2"}, "tags": ["x"], "d": 3}


async def test_a_file_without_anything(node: Node) -> None:
    answer = await node.call("POST", "/v1/files", **form(('name="content"', b"")))
    file = answer.json()
    assert (file["name"], file["content_type"], file["size"]) == ("file", "application/octet-stream", 0)
    assert file["etag"] == hashlib.md5(b"").hexdigest()


@pytest.mark.parametrize(
    ("parts", "status", "words"),
    [
        ([('name="other"', b"x")], 422, "content is required"),
        ([('name="content"', b"x"), ('name="content"', b"y")], 422, "given twice"),
        ([('name="content"', b"x"), ('name="metadata"', b"[]")], 422, "metadata"),
        ([('name="content"', b"x"), ('name="metadata"', b"{")], 400, "metadata is not valid JSON"),
        ([('name="content"', b"x"), ('name="metadata"', b"1"), ('name="metadata[a]"', b"1")], 422, "metadata"),
        ([('name="metadata[a]"', b"1"), ('name="metadata[a][b]"', b"1"), ('name="content"', b"x")], 422, "twice"),
        ([('name="content"', b"x"), ('name="filename"', b"x" * 256)], 422, "filename"),
        (
            [('name="content"', b"x"), ('name="metadata"', b"x" * 70_000)],
            413,
            "All fields but content must be less than 65536 bytes",
        ),
        ([("filename=x", b"x")], 400, "no name"),
        ([('name="content"; x="' + "y" * 70_000 + '"', b"x")], 400, "header"),
        ([('name="content"' + "\r\nx: y" * 1_000, b"x")], 400, "header"),
        ([('name=""', b"")] * 1_100, 413, "65536 bytes"),
    ],
)
async def test_forms_that_are_refused(node: Node, parts: list[tuple[str, bytes]], status: int, words: str) -> None:
    answer = await node.call("POST", "/v1/files", **form(*parts))
    assert answer.status_code == status, answer.text
    assert words in answer.json()["detail"]
    assert (await node.call("GET", "/v1/files")).json()["results"] == []


async def test_bodies_that_are_no_forms(node: Node) -> None:
    whole = form(('name="content"', CAT))
    for cut in (0, 10, 60, len(whole["content"]) - 6):
        answer = await node.call("POST", "/v1/files", content=whole["content"][:cut], headers=whole["headers"])
        assert (answer.status_code, answer.json()["title"]) == (400, "Malformed form"), cut
    answer = await node.call("POST", "/v1/files", content=b"nonsense", headers=whole["headers"])
    assert answer.status_code == 400
    assert (await node.call("POST", "/v1/files", json={})).status_code == 415
    assert (await node.call("POST", "/v1/files")).status_code == 415
    no_boundary = {"Content-Type": "multipart/form-data"}
    assert (await node.call("POST", "/v1/files", content=whole["content"], headers=no_boundary)).status_code == 400
    assert (await node.call("GET", "/v1/files")).json()["results"] == []


async def test_the_limit(node: Node) -> None:
    assert (await upload(node, b"x" * MAX_UPLOAD_BYTES))["size"] == MAX_UPLOAD_BYTES
    longer = form(('name="content"', b"x" * (MAX_UPLOAD_BYTES + 1)))

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(longer["content"]), 60_000):
            yield longer["content"][start : start + 60_000]

    for content in (longer["content"], chunks(), b"x" * (MAX_UPLOAD_BYTES + 2_000_000)):
        answer = await node.call("POST", "/v1/files", content=content, headers=longer["headers"])
        assert (answer.status_code, answer.json()["detail"]) == (413, "Files must be less than 2MB in size")
    assert len((await node.call("GET", "/v1/files")).json()["results"]) == 1


async def test_the_list(node: Node) -> None:
    made = [(await upload(node, b"%d" % number))["id"] for number in range(103)][::-1]
    first = (await node.call("GET", "/v1/files")).json()
    assert [file["id"] for file in first["results"]] == made[:100]
    assert first["previous"] is None
    second = (await node.call("GET", first["next"])).json()
    assert [file["id"] for file in second["results"]] == made[100:]
    assert second["next"] is None
    back = (await node.call("GET", second["previous"])).json()
    assert [file["id"] for file in back["results"]] == made[:100]
    assert (await node.call("GET", "/v1/files", "eve")).json()["results"] == []
    assert (await node.call("GET", "/v1/files?cursor=nonsense")).status_code == 404


async def test_a_deleted_file_is_gone(node: Node) -> None:
    path = f"/v1/files/{(await upload(node))['id']}"
    assert (await node.call("DELETE", path, "eve")).status_code == 404
    signed = (await node.call("POST", f"{path}/download-url")).json()["url"]
    assert (await node.http.get(signed)).status_code == 200
    answer = await node.call("DELETE", path)
    assert (answer.status_code, answer.content) == (204, b"")
    for method in ("GET", "DELETE"):
        gone = await node.call(method, path)
        assert (gone.status_code, gone.json()["detail"]) == (404, "File not found")
    assert (await node.call("POST", f"{path}/download-url")).status_code == 404
    assert (await node.http.get(signed)).status_code == 404
    assert (await node.call("GET", "/v1/files")).json()["results"] == []


async def test_a_file_is_its_account_s_alone(node: Node) -> None:
    file = await upload(node)
    path = f"/v1/files/{file['id']}"
    assert (await node.call("GET", path, "eve")).status_code == 404
    assert (await node.http.get(path)).status_code == 401
    assert (await node.http.get("/v1/files")).status_code == 401
    # Nor is it one of those that whoever knows the id may read.
    assert (await node.http.get(f"/f/{file['id']}/cat.png")).status_code == 404
    for missing in ("a" * 40, "x", "%00"):
        assert (await node.call("GET", f"/v1/files/{missing}")).status_code == 404


async def test_a_signed_download(node: Node) -> None:
    file = await upload(node)
    answer = await node.call("POST", f"/v1/files/{file['id']}/download-url", json={"expires_in_s": 60})
    url = answer.json()["url"]
    assert url.startswith(f"{BASE}/v1/files/{file['id']}/download/cat.png?")
    got = await node.http.get(url)
    assert (got.status_code, got.content) == (200, CAT)
    assert got.headers["content-type"] == "image/png"
    assert got.headers["cache-control"].startswith("private")
    assert (await node.http.get(url, headers={"Range": "bytes=1-3"})).content == b"PNG"
    assert (await node.http.head(url)).headers["content-length"] == str(len(CAT))
    assert (await node.http.get(url.replace("/download/cat.png?", "/download?"))).content == CAT


async def test_signatures_are_replicate_s(node: Node) -> None:
    file = await upload(node)
    caller = await node.accounts.caller(await node.token("ada"))
    assert caller is not None
    secret = await node.secrets.secret(caller.account, FILES)

    def signed(owner: str, expiry: int | str, id: str = file["id"], key: bytes = secret) -> httpx2.QueryParams:
        digest = hmac.digest(key, f"{owner} {id} {expiry}".encode(), "sha256")
        return httpx2.QueryParams(owner=owner, expiry=expiry, signature=base64.b64encode(digest).decode())

    path, later = f"/v1/files/{file['id']}/download", node.clock.wall() // 1_000_000 + 60
    assert (await node.http.get(path, params=signed("ada", later))).content == CAT
    other = await node.token("eve")
    assert other
    right = {**signed("ada", later)}
    wrong = [
        signed("ada", later - 120),
        signed("eve", later),
        signed("nobody", later),
        signed("a\0b", later),
        signed("ada", later, id="x"),
        signed("ada", later, key=b"other"),
        signed("ada", "soon"),
        signed("ada", "9" * 30),
        {**right, "expiry": str(later + 1)},
        {**right, "signature": ""},
        {**right, "signature": "\u00e4"},
        {},
    ]
    for params in wrong:
        answer = await node.http.get(path, params=params)
        assert (answer.status_code, answer.json()["detail"]) == (404, "File not found"), params


async def test_how_long_a_signature_may_hold(node: Node) -> None:
    path = f"/v1/files/{(await upload(node))['id']}/download-url"
    for seconds in (0, -1, 8 * 86_400):
        assert (await node.call("POST", path, json={"expires_in_s": seconds})).status_code == 422
    assert (await node.call("POST", path, json={"expires_in": 60})).status_code == 422
    answer = await node.call("POST", path, json={"expires_in_s": 7 * 86_400})
    expiry = int(parse_qs(urlsplit(answer.json()["url"]).query)["expiry"][0])
    assert abs(expiry - node.clock.wall() / 1e6 - 7 * 86_400) < 60


async def test_an_unknown_type_is_no_page_of_ours(node: Node) -> None:
    file = await upload(node, b"<script>alert(1)</script>", type="text/html", filename="page.html")
    signed = (await node.call("POST", f"/v1/files/{file['id']}/download-url")).json()["url"]
    answer = await node.http.get(signed)
    assert answer.headers["content-disposition"].startswith("attachment;")
    assert answer.headers["content-security-policy"] == "sandbox"


async def test_other_methods(node: Node) -> None:
    answer = await node.call("PUT", "/v1/files")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, POST")
    assert json.loads(answer.content)["status"] == 405
