"""Files of clients, end to end: a real server, a real worker with Cog's own server, bytes in and bytes out."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from click.testing import CliRunner

from cogflare.cli.main import cogflare
from support.buckets import Moto
from support.processes import Server, Stage

MODELS = Path(__file__).parents[1] / "models"
TEXT = b"some text\r\n--with lines\r\n\xff\0" * 1_000


@pytest.fixture(scope="module", params=["local", "s3"])
def server(request: pytest.FixtureRequest, shared_stage: Stage, cog_cache: Path) -> Iterator[Server]:
    """A server behind a name that its worker does not know, with a worker that takes files."""
    bucket = Moto().start() if request.param == "s3" else None
    try:
        settings = {} if bucket is None else bucket.settings()
        server = shared_stage.server(public_url="https://api.example.net", max_inline_bytes="1000", **settings)
        worker = shared_stage.cog(server, "me/files", MODELS / "files", cog_cache).connected()
        yield server
        worker.end()
    finally:
        if bucket is not None:
            bucket.close()


def upload(server: Server, content: bytes = TEXT, name: str = "a text.txt") -> dict[str, Any]:
    return dict(server.ask("POST", "/v1/files", files={"content": (name, content, "text/plain")}))


def run(server: Server, source: str) -> dict[str, Any]:
    """Run the model on a file; it answers with the file in upper case."""
    body = {"input": {"source": source, "copies": 0}}
    created = server.ask("POST", "/v1/models/me/files/predictions", json=body)
    ended = server.ended(created["id"])
    assert ended["status"] == "succeeded", ended
    return ended


def bytes_of(server: Server, url: str) -> bytes:
    assert url.startswith("https://api.example.net/")
    here = server.url + url.removeprefix("https://api.example.net")
    return bytes(httpx2.get(here, follow_redirects=True).raise_for_status().content)


def test_an_upload_reaches_the_model_and_comes_back(server: Server) -> None:
    file = upload(server)
    assert file["urls"]["get"] == f"https://api.example.net/v1/files/{file['id']}"
    ended = run(server, file["urls"]["get"])
    assert ended["input"]["source"] == file["urls"]["get"]
    assert bytes_of(server, ended["output"]["single"]) == TEXT.upper()


def test_a_deleted_upload_is_refused_by_name(server: Server) -> None:
    file = upload(server)
    assert server.call("DELETE", f"/v1/files/{file['id']}").status_code == 204
    body = {"input": {"source": file["urls"]["get"]}}
    refused = server.call("POST", "/v1/models/me/files/predictions", json=body)
    assert refused.status_code == 422
    assert "input.source" in refused.json()["detail"]


def test_a_large_data_url_reaches_the_model_and_is_shown_as_a_file(server: Server) -> None:
    ended = run(server, f"data:text/plain;base64,{base64.b64encode(TEXT).decode()}")
    assert bytes_of(server, ended["input"]["source"]) == TEXT
    assert bytes_of(server, ended["output"]["single"]) == TEXT.upper()


def test_a_small_data_url_stays(server: Server) -> None:
    source = "data:text/plain;base64,c29tZSB0ZXh0"
    ended = run(server, source)
    assert ended["input"]["source"] == source
    assert bytes_of(server, ended["output"]["single"]) == b"SOME TEXT"


def test_a_signed_download(server: Server) -> None:
    file = upload(server)
    signed = server.ask("POST", f"/v1/files/{file['id']}/download-url")["url"]
    assert bytes_of(server, signed) == TEXT


def test_predict_uploads_what_does_not_fit_a_request(server: Server, tmp_path: Path) -> None:
    (tmp_path / "large.txt").write_bytes(TEXT * 40)
    environment = {"COGFLARE_SERVER": server.url, "COGFLARE_TOKEN": server.token()}
    arguments = ["predict", "me/files", "-i", f"source=@{tmp_path / 'large.txt'}", "-i", "copies=0", "--json"]
    done = CliRunner().invoke(cogflare, arguments, env=environment)
    assert done.exit_code == 0, done.output
    prediction = json.loads(done.stdout.splitlines()[-1])
    assert "/v1/files/" in prediction["input"]["source"]
    assert bytes_of(server, prediction["output"]["single"]) == (TEXT * 40).upper()
