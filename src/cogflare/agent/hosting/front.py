"""The model as the front has it: how far it is set up, its health, and what its process says."""

import os
import platform
import time
from contextlib import suppress
from typing import Any

from . import hooks
from .child import Child
from .frames import Frame
from .runs import Run, Runs

_VERSION = {"cogflare_host": "1", "python": platform.python_version()}
_MAX_SETUP_LOG = 1 << 20


class Front:
    """One model: how far it is set up, and its runs."""

    def __init__(self, command: list[str]) -> None:
        self.status = "STARTING"
        self.document: dict[str, Any] | None = None
        self._setup: dict[str, Any] = {"started_at": _now()}
        self._log: list[str] = []
        self._log_room = _MAX_SETUP_LOG
        self._is_stopping = False
        self._child = Child(command)
        self.runs = Runs(self._child.post, self._end_of_run)

    def attend(self) -> None:
        """Listen to the model until its process has ended; then nothing can run any more."""
        how = self._child.listen(self._take, self._write)
        if self.status == "STARTING":
            self._fail(f"The model's process {how} while it was set up\n")
        elif self.status == "READY":
            self.status = "DEFUNCT"
            if not self._is_stopping:
                _say(f"The model's process {how}\n")
        self.runs.end_all(f"Worker crashed: the model's process {how}")

    def stop(self) -> None:
        """End the model's process."""
        self._is_stopping = True
        self._child.stop()

    def health(self) -> dict[str, Any]:
        """Return the answer to a look at the health."""
        status = "BUSY" if self.status == "READY" and self.runs.are_full else self.status
        return {"status": status, "setup": {**self._setup, "logs": "".join(self._log)}, "version": _VERSION}

    def _take(self, frame: Frame) -> None:
        run = self.runs.running(frame["id"]) if frame.get("id") else None
        match frame["type"]:
            case "ready":
                self.document, self.runs.slots = frame["document"], frame["slots"]
                self._set_up("READY", "succeeded")
            case "unready":
                self._fail(frame["error"])
            case "log" if run is not None:
                self.runs.log(run, frame["text"], frame["source"])
            case "log":
                self._note(frame["text"])
            case "output" if run is not None:
                self.runs.output(run, frame["item"])
            case "ended" if run is not None:
                self.runs.end(run, frame["status"], frame["output"], frame["error"], frame["seconds"])

    def _write(self, text: str) -> None:
        """Take in what was written past Python."""
        run = self.runs.only()
        if run is None:
            self._note(text)
        else:
            self.runs.log(run, text)

    def _note(self, text: str) -> None:
        """Keep what belongs to no run."""
        if self.status == "STARTING" and self._log_room > 0:
            self._log.append(text)
            self._log_room -= len(text)
        _say(text)

    def _fail(self, error: str) -> None:
        self._note(error)
        self._set_up("SETUP_FAILED", "failed")

    def _set_up(self, status: str, outcome: str) -> None:
        self._setup |= {"completed_at": _now(), "status": outcome}
        self.status = status

    def _end_of_run(self, run: Run) -> None:
        if run.hook:
            hooks.tell(run.hook, run.snapshot(), lambda: self.runs.forget(run))


def _now() -> str:
    """The time in RFC 3339, in UTC, as Cog writes it."""
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{nanoseconds:09}+00:00"


def _say(text: str) -> None:
    """Write to this process's output, which is the worker's view of the setup."""
    with suppress(OSError):
        os.write(1, text.encode("utf-8", "replace"))
