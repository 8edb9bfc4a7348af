"""What the worker says to the person who runs it: a line an event, text or JSON. Never a token, never an input."""

import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

import msgspec

_REMEMBERED = 100  # lines of the model's, more than the message of a setup that failed repeats


class Console:
    """Writes lines to `stream`; `json` makes each an object with a time, an event and its fields."""

    def __init__(self, json: bool = False, stream: TextIO | None = None, wall: Callable[[], float] = time.time) -> None:
        self._json = json
        self._stream = stream or sys.stderr
        self._wall = wall
        self._shown: deque[str] = deque(maxlen=_REMEMBERED)

    def say(self, event: str, text: str, **fields: Any) -> None:
        """Report an event: `text` is for people, `event` and the fields are for machines."""
        now = self._wall()
        if self._json:
            line = msgspec.json.encode({"time": round(now, 3), "event": event, "text": text, **fields}).decode()
        else:
            line = f"{time.strftime('%H:%M:%S', time.localtime(now))}  {text}"
        with suppress(OSError):  # the terminal may be gone
            print(line, file=self._stream, flush=True)

    def model(self, text: str) -> None:
        """Pass on what the model said while it was set up."""
        for line in text.splitlines():
            if line.strip():
                self._shown.append(line)
                self.say("setup", f"  {line.encode(errors='replace').decode()}")

    def unsaid(self, text: str) -> str:
        """Return the first line of a text, and of the rest what the model has not just said here itself."""
        first, *rest = text.splitlines() or [""]
        return "\n".join([first, *(line for line in rest if line.strip() and line not in self._shown)])


def counted(number: int, noun: str) -> str:
    """Return `1 slot`, `2 slots`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


class Silence(Console):
    """A console that says nothing."""

    def say(self, event: str, text: str, **fields: Any) -> None:
        """Say nothing."""
