"""Servers and workers as processes of their own, on real sockets; every one of them ends with the stage.

A `Stage` is a context: it starts processes, keeps what they say in files, and kills whatever is left when it closes.
Nothing here waits blindly: `until` looks for a condition and gives up at a deadline, with a word on what was missing.
"""

import ctypes
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import httpx2

from support.planted import leaks
from support.scripted_worker import VERSIONS

DEADLINE_S = 30.0
TERMINAL = frozenset({"succeeded", "failed", "canceled", "aborted"})
Kind = Literal["single", "iterator", "text"]
T = TypeVar("T")

_TESTS = Path(__file__).parents[1]
_PAUSE_S = 0.02
PROGRAM = ("-m", "cogflare.cli")


def until(look: Callable[[], T], what: str, deadline_s: float = DEADLINE_S) -> T:
    """Return the first true answer of `look`; fail when there is none before the deadline."""
    end = time.monotonic() + deadline_s
    while not (found := look()):
        assert time.monotonic() < end, f"no {what} within {deadline_s:g} s"
        time.sleep(_PAUSE_S)
    return found


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the tests' process dies, whichever way."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Process:
    """A process whose output goes to a file."""

    def __init__(
        self,
        name: str,
        folder: Path,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        pass_fds: Sequence[int] = (),
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        # What is set for the person who runs the tests is not meant for these processes.
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("COGFLARE_", "REPLICATE_"))}
        path = os.pathsep.join([str(_TESTS), *filter(None, [inherited.get("PYTHONPATH")])])
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**inherited, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **environment},
                preexec_fn=die_with_parent if sys.platform == "linux" else None,
                pass_fds=pass_fds,
                cwd=cwd,
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def kill9(self) -> None:
        """Kill it without a chance to do anything."""
        self._process.kill()
        self._process.wait(DEADLINE_S)

    def join(self, timeout_s: float = DEADLINE_S) -> int:
        """Wait for its end and return the exit code."""
        return self._process.wait(timeout_s)

    def log(self) -> str:
        """Return all that it has said, and what processes of the same name said before."""
        return self._log.read_text(errors="replace")


