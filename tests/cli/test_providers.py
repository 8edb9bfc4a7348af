"""`cogflare providers`: one real server as the provider of another, and where its key is never seen."""

import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cli.conftest import Shell
from support.processes import Server, Stage

KEY = "COGFLARE_PROVIDER_KEY"


@pytest.fixture(scope="module")
def server(stage: Stage) -> Server:
    """A server that may use others on this machine."""
    return stage.server(outgoing_networks="127.0.0.0/8")


@pytest.fixture(scope="module")
def far(stage: Stage) -> Server:
    """The server that is the provider."""
    return stage.server()


@pytest.fixture
def key(stage: Stage, far: Server) -> str:
    """The key for it; the stage looks for it in all that is left in the end."""
    return stage.plant(far.token("api", "friend"))


@pytest.fixture
def friend(shell: Shell, far: Server, key: str) -> Iterator[str]:
    """The name of the provider."""
    assert shell.run("providers", "add", "friend", *where(far), **{KEY: key}).exit_code == 0
    yield "friend"
    shell.run("providers", "remove", "friend")


def where(server: Server) -> list[str]:
    return ["--kind", "cogflare", "--base-url", f"{server.url}/v1"]


def test_a_key_comes_from_the_environment_a_file_or_standard_input(
    shell: Shell, far: Server, key: str, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text(f"{key}\n")
    arguments = ["providers", "add", "friend", *where(far)]
    found = [
        shell.run(*arguments, **{KEY: key}),
        shell.run(*arguments, "--key-file", str(tmp_path / "key")),
    ]
    piped = shell.start(*arguments, "--key-file", "-", stdin=subprocess.PIPE)
    out, err = piped.communicate(f"  {key}\n", timeout=30)
    assert piped.returncode == 0, err
    for stdout, stderr in [(result.stdout, result.stderr) for result in found] + [(out, err)]:
        assert f"key:          {key[:4]}…\n" in stdout, stderr
        assert "as friend" in stderr
        assert key not in stdout + stderr
    (tmp_path / "key").unlink()
    assert shell.run("providers", "remove", "friend").exit_code == 0


def test_what_a_provider_says_does_nothing_to_the_terminal(shell: Shell, stage: Stage) -> None:
    class Rude(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(500)
            self.end_headers()
            self.wfile.write(b"\x1b]0;renamed\x07 no\0thing")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Rude) as rude:
        threading.Thread(target=rude.serve_forever).start()
        address = f"http://127.0.0.1:{rude.server_port}"
        arguments = ["providers", "add", "rude", "--kind", "replicate", "--base-url", address]
        told = shell.run(*arguments, **{KEY: stage.plant("r8_a-key-for-a-rude-provider")})
        rude.shutdown()
    assert told.exit_code == 1
    assert r"\x1b]0;renamed\x07 no thing" in told.stderr
    assert "\x1b" not in told.stdout + told.stderr
    assert shell.run("providers", "remove", "rude").exit_code == 0


def test_a_key_is_asked_for_on_a_terminal_and_not_shown(shell: Shell, far: Server, key: str) -> None:
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "cogflare.cli", "providers", "add", "friend", *where(far)]
    environment = {**os.environ, **shell.environment, "TERM": "xterm"}
    with subprocess.Popen(
        command, stdin=end, stdout=end, stderr=end, env=environment, start_new_session=True
    ) as process:
        os.close(end)
        shown = b""
        while b"not shown" not in shown:
            shown += os.read(terminal, 4096)
        os.write(terminal, f"{key}\n".encode())
        while b"checked:" not in shown:
            shown += os.read(terminal, 4096)
        assert process.wait(30) == 0
    os.close(terminal)
    assert key.encode() not in shown


def test_without_a_key_it_is_said_how_to_give_one(shell: Shell, far: Server) -> None:
    refused = shell.run("providers", "add", "friend", *where(far))
    assert refused.exit_code == 2
    assert "--key-file" in refused.stderr
    for wrong in ("two words", "kéy"):
        refused = shell.run("providers", "add", "friend", *where(far), **{KEY: wrong})
        assert refused.exit_code == 2
        assert "copied whole" in refused.stderr
        assert wrong not in refused.output
    assert "--key " not in shell.ok("providers", "add", "--help")


def test_one_whose_key_does_not_work_is_kept_and_says_so(shell: Shell, far: Server, key: str) -> None:
    added = shell.run("providers", "add", "wrong", *where(far), **{KEY: "cft_not-a-token-of-that-server"})
    assert added.exit_code == 1
    assert "checked:" in added.stderr
    assert "providers check wrong" in added.stderr
    again = shell.run("providers", "check", "wrong", "--json")
    assert again.exit_code == 1
    assert json.loads(again.stdout)["check"]["ok"] is False
    assert shell.run("providers", "add", "wrong", *where(far), **{KEY: key}).exit_code == 0
    assert json.loads(shell.ok("providers", "check", "wrong", "--json"))["check"]["account"] == "friend"
    assert shell.run("providers", "remove", "wrong").exit_code == 0


def test_an_address_without_encryption_is_told(shell: Shell, friend: str) -> None:
    for address, is_told in (("http://nowhere.invalid/v1", True), ("https://nowhere.invalid/v1", False)):
        added = shell.run("providers", "add", "plain", "--kind", "cogflare", "--base-url", address, **{KEY: "k" * 30})
        assert added.exit_code == 1
        assert ("unencrypted" in added.stderr) == is_told
    shell.run("providers", "remove", "plain")


def test_providers_are_listed_shown_and_changed(shell: Shell, friend: str, key: str, far: Server) -> None:
    [row] = [line.split("\t") for line in shell.ok("providers", "list").splitlines()]
    assert row == [friend, "cogflare", f"{far.url}/v1", f"{key[:4]}…", "0/20", "ok"]
    changed = shell.run("providers", "set", friend, "--price-per-s", "0.000725", "--max-concurrent", "3")
    assert changed.exit_code == 0, changed.output
    shown = shell.ok("providers", "show", friend)
    assert "price:        $0.000725 a second\n" in shown
    assert "running:      0 of 3 at a time\n" in shown
    one = json.loads(shell.ok("providers", "show", friend, "--json"))
    assert (one["price_per_s"], one["max_concurrent"]) == (0.000725, 3)
    assert key not in json.dumps(one)
    assert shell.run("providers", "set", friend).exit_code == 2


def test_what_cannot_be_a_provider_is_refused(shell: Shell, far: Server) -> None:
    for arguments, said in (
        (["friend"], "say what friend is"),
        (["cogflare"], "say where that Cogflare is"),
        (["workers", *where(far)], "name of a provider"),
        (["x", "--kind", "replicate", "--base-url", "http://10.0.0.1/v1"], "internal network"),
        (["x", "--kind", "openai"], "openai"),
        (["replicate", "--max-concurrent", "0"], "max-concurrent"),
    ):
        refused = shell.run("providers", "add", *arguments, **{KEY: "a-key-for-nothing"})
        assert refused.exit_code == 2, refused.output
        assert said in refused.stderr
    for command in ("show", "check", "remove"):
        missing = shell.run("providers", command, "nobody")
        assert missing.exit_code == 2
        assert "providers list" in missing.stderr
    assert shell.run("providers", "list").stderr.startswith("no providers")
