"""The stage of the harness: server nodes, workers, and a proxy on every way between them and to the clients.

                 client-1 ──▶ server-1 ◀── link-1 ◀── worker-1 ── model-1
    clients ──▶                   │    ◀── link-2 ◀── worker-2 ── model-2
                 client-2 ──▶ server-2 ◀── link-3 ◀── worker-3 ── model-3

Whatever ends is started again; `surprises` tells of what ended though nobody had asked for it. Everything lives in one
folder, and nothing is left behind when the stage closes, or when the harness dies.
"""

import asyncio
import json
import os
import resource
import secrets
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2
import msgspec

from cogflare.cli.verification import actor
from cogflare.cli.verification.clock import set_offset
from cogflare.cli.verification.history import Died, Recorder, now
from cogflare.cli.verification.process import Process
from cogflare.cli.verification.proxy import Proxy
from cogflare.cli.verification.sources import INLINE_BYTES

ACCOUNTS = ("one", "two")
MODELS = ("one/single", "one/iterator", "one/single", "one/text", "two/single", "one/iterator")
"""What the workers offer: the first worker the first, and so on, round and round."""
TIMES = {
    "heartbeat_s": "0.5",
    "silence_s": "2",
    "close_grace_s": "15",
    "lease_s": "20",
    "stop_s": "3",
    "retry_first_s": "0.2",
    "retry_cap_s": "2",
    "quarantine_s": "1",
    "webhook_timeout_s": "2",
}
"""Settings of the nodes: all is short that a run waits for, and longer than any fault what guards against doubles."""
LIMITS = {"outgoing_networks": "127.0.0.0/8", "max_inline_bytes": str(INLINE_BYTES)}
"""Further ones: where webhooks may go, and how much may stay in an input."""

_LOOK_S = 0.02
_GONE_S = 10.0
_CALL_S = 30.0


class Node(Process):
    """A server node; its port is another one at each start. `moved` hears of each change."""

    def __init__(self, name: str, stage: "Stage", settings: Mapping[str, str], moved: Callable[["Node"], None]) -> None:
        super().__init__("server", name, stage.folder, stage.recorder)
        self.port: int | None = None
        self.offset_file = stage.folder / f"{name}.offset"
        set_offset(self.offset_file, 0)
        self._settings = {f"COGFLARE_{key.upper()}": value for key, value in settings.items()}
        self._moved = moved
        self._ready = stage.folder / f"{name}.json"

    def command(self) -> tuple[Sequence[str], Mapping[str, str]]:
        """Return the node's module, and its settings as variables."""
        self._ready.unlink(missing_ok=True)
        arguments = [str(os.getpid()), str(self._ready), str(self.offset_file)]
        return ["cogflare.cli.verification.node", *arguments], self._settings

    async def rise(self) -> None:
        """Wait until it takes requests."""
        while not self._ready.exists():  # noqa: ASYNC110 - the only word of another process
            await asyncio.sleep(_LOOK_S)
        self.port = httpx2.URL(json.loads(self._ready.read_bytes())["url"]).port
        self._moved(self)

    async def fall(self) -> None:
        """Send nobody there any more."""
        self.port = None
        self._moved(self)


class Worker(Process):
    """An agent with its model."""

    def __init__(self, number: int, stage: "Stage", server: str, model: str, token: str) -> None:
        super().__init__("agent", f"worker-{number}", stage.folder, stage.recorder)
        self._token = token
        state = stage.folder / "state" / self.name
        state.mkdir(parents=True)
        self.settings = actor.Settings(self.name, server, model, stage.slots, str(state), str(stage.history))

    def command(self) -> tuple[Sequence[str], Mapping[str, str]]:
        """Return the worker's module and its settings; the token is a variable."""
        arguments = [str(os.getpid()), msgspec.json.encode(self.settings).decode()]
        return ["cogflare.cli.verification.actor", *arguments], {"COGFLARE_WORKER_TOKEN": self._token}

    @property
    def model_pid(self) -> int | None:
        """The process id of the model that lives now, or has just died."""
        with suppress(FileNotFoundError):
            return int(self.settings.model_pid_file().read_text())
        return None

    def signal_model(self, number: signal.Signals) -> bool:
        """Send the model a signal; False if there is no model."""
        pid = self.model_pid
        if pid is None or not is_alive(pid):
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        return True

    async def rise(self) -> None:
        """Wait until it has a model."""
        while self.model_pid is None:  # noqa: ASYNC110 - the only word of another process
            await asyncio.sleep(_LOOK_S)

    def hurry(self) -> None:
        """Stop now and not when all that is held has ended."""
        if self.is_up:
            self.signal(signal.SIGINT)

    async def fall(self) -> None:
        """See to it that the model is gone too: two at once would be the harness's own fault."""
        pid = self.model_pid
        if pid is None:
            return
        self.signal_model(signal.SIGKILL)
        async with asyncio.timeout(_GONE_S):
            while is_alive(pid):  # noqa: ASYNC110 - no one tells when a grandchild ends
                await asyncio.sleep(_LOOK_S)
        self.settings.model_pid_file().unlink(missing_ok=True)
        self.recorder.note(Died(now(), "model", self.settings.model_name, pid, "with its agent"))


