"""Putting a worker together: options in, exit code out. The only place of the agent that knows its concrete parts."""

import asyncio
import platform
import signal
import socket
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Raw, UnsetType

from cogflare.agent.address import ServerAddress
from cogflare.agent.admission import Word, reading
from cogflare.agent.agent import REFUSED, STOPPED, Agent
from cogflare.agent.clock import SystemClock
from cogflare.agent.console import Console
from cogflare.agent.depot import Depot
from cogflare.agent.gpu import gpu_name
from cogflare.agent.identity import claim_state, default_state
from cogflare.agent.inputs import InputFiles
from cogflare.agent.journal import Journal
from cogflare.agent.ledger import HeldRun, Ledger
from cogflare.agent.link import Link
from cogflare.agent.machine import Site, devices_of, inventoried
from cogflare.agent.runners import base
from cogflare.agent.runners.handover import KEEP_S, Takeover
from cogflare.agent.runners.open import Bench, open_runner
from cogflare.agent.scratch import start_sweep
from cogflare.agent.shelf import Shelf
from cogflare.agent.sources import Source, UrlSource
from cogflare.agent.transfer import Transfer
from cogflare.domain.ids import new_id
from cogflare.protocol.agent_end import AgentEnd
from cogflare.protocol.messages import Offer

SETUP_FAILED = 1
_STOPS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
_T = TypeVar("_T")
_MAX_SCHEMA = 800_000  # bytes; the hello has to fit a frame


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What a person decides about a worker. `source` is where the model is.

    `token` is asked again before every use, so a token that was changed in its file is taken without a restart.
    """

    server: ServerAddress
    token: Callable[[], str]
    owner: str
    model: str
    source: Source
    slots: int | None = None
    name: str = ""
    state: Path | None = None
    cache: Path | None = None
    allow_private_inputs: bool = False
    keep_model_s: float = KEEP_S
    region: str = ""
    tags: tuple[str, ...] = ()
    json: bool = False


async def run_worker(options: WorkerOptions) -> int:
    """Run a worker until it is drained, stopped or refused; return the exit code."""
    console = Console(options.json)
    clock = SystemClock()
    root = options.state or default_state()
    model = f"{options.owner}/{options.model}"
    async with AsyncExitStack() as stack:
        state = stack.enter_context(claim_state(root, options.server.base, model, clock.wall))
        signals = stack.enter_context(_Signals())
        depot = Depot(state.path / "outputs")
        transfer = Transfer(options.server, options.token, state.worker, depot=depot)
        stack.push_async_callback(transfer.aclose)
        ledger = Ledger(state.path, lambda text: console.say("journal", text))
        names = None if (left := ledger.read()) is None else _names(left)
        shelf, takeover = Shelf(), Takeover(state.path, names, options.keep_model_s, ledger.close)
        about = options.owner, options.model, state.worker, options.slots, options.cache or _default_cache()
        runner = open_runner(options.source, Bench(*about, transfer, takeover, depot, shelf))
        stack.push_async_callback(runner.close)
        private = options.allow_private_inputs
        inputs = InputFiles(options.server, shelf, allow_private=private, folder=state.path / "inputs")
        stack.push_async_callback(inputs.aclose)
        stack.callback(signals.handle, lambda: None)  # whoever ends the model is not to be interrupted
        # Better now than after the minutes that some models take to load.
        if (code := await _turned_away(options.server, transfer, model, console, signals)) is not None:
            return code
        console.say("setup", f"setting up {model}" + waiting_for(options.source))
        prepared = await _prepare(runner, _shown(options.name), model, transfer, console, signals)
        if isinstance(prepared, int):
            return prepared
        offer, gpu = prepared
        end = agent_end(offer, state.worker, new_id(clock.wall()), options.name, console, gpu)
        link = Link(end, options.server, options.token, console, clock=clock, proxy=not options.server.is_here)
        journal = Journal(state.path, lambda text: console.say("journal", text))
        resumed = left if left is not None and offer.is_taken_over else []
        depot.sweep(_names(resumed))
        agent = Agent(
            runner, end, link, journal, transfer, inputs, console=console, clock=clock, ledger=ledger, left=resumed
        )
        signals.handle(agent.interrupt)
        site = Site(state.path, options.region, options.tags, devices_of(options.source))
        await stack.enter_async_context(inventoried(end, link.wake, site))
        return await agent.run()


async def _turned_away(
    server: ServerAddress, transfer: Transfer, model: str, console: Console, signals: "_Signals"
) -> int | None:
    """Ask whether the server would have this worker at all, and say what it says; return the exit code if not."""
    word = await _unless_told(_inquire(server, transfer, model), signals)
    if word is None:
        return STOPPED
    if word.text:
        console.say("refused" if word.is_final else "doubt", word.text)
    return REFUSED if word.is_final else None


async def _inquire(server: ServerAddress, transfer: Transfer, model: str) -> Word:
    return reading(server, await transfer.inquire(model))


def _names(runs: Sequence[HeldRun]) -> frozenset[str]:
    """Return what Cog calls these runs."""
    return frozenset(base.run_name(*held.key) for held in runs)


def agent_end(
    offer: base.Offer, worker: str, instance: str, name: str, console: Console, gpu: str | None = None
) -> AgentEnd:
    """Return the protocol's end of a worker that makes this runner's offer."""
    schema: Raw | UnsetType = UNSET if offer.schema is None else Raw(msgspec.json.encode(offer.schema))
    if schema is not UNSET and len(bytes(schema)) > _MAX_SCHEMA:
        console.say("schema_dropped", "the model's schema is too large to be announced: its inputs go unchecked")
        schema = UNSET
    told = Offer(offer.owner, offer.name, offer.version, offer.slots, schema, offer.cog_version)
    about = {"version": version("cogflare"), "python": platform.python_version(), "os": platform.platform()}
    if gpu is not None:
        about["gpu"] = gpu
    return AgentEnd(worker, instance, _shown(name), [told], about)


def _shown(name: str) -> str:
    """Return how people see the worker."""
    return (name or socket.gethostname())[:100]


def _default_cache() -> Path:
    return Path.home() / ".cache" / "cogflare"


def waiting_for(source: Source) -> str:
    """Return what the setup waits for that is somebody else's; mostly nothing."""
    return f": waiting for {source.url}" if isinstance(source, UrlSource) else ""


