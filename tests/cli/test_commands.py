"""The commands that look and manage, against a real server."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from cli.conftest import Shell
from support.processes import Stage, until, version_of


def rows(text: str) -> list[list[str]]:
    """Split what a pipe gets."""
    return [line.split("\t") for line in text.splitlines()]


def test_account_shows_whose_token_it_is(shell: Shell) -> None:
    assert "username:     me\n" in shell.ok("account")
    assert json.loads(shell.ok("account", "--json"))["username"] == "me"


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_a_new_token_is_printed_alone_and_works_until_it_is_revoked(admin: Shell) -> None:
    made = admin.run("tokens", "create", "--kind", "api", "--name", "app", "--account", "bob", "--expires-in", "1h30m")
    secret = made.stdout.strip()
    assert made.stdout == f"{secret}\n"
    assert "shown only now" in made.stderr
    bob = Shell(admin.server, secret)
    assert "bob" in bob.ok("account")

    listed = next(json.loads(line) for line in admin.ok("tokens", "list", "--json").splitlines() if "bob" in line)
    assert listed["expires_at"] is not None
    assert secret not in admin.ok("tokens", "list")
    assert admin.run("tokens", "revoke", listed["id"]).exit_code == 0
    assert admin.run("tokens", "revoke", "nothing").exit_code == 2
    refused = bob.run("account")
    assert refused.exit_code == 2
    assert "does not know this token" in refused.stderr
    assert secret not in refused.output


def test_tokens_are_for_admins(shell: Shell) -> None:
    refused = shell.run("tokens", "list")
    assert refused.exit_code == 2
    assert "admin token" in refused.stderr


@pytest.mark.parametrize("text", ["", "soon", "0s", "5", "1m1d"])
def test_a_duration_that_is_none_is_refused(admin: Shell, text: str) -> None:
    refused = admin.run("tokens", "create", "--kind", "api", "--name", "x", "--expires-in", text)
    assert refused.exit_code == 2
    assert "no duration" in refused.stderr


# --- models and workers -----------------------------------------------------------------------------------------------


def test_models_are_listed_and_shown_with_their_inputs(shell: Shell) -> None:
    assert [row[0] for row in rows(shell.ok("models", "list"))] == ["me/single", "me/text"]
    shown = shell.ok("models", "show", "me/single")
    assert version_of("single") in shown
    assert "seconds\tnumber 0..600\t0\t-\n" in shown
    assert json.loads(shell.ok("models", "show", "me/single", "--json"))["owner"] == "me"


def test_an_unknown_model_is_refused(shell: Shell) -> None:
    assert shell.run("models", "show", "me/nothing").exit_code == 2
    assert shell.run("models", "show", "nothing").exit_code == 2


def test_workers_are_listed_and_drained(shell: Shell, stage: Stage) -> None:
    worker = stage.scripted(shell.server, "single", name="leaver").connected()
    listed = {row[1]: row for row in rows(shell.ok("workers", "list"))}
    assert listed["leaver"][2:5] == ["online", "me/single", "0/1"]
    assert shell.run("workers", "drain", listed["leaver"][0]).exit_code == 0
    assert worker.join() == 0


def on_terminal(shell: Shell, last: bytes, columns: int) -> bytes:
    """Return what `workers list` writes on a terminal of a width, up to a last text."""
    terminal, end = pty.openpty()
    environment = {**os.environ, **shell.environment, "TERM": "xterm", "COLUMNS": str(columns)}
    with subprocess.Popen(
        [sys.executable, "-m", "cogflare.cli", "workers", "list"], stdout=end, env=environment
    ) as process:
        os.close(end)
        shown = b""
        while last not in shown:
            shown += os.read(terminal, 4096)
        assert process.wait(30) == 0
    os.close(terminal)
    return shown


def test_a_terminal_gets_tables(shell: Shell) -> None:
    assert b"name" in on_terminal(shell, b"single-worker", 100).splitlines()[1]


def test_a_terminal_gets_the_reason_of_a_quarantine_in_one_piece(stage: Stage) -> None:
    server = stage.server(quarantine_after="1", quarantine_s="600")
    stage.scripted(server, name="gpu").connected()
    own = Shell(server, server.token())
    server.create(crash=1)
    until(lambda: "quarantined" in own.ok("workers", "list"), "quarantine")
    shown = on_terminal(own, b"process died", 80).splitlines()
    assert shown[-1].startswith(b"gpu (")
    assert shown[-1].endswith(b"ago: the model's process died")


# --- predictions ------------------------------------------------------------------------------------------------------


def test_predictions_are_listed_by_status_and_model(shell: Shell) -> None:
    shell.ok("predict", "me/single", "-i", "output=listed", "--json")
    shell.run("predict", "me/text", "-i", "fail=on purpose", "--json")
    assert {row[2] for row in rows(shell.ok("predictions", "list", "--status", "failed"))} == {"failed"}
    assert {row[1] for row in rows(shell.ok("predictions", "list", "--model", "me/single"))} == {"me/single"}
    newest = rows(shell.ok("predictions", "list", "--limit", "1"))
    assert len(newest) == 1
    assert newest[0][1:3] == ["me/text", "failed"]
    assert "on purpose" in newest[0][5]
    assert (
        len([json.loads(line) for line in shell.ok("predictions", "list", "--limit", "2", "--json").splitlines()]) == 2
    )


def test_lists_follow_pages(shell: Shell) -> None:
    other = Shell(shell.server, shell.server.token("api", "pager"))
    shell.server.new_token("worker", "pager")
    for number in range(105):
        shell.server.ask(
            "POST", "/v1/tokens", token=shell.server.admin_token, json={"kind": "api", "name": f"n{number}"}
        )
    admin = Shell(shell.server, shell.server.admin_token)
    assert len(rows(admin.ok("tokens", "list"))) > 105
    assert other.ok("predictions", "list") == ""


def test_one_prediction_in_full(shell: Shell) -> None:
    prediction = json.loads(shell.ok("predict", "me/single", "-i", "log=2", "-i", "output=42", "--json"))["id"]
    shown = shell.ok("predictions", "show", prediction)
    assert "status:       succeeded" in shown
    assert "output:       42" in shown
    assert json.loads(shell.ok("predictions", "show", prediction, "--json"))["id"] == prediction
    assert len(shell.ok("predictions", "logs", prediction).splitlines()) == 2
    assert [row[:1] + row[5:6] for row in rows(shell.ok("predictions", "attempts", prediction))] == [["1", "succeeded"]]


def test_logs_can_be_followed_to_the_end(shell: Shell) -> None:
    prediction = shell.ok("predict", "me/single", "-i", "seconds=0.5", "-i", "log=2", "--no-wait").strip()
    followed = shell.run("predictions", "logs", "--follow", prediction)
    assert followed.exit_code == 0
    assert "succeeded" in followed.stderr
    assert len(followed.stdout.splitlines()) == 2


def test_cancel_says_what_became_of_each(shell: Shell) -> None:
    prediction = shell.ok("predict", "me/single", "-i", "seconds=60", "--no-wait").strip()
    result = shell.run("predictions", "cancel", prediction, "nothing")
    assert result.exit_code == 2
    assert rows(result.stdout) == [[prediction, "canceled"]]
    assert result.stderr.startswith("nothing\t")


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_no_token(shell: Shell) -> None:
    refused = shell.run("account", COGFLARE_TOKEN="")
    assert refused.exit_code == 2
    assert "set COGFLARE_TOKEN" in refused.stderr


def test_nobody_listens(shell: Shell) -> None:
    failed = shell.run("account", "--server", "127.0.0.1:9")
    assert failed.exit_code == 1
    assert "cogflare serve" in failed.stderr


@pytest.mark.parametrize("address", ["ftp://x", "http://", "http://a:b@c", "http://h:99999", "http://x?y"])
def test_what_is_no_address(shell: Shell, address: str) -> None:
    refused = shell.run("account", "--server", address)
    assert refused.exit_code == 2
    assert "an address such as" in refused.stderr


def test_a_token_that_cannot_be_one_is_refused_unseen(shell: Shell) -> None:
    refused = shell.run("account", "--token", "se cret\n")
    assert refused.exit_code == 2
    assert "cret" not in refused.output


@pytest.mark.parametrize("what", ["prediction", "model"])
def test_what_is_not_there_is_named(shell: Shell, what: str) -> None:
    refused = shell.run(f"{what}s", "show", "me/nothing" if what == "model" else "nothing")
    assert refused.exit_code == 2
    assert f"has no {what} {'me/nothing' if what == 'model' else 'nothing'}:" in refused.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("predictions", "show", ""),
        ("predictions", "show", "x/attempts"),
        ("predictions", "cancel", ""),
        ("predictions", "requeue", ".."),
        ("models", "show", "me/.."),
        ("predict", "me/."),
        ("workers", "drain", ""),
        ("tokens", "revoke", "."),
    ],
)
def test_a_name_leads_to_no_other_path(shell: Shell, arguments: tuple[str, ...]) -> None:
    refused = shell.run(*arguments)
    assert refused.exit_code == 2
    assert "is no id" in refused.stderr


def test_a_name_is_quoted(shell: Shell) -> None:
    assert "has no prediction a?b#c%2F:" in shell.run("predictions", "show", "a?b#c%2F").stderr


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(shell: Shell) -> None:
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    assert shell.run("account", **proxies).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "environment", "problem"),
    [
        (("--data", "taken"), {}, "cannot write in taken"),
        (("--host", "host.invalid"), {}, "choose another --host"),
        (("--tls-cert", "taken", "--tls-key", "taken"), {}, "tls_cert and tls_key"),
        ((), {"COGFLARE_PORT": "70000"}, "the setting port is 70000"),
        ((), {"COGFLARE_PORT": "x"}, "the setting port: Expected `int`"),
        ((), {"COGFLARE_LEASE_S": "-1"}, "the setting lease_s has to be above 0"),
        ((), {"COGFLARE_TRUSTED_PROXIES": "x"}, "the setting trusted_proxies"),
    ],
)
def test_a_server_that_cannot_start_says_why(
    shell: Shell, tmp_path: Path, arguments: tuple[str, ...], environment: dict[str, str], problem: str
) -> None:
    (tmp_path / "taken").write_text("nothing")
    failed = shell.run("serve", *([] if "COGFLARE_PORT" in environment else ["--port", "0"]), *arguments, **environment)
    assert failed.exit_code == 1
    assert problem in failed.stderr


def test_something_else_answers(shell: Shell, site: str) -> None:
    failed = shell.run("account", "--server", site)
    assert failed.exit_code == 1
    assert "is the address right?" in failed.stderr


def test_a_reader_that_goes_away(shell: Shell) -> None:
    process = shell.start("predictions", "list", "--help")
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
    assert until(lambda: process.returncode is not None, "end")


def test_a_worker_with_a_wrong_token_is_refused_before_its_setup(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "cog.yaml").write_text("predict: predict.py:Predictor\n")
    options = ("--server", shell.server.url, "--model", "me/m", "--state", str(tmp_path / "state"))
    for token, why in (("cfw_wrong", "does not know this worker token"), (shell.server.token(), "not a worker token")):
        result = shell.run("worker", str(tmp_path), *options, "--token", token)
        assert result.exit_code == 2
        assert why in result.stderr
        assert "setting up" not in result.stderr
