"""Input files: which addresses may be fetched, and what the model gets."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpcore2
import httpx2
import msgspec
import pytest
from msgspec import Raw
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from cogflare.agent.address import ServerAddress
from cogflare.agent.inputs import InputError, InputFiles, Limits
from cogflare.agent.shelf import Shelf
from cogflare.net.addresses import is_public
from cogflare.net.guard import Forbidden, GuardedNetwork
from support.until import names
from support.web import serving

pytestmark = pytest.mark.anyio

INTERNAL = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.127.255.254", "127.0.0.1", "127.255.255.254",
    "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.2.1", "192.168.1.1", "198.18.0.1",
    "198.51.100.1", "203.0.113.1",
    "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:0:127.0.0.1", "fe80::1", "fe80::1%2",
    "fec0::1", "fc00::1", "fd12:3456::1", "ff02::1", "2001:db8::1", "2002:7f00:1::", "2002:a00:1::", "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2001:0:53aa:64c:0:0:80ff:fffe", "100::1",
]  # fmt: skip
PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "100.63.0.1",
    "172.32.0.1",
    "192.169.0.1",
    "2606:4700::1111",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
]
SCHEMA = {
    "components": {
        "schemas": {
            "Input": {
                "type": "object",
                "properties": {
                    "image": {"type": "string", "format": "uri", "nullable": True},
                    "masks": {"type": "array", "items": {"type": "string", "format": "uri"}},
                    "either": {"anyOf": [{"type": "string", "format": "uri"}, {"type": "integer"}]},
                    "named": {"allOf": [{"$ref": "#/components/schemas/Named"}]},
                    "table": {"type": "object", "additionalProperties": {"type": "string", "format": "uri"}},
                    "prompt": {"type": "string"},
                },
            },
            "Named": {"type": "object", "properties": {"file": {"type": "string", "format": "uri"}}},
        }
    }
}


@pytest.mark.parametrize("address", INTERNAL)
def test_internal_addresses(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


class Files:
    """The web that inputs are fetched from."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.to = ""
        self.away = 0

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/{path:path}", self._any)])

    async def _any(self, request: Request) -> Response:
        path = request.url.path
        self.requests.append((str(request.url), dict(request.headers)))
        if self.away:
            self.away -= 1
            return Response(status_code=503)
        if path.startswith("/hop/"):
            left = int(path.rpartition("/")[2])
            return RedirectResponse(f"/hop/{left - 1}" if left else "/cat.png")
        if path == "/away" or path.startswith(("/f/", "/files/")):
            return Response(status_code=302, headers={"Location": self.to})
        if path == "/named":
            headers = {"Content-Disposition": request.query_params["as"]}
            return Response(b"content", media_type="image/png", headers=headers)
        if path == "/nowhere":
            return Response(status_code=302)
        if path == "/missing.png":
            return Response(status_code=404)
        if path == "/endless":
            return StreamingResponse(self._endless())
        if path == "/never":
            while (await request.receive())["type"] != "http.disconnect":
                pass
        return Response(b"content of " + path.encode(), media_type="image/png")

    async def _endless(self) -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b"x" * 1000
            await asyncio.sleep(0)


@asynccontextmanager
async def fetching(own: bool = False, **options: Any) -> AsyncIterator[tuple[Files, str, InputFiles]]:
    files = Files()
    async with serving(files.app()) as url:
        server = ServerAddress(url if own else "https://gateway.example.com")
        inputs = InputFiles(server, Shelf(), **options)
        inputs.learn(Raw(msgspec.json.encode(SCHEMA)))
        try:
            yield files, url, inputs
        finally:
            await inputs.aclose()


def _raw(value: object) -> Raw:
    return Raw(msgspec.json.encode(value))


async def _read(url: str) -> tuple[int, bytes, str]:
    async with httpx2.AsyncClient(trust_env=False) as http:
        answer = await http.get(url)
        return answer.status_code, answer.content, answer.headers.get("content-type", "")


