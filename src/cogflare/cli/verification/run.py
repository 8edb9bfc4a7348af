"""One run of the harness: a stage, its faults and its clients at once; then quiet, the last chapter and the verdict."""

import asyncio
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import msgspec

from cogflare.cli.verification.checker import Allowances, Verdict, check
from cogflare.cli.verification.clients import Access, Client, Ledger
from cogflare.cli.verification.collect import Archive, clear, collect
from cogflare.cli.verification.history import Fault, Recorder, read
from cogflare.cli.verification.receiver import Receiver
from cogflare.cli.verification.schedule import ground_of, plan, play
from cogflare.cli.verification.stage import Stage
from cogflare.store.base import StoreError

HISTORY = "history.jsonl"

_CLIENTS = (("one", 6), ("two", 2))
"""The accounts and how many clients each has; the second has one worker only."""
_WORKERS = 5
_RECEIVERS = 3
_LONGEST_S = 600.0
_PATIENCE_S = 120.0
_QUIET_S = 90.0
_PROGRESS_S = 5.0

Say = Callable[[str], None]


class Order(msgspec.Struct, frozen=True):
    """What to run: `predictions` in all, under the faults of a seed, on a database (None: SQLite, one node)."""

    seed: int
    predictions: int
    database_url: str | None = None
    restart_database: Callable[[], None] | None = None
    settings: dict[str, str] = {}

    @property
    def nodes(self) -> int:
        """How many server nodes share the database."""
        return 1 if self.database_url is None else 2


class Outcome(msgspec.Struct, frozen=True):
    """What came of a run. `surprises` are processes that ended though nobody had asked for it."""

    seed: int
    seconds: float
    faults: dict[str, int]
    verdict: Verdict
    surprises: list[str]

    @property
    def holds(self) -> bool:
        """Whether no invariant is broken and every process did what it should."""
        return self.verdict.holds and not self.surprises


def campaign(orders: Iterable[Order], root: Path, say: Say, *, keeps: bool) -> Iterator[Outcome]:
    """Run one after the other, each in `folder_of` it; what holds is removed when it has been told, unless `keeps`.

    A database other than SQLite's is emptied after each run.
    """
    for order in orders:
        folder = folder_of(root, order.seed)
        folder.mkdir(parents=True)
        try:
            outcome = asyncio.run(run(order, folder, say))
        finally:
            if order.database_url is not None:
                with suppress(StoreError):
                    asyncio.run(clear(order.database_url))
        yield outcome
        if outcome.holds and not keeps:
            shutil.rmtree(folder)


def folder_of(root: Path, seed: int) -> Path:
    """Return the folder of the run with this seed."""
    return root / f"seed-{seed}"


async def run(order: Order, folder: Path, say: Say) -> Outcome:
    """Run it in an empty folder, which then holds the history and what the processes have said."""
    begun = time.monotonic()
    history = folder / HISTORY
    recorder = Recorder(history)
    stage = Stage(
        folder,
        recorder,
        history,
        database_url=order.database_url,
        nodes=order.nodes,
        workers=_WORKERS,
        settings=order.settings,
        restart_database=order.restart_database,
    )
    async with AsyncExitStack() as stack:
        stack.callback(recorder.close)
        await stack.enter_async_context(stage)
        ledger = Ledger()
        secrets = {account: await _secret(stage, account) for account, _ in _CLIENTS}
        receivers = [
            await stack.enter_async_context(Receiver(f"hook-{number + 1}", order.seed, recorder, secrets))
            for number in range(_RECEIVERS)
        ]
        hooks = [receiver.address for receiver in receivers]
        clients = [
            await stack.enter_async_context(client) for client in _clients(order, stage, hooks, recorder, ledger)
        ]
        await _storm(order, stage, clients, ledger, say)
        say(f"seed {order.seed}: the faults are over; waiting until all is quiet")
        await asyncio.gather(stage.settle(), *(receiver.mend() for receiver in receivers))
        archive = Archive(stage.database_url)
        stack.push_async_callback(archive.aclose)
        await archive.quiet(_QUIET_S)
        await asyncio.gather(*(client.look_again() for client in clients))
        await collect(archive, stage.urls[0], read([history]), recorder)
    events = read([history])
    faults = Counter(event.kind for event in events if isinstance(event, Fault))
    verdict = check(events, Allowances())
    return Outcome(order.seed, time.monotonic() - begun, dict(faults), verdict, stage.surprises)


async def _secret(stage: Stage, account: str) -> str:
    """Return what the webhooks of an account are signed with."""
    return str((await stage.call("GET", "/v1/webhooks/default/secret", account)).json()["key"])


def _clients(
    order: Order, stage: Stage, hooks: Sequence[Callable[[str, str], str]], recorder: Recorder, ledger: Ledger
) -> list[Client]:
    clients = []
    for account, count in _CLIENTS:
        models = [model for model in stage.models if model.startswith(f"{account}/")]
        access = Access(account, stage.tokens[account], stage.urls, models, hooks)
        clients += [
            Client(access, f"{account}/{number}", order.seed, recorder, ledger) for number in range(1, count + 1)
        ]
    return clients


async def _storm(order: Order, stage: Stage, clients: Sequence[Client], ledger: Ledger, say: Say) -> None:
    """Let the clients work under faults until all of them are done."""
    strikes = plan(order.seed, _LONGEST_S, ground_of(stage, fills_disk=sys.platform == "linux"))
    done = asyncio.Event()
    shares = [len(range(number, order.predictions, len(clients))) for number in range(len(clients))]
    async with asyncio.TaskGroup() as tasks:
        playing = tasks.create_task(play(stage, strikes, done))
        telling = tasks.create_task(_tell(order, ledger, say))
        try:
            async with asyncio.TaskGroup() as working:
                for client, share in zip(clients, shares, strict=True):
                    working.create_task(client.work(share, _PATIENCE_S))
        finally:
            done.set()
            telling.cancel()
        await playing


async def _tell(order: Order, ledger: Ledger, say: Say) -> None:
    begun = time.monotonic()
    while True:
        await asyncio.sleep(_PROGRESS_S)
        say(
            f"seed {order.seed}: {time.monotonic() - begun:3.0f} s, {ledger.accepted} of {order.predictions} accepted, "
            f"{ledger.ended} ended, {ledger.unanswered} unanswered, {ledger.refused} refused"
        )
