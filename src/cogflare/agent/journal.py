"""Finishes on disk, until the server has answered them: they outlive this process.

Write-behind: a finish is sent at once and written up to `delay_s` later, so one that is answered sooner never touches
the disk. What the journal guards against is the death of the agent between the end of a run and the server's answer,
while the server is away; within the delay a finish can still be lost, and then the prediction is rescued as after any
other crash. An entry holds the whole attempt (output items and log too), since the server may lack any part of it.

One file holds the entries that were due at the same time: written beside its name, synced, renamed, and the folder
synced, so a file is whole or absent. It goes when its last entry is answered; an answered entry that is read back
beside an unanswered one is sent again and answered once more, which changes nothing. Disk work runs in one thread.
"""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Raw

from cogflare.protocol.agent_end import Kept
from cogflare.protocol.messages import AttemptKey, Finish

_DELAY_S = 0.05
_PATTERN = "finishes-*.json"


class Entry(msgspec.Struct, frozen=True):
    """One ended attempt. Times are wall clock, microseconds: another process, maybe after a reboot, reads them."""

    finish: Finish
    finished: int
    started: int | None = None
    items: list[Raw] = []
    log: bytes = b""

    @classmethod
    def of(cls, kept: Kept, wall: int, now: float) -> "Entry":
        """Take down an ended attempt; `wall` and `now` are the same instant on both clocks."""
        assert kept.finish is not None
        ended = wall - round((now - kept.finished_at) * 1e6)
        started = None if kept.started_at is None else wall - round((now - kept.started_at) * 1e6)
        return cls(kept.finish, ended, started, kept.items, bytes(kept.log))


class Journal:
    """The journal in `folder`. All methods but `read` and the disk work itself belong to the event loop."""

    def __init__(self, folder: Path, complain: Callable[[str], None], delay_s: float = _DELAY_S) -> None:
        self._folder = folder
        self._complain = complain
        self._delay_s = delay_s
        self._due: dict[AttemptKey, Entry] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._file_of: dict[AttemptKey, str] = {}
        self._open: dict[str, int] = {}  # entries of a file that are not answered
        self._count = 0
        self._disk = ThreadPoolExecutor(1, "journal")
        self._work: set[asyncio.Future[None]] = set()
        self._is_failing = False

    def read(self) -> list[Entry]:
        """Return what earlier processes left, oldest first; call it once, before anything else.

        A file that cannot be understood is set aside under another name, and said.
        """
        entries = []
        for file in sorted(self._folder.glob(_PATTERN)):
            try:
                number = int(file.stem.rpartition("-")[2])
                found = _decoder.decode(file.read_bytes())
            except (OSError, ValueError, RecursionError) as error:
                with suppress(OSError):
                    file.rename(file.with_suffix(".damaged"))
                self._complain(f"{file} cannot be read and was set aside: {error}")
                continue
            self._count = max(self._count, number + 1)
            fresh = [entry for entry in found if _key(entry) not in self._file_of]
            if not fresh:
                file.unlink()
                continue
            entries += fresh
            self._register(file.name, [_key(entry) for entry in fresh])
        return entries

    def keep(self, entry: Entry) -> None:
        """Write the entry soon, unless `forget` comes first."""
        self._due[_key(entry)] = entry
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._delay_s, self._write_due)

    def forget(self, key: AttemptKey) -> None:
        """Drop the entry: the server has answered it."""
        if self._due.pop(key, None) is not None:
            return
        name = self._file_of.pop(key, None)
        if name is None:
            return
        self._open[name] -= 1
        if not self._open[name]:
            del self._open[name]
            self._on_disk(_remove, self._folder / name)

    async def aclose(self) -> None:
        """Write what is due and wait for the disk."""
        self._write_due()
        while self._work:
            await asyncio.wait(self._work)
        self._disk.shutdown()

    def _write_due(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._due:
            return
        entries, self._due = list(self._due.values()), {}
        name = f"finishes-{self._count:010}.json"
        self._count += 1
        self._register(name, [_key(entry) for entry in entries])
        self._on_disk(_write, self._folder / name, entries)

    def _register(self, name: str, keys: list[AttemptKey]) -> None:
        self._file_of.update(dict.fromkeys(keys, name))
        self._open[name] = len(keys)

    def _on_disk(self, act: Callable[..., None], *args: object) -> None:
        work = asyncio.get_running_loop().run_in_executor(self._disk, act, *args)
        self._work.add(work)
        work.add_done_callback(self._done)

    def _done(self, work: "asyncio.Future[None]") -> None:
        self._work.discard(work)
        error = work.exception()
        if error is not None and not self._is_failing:  # a full disk is said once, not with each file
            self._complain(f"finished predictions cannot be kept on disk: {error}")
        self._is_failing = error is not None


_decoder = msgspec.json.Decoder(list[Entry])


def _key(entry: Entry) -> AttemptKey:
    return entry.finish.prediction, entry.finish.attempt


def _write(file: Path, entries: list[Entry]) -> None:
    draft = file.with_suffix(".new")
    with draft.open("wb") as out:
        out.write(msgspec.json.encode(entries))
        out.flush()
        os.fsync(out.fileno())
    draft.replace(file)
    if os.name == "posix":
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _remove(file: Path) -> None:
    file.unlink(missing_ok=True)
