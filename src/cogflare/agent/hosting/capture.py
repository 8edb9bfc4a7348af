"""What Python code prints becomes the log of the run that it belongs to, line by line.

A run's own task is known by a context variable. What another thread prints belongs to the run that is under way, if it
is the only one, in lines of its own. A fork of this process writes to the process's real output instead, which the
front reads as well.
"""

import io
import os
import sys
import threading
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any

from .frames import Channel

RUN: ContextVar[str | None] = ContextVar("run", default=None)
_LONGEST = 1 << 16
_Line = tuple[str | None, int]  # whose it is: of which run, and which thread writes it


class Logs:
    """Where prints go. ``running`` are the ids of the runs under way."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.running: set[str] = set()
        self._streams = [_Stream(self, "stdout", 1), _Stream(self, "stderr", 2)]

    def install(self) -> None:
        """Take the place of standard output and error."""
        sys.stdout, sys.stderr = self._streams

    def flush(self, run_id: str | None) -> None:
        """Send what has no line end yet."""
        for stream in self._streams:
            stream.send_rest(run_id)

    def owner(self) -> str | None:
        """Return the run that prints now; None where it is none, or unknown."""
        run_id, running = RUN.get(), tuple(self.running)
        if run_id is None:
            return running[0] if len(running) == 1 else None
        return run_id if run_id in running else None  # a task may outlive its run

    def say(self, run_id: str | None, text: str, source: str, descriptor: int) -> None:
        """Send a piece of log."""
        if self._channel.is_ours:
            self._channel.send({"type": "log", "id": run_id, "text": text, "source": source})
        else:
            os.write(descriptor, text.encode("utf-8", "replace"))


class _Stream(io.TextIOBase):
    """Standard output or error. Text is held until its line ends, as a terminal would have it."""

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, logs: Logs, source: str, descriptor: int) -> None:
        self._logs, self._source, self._descriptor = logs, source, descriptor
        self._held: dict[_Line, str] = {}
        self.buffer = _Bytes(self)
        self.name = f"<{source}>"

    def write(self, text: str, /) -> int:
        """Take text in."""
        line = run_id, _ = self._line()
        held = self._held.pop(line, "") + text
        end = max(held.rfind("\n"), held.rfind("\r")) + 1
        if len(held) > _LONGEST:
            end = len(held)
        if end < len(held):
            self._held[line] = held[end:]
        if end:
            self._logs.say(run_id, held[:end], self._source, self._descriptor)
        return len(text)

    def writelines(self, lines: Iterable[str], /) -> None:  # type: ignore[override]
        """Take lines in."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Send what the caller has written."""
        self._send(self._line())

    def send_rest(self, run_id: str | None) -> None:
        """Send what is held of a run."""
        for line in tuple(self._held):
            if line[0] == run_id:
                self._send(line)

    def _line(self) -> _Line:
        return self._logs.owner(), threading.get_ident()

    def _send(self, line: _Line) -> None:
        if text := self._held.pop(line, ""):
            self._logs.say(line[0], text, self._source, self._descriptor)

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """The process's real output: child processes write to it."""
        return self._descriptor

    def reconfigure(self, **_: Any) -> None:
        """Programs ask for line buffering and UTF-8, which is what there is."""


class _Bytes(io.RawIOBase):
    """The bytes below a stream."""

    def __init__(self, above: _Stream) -> None:
        self._above = above

    def write(self, data: Any, /) -> int:
        """Take bytes in as text."""
        self._above.write(bytes(data).decode("utf-8", "replace"))
        return len(data)

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """The process's real output."""
        return self._above.fileno()
