"""`cogflare backup` beside a server that writes, and a server that starts on what it made."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import apsw
import pytest
from click.testing import CliRunner, Result

from cogflare.cli.main import cogflare
from support.processes import Server, Stage


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def data_of(server: Server) -> Path:
    return Path(server.database_url.removeprefix("sqlite:///")).parent


def backup(server: Server, *arguments: str) -> Result:
    return CliRunner().invoke(cogflare, ["backup", *arguments], env={"COGFLARE_DATA": str(data_of(server))})


def test_the_copy_is_whole_private_and_checked(server: Server, folder: Path) -> None:
    prediction = server.create(seconds=0)
    server.ended(prediction)
    made = backup(server, "copy.db", "--json")
    assert made.exit_code == 0, made.output
    report = json.loads(made.stdout)
    assert report["database"] == "copy.db"
    assert report["bytes"] == (folder / "copy.db").stat().st_size
    assert stat.S_IMODE((folder / "copy.db").stat().st_mode) == 0o600
    assert [path.name for path in folder.iterdir()] == ["copy.db"]
    copy = apsw.Connection(str(folder / "copy.db"))
    assert copy.execute("SELECT status FROM predictions WHERE id = ?1", (prediction,)).fetchall() == [("succeeded",)]
    ((count,),) = copy.execute("SELECT count(*) FROM predictions").fetchall()
    assert report["predictions"] == count


def test_without_a_name_the_copy_is_named_after_the_time(server: Server, folder: Path) -> None:
    made = backup(server)
    assert made.exit_code == 0, made.output
    (copy,) = folder.iterdir()
    assert copy.name.startswith("cogflare-backup-20")
    assert made.stdout == f"{copy.name}\n"
    assert "predictions" in made.stderr
    assert "secret.key: keep a copy" in made.stderr


def test_nothing_is_overwritten_unless_it_is_wanted(server: Server, folder: Path) -> None:
    (folder / "copy.db").write_text("mine")
    refused = backup(server, "copy.db")
    assert refused.exit_code == 1
    assert "--force" in refused.stderr
    assert (folder / "copy.db").read_text() == "mine"
    assert backup(server, "copy.db", "--force").exit_code == 0
    assert apsw.Connection(str(folder / "copy.db")).execute("SELECT count(*) FROM tokens").fetchall()


def test_a_database_that_is_used_is_never_replaced(server: Server, folder: Path) -> None:
    path = data_of(server) / "cogflare.db"
    before = path.stat().st_ino
    for arguments in ([str(path)], [str(path.parent), "--with-files"]):
        refused = backup(server, *arguments, "--force")
        assert refused.exit_code == 1, refused.output
        assert "uses" in refused.stderr or "itself" in refused.stderr
    assert path.stat().st_ino == before


def test_a_place_that_cannot_be_written_is_said(server: Server, folder: Path) -> None:
    (folder / "file").write_text("")
    refused = backup(server, "file/copy.db")
    assert refused.exit_code == 1
    assert "no backup was made" in refused.stderr


def test_a_folder_without_a_database(folder: Path) -> None:
    refused = CliRunner().invoke(cogflare, ["backup", "--data", "nothing"])
    assert refused.exit_code == 1
    assert "no database at nothing/cogflare.db" in refused.stderr
    assert list(folder.iterdir()) == []


def test_something_else_than_our_database_is_not_passed_off_as_a_backup(folder: Path) -> None:
    (folder / "cogflare.db").write_bytes(b"no database at all" * 1000)
    refused = CliRunner().invoke(cogflare, ["backup", "copy.db", "--data", "."])
    assert refused.exit_code == 1
    assert "no backup was made" in refused.stderr
    assert not (folder / "copy.db").exists()


def test_postgresql_has_its_own_tools(folder: Path) -> None:
    refused = CliRunner().invoke(cogflare, ["backup"], env={"COGFLARE_DATABASE_URL": "postgresql://me:secret@host/x"})
    assert refused.exit_code == 1
    assert "pg_dump" in refused.stderr
    assert "secret" not in refused.output


def test_files_in_a_bucket_stay_there(server: Server, folder: Path) -> None:
    storage = {
        "COGFLARE_DATA": str(data_of(server)),
        "COGFLARE_STORAGE": "s3://bucket/files",
        "COGFLARE_S3_ACCESS_KEY_ID": "id",
        "COGFLARE_S3_SECRET_ACCESS_KEY": "the-secret",
    }
    made = CliRunner().invoke(cogflare, ["backup", "copy", "--with-files"], env=storage)
    assert made.exit_code == 0, made.output
    assert sorted(path.name for path in (folder / "copy").iterdir()) == ["cogflare.db", "secret.key"]
    assert "The stored files are in s3://bucket/files" in made.stderr
    assert "the-secret" not in made.output
    postgres = storage | {"COGFLARE_DATABASE_URL": "postgresql://host/x"}
    refused = CliRunner().invoke(cogflare, ["backup"], env=postgres)
    assert "the stored files are in s3://bucket/files" in refused.stderr


def test_a_server_starts_on_a_copy_with_files_and_shows_everything(stage: Stage, folder: Path) -> None:
    server = stage.server()
    worker = stage.scripted(server, "single", slots=4).connected()
    ended = server.create(file="a picture")
    url = server.ended(ended)["output"]
    content = server.http.get(url).content
    running = server.create(seconds=600)
    server.processing(running)
    large = server.create(output="x" * 50_000, log=1000)
    server.ended(large)
    made = backup(server, "copy", "--with-files", "--json")
    assert made.exit_code == 0, made.output
    report: dict[str, Any] = json.loads(made.stdout)
    assert report["files"]["new"] == report["files"]["files"] == 1
    assert stat.S_IMODE((folder / "copy" / "secret.key").stat().st_mode) == 0o600
    refused = backup(server, "copy", "--with-files")
    assert refused.exit_code == 1
    worker.kill9()
    again = backup(server, "copy", "--with-files", "--force", "--json")
    assert json.loads(again.stdout)["files"] == {**report["files"], "new": 0}

    shown = [server.get(one) for one in (ended, large)]
    secret = server.call("GET", "/v1/webhooks/default/secret", token=server.token()).json()
    assert backup(server, "copy", "--with-files", "--force").exit_code == 0
    restored = stage.server(data=str(folder / "copy"), admin_token=server.admin_token)
    for one in shown:
        found = restored.call("GET", f"/v1/predictions/{one['id']}", token=server.token()).json()
        assert {**found, "urls": None, "output": None} == {**one, "urls": None, "output": None}
    assert restored.call("GET", "/v1/webhooks/default/secret", token=server.token()).json() == secret
    output = restored.call("GET", f"/v1/predictions/{ended}", token=server.token()).json()["output"]
    assert restored.http.get(output).content == content
    assert restored.call("GET", f"/v1/predictions/{running}", token=server.token()).json()["status"] == "processing"


def test_progress_is_shown_on_a_terminal(server: Server, folder: Path) -> None:
    leader, follower = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "cogflare.cli", "backup", "copy.db"],
        stdout=subprocess.PIPE,
        stderr=follower,
        env={**os.environ, "COGFLARE_DATA": str(data_of(server)), "TERM": "xterm"},
    )
    os.close(follower)
    assert process.wait(30) == 0
    assert b"100%" in os.read(leader, 100_000)
    os.close(leader)
    assert process.stdout is not None
    process.stdout.close()
