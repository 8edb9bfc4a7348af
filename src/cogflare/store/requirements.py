"""What models require, and what the machines of workers have of that: typed functions over named queries."""

from collections.abc import AsyncIterator, Sequence
from typing import Final

import msgspec

from cogflare.store.base import Database, Statement

ModelKey = tuple[str, str, str]  # account, owner, name
_PAGE: Final = 500


class MachineRow(msgspec.Struct, frozen=True):
    """A worker as far as requirements go; `machine`, `offers` and `unmet` are JSON text."""

    id: str
    link_epoch: int
    state: str
    machine: str
    offers: str
    unmet: str


async def of_models(db: Database) -> dict[ModelKey, str]:
    """Return what models require (JSON text), of those that require anything."""
    rows = await db.read("model_requirements")
    return {(account, owner, name): text for account, owner, name, text in rows}


async def workers_with(db: Database, model: ModelKey) -> AsyncIterator[list[MachineRow]]:
    """Yield the workers that offer a model, a page at a time."""
    account, owner, name = model
    after = ""
    while True:
        key = {"account": account, "owner": owner, "name": name, "after": after}
        rows = await db.read("workers_with_model", **key, limit=_PAGE)
        if rows:
            yield [MachineRow(*row) for row in rows]
        if len(rows) < _PAGE:
            return
        after = rows[-1][0]


async def note_unmet(db: Database, found: Sequence[tuple[str, int, str]]) -> None:
    """Note what is not met, by worker and the epoch of its link; `unmet` is JSON text."""
    await db.write(Statement("note_unmet", {"found": msgspec.json.encode(found).decode()}))


async def note_machine(db: Database, worker: str, epoch: int, machine: str, unmet: str) -> None:
    """Note what a worker runs on now; what comes over an older link changes nothing."""
    await db.write(Statement("note_machine", {"worker": worker, "epoch": epoch, "machine": machine, "unmet": unmet}))
