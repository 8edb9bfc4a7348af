"""Foreign clients, unmodified: each in a pinned environment of its own that is installed once and kept beside our own.

`tests/clients/NAME` holds what pins a client (`requirements.txt` with hashes, or `package-lock.json`) and a script that
plays scenarios with it: it is called as `scenarios NAME`, reads its arguments as JSON from standard input and prints
its answer as JSON. A script is a process of its own: no two clients meet, and none meets what Cogflare is built of.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

DEADLINE_S = 60.0
_CLIENTS = Path(__file__).parents[1] / "clients"
_CACHE = Path(sys.prefix) / "clients"
_INSTALL_S = 600.0


class ForeignClient:
    """A client that knows a server by its environment; `ready` installs it, `play` runs a scenario."""

    pins: tuple[str, ...]

    def __init__(self, name: str, environment: Mapping[str, str]) -> None:
        self.source = _CLIENTS / name
        self.home = _CACHE / name
        self._environment = dict(environment)

    def ready(self) -> Self:
        """Install the client if it is not there yet, or there by other pins."""
        wanted = hashlib.sha256(b"\0".join([self._version(), *map(self._pin, self.pins)])).hexdigest()
        mark = self.home / ".complete"
        with _locked(self.home):
            if not mark.exists() or mark.read_text() != wanted:
                shutil.rmtree(self.home, ignore_errors=True)
                self.home.mkdir(parents=True)
                self._install()
                mark.write_text(wanted)
        return self

    def play(self, scenario: str, **arguments: Any) -> Any:
        """Return the answer of a scenario."""
        done = subprocess.run(
            [*self._command(), scenario],
            input=json.dumps(arguments),
            capture_output=True,
            text=True,
            cwd=self.home,
            env=_bare() | self._environment,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.returncode == 0, f"{self.source.name} {scenario}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return json.loads(done.stdout)

    def _pin(self, name: str) -> bytes:
        return (self.source / name).read_bytes()

    @abstractmethod
    def _version(self) -> bytes:
        """What the client runs on."""

    @abstractmethod
    def _install(self) -> None:
        """Put the client into its empty home."""

    @abstractmethod
    def _command(self) -> list[str]:
        """How the script is started."""


class PythonClient(ForeignClient):
    """A client in a virtual environment, installed with these `options` besides."""

    pins = ("requirements.txt",)
    options: tuple[str, ...] = ()

    def _version(self) -> bytes:
        return sys.version.encode()

    def _install(self) -> None:
        _call([sys.executable, "-m", "venv", "--without-pip", str(self.home)])
        python, wanted = str(self.home / "bin" / "python"), str(self.source / "requirements.txt")
        uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python]
        options = ["--require-hashes", *self.options, "-r", wanted]
        try:
            _call([*uv, *options])
        except RuntimeError:  # pip may know a mirror or a proxy that uv does not
            _call([sys.executable, "-m", "pip", "--python", python, "install", *options])

    def _command(self) -> list[str]:
        return [str(self.home / "bin" / "python"), str(self.source / "scenarios.py")]


class NodeClient(ForeignClient):
    """A client in a folder of Node's packages."""

    pins = ("package.json", "package-lock.json")

    @staticmethod
    def is_possible() -> bool:
        """Whether Node and its installer are on this machine."""
        return all(map(shutil.which, ("node", "npm")))

    def _version(self) -> bytes:
        return b"node"

    def _install(self) -> None:
        for name in self.pins:
            shutil.copy(self.source / name, self.home)
        _call(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], self.home)

    def _command(self) -> list[str]:
        return ["node", str(self.source / "scenarios.mjs")]


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Let one process at a time install; the kernel lets go of the lock when this process dies."""
    home.parent.mkdir(parents=True, exist_ok=True)
    with (home.parent / f"{home.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _bare() -> dict[str, str]:
    """The environment without what is ours, or meant for the person who runs the tests."""
    bent = ("COGFLARE_", "REPLICATE_", "PYTHON", "VIRTUAL_ENV", "NODE_")
    return {name: value for name, value in os.environ.items() if not name.startswith(bent)} | {"NO_PROXY": "127.0.0.1"}


def _call(command: Sequence[str], folder: Path | None = None) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
