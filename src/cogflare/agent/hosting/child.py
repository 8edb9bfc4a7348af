"""The model's process, as the front sees it: started, listened to, and ended with the front.

What libraries and child processes write to the process's standard output does not pass through Python. It arrives by a
pipe and belongs to the run that is under way, if it is the only one. The pipe is read before the end of a run is told,
so that nothing which the run has written comes after it.
"""

import codecs
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

from .frames import Channel, Frame

_CHUNK, _CHUNKS = 1 << 16, 4
_GONE_S = 5.0


class Child:
    """A process that runs ``command`` with the descriptor of its end of the channel as ``--model-fd``."""

    def __init__(self, command: list[str]) -> None:
        ours, theirs = socket.socketpair()
        reader, writer = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, *command, "--model-fd", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=writer,
                stderr=writer,
                pass_fds=[theirs.fileno()],
            )
        finally:
            theirs.close()
            os.close(writer)
        os.set_blocking(reader, False)
        self._pipe = reader
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._channel = Channel(ours)

    def post(self, frame: bytes) -> None:
        """Send an encoded frame; when the process is gone, `listen` tells."""
        with suppress(OSError):
            self._channel.write(frame)

    def listen(self, on_frame: Callable[[Frame], None], on_text: Callable[[str], None]) -> str:
        """Pass on what comes until the process has ended; return how it ended."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._channel, selectors.EVENT_READ)
            selector.register(self._pipe, selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _ in selector.select()}
                frames: list[Frame] | None = []
                if self._channel.fileno() in ready:
                    frames = self._channel.receive()
                for frame in _joined(frames or []):
                    if _is_last(frame):
                        self._read_pipe(on_text)
                    on_frame(frame)
                if self._pipe in ready and not self._read_pipe(on_text):
                    selector.unregister(self._pipe)
                if frames is None:
                    break
        return self._end(on_text)

    def stop(self) -> None:
        """End the process, if it has not ended."""
        self._process.terminate()
        try:
            self._process.wait(_GONE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read_pipe(self, on_text: Callable[[str], None]) -> bool:
        """Pass on what has been written, as much as a pipe holds; whether more may come."""
        for _ in range(_CHUNKS):
            try:
                chunk = os.read(self._pipe, _CHUNK)
            except BlockingIOError:
                return True
            if text := self._decode(chunk, not chunk):
                on_text(text)
            if not chunk:
                return False
        return True

    def _end(self, on_text: Callable[[str], None]) -> str:
        try:
            status = self._process.wait(_GONE_S)
        except subprocess.TimeoutExpired:  # it has closed the channel and lives on
            self._process.kill()
            status = self._process.wait()
        self._read_pipe(on_text)
        if status >= 0:
            return f"ended with status {status}"
        with suppress(ValueError):
            return f"was killed by {signal.Signals(-status).name}"
        return f"was killed by signal {-status}"


def _is_last(frame: Frame) -> bool:
    """Whether what was written before goes first: nothing is to come after an end, nor into a line that goes on."""
    return frame["type"] == "ended" or not frame.get("text", "\n").endswith("\n")


def _joined(frames: list[Frame]) -> Iterator[Frame]:
    """Yield the frames, lines of log that have come together as one: a model may print very many."""
    waiting: Frame | None = None
    for frame in frames:
        if waiting is not None:
            if all(waiting.get(key) == frame.get(key) for key in ("type", "id", "source")) and "text" in frame:
                waiting["text"] += frame["text"]
                continue
            yield waiting
        waiting = frame
    if waiting is not None:
        yield waiting
