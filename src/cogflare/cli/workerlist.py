"""How `cogflare workers list` shows workers: those that matter now, a line each, and what is wrong with them.

The server remembers workers for weeks after they left. Those with a new identity each time, such as rented pods, would
fill the list: whoever left long ago is counted only.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import click

from cogflare.cli import machines
from cogflare.cli.output import age, cell, counted, note, print_table, seconds_between

_RECENT_S: Final = 3_600.0
_UNWELL_S: Final = 86_400.0
_NAME: Final = 26
_REASON: Final = 400
_COLUMNS: Final = ("id", "name", "state", "models", "busy", "connected")


def show(known: Sequence[Mapping[str, Any]], everyone: bool) -> None:
    """Print workers: for people, or for a pipe, with all columns."""
    workers = [worker for worker in known if everyone or not _is_history(worker)]
    left_out = f"{counted(len(known) - len(workers), 'worker')} that left long ago: --all shows them too"
    empty = f"no workers but {left_out}" if known else "no workers: `cogflare worker` connects one"
    found = [machines.hardware(worker) for worker in workers]
    if sys.stdout.isatty():
        rows = [_row(worker, _short(worker["name"], _NAME)) for worker in workers]
        print_table(*machines.beside(_COLUMNS, rows, found), empty)
        for text in _remarks(workers):
            click.echo(cell(text))
    else:
        # Whoever reads this counts columns: what is new comes last.
        more = [(health(worker), *hardware) for worker, hardware in zip(workers, found, strict=True)]
        lines = [(*_row(worker, worker["name"]), *rest) for worker, rest in zip(workers, more, strict=True)]
        print_table((*_COLUMNS, "health", "gpu", "vram", "region"), lines, empty)
    if workers and len(known) > len(workers):
        note(f"left out: {left_out}")


def _row(worker: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    offers = " ".join(sorted({str(offer["model"]) for offer in worker["models"]}))
    return worker["id"], name, _state(worker), offers, f"{worker['busy']}/{worker['slots']}", since(worker)


def _remarks(workers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Say what is wrong with workers: it is a sentence or more, and no column of a table is wide enough for it."""
    for worker in workers:
        who = f"{worker['name']} ({worker['id']})"
        if worker["quarantine"] is not None:
            yield _short(f"{who} was {health(worker)}", _REASON)
        for text in machines.lacking(worker):
            yield f"{who} {text}"


def _is_history(worker: Mapping[str, Any]) -> bool:
    """Say whether a worker has left so long ago that nobody looks for it."""
    gone_s = seconds_between(worker["changed_at"], datetime.now(UTC).isoformat()) or 0.0
    return _state(worker) == "offline" and gone_s > (_UNWELL_S if worker["quarantine"] else _RECENT_S)


def _state(worker: Mapping[str, Any]) -> str:
    """Return the state; a worker that sets its model up has not connected yet, and yet it is there."""
    return "setting up" if worker["state"] == "offline" and worker["setup_since"] else str(worker["state"])


def since(worker: Mapping[str, Any]) -> str:
    """Say since when a worker is connected, or is not."""
    if worker["state"] == "online":
        return age(worker["connected_at"])
    word = {"away": "lost", "offline": "left"}.get(worker["state"])
    return f"{word} {age(worker['changed_at'])}" if word and worker["connected_at"] else "-"


def health(worker: Mapping[str, Any]) -> str:
    """Say whether a worker gets runs, and if not, why."""
    quarantine = worker["quarantine"]
    return "ok" if quarantine is None else f"quarantined {age(quarantine['since'])}: {quarantine['reason']}"


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
