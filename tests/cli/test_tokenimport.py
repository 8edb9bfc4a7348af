"""`cogflare tokens import`: exports of the old token store in each form, taken by a real server."""

import json
from pathlib import Path
from typing import Any

import click
import pytest

from cli.conftest import Shell
from cogflare.cli.tokenimport import read_entries
from support.processes import Stage

VALUE = {"allow": True, "worker": "worker-secret-0123456789"}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"t1": VALUE, "t2": VALUE}),
        json.dumps([{"key": "t1", "value": VALUE}, {"name": "t2", "value": VALUE, "metadata": None}]),
        f'{{"key": "t1", "value": {json.dumps(VALUE)}}}\n\n{{"key": "t2", "value": {json.dumps(VALUE)}}}\n',
    ],
)
def test_every_form_of_an_export_is_read(text: str) -> None:
    assert read_entries(text.encode()) == [{"key": "t1", "value": VALUE}, {"key": "t2", "value": VALUE}]


def test_one_line_is_an_entry() -> None:
    assert read_entries(b'{"key": "t1", "value": "{}"}') == [{"key": "t1", "value": "{}"}]


@pytest.mark.parametrize("text", [b"no json secret", b'{"key": "t", "value": 1}\n{secret', b"[1]", b'["secret"]', b"7"])
def test_what_is_no_export_is_refused_without_showing_it(text: bytes) -> None:
    with pytest.raises(click.UsageError) as refused:
        read_entries(text)
    assert "secret" not in refused.value.message


def run(admin: Shell, path: Path, document: Any, *options: str) -> tuple[int, str, str]:
    path.write_text(json.dumps(document))
    result = admin.run("tokens", "import", str(path), *options)
    return result.exit_code, result.stdout, result.stderr


def test_a_store_is_taken_and_what_became_of_it_told(admin: Shell, stage: Stage, tmp_path: Path) -> None:
    token, worker = stage.plant("old-token-0123456789abc"), stage.plant("old-worker-0123456789abc")
    key = stage.plant("r8_old-replicate-key-0123456789")
    store = {token: {"allow": True, "worker": worker, "replicate": key}, "x" * 30: {"allow": False}}
    path, names = Path(tmp_path / "store.json"), Path(tmp_path / "names.json")
    names.write_text(json.dumps({token: "the-bot"}))
    code, shown, said = run(admin, path, store, "--accounts", str(names), "--dry-run")
    assert (code, said.strip()) == (0, "1 imported, 1 skipped; nothing was changed, this was a dry run")
    code, shown, said = run(admin, path, store, "--accounts", str(names))
    first, second = (line.split("\t") for line in shown.splitlines())
    assert first == ["1", "imported", "the-bot", "account, api token, worker token, provider, route", "-"]
    assert second == ["2", "skipped", "-", "-", "it was not allowed to do anything"]
    assert (code, said.strip()) == (0, "1 imported, 1 skipped")
    assert not any(secret in shown + said for secret in (token, worker, key))
    assert "the-bot" in Shell(admin.server, token).ok("account")
    code, shown, said = run(admin, path, {**store, "": {"allow": True}}, "--accounts", str(names), "--json")
    assert [json.loads(line)["outcome"] for line in shown.splitlines()] == ["known", "skipped", "refused"]
    assert code == 1


def test_it_takes_an_admin(shell: Shell, tmp_path: Path) -> None:
    code, shown, said = run(shell, tmp_path / "store.json", {"t" * 30: VALUE})
    assert (code, shown) == (2, "")
    assert "admin token" in said
