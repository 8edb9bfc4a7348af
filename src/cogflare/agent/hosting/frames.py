"""Messages between the front and the model's process: one JSON object a line, over a socket.

    to the model    run {id, input}      cancel {id}
    to the front    ready {document, slots}      unready {error}      log {id, text, source}      output {id, item}
                    ended {id, status, output, error, seconds}

A log without an id belongs to no run.
"""

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

Frame = dict[str, Any]

_CHUNK = 1 << 16


class Channel:
    """One end of the socket. ``shield`` is entered while a frame is written, which must not be torn."""

    def __init__(self, end: socket.socket, shield: AbstractContextManager[object] | None = None) -> None:
        self._end = end
        self._lock = threading.Lock()
        self._shield = shield or nullcontext()
        self._begun: list[bytes] = []
        self._owner = os.getpid()

    @property
    def is_ours(self) -> bool:
        """Whether this is the process that opened the channel, not a fork of it."""
        return os.getpid() == self._owner

    def fileno(self) -> int:
        """The socket's file descriptor."""
        return self._end.fileno()

    def close(self) -> None:
        """Close this end."""
        self._end.close()

    def send(self, frame: Frame) -> None:
        """Write a frame; raises `OSError` when the other end is gone."""
        self.write(encode(frame))

    def write(self, line: bytes) -> None:
        """Write a frame that is encoded already; raises `OSError` as well."""
        with self._shield, self._lock:
            self._end.sendall(line + b"\n")

    def receive(self) -> list[Frame] | None:
        """Wait for the next frames; None once the other end is gone."""
        while True:
            try:
                chunk = self._end.recv(_CHUNK)
            except OSError:
                chunk = b""
            if not chunk:
                return None
            lines, newline, rest = chunk.rpartition(b"\n")
            if newline:
                lines, self._begun = b"".join((*self._begun, lines)), [rest]
                return [json.loads(line) for line in lines.split(b"\n")]
            self._begun.append(chunk)

    def __iter__(self) -> Iterator[Frame]:
        """Yield frames until the other end is gone."""
        while (frames := self.receive()) is not None:
            yield from frames


def encode(value: object) -> bytes:
    """Return the value as JSON; raises `ValueError` for numbers that are none, `TypeError` for what JSON cannot say."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")  # halves of surrogate pairs are no text
