"""Subprocesses of the demo: started with their output in a file, watched, and none of them left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import click

_TAIL_LINES: Final = 25
_PAUSE_S: Final = 0.05


class ChildError(click.ClickException):
    """A subprocess ended, or hung, when it should not have; the message shows what it said last."""


class Child:
    """A `cogflare` command in a session of its own, so that a Ctrl-C reaches only the demo, which stops it in order."""

    def __init__(self, name: str, arguments: Sequence[str], folder: Path, secrets: Mapping[str, str]) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        self._read = 0
        # Settings of the person who runs the demo are for servers and workers of their own.
        environ = {key: value for key, value in os.environ.items() if not key.startswith("COGFLARE_")}
        with self._log.open("wb") as sink:
            self._process = subprocess.Popen(  # noqa: S603 - our own command, no shell
                [sys.executable, "-m", "cogflare.cli", *arguments],
                env={**environ, **secrets, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def has_ended(self) -> bool:
        """Say whether the process is over."""
        return self._process.poll() is not None

    def check(self) -> None:
        """Raise `ChildError` if the process is over."""
        if self.has_ended():
            raise self.error(f"ended with status {self._process.returncode}")

    def error(self, what: str) -> ChildError:
        """Return an error about this process, with the end of its log."""
        lines = self._log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        return ChildError(f"the {self.name} {what}; its log ends with:\n" + "\n".join(f"  {line}" for line in lines))

    def new_lines(self) -> list[str]:
        """Return the whole lines it wrote since the last call."""
        with self._log.open("rb") as log:
            log.seek(self._read)
            text = log.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        return whole.decode(errors="replace").splitlines()

    def wait_for(self, is_ready: Callable[[], bool], limit_s: float, what: str) -> None:
        """Wait until `is_ready`; raise `ChildError` if the process ends first or the time is up."""
        deadline = time.monotonic() + limit_s
        while not is_ready():
            self.check()
            if time.monotonic() > deadline:
                raise self.error(f"{what} for {limit_s:.0f} s")
            time.sleep(_PAUSE_S)

    def ask(self, number: signal.Signals) -> None:
        """Send a signal; a process that is gone does not mind."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    def wait(self, limit_s: float) -> int | None:
        """Return its exit status, or None if it still runs after `limit_s` seconds."""
        try:
            return self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """End it and all of its session at once."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
