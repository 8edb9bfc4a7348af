"""Files in every shape that Cog has, in and out, through each storage: real server, real worker, Cog's own server."""

import base64
import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from replicate.client import Client
from replicate.helpers import FileOutput

from support.buckets import Moto
from support.certificates import make_certificate
from support.processes import Server, Stage
from support.runners import MODELS

PICTURE = b"\x89PNG\r\n\x1a\n" + random.Random(1).randbytes(300_000)
SOUND = b"RIFF" + random.Random(2).randbytes(20_000)
NOTE = "größer\r\n\0".encode()


@pytest.fixture(scope="module", params=["local", "s3", "s3 through us"])
def server(request: pytest.FixtureRequest, shared_stage: Stage, cog_cache: Path) -> Iterator[Server]:
    """A server with that storage, and a worker of each model."""
    bucket = None if request.param == "local" else Moto().start()
    try:
        settings = {} if bucket is None else bucket.settings()
        if request.param == "s3 through us":
            settings |= {"s3_direct_uploads": "false", "s3_direct_downloads": "false"}
        server = shared_stage.server(max_inline_bytes="50000", **settings)
        workers = [
            shared_stage.cog(server, f"me/{model}", MODELS / model, cog_cache)
            for model in ("shapes", "echo", "gallery", "frames")
        ]
        for worker in workers:
            worker.connected()
        yield server
        for worker in workers:
            worker.end()
    finally:
        if bucket is not None:
            bucket.close()


def upload(server: Server, name: str, content: bytes, kind: str) -> str:
    made = server.ask("POST", "/v1/files", files={"content": (name, content, kind)})
    return str(made["urls"]["get"])


def data_url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def run(server: Server, model: str, **values: Any) -> Any:
    body = {"input": values}
    created = server.ask("POST", f"/v1/models/me/{model}/predictions", json=body)
    ended = server.ended(created["id"], 120)
    assert ended["status"] == "succeeded", ended["error"]
    return ended["output"]


def get(url: str) -> httpx2.Response:
    return httpx2.get(url, follow_redirects=True, trust_env=False, timeout=60).raise_for_status()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_files_of_every_shape_and_origin(server: Server) -> None:
    """Uploaded ones, one that is inline and stays so, one that is moved to the storage, and an earlier output."""
    picture, sound = upload(server, "a picture.png", PICTURE, "image/png"), upload(server, "s.wav", SOUND, "audio/wav")
    earlier = run(server, "gallery", count=2)[1]
    output = run(
        server,
        "shapes",
        one=picture,
        some=[sound, data_url(NOTE, "text/plain"), data_url(PICTURE, "image/png"), earlier],
        maybe=sound,
        stream=picture,
    )
    given = [PICTURE, SOUND, NOTE, PICTURE, b"\x01", SOUND, PICTURE]
    assert output["digests"] == [digest(content) for content in given]
    assert [get(url).content for url in [output["one"], *output["some"], output["maybe"]]] == given[:6]
    for name, suffix in zip(output["names"], ["a_picture.png", "s.wav", ".txt", ".png", ".png", "s.wav"], strict=True):
        assert name.endswith(suffix), output["names"]


def test_files_that_are_not_given_are_not_there(server: Server) -> None:
    output = run(server, "shapes", one=data_url(b"", "text/plain"), some=[])
    assert (output["some"], output["maybe"], output["digests"]) == ([], None, [digest(b"")])
    assert get(output["one"]).content == b""


def test_types_and_names_come_back(server: Server) -> None:
    output = run(server, "shapes", one=data_url(PICTURE, "image/png"), some=[data_url(SOUND, "audio/wav")] * 2)
    told = [(url.rpartition("/")[2], get(url).headers["content-type"]) for url in (output["one"], *output["some"])]
    assert told == [("one.webp", "image/webp"), ("some-0.wav", "audio/x-wav"), ("some-1.wav", "audio/x-wav")]
    echo = get(run(server, "echo", source=data_url(PICTURE, "image/png")))
    assert echo.content == PICTURE
    assert echo.headers["content-type"] == "image/png"
    assert "filename*=UTF-8''an%20%C3%A9cho%2C%20again.png" in echo.headers["content-disposition"]


def test_lists_and_iterators_of_files_keep_their_order(server: Server) -> None:
    pictures = run(server, "gallery", count=5)
    expected = [bytes([number]) * (1 if number % 2 else 300_000) for number in range(5)]
    assert [get(url).content for url in pictures] == expected
    frames = run(server, "frames", count=4)
    assert [get(url).content for url in frames] == [b"\x89PNG" + bytes([number]) for number in range(4)]
    assert [url.rpartition("/")[2] for url in frames] == [f"output-{number}.png" for number in range(4)]


@pytest.mark.parametrize("megabytes", [9, 70])
def test_large_files(server: Server, megabytes: int) -> None:
    """Bit by bit to the server, in parts to a bucket."""
    url = run(server, "echo", source=data_url(SOUND, "audio/wav"), megabytes=megabytes)
    size = megabytes << 20
    assert digest(get(url).content) == digest((SOUND * (size // len(SOUND) + 1))[:size])
    tail = httpx2.get(url, headers={"Range": "bytes=-5"}, follow_redirects=True, trust_env=False)
    assert (tail.status_code, len(tail.content)) == (206, 5)


def test_the_first_python_client_reads_files_of_a_bucket(
    shared_stage: Stage, cog_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It follows no redirect, and takes only https for a file."""
    cert, key = make_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    monkeypatch.setenv("REPLICATE_POLL_INTERVAL", "0.02")
    bucket = Moto().start()
    try:
        server = shared_stage.server(scheme="https", tls_cert=str(cert), tls_key=str(key), **bucket.settings())
        trust = {"SSL_CERT_FILE": str(cert)}
        shared_stage.cog(server, "me/shapes", MODELS / "shapes", cog_cache, environment=trust).connected()
        client = Client(api_token=server.token(), base_url=server.url)
        given = tmp_path / "a.png"
        given.write_bytes(PICTURE)
        with given.open("rb") as one, given.open("rb") as other:
            output = client.run("me/shapes", input={"one": one, "some": [other, data_url(SOUND, "audio/wav")]})
        assert isinstance(output, dict)
        assert isinstance(output["one"], FileOutput)
        assert [file.read() for file in [output["one"], *output["some"]]] == [PICTURE, PICTURE, SOUND]
        assert b"".join(output["one"]) == PICTURE
        url = output["one"].url
        sent_on = httpx2.get(url, verify=False, trust_env=False)
        assert sent_on.status_code == 302
        assert sent_on.headers["location"].startswith(bucket.url)
        client._client.close()
    finally:
        bucket.close()
