"""RunPod on this machine: a queue with its API in a thread, and processes of the `runpod` package that run handlers.

`tests/clients/runpod` pins the package and has the handlers.
"""

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import uvicorn

from cogflare.agent.runners.process import free_port
from support.clients import PythonClient
from support.processes import die_with_parent, until
from support.runpod_queue import Endpoint, Queue

KEY = "rpa_KEYOFTHETESTS0123456789"
_WORKER_KEY = "the key of workers"
_SETTINGS = {"RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true", "RUNPOD_SKIP_GPU_CHECK": "true", "PYTHONUNBUFFERED": "1"}


class RunPodPackage(PythonClient):
    """The package, without what its workers do not need (`excludes.txt`)."""

    options = ("--no-deps",)

    def __init__(self) -> None:
        super().__init__("runpod", {})

    def command(self, kind: str) -> list[str]:
        """Return what starts a worker with a handler of this kind."""
        return [str(self.home / "bin" / "python"), str(self.source / "handler.py"), kind]


class RunPod:
    """The platform. A context: it ends with all of its processes."""

    def __init__(self) -> None:
        self._package = RunPodPackage().ready()
        self.queue = Queue(KEY, _WORKER_KEY)
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}/v2"
        config = uvicorn.Config(self.queue.app(), port=self._port, lifespan="off", log_config=None, ws="none")
        config.timeout_graceful_shutdown = 1
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._folder = tempfile.TemporaryDirectory(prefix="runpod-", ignore_cleanup_errors=True)
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        until(lambda: self._server.started, "queue that answers")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self._server.should_exit = True
        self._thread.join()
        self._folder.cleanup()

    def endpoint(self, id: str) -> Endpoint:
        """Return an endpoint, which is made if it is not there."""
        return self.queue.endpoints.setdefault(id, Endpoint())

    def worker(self, endpoint: str, kind: str, environment: dict[str, str] | None = None) -> Endpoint:
        """Start a worker of an endpoint; returns the endpoint once the worker asks for jobs."""
        name, made = f"worker{len(self._processes)}", self.endpoint(endpoint)
        hooks = {
            "RUNPOD_WEBHOOK_GET_JOB": "job-take/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_OUTPUT": "job-done/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_STREAM": "job-stream/$RUNPOD_POD_ID/$ID?gpu=none",
        }
        settings = {hook: f"{self.url}/{endpoint}/{path}" for hook, path in hooks.items()}
        settings |= {"RUNPOD_POD_ID": name, "RUNPOD_AI_API_KEY": _WORKER_KEY, **(environment or {})}
        log = self._start(name, self._package.command(kind), settings)
        until(lambda: name in made.workers, f"worker that takes jobs:\n{log}")
        return made

    def local(self, endpoint: str, kind: str) -> Endpoint:
        """Start the package's local API server, which runs the jobs of an endpoint."""
        port, made = free_port(), self.endpoint(endpoint)
        options = ["--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port", str(port)]
        log = self._start(f"local{port}", [*self._package.command(kind), *options], {})
        until(lambda: "Uvicorn running" in log.read_text(), f"local API server:\n{log}")
        made.local = f"http://127.0.0.1:{port}"
        made.workers.add("local")
        return made

    def logs(self) -> str:
        """Return all that the processes have said."""
        return "".join(file.read_text(errors="replace") for file in Path(self._folder.name).iterdir())

    def _start(self, name: str, command: list[str], settings: dict[str, str]) -> Path:
        bent = ("COGFLARE_", "RUNPOD_", "PYTHON", "VIRTUAL_ENV")
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(bent)}
        log = Path(self._folder.name) / f"{name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=self._folder.name,
                env={**inherited, **_SETTINGS, "HOME": self._folder.name, "NO_PROXY": "127.0.0.1", **settings},
                preexec_fn=die_with_parent if sys.platform == "linux" else None,
            )
        self._processes.append(process)
        return log
