"""Processes of the harness: tied to their parent, their output in a file, started again whenever they end."""

import asyncio
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from cogflare.cli.verification.history import Born, Died, Recorder, now

What = Literal["server", "agent"]
Order = Literal["kill", "stop"]

_REST_S = 0.3
_STOP_S = 15.0
_CHUNK = 64 * 1024


def tie_to_parent(parent: int, *, reads_input: bool = False) -> None:
    """End this process when its parent does, whichever way; exit if that has happened already.

    The parent holds the other end of standard input, so its end is the parent's; a process that `reads_input` by itself
    has to see to that. On Linux the kernel kills it as well, even while it is stopped.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    if not reads_input:
        threading.Thread(target=_end_with_input, daemon=True).start()


def _end_with_input() -> None:
    while os.read(0, _CHUNK):
        pass
    os._exit(1)


class Process:
    """One process after another under one name; what they say goes to `folder/name.log`.

    Their output comes through a pipe: a process that may write no file any more can still speak.
    """

    def __init__(self, what: What, name: str, folder: Path, recorder: Recorder) -> None:
        self.what = what
        self.name = name
        self.folder = folder
        self.surprises: list[str] = []
        self.rises = 0
        self.recorder = recorder
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._up = asyncio.Event()
        self._order: Order | None = None
        self._rest_s = _REST_S
        self._is_closing = False

    # --- for subclasses ---------------------------------------------------------------------------------------------

    def command(self) -> tuple[Sequence[str], Mapping[str, str]]:
        """Return the arguments of the next process (a module first) and its own environment variables."""
        raise NotImplementedError

    async def rise(self) -> None:
        """Wait until the process that has just been started does its work."""

    def hurry(self) -> None:
        """Say once more, if need be, that the process shall stop."""

    async def fall(self) -> None:
        """Put away what the process that has just ended has left."""

    # --- life -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start it and keep it alive until `close`; return once it does its work."""
        self._keeper = asyncio.create_task(self._keep())
        await self.up()

    async def up(self, limit_s: float = 30.0) -> None:
        """Wait until it does its work; raises `TimeoutError`, with what it said last, when it does not come to that."""
        rising = asyncio.create_task(self._up.wait())
        assert self._keeper is not None, "it was not started"
        await asyncio.wait({rising, self._keeper}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        if not rising.done():
            rising.cancel()
            if self._keeper.done():
                self._keeper.result()
            raise TimeoutError(f"{self.name} did not come up:\n{self.said()[-3000:]}")

    @property
    def is_up(self) -> bool:
        """Whether it does its work, as far as the harness knows."""
        return self._up.is_set()

    @property
    def pid(self) -> int | None:
        """The process id, while there is a process."""
        return None if self._process is None or self._process.returncode is not None else self._process.pid

    def said(self) -> str:
        """Return what all processes of this name have said."""
        log = self.folder / f"{self.name}.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal; False if there is no process."""
        if self._process is None or self._process.returncode is not None:
            return False
        with suppress(ProcessLookupError):
            self._process.send_signal(number)
        return True

    def kill(self, rest_s: float = _REST_S) -> bool:
        """Kill it without a chance to do anything; it is started again after `rest_s`. False if there is no process."""
        self._order, self._rest_s = "kill", rest_s
        return self.signal(signal.SIGKILL)

    def restart(self, rest_s: float = _REST_S) -> bool:
        """Ask it to stop in order; it is started again `rest_s` after its end. False if there is no process."""
        self._order, self._rest_s = "stop", rest_s
        return self.signal(signal.SIGTERM)

    async def close(self, limit_s: float = _STOP_S) -> None:
        """Stop it for good: ask, and kill what does not listen."""
        self._is_closing = True
        if self._keeper is None:
            return
        self.signal(signal.SIGCONT)
        self.restart(0.0)
        self.hurry()
        done, _ = await asyncio.wait({self._keeper}, timeout=limit_s)
        if not done:
            self.surprises.append(f"{self.name} did not stop within {limit_s:g} s")
            self.kill(0.0)
            await asyncio.wait({self._keeper}, timeout=limit_s)
        self._keeper.cancel()
        await asyncio.gather(self._keeper, return_exceptions=True)

    async def _keep(self) -> None:
        while not self._is_closing:
            self._order, self._rest_s = None, _REST_S
            process = self._process = await self._spawn()
            self.recorder.note(Born(now(), self.what, self.name, process.pid))
            copying = asyncio.create_task(self._copy(process))
            rising = asyncio.create_task(self._announce())
            try:
                status = await process.wait()
            finally:
                self._up.clear()
                rising.cancel()
                if process.returncode is None:
                    process.kill()
                await asyncio.gather(process.wait(), copying, rising, return_exceptions=True)
            await self.fall()
            how = _how(status)
            self.recorder.note(Died(now(), self.what, self.name, process.pid, how))
            if not self._was_ordered(status):
                self.surprises.append(f"{self.name} ended by itself: {how}\n{self.said()[-2000:]}")
            if not self._is_closing:
                await asyncio.sleep(self._rest_s)

    async def _spawn(self) -> asyncio.subprocess.Process:
        arguments, environment = self.command()
        # What is set for the person who runs the harness is not meant for these processes.
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("COGFLARE_", "REPLICATE_"))}
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *arguments),
            env={**inherited, "PYTHONUNBUFFERED": "1", **environment},
            # In a session of its own: Ctrl-C reaches only the harness, which stops it in order.
            start_new_session=True,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )

    async def _announce(self) -> None:
        await self.rise()
        self.rises += 1
        self._up.set()

    async def _copy(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        with (self.folder / f"{self.name}.log").open("ab", buffering=0) as log:
            while said := await process.stdout.read(_CHUNK):
                log.write(said)

    def _was_ordered(self, status: int) -> bool:
        if self._order == "kill":
            return status == -signal.SIGKILL
        # Stopped twice, an agent says 130; a process that has not come up yet has no ear for a signal.
        return self._order == "stop" and status in (0, 130, -signal.SIGTERM)


def _how(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit {status}"
