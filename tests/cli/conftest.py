"""A server with scripted workers for the commands' tests, and ways to run a command against it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cogflare.cli.main import cogflare
from support.processes import Server, Stage


class Shell:
    """Runs `cogflare` commands for an account of a server: in this process, or as a process of their own."""

    def __init__(self, server: Server, token: str) -> None:
        self.server = server
        self.environment = {"COGFLARE_SERVER": server.url, "COGFLARE_TOKEN": token}

    def run(self, *arguments: str, **environment: str) -> Result:
        """Run a command; the result has its exit code, `stdout` and `stderr`."""
        return CliRunner().invoke(cogflare, list(arguments), env={**self.environment, **environment})

    def ok(self, *arguments: str) -> str:
        """Run a command that has to succeed; return what it printed."""
        result = self.run(*arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command as a process, its standard output and standard error in pipes."""
        return subprocess.Popen(
            [sys.executable, "-m", "cogflare.cli", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **self.environment, "PYTHONUNBUFFERED": "1"},
            # pytest may run with SIGINT ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
            **options,
        )


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage(tmp_path_factory.mktemp("cli")) as stage:
        yield stage


@pytest.fixture(scope="module")
def server(stage: Stage) -> Server:
    server = stage.server()
    workers = [stage.scripted(server, kind, slots=4, name=f"{kind}-worker") for kind in ("single", "text")]
    for worker in workers:
        worker.connected()
    return server


@pytest.fixture
def shell(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """Commands of an ordinary account, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return Shell(server, server.token())


@pytest.fixture
def admin(server: Server) -> Shell:
    """Commands of an operator."""
    return Shell(server, server.admin_token)


class _Page(BaseHTTPRequestHandler):
    """Some other web site."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>welcome</html>")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def site() -> Iterator[str]:
    """The address of a web site that is no Cogflare."""
    with HTTPServer(("127.0.0.1", 0), _Page) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
