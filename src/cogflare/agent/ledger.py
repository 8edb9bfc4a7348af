"""Runs under way, on disk: what the next agent on this machine resumes when this one is killed.

A run is written down before the model gets it, so what is not in the ledger does not run. A line each for its begin and
its end is appended in the next turn of the loop, all of a turn in one write, without a sync: the lines have to survive
this process, not the machine, which takes the model along. The file is written anew when it has grown.

Once a line cannot be written the ledger is removed: without it the next agent takes nothing for granted and starts
afresh.
"""

import asyncio
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from cogflare.protocol.messages import AttemptKey

_FILE = "held.jsonl"
_MAX_BYTES = 256 * 1024


class HeldRun(msgspec.Struct, frozen=True, omit_defaults=True):
    """A run under way. `began` is wall clock, microseconds; `urls` and `folder` are its fetched input files."""

    prediction: str
    attempt: int
    offer: int
    began: int
    urls: list[str] = []
    folder: str = ""

    @property
    def key(self) -> AttemptKey:
        """The attempt."""
        return self.prediction, self.attempt


class Ledger:
    """The ledger in `folder`. After `read` it is silent until `open`; its methods belong to the event loop."""

    def __init__(self, folder: Path, complain: Callable[[str], None]) -> None:
        self._path = folder / _FILE
        self._complain = complain
        self._held: dict[AttemptKey, HeldRun] = {}
        self._file: int | None = None
        self._size = 0
        self._due: list[bytes] = []

    def read(self) -> list[HeldRun] | None:
        """Return what an earlier process left under way; None when that is not known.

        A file that cannot be understood is set aside under another name, and said.
        """
        found: dict[AttemptKey, HeldRun] = {}
        try:
            for line in self._path.read_bytes().splitlines():
                entry = _decoder.decode(line)
                if isinstance(entry, HeldRun):
                    found[entry.key] = entry
                else:
                    found.pop(entry, None)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            self._complain(f"{self._path} cannot be read and was set aside: {error}")
            with suppress(OSError):
                self._path.rename(self._path.with_suffix(".damaged"))
            return None
        return list(found.values())

    def open(self, resumed: Iterable[HeldRun]) -> None:
        """Begin a ledger of this process, with these runs in it."""
        self._held = {held.key: held for held in resumed}
        self._write_anew()

    def hold(self, held: HeldRun) -> None:
        """Write down that the run is under way; again, once its files are known."""
        if self._file is not None:
            self._held[held.key] = held
            self._append(_encoder.encode(held))

    def release(self, key: AttemptKey) -> None:
        """Write down that the run is over."""
        if self._file is not None and self._held.pop(key, None) is not None:
            self._append(_encoder.encode(key))

    def close(self) -> None:
        """Remove the ledger: nothing is under way any more."""
        self._drop()

    def _append(self, line: bytes) -> None:
        if not self._due:
            asyncio.get_running_loop().call_soon(self._flush)
        self._due.append(line)

    def _flush(self) -> None:
        lines, self._due = self._due, []
        if self._file is None:
            return
        if self._size > _MAX_BYTES:
            self._write_anew()
            return
        text = b"\n".join(lines) + b"\n"
        try:
            _write(self._file, text)
        except OSError as error:
            self._give_up(error)
        self._size += len(text)

    def _write_anew(self) -> None:
        text = b"".join(_encoder.encode(held) + b"\n" for held in self._held.values())
        draft = self._path.with_suffix(".new")
        try:
            # The URLs of input files are secrets.
            file = os.open(draft, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                _write(file, text)
                draft.replace(self._path)
            except OSError:
                os.close(file)
                raise
        except OSError as error:
            self._give_up(error)
            return
        if self._file is not None:
            os.close(self._file)
        self._file, self._size = file, len(text)

    def _give_up(self, error: OSError) -> None:
        self._complain(f"running predictions are not kept on disk, a next worker will not resume them: {error}")
        self._drop()

    def _drop(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def _write(file: int, text: bytes) -> None:
    if os.write(file, text) < len(text):
        raise OSError("the disk is full")


_decoder: msgspec.json.Decoder[HeldRun | AttemptKey] = msgspec.json.Decoder(HeldRun | AttemptKey)
_encoder = msgspec.json.Encoder()