async def test_files_wherever_the_schema_has_them_become_loopback_urls() -> None:
    async with fetching(allow_private=True) as (_, web, inputs):
        given: dict[str, Any] = {
            "image": f"{web}/a/cat%20one.png?sig=1",
            "masks": [f"{web}/m0.png", "data:image/png;base64,AA=="],
            "either": f"{web}/e.bin",
            "named": {"file": f"{web}/n.txt"},
            "table": {"k": f"{web}/t"},
            "prompt": f"{web}/prompt.png",
            "undeclared": f"{web}/u.png",
        }
        fetched = await inputs.fetch(_raw(given))
        got = msgspec.json.decode(fetched.input)
        assert (got["prompt"], got["undeclared"], got["masks"][1]) == (
            given["prompt"],
            given["undeclared"],
            given["masks"][1],
        )
        assert got["image"].endswith("/cat_one.png")
        assert await _read(got["image"]) == (200, b"content of /a/cat one.png", "image/png")
        for url, path in [
            (got["masks"][0], "m0.png"),
            (got["either"], "e.bin"),
            (got["named"]["file"], "n.txt"),
            (got["table"]["k"], "t"),
        ]:
            assert await _read(url) == (200, f"content of /{path}".encode(), (await _read(url))[2])
        inputs.drop(fetched)
        assert fetched.folder is not None
        assert not fetched.folder.exists()
        assert (await _read(got["image"]))[0] == 404


async def test_files_of_a_killed_agent_are_served_again_and_swept(tmp_path: Path) -> None:
    async with fetching(allow_private=True, folder=tmp_path / "inputs") as (_, web, inputs):
        fetched = await inputs.fetch(_raw({"image": f"{web}/a.png", "masks": [f"{web}/b.png"]}))
        other = await inputs.fetch(_raw({"image": f"{web}/c.png"}))
        await inputs._shelf.aclose()  # as when the process is gone
        assert fetched.folder is not None
        async with fetching(folder=tmp_path / "inputs") as (_, _web, successor):
            successor.sweep({str(fetched.folder)})
            restored = await successor.restore(fetched.urls, str(fetched.folder))
            for url, name in zip(fetched.urls, ("a", "b"), strict=True):
                assert (await _read(url))[:2] == (200, f"content of /{name}.png".encode())
            assert other.folder is not None
            assert not other.folder.exists()
            successor.drop(restored)
            assert not fetched.folder.exists()
            assert (await _read(fetched.urls[0]))[0] == 404


async def test_files_whose_port_is_taken_are_not_served_again(tmp_path: Path) -> None:
    async with fetching(allow_private=True, folder=tmp_path) as (_, web, inputs):
        fetched = await inputs.fetch(_raw({"image": f"{web}/a.png"}))
        async with fetching(folder=tmp_path) as (_, _web, successor):
            restored = await successor.restore(fetched.urls, str(fetched.folder))
            successor.drop(restored)


@pytest.mark.parametrize(
    "given", [{}, {"image": None}, {"either": 3}, {"image": "data:,x"}, {"masks": []}, {"masks": 5}, [], 7]
)
async def test_an_input_without_files_passes_as_it_is(given: object) -> None:
    async with fetching() as (_, _web, inputs):
        raw = _raw(given)
        fetched = await inputs.fetch(raw)
        assert fetched.input is raw


async def test_a_model_without_a_schema_gets_its_input_as_it_is() -> None:
    async with fetching() as (_, web, inputs):
        raw = _raw({"image": f"{web}/cat.png"})
        for schema in (None, Raw(b"{}"), Raw(b"nope"), _raw({"components": {"schemas": {"Input": 5}}})):
            inputs.learn(schema)
            assert (await inputs.fetch(raw)).input is raw


LOOPBACKS = ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0x7f.1", "2130706433", "0", "127.1", "[::1]", "LOCALHOST"]


