"""Which offers of a worker meet what their models require: matched once, not per prediction.

What models require is known here, all of it, since few require anything. Each offer of a worker is held against it when
the worker says hello, when its machine changes, and when a model's requirements do; its seat serves its two queues, or
neither. The store keeps what is lacking (`workers.unmet`), for whoever counts workers or explains. It is the truth of
what models require too: hints tell of changes, and each node looks for itself. A node cares for the workers of its own
links, and for those that nobody is linked to.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, Protocol

import msgspec
import structlog

from cogflare.domain.requirements import Requirements, parse, unmet
from cogflare.protocol.messages import Hello, Inventory, Machine
from cogflare.store import fleet
from cogflare.store import requirements as store
from cogflare.store.base import Database, Hint
from cogflare.store.catalog import Caller
from cogflare.store.requirements import ModelKey

CHANNEL_REQUIREMENTS: Final = "requirements"
_LOOK_S: Final = 2.0
_NOTHING: Final = Machine()

log = structlog.get_logger()


class Offerer(Protocol):
    """The link of a worker."""

    worker: str
    epoch: int
    caller: Caller

    def lack(self, unmet: Sequence[str]) -> None:
        """Take it that these requirements of its offers are not met: such an offer gets nothing new."""
        ...

    def bind(self, is_strict: bool) -> None:
        """Take it that an offer is for its model alone: another with its version may require what was not weighed."""
        ...


class _Offer(msgspec.Struct, frozen=True):
    """A model that a worker runs, of what is stored of its offers."""

    owner: str
    name: str


class Matching:
    """What models require, and which offers of the workers of this node do not meet it."""

    def __init__(self, db: Database, spawn: Callable[[Coroutine[Any, Any, None]], object]) -> None:
        self._db = db
        self._spawn = spawn
        self._known: dict[ModelKey, str] | None = None
        self._required: dict[ModelKey, Requirements] = {}
        self._strict: set[str] = set()
        self._due: set[ModelKey] = set()
        self._links: dict[str, Offerer] = {}
        self._machines: dict[str, tuple[Offerer, Machine]] = {}
        self._noted: set[str] = set()  # workers of which a word was taken since the last look
        self._one = asyncio.Lock()
        db.listen(self._heard)

    # --- links -----------------------------------------------------------------------------------------------------

    async def ready(self) -> None:
        """Wait until it is known what models require."""
        if self._known is None:
            async with self._one:
                if self._known is None:  # of all that wait here one asks
                    await self._learn()

    def of_hello(self, account: str, hello: Hello) -> list[str]:
        """Return what is lacking for each offer of a hello."""
        return self._lacking(account, hello.offers, hello.machine)

    def join(self, link: Offerer, account: str, hello: Hello, written: str) -> None:
        """Care for a worker that has opened a link; `written` (JSON text) is what its row says of its offers."""
        self._links[link.worker] = link
        link.bind(account in self._strict)
        found = self.of_hello(account, hello)
        link.lack(found)
        if _text(found) != written:
            # What is required has changed since.
            self._spawn(self._put_right(link))
        for offer, text in zip(hello.offers, found, strict=True):
            if text:
                log.info("worker gets nothing of a model", worker=link.worker, name=offer.name, reason=text)

    def leave(self, worker: str) -> None:
        """Forget the link of a worker."""
        self._links.pop(worker, None)
        self._machines.pop(worker, None)

    def heard(self, link: Offerer, message: Inventory) -> None:
        """Take a worker's word on its machine: the first at once, of those that follow the last at the next look."""
        self._machines[link.worker] = (link, message.machine)
        if link.worker not in self._noted:
            self._noted.add(link.worker)
            self._spawn(self._note(link.worker))

    async def _note(self, worker: str) -> None:
        async with self._one:
            if (said := self._machines.get(worker)) is not None:
                await self._weigh_anew(*said)
                if self._machines.get(worker) is said:
                    del self._machines[worker]

    async def _put_right(self, link: Offerer) -> None:
        async with self._one:
            await self._weigh_anew(link)

    async def _weigh_anew(self, link: Offerer, machine: Machine | None = None) -> None:
        row = await fleet.get_worker(self._db, link.worker)
        if row is None or row.link_epoch != link.epoch:
            return
        machine = machine_of(row.machine) if machine is None else machine
        found = self._lacking(row.account, _offers(row.offers), machine)
        link.lack(found)
        await store.note_machine(self._db, link.worker, link.epoch, machine_text(machine), _text(found))

    # --- what models require ---------------------------------------------------------------------------------------

    async def tick(self) -> float:
        """Look what models require and what machines have become; returns the seconds until the next look."""
        await self._look()
        self._noted = set(self._machines)
        for worker in list(self._machines):
            await self._note(worker)
        return _LOOK_S

    def _heard(self, hint: Hint) -> None:
        if hint.channel == CHANNEL_REQUIREMENTS:
            self._spawn(self._look())

    async def _look(self) -> None:
        async with self._one:
            await self._learn()
            while self._due:
                model = next(iter(self._due))
                await self._match(model)
                self._due.discard(model)

    async def _learn(self) -> None:
        found = await store.of_models(self._db)
        known = self._known or {}
        changed = {model for model in known.keys() | found.keys() if known.get(model) != found.get(model)}
        for model in changed:
            self._required.pop(model, None)
            if model in found:
                self._required[model] = parse(found[model])
        self._known = found
        self._due |= changed
        strict = {account for account, *_ in self._required}
        if turned := strict ^ self._strict:
            self._strict = strict
            for link in self._links.values():
                if link.caller.account in turned:
                    link.bind(link.caller.account in strict)

    async def _match(self, model: ModelKey) -> None:
        """Hold every worker that offers the model, and nobody else cares for, against what is required now."""
        async for rows in store.workers_with(self._db, model):
            changed = []
            for row in rows:
                link = self._links.get(row.id)
                if link is None and row.state == "online":
                    continue
                found = self._lacking(model[0], _offers(row.offers), machine_of(row.machine))
                if link is not None and link.epoch == row.link_epoch:
                    link.lack(found)
                if (text := _text(found)) != row.unmet:
                    changed.append((row.id, row.link_epoch, text))
            if changed:
                await store.note_unmet(self._db, changed)

    def _lacking(self, account: str, offers: Sequence[Any], machine: Machine | None) -> list[str]:
        if not self._required:
            return [""] * len(offers)
        told = machine or _NOTHING
        vram_mb = None if told == _NOTHING else [gpu.vram_mb for gpu in told.gpus]
        wanted = (self._required.get((account, offer.owner, offer.name)) for offer in offers)
        return ["" if required is None else unmet(required, vram_mb, told.tags) for required in wanted]


def machine_text(machine: Machine | None) -> str:
    """Return how a machine is stored."""
    return _text(machine or _NOTHING)


def machine_of(text: str) -> Machine:
    """Read a stored machine; of what cannot be read nothing is known."""
    try:
        return msgspec.json.decode(text, type=Machine)
    except msgspec.DecodeError:
        return _NOTHING


def _offers(text: str) -> list[_Offer]:
    return msgspec.json.decode(text, type=list[_Offer])


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()
