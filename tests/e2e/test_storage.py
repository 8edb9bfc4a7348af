"""A server on a bucket: starts that are refused, a storage that is away, and files that never pass the server."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from support.buckets import Miniflare
from support.processes import Stage


def refused(folder: Path, **settings: str) -> str:
    """Start a server that has to end by itself; return what it says."""
    variables = {f"COGFLARE_{name.upper()}": value for name, value in settings.items()}
    ended = subprocess.run(
        [sys.executable, "-m", "cogflare.cli", "serve", "--port", "0", "--data", str(folder / "data")],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert settings.get("s3_secret_access_key", "\0") not in ended.stdout + ended.stderr
    return ended.stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"s3_secret_access_key": "not-the-secret"}, "refuses the credentials"),
        ({"storage": "s3://not-our-bucket"}, "there is no bucket 'not-our-bucket'"),
        ({"s3_access_key_id": ""}, "s3_access_key_id and s3_secret_access_key are needed"),
        ({"storage": "bucket"}, "it may be s3://BUCKET"),
        ({"storage": "s3://My_bucket"}, "has 3 to 63 characters of a-z"),
        ({"s3_public_url": "nonsense"}, "s3_public_url has to be a URL"),
    ],
    ids=["credentials", "bucket", "no key", "no bucket", "no bucket's name", "no public URL"],
)
def test_a_setup_that_cannot_work_is_refused(
    miniflare: Miniflare, tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    assert words in refused(tmp_path, **(miniflare.settings() | changes))


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "files").write_text("no folder")
    assert "let the server's user write there" in refused(tmp_path)


def test_a_storage_that_is_away_keeps_nobody_from_starting(stage: Stage) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    server = stage.server(
        storage="s3://bucket",
        s3_endpoint=f"http://127.0.0.1:{port}",
        s3_access_key_id="id",
        s3_secret_access_key="the-secret",
    )
    assert "files cannot be stored now" in server.log()
    assert "check s3_endpoint and the network" in server.log()
    assert "the-secret" not in server.log()
    stage.scripted(server).connected()
    assert server.ended(server.create(output="no file"))["status"] == "succeeded"
    form = {"content": ("x.txt", b"x", "text/plain")}
    assert server.call("POST", "/v1/files", files=form).status_code == 503
    assert "the storage of files failed" in server.log()


def test_files_go_straight_between_their_ends_and_the_bucket(miniflare: Miniflare, stage: Stage) -> None:
    server = stage.server(**miniflare.settings())
    stage.scripted(server).connected()
    output = server.ended(server.create(file="a picture"))["output"]
    sent_on = server.http.get(output)
    assert sent_on.status_code == 302
    assert sent_on.headers["location"].startswith(miniflare.url)
    assert sent_on.headers["access-control-allow-origin"] == "*"
    whole = httpx2.get(output, follow_redirects=True)
    assert whole.content == b"a picture"
    assert whole.headers["content-type"] == "text/plain"
    assert 'filename="answer.txt"' in whole.headers["content-disposition"]
    part = httpx2.get(output, follow_redirects=True, headers={"range": "bytes=2-4"})
    assert (part.status_code, part.content) == (206, b"pic")
    assert not list((Path(server.database_url.removeprefix("sqlite:///")).parent).glob("files/*"))
