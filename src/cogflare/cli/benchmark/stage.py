"""A server and a worker in processes of their own, on a throw-away folder, for as long as a measurement takes."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2

_WAIT_S = 30.0


class StageError(Exception):
    """A process of the benchmark did not come up; the text ends with what it said last."""


class Stage:
    """Starts `cogflare serve`, makes tokens, and runs workers; everything ends with the `with` block."""

    def __init__(self, folder: Path, database_url: str | None = None) -> None:
        self._folder = folder
        self._database_url = database_url
        self._processes: list[subprocess.Popen[bytes]] = []
        self._secret = f"cfa_{secrets.token_hex(20)}"
        self.url = ""
        self.token = self._secret

    def __enter__(self) -> "Stage":
        self._folder.mkdir(parents=True, exist_ok=True)
        ready = self._folder / "ready.json"
        ready.unlink(missing_ok=True)
        arguments = ["serve", "--data", str(self._folder), "--port", "0", "--ready-file", str(ready)]
        if self._database_url is not None:
            arguments += ["--database-url", self._database_url]
        server = self._start("server", "cogflare.cli", *arguments)
        self._until(server, ready.exists)
        self.url = json.loads(ready.read_text())["url"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
        for process in reversed(self._processes):
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    @property
    def server_pid(self) -> int:
        """The process id of the server."""
        return self._processes[0].pid

    def call(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        """Call the API as admin; raises for an error answer."""
        headers = {"authorization": f"Bearer {self._secret}", **arguments.pop("headers", {})}
        answer = httpx2.request(method, self.url + path, headers=headers, timeout=60, **arguments)
        answer.raise_for_status()
        return answer

    def worker(self, slots: int) -> subprocess.Popen[bytes]:
        """Start the no-op worker and wait until it is connected."""
        token = self.call("POST", "/v1/tokens", json={"kind": "worker", "name": "bench"}).json()["token"]
        state = self._folder / f"worker-{len(self._processes)}"
        before = self._online()
        process = self._start(state.name, "cogflare.cli.benchmark.noop", self.url, token, str(slots), str(state))
        self._until(process, lambda: self._online() > before)
        return process

    def stop(self, process: "subprocess.Popen[bytes]") -> None:
        """Stop a worker."""
        process.terminate()
        process.wait(15)
        self._processes.remove(process)

    def _online(self) -> int:
        workers = self.call("GET", "/v1/workers").json()["results"]
        return sum(worker["state"] == "online" for worker in workers)

    def _start(self, name: str, module: str, *arguments: str) -> "subprocess.Popen[bytes]":
        log = (self._folder / f"{name}.log").open("wb")
        with log:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and modules
                [sys.executable, "-m", module, *arguments],
                stdout=log,
                stderr=log,
                env={**os.environ, "COGFLARE_ADMIN_TOKEN": self._secret},
            )
        process.args = name
        self._processes.append(process)
        return process

    def _until(self, process: "subprocess.Popen[bytes]", condition: Any) -> None:
        deadline = time.monotonic() + _WAIT_S
        while not condition():
            if process.poll() is not None or time.monotonic() > deadline:
                said = (self._folder / f"{process.args!s}.log").read_text(errors="replace")[-2000:]
                raise StageError(f"{process.args!s} did not come up:\n{said}")
            time.sleep(0.05)