class Worker(Process):
    """A worker of a server; its name is how operators see it."""

    def __init__(
        self,
        server: "Server",
        name: str,
        folder: Path,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self._server = server
        self._known = self._connected_at()
        super().__init__(name, folder, arguments, environment, cwd=cwd)

    def connected(self) -> Self:
        """Wait until this process has connected to its server."""

        def look() -> bool:
            assert self.is_running, f"{self.name} did not come up:\n{self.log()[-3000:]}"
            return self.state == "online" and self._connected_at() != self._known

        until(look, f"worker {self.name} that is connected")
        return self

    def end(self) -> None:
        """Let it leave in order, with its model."""
        self.signal(signal.SIGTERM)
        self.join()

    @property
    def state(self) -> str:
        """What operators see: online, away or offline."""
        return str(self._row().get("state"))

    @property
    def id(self) -> str:
        """The worker's id."""
        return str(self._row()["id"])

    def _connected_at(self) -> str | None:
        return self._row().get("connected_at")

    def _row(self) -> dict[str, Any]:
        return self._server.workers().get(self.name, {})


class Server:
    """`cogflare serve` on a port that stays the same over restarts, or on the socket `listener`, with its data."""

    def __init__(
        self,
        stage: "Stage",
        folder: Path,
        settings: Mapping[str, str],
        scheme: str,
        listener: socket.socket | None = None,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self._stage = stage
        self._listener = listener
        self._program = program
        self._folder = folder
        self._numbers = itertools.count(1)
        self.admin_token = f"cfa_{os.urandom(20).hex()}"
        self._settings = {
            "COGFLARE_DATA": str(folder / "data"),
            "COGFLARE_ADMIN_TOKEN": self.admin_token,
            **{f"COGFLARE_{name.upper()}": value for name, value in settings.items()},
        }
        self._tokens: dict[tuple[str, str], str] = {}
        self._port = 0
        self.url = ""
        self.process: Process | None = None
        self.http = httpx2.Client(timeout=DEADLINE_S, verify=scheme != "https", trust_env=False)

    @property
    def database_url(self) -> str:
        """The URL of the server's database."""
        default = f"sqlite:///{self._folder / 'data' / 'cogflare.db'}"
        return self._settings.get("COGFLARE_DATABASE_URL", default)

    def start(self) -> Self:
        """Start the server, or start it again where it was; return once it takes requests."""
        ready = self._folder / f"ready-{next(self._numbers)}.json"
        fds = [] if self._listener is None else [self._listener.fileno()]
        where = ["--fd", str(fds[0])] if fds else ["--port", str(self._port)]
        arguments = [*self._program, "serve", *where, "--ready-file", str(ready)]
        process = self.process = self._stage.spawn("server", arguments, self._settings, fds)

        def is_up() -> bool:
            assert process.is_running, f"the server did not come up:\n{process.log()[-3000:]}"
            return ready.exists()

        until(is_up, "server that takes requests")
        self.url = json.loads(ready.read_text())["url"]
        self._port = httpx2.URL(self.url).port or 0
        return self

    def kill9(self) -> None:
        """Kill the server without a chance to do anything."""
        self._running.kill9()

    def stop(self) -> int:
        """Stop the server in order and return its exit code."""
        self._running.signal(signal.SIGTERM)
        return self._running.join()

    def restart(self) -> None:
        """Kill the server and start it where it was."""
        self.kill9()
        self.start()

    @property
    def _running(self) -> Process:
        assert self.process is not None, "the server was not started"
        return self.process

    def log(self) -> str:
        """Return what all runs of the server have said."""
        return self._running.log()

    def token(self, kind: str = "api", account: str = "me") -> str:
        """Return a token of an account (made if new); the same one for the same question."""
        key = (kind, account)
        if key not in self._tokens:
            self._tokens[key] = self.new_token(kind, account)["token"]
        return self._tokens[key]

    def new_token(self, kind: str, account: str = "me") -> dict[str, Any]:
        """Return a new token with its id."""
        order = {"kind": kind, "name": "test", "account": account}
        made: dict[str, Any] = self.ask("POST", "/v1/tokens", token=self.admin_token, json=order)
        return made

    def call(self, method: str, path: str, *, token: str | None = None, **options: Any) -> httpx2.Response:
        """Send a request, as the account `me` unless a token is given, and return the answer whatever it is."""
        headers = {"Authorization": f"Bearer {token or self.token()}", **options.pop("headers", {})}
        return self.http.request(method, self.url + path, headers=headers, **options)

    def ask(self, method: str, path: str, *, token: str | None = None, **options: Any) -> Any:
        """Send a request that has to succeed; return the JSON of the answer."""
        answer = self.call(method, path, token=token, **options)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()

    def create(self, model: str = "me/single", **script: Any) -> str:
        """Create a prediction and return its id."""
        return str(self.ask("POST", f"/v1/models/{model}/predictions", json={"input": script})["id"])

    def get(self, prediction: str) -> dict[str, Any]:
        """Return a prediction as it stands."""
        found: dict[str, Any] = self.ask("GET", f"/v1/predictions/{prediction}")
        return found

    def attempts(self, prediction: str) -> list[dict[str, Any]]:
        """Return the attempts of a prediction."""
        found: list[dict[str, Any]] = self.ask("GET", f"/v1/predictions/{prediction}/attempts")["results"]
        return found

    def ended(self, prediction: str, deadline_s: float = DEADLINE_S) -> dict[str, Any]:
        """Wait for the end of a prediction and return it."""

        def look() -> dict[str, Any] | None:
            shown = self.get(prediction)
            return shown if shown["status"] in TERMINAL else None

        found = until(look, f"end of prediction {prediction}", deadline_s)
        assert found is not None
        return found

    def processing(self, prediction: str) -> None:
        """Wait until the prediction runs."""
        until(lambda: self.get(prediction)["status"] == "processing", f"start of prediction {prediction}")

    def workers(self) -> dict[str, dict[str, Any]]:
        """Return the workers by name."""
        found = self.ask("GET", "/v1/workers", token=self.admin_token)["results"]
        return {worker["name"]: worker for worker in found}


class Stage:
    """Starts servers and workers in a folder and ends them all; `diary` is where scripted workers note their runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.diary = folder / "diary.jsonl"
        self._processes: list[Process] = []
        self._servers: list[Server] = []
        self._numbers = itertools.count(1)
        self._planted: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.http.close()
        for process in reversed(self._processes):
            if process.is_running:
                process.signal(signal.SIGCONT)
                process.signal(signal.SIGTERM)
                process.signal(signal.SIGINT)
        for process in reversed(self._processes):
            try:
                process.join(10)
            except subprocess.TimeoutExpired:
                process.kill9()
        for name in sorted({process.name for process in self._processes}):
            said = (self.folder / f"{name}.log").read_text(errors="replace")
            print(f"--- {name} ---\n{said[-2000:]}")
        found = leaks(self.folder, self._planted)
        assert not found, f"a secret is in {', '.join(found)}"

    def plant(self, secret: str) -> str:
        """Look for this secret, when the stage closes, in every file that its processes have written; return it."""
        self._planted.append(secret)
        return secret

    def spawn(
        self, name: str, arguments: Sequence[str], environment: Mapping[str, str], pass_fds: Sequence[int] = ()
    ) -> Process:
        """Start a Python process that ends with the stage; it inherits the files `pass_fds`."""
        process = Process(name, self.folder, arguments, environment, pass_fds)
        self._processes.append(process)
        return process

    def server(
        self,
        *,
        scheme: str = "http",
        listener: socket.socket | None = None,
        program: Sequence[str] = PROGRAM,
        **settings: str,
    ) -> Server:
        """Start a server with these settings, maybe on an open socket; times of the link are short unless set.

        `program` are the arguments of Python that are `cogflare`.
        """
        folder = self.folder / f"node-{next(self._numbers)}"
        folder.mkdir()
        times = {"heartbeat_s": "0.3", "silence_s": "1", "close_grace_s": "10", "lease_s": "20", "stop_s": "3"}
        times["retry_first_s"] = "0.05"
        server = Server(self, folder, {**times, **settings}, scheme, listener, program)
        self._servers.append(server)
        return server.start()

    def scripted(
        self,
        server: Server,
        kind: Kind = "single",
        *,
        slots: int = 1,
        name: str = "",
        account: str = "me",
        url: str = "",
        environment: Mapping[str, str] | None = None,
        site: Mapping[str, Any] | None = None,
    ) -> Worker:
        """Start a worker whose model, `account/kind`, does what its input says; it dials `url` if that is another.

        With a `site` (`region`, `tags`) it tells what its machine has.
        """
        name = name or f"worker-{next(self._numbers)}"
        settings = {
            "server": url or server.url,
            "token": server.token("worker", account),
            "model": f"{account}/{kind}",
            "slots": slots,
            "state": str(self.folder / "state" / name),
            "diary": str(self.diary),
            "kind": kind,
            "name": name,
            "site": site,
        }
        return self._worker(server, name, ["-m", "support.scripted_worker", json.dumps(settings)], environment or {})

    def cog(
        self,
        server: Server,
        model: str,
        folder: Path,
        cache: Path,
        *,
        name: str = "",
        url: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> Worker:
        """Start `cogflare worker` on a folder; `cache` is where it keeps the environments of models."""
        words = [str(folder), "--cache", str(cache)]
        return self.worker(server, model, words, name=name, url=url, environment=environment)

    def worker(
        self,
        server: Server,
        model: str,
        words: Sequence[str],
        *,
        name: str = "",
        url: str = "",
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Worker:
        """Start `cogflare worker` in the folder `cwd`; `words` say what it is to run."""
        name = name or f"worker-{next(self._numbers)}"
        arguments = ["-m", "cogflare.cli", "worker", *words, "--server", url or server.url, "--model", model]
        arguments += ["--name", name, "--state", str(self.folder / "state" / name)]
        settings = {"COGFLARE_WORKER_TOKEN": server.token("worker"), **(environment or {})}
        return self._worker(server, name, arguments, settings, cwd)

    def _worker(
        self,
        server: Server,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        cwd: Path | None = None,
    ) -> Worker:
        worker = Worker(server, name, self.folder, arguments, environment, cwd)
        self._processes.append(worker)
        return worker

    def runs(self) -> Counter[str]:
        """Return how often the model of scripted workers has begun to run, by prediction."""
        return Counter(entry["prediction"] for entry in self._entries() if entry["event"] == "begin")

    def pids(self, prediction: str) -> list[int]:
        """Return the processes in which the model ran the prediction, in order."""
        entries = self._entries()
        return [entry["pid"] for entry in entries if (entry["event"], entry["prediction"]) == ("begin", prediction)]

    def _entries(self) -> list[dict[str, Any]]:
        if not self.diary.exists():
            return []
        # A worker that was killed may have left half a line.
        whole = self.diary.read_text().rpartition("\n")[0]
        return [json.loads(text) for text in whole.splitlines()]


def version_of(kind: Kind) -> str:
    """Return the version id of scripted models of a kind."""
    return VERSIONS[kind]
