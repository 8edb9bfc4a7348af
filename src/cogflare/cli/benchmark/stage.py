"""Servers and workers in processes of their own, on a throw-away folder, for as long as a measurement takes."""

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

from cogflare.cli.benchmark.noop import NAME

_WAIT_S = 30.0
_SETTINGS = {
    # A measurement of creates queues more than a server takes from one account.
    "COGFLARE_MAX_QUEUED": "100000000",
    "COGFLARE_MAX_QUEUED_MODEL": "100000000",
    # Nodes share a database, and so do the servers of one measurement after the other: all need the same key.
    "COGFLARE_SECRET_KEY": "the key of all benchmarks seals nothing",
}


class StageError(Exception):
    """A process of the benchmark did not come up; the text ends with what it said last."""


class Stage:
    """Starts `cogflare serve`, makes tokens, and runs workers; everything ends with the `with` block.

    Several `nodes` need a `database_url` that they share; the first of them has the `url` of the stage.
    """

    def __init__(self, folder: Path, database_url: str | None = None, nodes: int = 1) -> None:
        self._folder = folder
        self._database_url = database_url
        self._nodes = nodes
        self._processes: list[subprocess.Popen[bytes]] = []
        self._secret = f"cfa_{secrets.token_hex(20)}"
        self.urls: list[str] = []
        self.token = self._secret

    def __enter__(self) -> "Stage":
        try:
            for number in range(1, self._nodes + 1):
                self._serve(f"server-{number}")
        except BaseException:
            self._end()
            raise
        return self

    def _serve(self, name: str) -> None:
        folder = self._folder / name
        folder.mkdir(parents=True)
        ready = folder / "ready.json"
        arguments = ["serve", "--data", str(folder), "--port", "0", "--ready-file", str(ready)]
        if self._database_url is not None:
            arguments += ["--database-url", self._database_url]
        server = self._start(name, "cogflare.cli", *arguments)
        self._until(server, ready.exists)
        self.urls.append(json.loads(ready.read_text())["url"])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
        for process in reversed(self._processes):
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    @property
    def url(self) -> str:
        """The URL of the first server."""
        return self.urls[0]

    @property
    def server_pid(self) -> int:
        """The process id of the first server."""
        return self._processes[0].pid

    def call(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        """Call the API as admin; raises for an error answer."""
        headers = {"authorization": f"Bearer {self._secret}", **arguments.pop("headers", {})}
        answer = httpx2.request(method, self.url + path, headers=headers, timeout=60, **arguments)
        answer.raise_for_status()
        return answer

    def worker(self, slots: int, *, model: str = NAME, node: int = 0) -> subprocess.Popen[bytes]:
        """Start a worker of a model (see `noop`) on one of the servers and wait until it is connected."""
        state = self._folder / f"worker-{len(self._processes)}"
        before = self._online()
        arguments = (self.urls[node], self._worker_token(), str(slots), str(state), model)
        process = self._start(state.name, "cogflare.cli.benchmark.noop", *arguments)
        self._until(process, lambda: self._online() > before)
        return process

    def crowd(self, links: int) -> subprocess.Popen[bytes]:
        """Start a process that opens so many idle links, and wait until all are open; it ends if one is lost."""
        name = f"crowd-{len(self._processes)}"
        ready = self._folder / f"{name}.ready"
        arguments = (self.url, self._worker_token(), str(links), str(ready))
        process = self._start(name, "cogflare.cli.benchmark.crowd", *arguments)
        self._until(process, ready.exists, _WAIT_S + links / 100)
        return process

    def _worker_token(self) -> str:
        return str(self.call("POST", "/v1/tokens", json={"kind": "worker", "name": "bench"}).json()["token"])

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
                env={**os.environ, **_SETTINGS, "COGFLARE_ADMIN_TOKEN": self._secret, "COGFLARE_NODE": name},
            )
        process.args = name
        self._processes.append(process)
        return process

    def _until(self, process: "subprocess.Popen[bytes]", condition: Any, wait_s: float = _WAIT_S) -> None:
        deadline = time.monotonic() + wait_s
        while not condition():
            if process.poll() is not None or time.monotonic() > deadline:
                said = (self._folder / f"{process.args!s}.log").read_text(errors="replace")[-2000:]
                raise StageError(f"{process.args!s} did not come up:\n{said}")
            time.sleep(0.05)