@pytest.mark.parametrize("host", LOOPBACKS)
async def test_loopback_is_not_fetched_however_it_is_written(host: str) -> None:
    async with fetching() as (files, web, inputs):
        port = web.rpartition(":")[2]
        with pytest.raises(InputError, match=r"^input\.image: cannot fetch http"):
            await inputs.fetch(_raw({"image": f"http://{host}:{port}/cat.png"}))
        assert files.requests == []


async def test_a_url_with_escaped_slashes_is_a_url() -> None:
    async with fetching() as (files, web, inputs):
        given = Raw(b'{"image": "%b"}' % web.replace("/", "\\/").encode())
        with pytest.raises(InputError, match="internal network"):
            await inputs.fetch(given)
        assert files.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/x",
        "file:///etc/passwd",
        " http://example.com/",
        "gopher://x",
        "http:///x",
        "http://",
        "http://[/x",
        "x",
    ],
)
async def test_other_urls_are_refused(url: str) -> None:
    async with fetching(allow_private=True) as (_, _web, inputs):
        with pytest.raises(InputError, match=r"^input\.masks\.0: "):
            await inputs.fetch(_raw({"masks": [url]}))


async def test_the_servers_own_files_are_trusted_and_get_no_token() -> None:
    async with fetching(own=True) as (files, web, inputs):
        await inputs.fetch(_raw({"image": f"{web}/cat.png"}))
        assert "authorization" not in files.requests[0][1]


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("attachment; filename=\"a_.png\"; filename*=UTF-8''%C3%A4%20b.png", "_b.png"),
        ('inline; filename="cat 1.png"', "cat_1.png"),
        ("attachment; filename=cat.png", "cat.png"),
        ('attachment; filename="../../etc/passwd"', "passwd"),
        ("attachment; filename*=UTF-8''..%2F.bashrc", "bashrc"),
        ("attachment", "named"),
        ('attachment; filename=""', "named"),
    ],
)
async def test_a_file_is_called_as_whoever_serves_it_says(told: str, name: str) -> None:
    async with fetching(own=True) as (_, web, inputs):
        url = str(httpx2.URL(f"{web}/named", params={"as": told}))
        fetched = await inputs.fetch(_raw({"image": url}))
        assert msgspec.json.decode(fetched.input)["image"].rpartition("/")[2] == name
        inputs.drop(fetched)


async def test_a_redirect_does_not_lead_inside() -> None:
    inside = Files()
    async with fetching(own=True) as (files, web, inputs), serving(inside.app()) as secret:
        files.to = f"{secret}/secret"
        with pytest.raises(InputError, match="internal network"):
            await inputs.fetch(_raw({"image": f"{web}/away"}))
        assert inside.requests == []


async def test_the_server_sends_requests_for_its_files_on_to_a_storage_inside() -> None:
    storage = Files()
    async with fetching(own=True) as (files, web, inputs), serving(storage.app()) as inside:
        for path in (f"/f/{'a' * 40}/cat.png", f"/files/{'a' * 40}/download/cat.png"):
            files.to = f"{inside}/bucket/key?signed=1"
            fetched = await inputs.fetch(_raw({"image": web + path}))
            url = msgspec.json.decode(fetched.input)["image"]
            assert url.endswith("/cat.png")
            assert (await _read(url))[1] == b"content of /bucket/key"
        files.to, storage.to = f"{inside}/away", f"{inside}/secret"
        with pytest.raises(InputError, match="internal network"):
            await inputs.fetch(_raw({"image": web + path}))
        assert not any(url.endswith("/secret") for url, _ in storage.requests)


async def test_redirects_are_followed_but_not_for_ever() -> None:
    async with fetching(allow_private=True) as (_, web, inputs):
        fetched = await inputs.fetch(_raw({"image": f"{web}/hop/4"}))
        assert (await _read(msgspec.json.decode(fetched.input)["image"]))[1] == b"content of /cat.png"
        for path, problem in [("hop/5", "more than 5 redirects"), ("nowhere", "without a location")]:
            with pytest.raises(InputError, match=problem):
                await inputs.fetch(_raw({"image": f"{web}/{path}"}))


