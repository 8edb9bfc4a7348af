"""What the model's process tells the front of its runs."""

import importlib
import os
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from .capture import RUN, Logs
from .files import Files, UploadFailed
from .frames import Channel, encode
from .model import Failed, Model, plain

Ending = tuple[str, Any, str | None]
"""Status, output (None where it has come item by item), error."""

_MAX_OUTPUT = 64 << 20  # bytes of JSON
CANCELED: Ending = ("canceled", None, None)
_OWN = (f"{Path(__file__).parent}{os.sep}", "<frozen ", importlib.__file__)


class Reports:
    """The runs that this process has begun and not ended."""

    def __init__(self, channel: Channel, logs: Logs, upload_url: str) -> None:
        self._channel, self._logs, self._upload_url = channel, logs, upload_url
        self._began: dict[str, float] = {}
        self._bytes: dict[str, int] = {}

    def begin(self, run_id: str) -> None:
        """Take what is printed from here on, in this context, as the run's."""
        RUN.set(run_id)
        self._logs.running.add(run_id)
        self._began[run_id] = time.monotonic()
        self._bytes[run_id] = 0

    def files(self, run_id: str) -> Files:
        """Return the files of a run."""
        return Files(self._upload_url, run_id)

    def settled(self, model: Model, result: Any, files: Files) -> Any:
        """Return a result as JSON, its files stored; what JSON cannot say fails here, not where it is sent."""
        output = plain(model.settle(result), files)
        self._bytes[files.run_id] += len(encode(output))
        if self._bytes[files.run_id] > _MAX_OUTPUT:
            raise Failed(f"the output is larger than {_MAX_OUTPUT >> 20} MiB: such a one is for a file")
        return output

    def item(self, run_id: str, item: Any) -> None:
        """Tell an item of the output."""
        self._logs.flush(run_id)
        self._channel.send({"type": "output", "id": run_id, "item": item})

    def end(self, run_id: str, ending: Ending) -> None:
        """Tell the end of a run."""
        status, output, error = ending
        self._logs.flush(run_id)
        self._logs.running.discard(run_id)
        del self._bytes[run_id]
        RUN.set(None)
        seconds = time.monotonic() - self._began.pop(run_id)
        frame = {"type": "ended", "id": run_id, "status": status, "output": output, "error": error, "seconds": seconds}
        self._channel.send(frame)

    def failure(self, error: BaseException) -> Ending:
        """Return the end of a run that has raised; its traceback goes into the log.

        In a fork of this process nothing has ended but the fork: the error is raised again.
        """
        if not self._channel.is_ours:
            raise error
        if isinstance(error, Failed | UploadFailed):
            return "failed", None, str(error)
        with suppress(Exception):
            print(told_traceback(error), end="", file=sys.stderr)
        return "failed", None, f"{type(error).__name__}: {error}".removesuffix(": ")


def told_traceback(error: BaseException) -> str:
    """Return the traceback, from where the model's own code begins."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_OWN):
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace))