async def _prepare(
    runner: base.Runner, name: str, model: str, transfer: Transfer, console: Console, signals: "_Signals"
) -> tuple[base.Offer, str | None] | int:
    """Set the model up, and let the server know how that goes; return the offer and the GPU, or the exit code."""
    start_sweep()
    notice = asyncio.create_task(transfer.setting_up(name, model))
    naming = asyncio.create_task(gpu_name())
    try:
        prepared = await _unless_told(_set_up(runner, console, naming), signals)
    except base.SetupFailed as error:
        failure = error
    else:
        if prepared is not None:
            return prepared
        await transfer.setting_up(name, model, is_over=True)
        return STOPPED
    finally:
        # What is still on its way comes too late: the hello, or the next word, says more.
        notice.cancel()
        naming.cancel()
    console.say("setup_failed", f"the model was not set up: {console.unsaid(str(failure))}")
    await transfer.setup_failed(name, model, str(failure))
    return SETUP_FAILED


async def _set_up(
    runner: base.Runner, console: Console, naming: "asyncio.Task[str | None]"
) -> tuple[base.Offer, str | None]:
    return await runner.setup(console.model), await naming


async def _unless_told(doing: Coroutine[Any, Any, _T], signals: "_Signals") -> _T | None:
    """Do that; None when a signal came first, or at the very moment."""
    task, told = asyncio.create_task(doing), asyncio.Event()

    def stop() -> None:
        told.set()
        task.cancel()

    signals.handle(stop)
    try:
        result = await task
    except asyncio.CancelledError:
        current = asyncio.current_task()
        if not told.is_set() or (current is not None and current.cancelling()):
            raise
        return None
    return None if told.is_set() else result


class _Signals:
    """SIGINT, SIGTERM and SIGHUP (the terminal was closed), given to whoever handles them at the time."""

    def __init__(self) -> None:
        self._act: Callable[[], object] = lambda: None
        self._caught: list[signal.Signals] = []

    def handle(self, act: Callable[[], object]) -> None:
        """Call `act` at each signal from now on."""
        self._act = act

    def __enter__(self) -> "_Signals":
        loop = asyncio.get_running_loop()
        for number in _STOPS:
            # nohup means it. A script's shell has what it starts in the background ignore SIGINT, and means nothing.
            if number not in (signal.SIGINT, signal.SIGTERM) and signal.getsignal(number) is signal.SIG_IGN:
                continue
            # Not possible on Windows and outside the main thread, where Ctrl-C stays what it was.
            with suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, lambda: self._act())
                self._caught.append(number)
        return self

    def __exit__(self, *_: object) -> None:
        for number in self._caught:
            asyncio.get_running_loop().remove_signal_handler(number)