async def test_failures_are_told_without_the_query() -> None:
    limits = Limits(bytes=10_000, total_s=0.2)
    async with fetching(allow_private=True, limits=limits) as (_, web, inputs):
        problems = {
            "missing.png?sig=s3": "HTTP 404",
            "endless?sig=s3": "more than 10000 bytes",
            "never?sig=s3": "too long",
        }
        for path, problem in problems.items():
            with pytest.raises(InputError, match=problem) as failed:
                await inputs.fetch(_raw({"image": f"{web}/{path}"}))
            assert "s3" not in str(failed.value)


async def test_the_servers_own_files_are_asked_for_again_while_it_is_away() -> None:
    async with fetching(own=True) as (files, web, inputs):
        files.away = 3
        fetched = await inputs.fetch(_raw({"image": f"{web}/cat.png"}))
        assert await _read(msgspec.json.decode(fetched.input)["image"]) == (200, b"content of /cat.png", "image/png")
        assert len(files.requests) == 4
        inputs.drop(fetched)


@pytest.mark.parametrize(("path", "own", "requests"), [("missing.png", True, 1), ("cat.png", False, 1)])
async def test_what_is_not_there_or_not_the_servers_is_asked_for_once(path: str, own: bool, requests: int) -> None:
    async with fetching(own=own, allow_private=True) as (files, web, inputs):
        files.away = 0 if own else 5
        with pytest.raises(InputError, match="cannot fetch"):
            await inputs.fetch(_raw({"image": f"{web}/{path}"}))
        assert len(files.requests) == requests


async def test_patience_with_the_server_ends() -> None:
    async with fetching(own=True, limits=Limits(patience_s=0.5)) as (files, web, inputs):
        files.away = 1_000
        with pytest.raises(InputError, match="HTTP 503"):
            await inputs.fetch(_raw({"image": f"{web}/cat.png"}))
        assert len(files.requests) > 1


async def test_a_failed_fetch_leaves_no_files(tmp_path: Any) -> None:
    async with fetching(allow_private=True, folder=tmp_path) as (_, web, inputs):
        with pytest.raises(InputError, match=r"input\.image"):
            await inputs.fetch(_raw({"masks": [f"{web}/a.png"], "image": f"{web}/missing.png"}))
        assert names(tmp_path) == []


async def test_a_server_that_is_not_there() -> None:
    async with fetching(allow_private=True) as (_, _web, inputs):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        with pytest.raises(InputError, match="cannot fetch"):
            await inputs.fetch(_raw({"image": f"http://127.0.0.1:{port}/"}))


class _Recorder(httpcore2.AsyncNetworkBackend):
    def __init__(self) -> None:
        self.hosts: list[str] = []

    async def connect_tcp(self, host: str, *args: Any, **kwargs: Any) -> httpcore2.AsyncNetworkStream:
        self.hosts.append(host)
        raise httpcore2.ConnectError("not in a test")


async def test_the_connection_goes_to_the_address_that_was_judged() -> None:
    asked: list[str] = []

    async def rebinding(host: str) -> list[str]:
        asked.append(host)
        return ["10.0.0.1", "8.8.8.8", "1.1.1.1"]

    inner = _Recorder()
    with pytest.raises(httpcore2.ConnectError):
        await GuardedNetwork(inner, resolve=rebinding).connect_tcp("rebind.example", 80)
    assert (asked, inner.hosts) == (["rebind.example"], ["8.8.8.8", "1.1.1.1"])


async def test_sockets_of_the_machine_are_no_inputs() -> None:
    with pytest.raises(Forbidden):
        await GuardedNetwork(_Recorder()).connect_unix_socket("/run/docker.sock")
