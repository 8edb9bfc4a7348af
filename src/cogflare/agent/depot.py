"""Output files of attempts under way, on disk: when this agent is killed, the next one here goes on with them.

    <root>/<prediction>-<attempt>/     a folder an attempt, made when it is needed
        files.jsonl                    what was ordered of the server, and how far it came (`Notes`)
        …                              what a runner puts there

Nothing is synced: it has to survive this process, not the machine, which takes the model along.
"""

import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from cogflare.agent.scratch import Scratch

_NOTES: Final = "files.jsonl"


class Depot:
    """The folders under `root`; without one they are this process's own, and nobody goes on with them."""

    def __init__(self, root: Path | None = None) -> None:
        self.is_kept = root is not None
        self._root = root
        self._scratch: Scratch | None = None

    def folder(self, run: str) -> Path:
        """Return the folder of a run, made if it is not there; `run` is the name of an attempt."""
        if self._root is None:
            self._scratch = Scratch.make("outputs")
            self._root = self._scratch.path
        folder = self._root / run
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder

    def left(self, run: str) -> Path | None:
        """Return the folder of a run that an earlier agent began, if it left one."""
        folder = self._root / run if self._root is not None else None
        return folder if folder is not None and folder.is_dir() else None

    def drop(self, run: str) -> None:
        """Remove the folder of a run that is over."""
        if self._root is not None:
            shutil.rmtree(self._root / run, ignore_errors=True)

    def sweep(self, kept: Collection[str]) -> None:
        """Remove the folders of all runs but these."""
        for folder in self._root.glob("*") if self._root is not None else ():
            if folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Remove what nobody goes on with."""
        if self._scratch is not None:
            self._scratch.remove()
            self._scratch = self._root = None


class Target(msgspec.Struct):
    """Where the bytes of a file go; with `parts`, each takes the next `part_bytes`."""

    url: str = ""
    method: str = "PUT"
    headers: dict[str, str] = {}
    parts: list[str] = []
    part_bytes: int = 0
    upload: str = ""


class Resumable(msgspec.Struct):
    """Where a file can be sent bit by bit."""

    url: str
    complete: str


class Ordered(msgspec.Struct):
    """The server's answer to a new file."""

    reference: str
    upload: Target
    complete: str | None = None
    resume: Resumable | None = None


class Order(msgspec.Struct, tag="order"):
    """A file that the server was told of; `tags` are the answers to its first parts."""

    filename: str
    size: int
    sha256: str
    answer: Ordered
    tags: list[str] = []
    is_stored: bool = False


class _Part(msgspec.Struct, tag="part"):
    reference: str
    tag: str


class _Stored(msgspec.Struct, tag="stored"):
    reference: str


class Notes:
    """What becomes of the files of one attempt, a line each step."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NOTES

    def read(self) -> list[Order]:
        """Return the files of an earlier agent; none where the notes cannot be read."""
        orders: dict[str, Order] = {}
        with suppress(OSError, ValueError, KeyError):
            for line in self._path.read_bytes().splitlines():
                match _decoder.decode(line):
                    case Order() as order:
                        orders[order.answer.reference] = order
                    case _Part(reference, tag):
                        orders[reference].tags.append(tag)
                    case _Stored(reference):
                        orders[reference].is_stored = True
        return list(orders.values())

    def ordered(self, order: Order) -> None:
        """Note that the server was told of a file."""
        self._add(order)

    def sent(self, order: Order, tag: str) -> None:
        """Note that the next part of a file was sent."""
        self._add(_Part(order.answer.reference, tag))

    def stored(self, order: Order) -> None:
        """Note that the server has a file."""
        self._add(_Stored(order.answer.reference))

    def _add(self, line: Order | _Part | _Stored) -> None:
        # On a full disk the file is sent all the same; only the next agent would have to begin anew.
        with suppress(OSError), self._path.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")


_decoder: msgspec.json.Decoder[Order | _Part | _Stored] = msgspec.json.Decoder(Order | _Part | _Stored)
