"""`cogflare files`, and large files in inputs, against a real server."""

import json
from pathlib import Path

import httpx2
import pytest

from cli.conftest import Shell
from cogflare.cli.downloads import DownloadError, save

CONTENT = b"\0\r\n--content" * 40_000


@pytest.fixture
def sent(shell: Shell, tmp_path: Path) -> dict[str, str]:
    """A file that was uploaded."""
    (tmp_path / "a cat.png").write_bytes(CONTENT)
    return dict(json.loads(shell.ok("files", "upload", "a cat.png", "--metadata", "of=tests", "--json")))


def test_an_upload_prints_what_an_input_takes(shell: Shell, tmp_path: Path) -> None:
    for name in ("one.txt", "two"):
        (tmp_path / name).write_text(name)
    done = shell.run("files", "upload", "one.txt", "two")
    urls = done.stdout.splitlines()
    assert [url.rpartition("/")[0] for url in urls] == [f"{shell.server.url}/v1/files"] * 2
    assert "one.txt: 7 bytes, until" in done.stderr
    shown = [json.loads(shell.ok("files", "show", url.rpartition("/")[2], "--json")) for url in urls]
    told = [(file["name"], file["content_type"]) for file in shown]
    assert told == [("one.txt", "text/plain"), ("two", "application/octet-stream")]


def test_what_cannot_be_uploaded(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    for arguments in (["missing"], ["x", "--metadata", "novalue"], [], [str(tmp_path)]):
        assert shell.run("files", "upload", *arguments).exit_code == 2


def test_a_file_is_listed_and_shown(shell: Shell, sent: dict[str, str]) -> None:
    assert [sent["id"], "a cat.png", "image/png", str(len(CONTENT))] in [
        line.split("\t")[:4] for line in shell.ok("files", "list").splitlines()
    ]
    assert json.loads(shell.ok("files", "list", "--limit", "1", "--json")) == sent
    shown = shell.ok("files", "show", sent["id"])
    assert "metadata.of:" in shown
    assert sent["etag"] in shown


def test_a_file_is_named_by_its_url_as_well(shell: Shell, sent: dict[str, str]) -> None:
    url = shell.ok("files", "upload", "a cat.png").strip()
    id = url.rpartition("/")[2]
    assert shell.ok("files", "show", url) == shell.ok("files", "show", id)
    assert json.loads(shell.ok("files", "download", url, "--json"))["id"] == id
    assert f"/{id}/download/" in shell.ok("files", "url", url)
    assert f"deleted {id}" in shell.run("files", "delete", url).stderr
    assert shell.run("files", "delete", f"{url}/more").exit_code == 2


def test_a_file_comes_back(shell: Shell, sent: dict[str, str], tmp_path: Path) -> None:
    saved = shell.ok("files", "download", sent["id"], "-o", "folder").strip()
    assert (tmp_path / saved).read_bytes() == CONTENT
    assert saved == "folder/a_cat.png"
    assert json.loads(shell.ok("files", "download", sent["id"], "--json"))["path"] == "a_cat.png"


def test_a_host_that_does_not_answer_is_named_and_a_signature_is_not(tmp_path: Path) -> None:
    with pytest.raises(DownloadError) as failed:
        save("http://127.0.0.1:1/v1/files/x/download/a.txt?signature=secret", tmp_path)
    assert "a.txt was not saved in" in failed.value.message
    assert "no answer from 127.0.0.1:1" in failed.value.message
    assert "secret" not in failed.value.message
    assert list(tmp_path.iterdir()) == []


def test_a_url_opens_a_file_without_a_token(shell: Shell, sent: dict[str, str]) -> None:
    url = shell.ok("files", "url", sent["id"], "--expires-in", "10m").strip()
    assert httpx2.get(url).content == CONTENT
    assert set(json.loads(shell.ok("files", "url", sent["id"], "--json"))) == {"url", "expires_at"}
    assert shell.run("files", "url", sent["id"], "--expires-in", "8d").exit_code == 2


def test_a_deleted_file_is_gone(shell: Shell, sent: dict[str, str]) -> None:
    assert f"deleted {sent['id']}" in shell.run("files", "delete", sent["id"]).stderr
    gone = shell.run("files", "show", sent["id"])
    assert gone.exit_code == 2
    assert "`cogflare files list` shows what it has" in gone.stderr