class Stage:
    """Server nodes and workers in `folder`, which is to be empty; a context.

    `database_url` None means SQLite in the folder, with one node. `restart_database` takes the database away for a
    moment, where somebody can.
    """

    def __init__(
        self,
        folder: Path,
        recorder: Recorder,
        history: Path,
        *,
        database_url: str | None = None,
        nodes: int = 1,
        workers: int = 4,
        slots: int = 4,
        settings: Mapping[str, str] | None = None,
        restart_database: Callable[[], None] | None = None,
    ) -> None:
        assert nodes == 1 or database_url is not None, "SQLite is for one node"
        self.folder = folder
        self.recorder = recorder
        self.history = history
        self.slots = slots
        self.data = folder / "data"
        self.database_url = database_url or f"sqlite:///{self.data / 'cogflare.db'}"
        self.restart_database = restart_database
        self.admin_token = f"cfa_{secrets.token_hex(20)}"
        self.tokens: dict[str, str] = {}
        given = {
            **TIMES,
            **LIMITS,
            **(settings or {}),
            "data": str(self.data),
            "database_url": self.database_url,
            "admin_token": self.admin_token,
            "port": "0",
        }
        self.nodes = [
            Node(name, self, {**given, "node": name}, self._moved)
            for name in (f"server-{number + 1}" for number in range(nodes))
        ]
        self.clients = [Proxy(f"client-{number + 1}") for number in range(nodes)]
        self.links = [Proxy(f"link-{number + 1}") for number in range(workers)]
        self.workers: list[Worker] = []

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def urls(self) -> list[str]:
        """The addresses for clients, one a node, each behind a proxy."""
        return [proxy.url for proxy in self.clients]

    @property
    def models(self) -> list[str]:
        """The models that the workers offer, each once."""
        return sorted({worker.settings.model for worker in self.workers})

    @property
    def processes(self) -> list[Process]:
        """All that the stage keeps alive."""
        return [*self.nodes, *self.workers]

    @property
    def surprises(self) -> list[str]:
        """What ended though nobody had asked for it, or did not stop when asked; with the end of its log."""
        return [text for process in self.processes for text in process.surprises]

    async def settle(self, limit_s: float = 60.0) -> None:
        """Lift all faults, and wait until everything is up and all workers are online."""
        self.heal()
        async with asyncio.timeout(limit_s):
            for process in self.processes:
                await process.up(limit_s)
            names = {worker.name for worker in self.workers}
            while not names <= await self._online():  # noqa: ASYNC110 - the server is asked
                await asyncio.sleep(5 * _LOOK_S)

    def heal(self) -> None:
        """Lift whatever faults there are; a fault that is lifted twice does not mind."""
        for proxy in (*self.clients, *self.links):
            proxy.heal()
        for node in self.nodes:
            set_offset(node.offset_file, 0)
            if node.pid is not None:
                limit_files(node.pid, None)
        for process in self.processes:
            process.signal(signal.SIGCONT)
        for worker in self.workers:
            worker.signal_model(signal.SIGCONT)

    async def call(self, method: str, path: str, account: str | None = None, **options: Any) -> httpx2.Response:
        """Send a request to the first node that is up, past the proxies; raises for an error answer.

        It comes from a client of an account, or from the admin.
        """
        ports = [node.port for node in self.nodes if node.port is not None]
        if not ports:
            raise httpx2.ConnectError("no node is up")
        token = self.admin_token if account is None else self.tokens[account]
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx2.AsyncClient(timeout=_CALL_S, trust_env=False) as http:
            answer = await http.request(method, f"http://127.0.0.1:{ports[0]}{path}", headers=headers, **options)
        return answer.raise_for_status()

    async def close(self) -> None:
        """Stop everything; twice is harmless."""
        self.heal()
        # Servers last: workers say goodbye to somebody.
        await asyncio.gather(*(worker.close() for worker in self.workers))
        await asyncio.gather(*(node.close() for node in self.nodes))
        for proxy in (*self.clients, *self.links):
            await proxy.close()

    async def _open(self) -> None:
        self.data.mkdir(parents=True, exist_ok=True)
        for proxy in (*self.clients, *self.links):
            await proxy.start()
        await self.nodes[0].start()
        await asyncio.gather(*(node.start() for node in self.nodes[1:]))
        self.tokens = {account: await self._token("api", account) for account in ACCOUNTS}
        for number, link in enumerate(self.links):
            model = MODELS[number % len(MODELS)]
            token = await self._token("worker", model.partition("/")[0])
            self.workers.append(Worker(number + 1, self, link.url, model, token))
        await asyncio.gather(*(worker.start() for worker in self.workers))
        await self.settle()

    async def _token(self, kind: str, account: str) -> str:
        order = {"kind": kind, "name": "verification", "account": account}
        return str((await self.call("POST", "/v1/tokens", json=order)).json()["token"])

    async def _online(self) -> set[str]:
        try:
            found = (await self.call("GET", "/v1/workers")).json()["results"]
        except httpx2.HTTPError:
            return set()
        return {worker["name"] for worker in found if worker["state"] == "online"}

    def _moved(self, changed: Node) -> None:
        """Lead all proxies to where the nodes are now; while its own is away, every second worker goes to another."""
        self.clients[self.nodes.index(changed)].target = changed.port
        there = [node.port for node in self.nodes if node.port is not None]
        for number, link in enumerate(self.links):
            turn, own = divmod(number, len(self.nodes))
            link.target = self.nodes[own].port
            if link.target is None and there and turn % 2 == 0:
                link.target = there[0]


def is_alive(pid: int) -> bool:
    """Say whether the process runs; one that is dead but not yet reaped does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with suppress(OSError):
        # The fields after the name, which is in brackets: the state is the first.
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] != "Z"
    return True


def limit_files(pid: int, size: int | None) -> None:
    """Let the process write no file past `size` bytes; None lifts that. Only Linux can."""
    if sys.platform == "linux":
        with suppress(ProcessLookupError):
            hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard if size is None else size, hard))
