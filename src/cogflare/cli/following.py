"""Following a prediction to its end: what is new is shown as it comes, across restarts of server and worker."""

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from rich.console import Console
from rich.status import Status as Spinner
from rich.text import Text

from cogflare.cli.client import Client, Unreachable
from cogflare.cli.downloads import OUR_FILE, file_urls, save
from cogflare.cli.output import duration, for_terminal, seconds_between, visible
from cogflare.domain.phases import TERMINAL, Status
from cogflare.domain.schemas import component, has_file_outputs, output_kind

POLL_S: Final = 0.3
WHY_S: Final = 5.0
"""How long a prediction waits until it is told why."""
PATIENCE_S: Final = 120.0
"""How long a server that was reached before may stay away: a prediction outlives its server's restart."""
_MAX_HINT: Final = 60
_ENDED: Final = TERMINAL | {"cancelled"}  # two l where a bot of 2022 has made it


class Feed:
    """Shows the successive states of one prediction: logs and progress on standard error, output on standard output.

    Files are saved in `folder`; None leaves the output to the caller, who gets it with the final state. `logs_only`
    makes the logs the result: they go to standard output, and the output is not shown.
    """

    def __init__(self, openapi_schema: Any, folder: Path | None, *, logs_only: bool = False) -> None:
        # A folder that was never built with Cog's own tool says nothing about its output: what comes is looked at.
        self._is_declared = bool((component(openapi_schema, "Output") or {}).keys() - {"title"})
        self._kind = output_kind(openapi_schema) if self._is_declared else "iterator"
        self._has_files = has_file_outputs(openapi_schema)
        self._folder = folder
        self._logs_only = logs_only
        self._console = Console(stderr=True, highlight=False)
        self._spinner: Spinner | None = None
        self._began = time.monotonic()
        self._has_started = False
        self._logs = ""
        self._tail = ""
        self._items = 0
        self._is_mid_line = False

    def show(self, prediction: dict[str, Any]) -> None:
        """Show what this state has that no earlier one had."""
        logs, output = prediction.get("logs") or "", prediction.get("output")
        count = len(output) if isinstance(output, list) else 0
        is_ended = prediction["status"] in _ENDED
        if not is_ended and (not logs.startswith(self._logs) or count < self._items):
            self._restart()
        self._show_start(prediction)
        self._show_logs(logs, is_ended)
        if self._folder is not None:
            self._show_output(output, is_ended)
        if is_ended:
            self.close()
            self.note(_ending(prediction))
        else:
            self._show_progress()

    def note(self, text: str) -> None:
        """Say something between logs and output, on a line of its own."""
        self._end_line()
        self._console.print(Text(text, style="dim"), soft_wrap=True)

    def close(self) -> None:
        """Give the terminal back."""
        self._clear()
        self._end_line()

    def _clear(self) -> None:
        """Take the progress line away, which would stand in front of what is printed next."""
        if self._spinner is not None:
            self._spinner.stop()
            self._spinner = None

    def _restart(self) -> None:
        self.note("the worker was lost; the run begins anew on another one")
        self._logs, self._tail, self._items = "", "", 0

    def _show_start(self, prediction: dict[str, Any]) -> None:
        if not self._has_started and prediction["status"] == Status.PROCESSING:
            self._has_started = True
            self.note(f"started after {duration(seconds_between(prediction['created_at'], prediction['started_at']))}")
            self._began = time.monotonic()

    def _show_logs(self, logs: str, is_ended: bool) -> None:
        """Print the new lines; a line that is still being written waits for its end."""
        new = logs[len(self._logs) :] if logs.startswith(self._logs) else ""
        self._logs = logs
        *lines, self._tail = (self._tail + new).split("\n")
        if is_ended and self._tail:
            lines.append(self._tail)
        for line in lines:
            self._end_line()
            if self._logs_only:
                self._clear()
                click.echo(for_terminal(line))
            else:
                self._console.print(Text(_last_state(line)), soft_wrap=True)

    def _show_output(self, output: Any, is_ended: bool) -> None:
        if self._kind != "single" and isinstance(output, list):
            new, self._items = output[self._items :], max(self._items, len(output))
            for item in new:
                self._put(item)
        elif is_ended and output is not None:
            self._put(output)

    def _put(self, value: Any) -> None:
        self._clear()
        if self._kind == "text" and isinstance(value, str):
            click.echo(for_terminal(value), nl=False)
            self._is_mid_line = not value.endswith("\n") if value else self._is_mid_line
            return
        urls = [url for url in file_urls(value) if self._has_files or (not self._is_declared and OUR_FILE.search(url))]
        if [value] != urls and value != urls:
            click.echo(for_terminal(value if isinstance(value, str) else msgspec.json.encode(value).decode()))
        for url in urls:
            path = save(url, self._folder or Path())
            click.echo(f"{path}\t{url}")

    def _show_progress(self) -> None:
        if not self._console.is_terminal or (self._kind == "text" and self._items):
            return
        word = "running" if self._has_started else "queued"
        hint = _last_state(self._tail)[:_MAX_HINT]
        text = Text(f"{word} {duration(time.monotonic() - self._began)}  {hint}", style="dim")
        if self._spinner is None:
            self._spinner = self._console.status(text)
            self._spinner.start()
        self._spinner.update(text)

    def _end_line(self) -> None:
        """Finish the line of streamed text that something else would be written into."""
        if self._is_mid_line and sys.stdout.isatty():
            click.echo()
        self._is_mid_line = False


def follow(client: Client, prediction: dict[str, Any], feed: Feed) -> dict[str, Any]:
    """Show a prediction until it has ended; return its final state."""
    why_at = time.monotonic() + WHY_S
    try:
        feed.show(prediction)
        while prediction["status"] not in _ENDED:
            time.sleep(POLL_S)
            prediction = _read(client, prediction["id"], feed)
            feed.show(prediction)
            if time.monotonic() > why_at and prediction["status"] == Status.STARTING:
                why_at = float("inf")
                _tell_why(client, prediction["id"], feed)
    finally:
        feed.close()
    return prediction


def _tell_why(client: Client, prediction_id: str, feed: Feed) -> None:
    """Say why a prediction waits, where the server can tell."""
    with suppress(click.ClickException):
        found = client.get(f"/v1/predictions/{prediction_id}", explain=1).get("explanation")
        if found:
            feed.note(for_terminal(found["text"]))


def _read(client: Client, prediction_id: str, feed: Feed) -> dict[str, Any]:
    """Read the state, outwaiting a server that is away for a while."""
    deadline = time.monotonic() + PATIENCE_S
    is_told = False
    while True:
        try:
            state: dict[str, Any] = client.get(f"/v1/predictions/{prediction_id}")
        except Unreachable:
            if time.monotonic() > deadline:
                raise
            if not is_told:
                feed.note("the server is away; the prediction is safe, waiting for the server to come back")
            is_told = True
            time.sleep(1)
        else:
            return state


def _ending(prediction: dict[str, Any]) -> str:
    """Say how a prediction ended, and why if it failed."""
    status, metrics = prediction["status"], prediction.get("metrics") or {}
    ran, total = metrics.get("predict_time"), metrics.get("total_time")
    text = str(status)
    if ran is not None:
        text += f" after {duration(ran)}"
        if total is not None:
            text += f" of running, {duration(total)} in all"
    if prediction.get("error"):
        text += f": {prediction['error']}"
    return text


def _last_state(line: str) -> str:
    """Return what a terminal would show of a line: a progress bar writes over itself."""
    return visible(click.unstyle(line.rstrip("\r").rpartition("\r")[2]).expandtabs(4))
