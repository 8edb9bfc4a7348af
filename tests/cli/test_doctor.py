"""`cogflare doctor`: what it finds in a setup that works, and in those that do not."""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from cogflare.app import SystemClock
from cogflare.cli.checkup import Checkup
from cogflare.cli.findings import Finding
from cogflare.cli.main import cogflare
from cogflare.settings import Settings
from support.buckets import BucketServer, Moto
from support.processes import Server


def doctor(data: Path, *arguments: str, **settings: Any) -> tuple[int, dict[str, dict[str, str]]]:
    """Run the command; return its exit code and what it found, by name."""
    variables = {f"COGFLARE_{name.upper()}": str(value) for name, value in settings.items()}
    ran = CliRunner().invoke(cogflare, ["doctor", "--data", str(data), "--json", *arguments], env=variables)
    findings = [json.loads(line) for line in ran.stdout.splitlines()]
    return ran.exit_code, {finding["name"]: finding for finding in findings}


def states(findings: dict[str, dict[str, str]]) -> dict[str, str]:
    return {name: finding["state"] for name, finding in findings.items()}


def test_before_the_first_start_all_is_well_and_nothing_is_made(tmp_path: Path) -> None:
    code, findings = doctor(tmp_path / "data")
    assert code == 0
    assert set(states(findings).values()) == {"ok"}
    assert list(tmp_path.iterdir()) == []


def test_beside_a_server_that_runs(server: Server) -> None:
    data = Path(server.database_url.removeprefix("sqlite:///")).parent
    before = sorted((data / "files").rglob("*"))
    code, findings = doctor(data, public_url=server.url)
    assert (code, set(states(findings).values())) == (0, {"ok"}), findings
    assert "answers" in findings["public URL"]["detail"]
    assert [path for path in sorted((data / "files").rglob("*")) if path.is_file()] == [
        path for path in before if path.is_file()
    ]


@pytest.mark.parametrize("kind", ["moto", "miniflare"])
def test_a_bucket(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> None:
    server: BucketServer = request.getfixturevalue(kind)
    code, findings = doctor(tmp_path, **server.settings())
    assert (code, set(states(findings).values())) == (0, {"ok"}), findings
    assert findings["downloads"]["detail"].endswith("with ranges")
    assert findings["uploads"]["detail"] == "straight to the storage"
    through = doctor(tmp_path, **server.settings(), s3_direct_uploads=False, s3_direct_downloads=False)[1]
    assert (through["downloads"]["detail"], through["uploads"]["detail"]) == ("through this server",) * 2


def test_people_are_told_what_to_do(moto: Moto, tmp_path: Path) -> None:
    settings = moto.settings() | {"storage": "s3://not-our-bucket"}
    ran = CliRunner().invoke(
        cogflare,
        ["doctor", "--data", str(tmp_path)],
        env={f"COGFLARE_{name.upper()}": value for name, value in settings.items()},
    )
    assert ran.exit_code == 1
    assert "storage      failed  s3://not-our-bucket" in ran.stdout
    assert "-> there is no bucket 'not-our-bucket'" in ran.stdout
    assert settings["s3_secret_access_key"] not in ran.output
    assert "would fail: storage" in ran.stderr


def unwritable(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "file").write_text("no folder")
    return {"data": tmp_path / "file"}


def damaged(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "cogflare.db").write_bytes(os.urandom(100_000))
    return {"data": tmp_path}


@pytest.mark.parametrize(
    ("make", "name", "words"),
    [
        (unwritable, "data folder", "setting data"),
        (damaged, "database", "database_url"),
        (lambda tmp: {"database_url": "mysql://x"}, "database", "database_url"),
        (lambda tmp: {"storage": "s3://bucket"}, "storage", "s3_access_key_id"),
        (lambda tmp: {"storage": "gs://bucket"}, "storage", "s3://BUCKET"),
        (lambda tmp: {"max_strikes": "0"}, "settings", "max_strikes"),
        (lambda tmp: {"port": "http"}, "settings", "port"),
    ],
    ids=["data", "damage", "url", "keys", "gs", "number", "type"],
)
def test_what_would_fail(tmp_path: Path, make: Callable[[Path], dict[str, Any]], name: str, words: str) -> None:
    settings = make(tmp_path)
    code, findings = doctor(Path(settings.pop("data", tmp_path / "data")), **settings)
    assert code == 1
    assert findings[name]["state"] == "failed"
    assert words in findings[name]["todo"]


def test_a_storage_folder_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "files").write_text("no folder")
    code, findings = doctor(tmp_path)
    assert (code, findings["storage"]["state"]) == (1, "failed")
    assert "let the server's user write there" in findings["storage"]["todo"]


def test_a_key_that_is_not_the_databases(server: Server, tmp_path: Path) -> None:
    data = Path(server.database_url.removeprefix("sqlite:///")).parent
    code, findings = doctor(data, secret_key="x" * 40)
    assert (code, findings["secret key"]["state"]) == (1, "failed")
    assert "Give this server the key" in findings["secret key"]["todo"]


def test_a_public_url_where_nobody_is(tmp_path: Path) -> None:
    code, findings = doctor(tmp_path, public_url="http://127.0.0.1:9")
    assert (code, findings["public URL"]["state"]) == (0, "warning")
    assert "proxy" in findings["public URL"]["todo"]


@pytest.mark.parametrize(("off_s", "state"), [(5, "ok"), (-100, "warning"), (700, "failed")])
def test_a_clock_that_is_off(moto: Moto, tmp_path: Path, off_s: float, state: str) -> None:
    class Clock(SystemClock):
        def wall(self) -> int:
            return super().wall() + int(off_s * 1e6)

    async def found() -> list[Finding]:
        settings = msgspec.convert({"data": str(tmp_path), **moto.settings()}, Settings)
        return [finding async for finding in Checkup(settings, Clock()).run() if finding.name == "clock"]

    (clock,) = asyncio.run(found())
    assert clock.state == state
    assert (clock.todo != "") == (state != "ok")
    assert "of the storage's" in clock.detail


def test_a_full_disk_is_said_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cogflare.cli.checkup._LEAST_FREE", 10**18)
    code, findings = doctor(tmp_path)
    assert (code, findings["data folder"]["state"]) == (0, "warning")
    assert os.listdir(tmp_path)
