"""`cogflare demo`: the main job on this machine: a server, two workers, and Replicate's own client in front."""

import json
import re
import secrets
import signal
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import click

from cogflare.cli.children import Child
from cogflare.cli.client import Client
from cogflare.cli.downloads import save
from cogflare.cli.output import duration, visible

EXAMPLES: Final = Path(__file__).parents[3] / "examples"
OWNER: Final = "examples"
PICTURE: Final = "cppn"
TEXT: Final = "markov"
_PACKAGE: Final = re.compile(r"\d  +\+ ")
"""A line about one of many packages that are installed for a model."""
_SERVER_S: Final = 20.0
_SETUP_S: Final = 300.0
_PREDICTION_S: Final = 60.0
_DRAIN_S: Final = 15.0
_POLL_S: Final = 0.1
_PICTURE_INPUT: Final = {"prompt": "a lighthouse in the morning fog", "palette": "aurora", "seed": 7}
_TEXT_INPUT: Final = {"prompt": "Once the lamp", "max_tokens": 60, "seed": 7}


class DemoError(click.ClickException):
    """The demo did not show what it promises."""


@click.command()
@click.option(
    "--keep",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the server's data and all logs here (default: a folder that is removed in the end).",
)
@click.option(
    "--output",
    "-o",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo-output"),
    show_default=True,
    help="Where the picture is saved.",
)
def demo(keep: Path | None, output: Path) -> None:
    """Show the main job: start a server and two workers, and run their models with Replicate's Python client.

    The first run downloads Cog and what the models need, once, into ~/.cache/cogflare. Nothing is left running.
    """
    if not (EXAMPLES / PICTURE / "cog.yaml").is_file():
        raise click.UsageError("the demo needs the example models: run it in a checkout of Cogflare (`make demo`)")
    replicate = _replicate()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        folder = (keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cogflare-demo-")))).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        stage = stack.enter_context(_Stage(folder))
        token = stage.start()
        say(f"Replicate's client: replicate.Client(base_url={stage.url!r}, api_token=…)")
        client = replicate.Client(api_token=token, base_url=stage.url, trust_env=False)
        _paint(client, stage, output)
        _write(client, stage)
        stage.end()
    say("done; nothing is left running" + (f", data and logs are in {folder}" if keep else ""))


def say(text: str) -> None:
    """Print one step."""
    click.echo(click.style("==> ", fg="cyan") + text)


def aside(name: str, text: str) -> None:
    """Print a line that somebody else wrote."""
    click.echo(click.style(f"    {name:<7} {visible(text)}", dim=True))


class _Stage:
    """The server and its workers: up after `start`, drained and stopped by `end`, gone in any case on leaving."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._began = time.monotonic()
        self._server: Child | None = None
        self.workers: dict[str, Child] = {}
        self.url = ""

    def __enter__(self) -> "_Stage":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        """Leave nothing behind (who is in a hurry presses Ctrl-C again); name a process that ended too early."""
        culprit = None
        if error is not None:
            culprit = next((child for child in self._children() if child.has_ended()), None)
            say("ending early: stopping what was started")
        try:
            for child in self.workers.values():
                child.ask(signal.SIGINT)
            self._wait(self.workers.values())
            if self._server is not None:
                self._server.ask(signal.SIGTERM)
                self._wait([self._server])
        finally:
            for child in self._children():
                child.kill()
        if culprit is not None and not isinstance(error, KeyboardInterrupt):
            culprit.check()

    def start(self) -> str:
        """Start everything; return an API token."""
        admin = "cfa_" + secrets.token_urlsafe(24)
        self._serve(admin)
        with Client(self.url, admin) as api:
            tokens = {kind: api.post("/v1/tokens", {"kind": kind, "name": "demo"}) for kind in ("api", "worker")}
            for name in (PICTURE, TEXT):
                self._work(name, tokens["worker"]["token"])
            say("two workers dial in (the first time, Cog is downloaded for them)")
            self._await_workers(api)
        return str(tokens["api"]["token"])

    def end(self) -> None:
        """Drain the workers and stop the server; raise `ChildError` for one that did not end well."""
        say("draining the workers, stopping the server")
        for child in self.workers.values():
            child.ask(signal.SIGINT)
        _demand(*self.workers.values())
        if self._server is not None:
            self._server.ask(signal.SIGTERM)
            _demand(self._server)

    def _children(self) -> list[Child]:
        return [*self.workers.values(), *([self._server] if self._server else [])]

    def _wait(self, children: Iterable[Child]) -> None:
        deadline = time.monotonic() + _DRAIN_S
        for child in children:
            child.wait(max(0.0, deadline - time.monotonic()))

    def _serve(self, admin: str) -> None:
        ready = self._folder / "ready.json"
        ready.unlink(missing_ok=True)
        arguments = ["serve", "--port", "0", "--data", str(self._folder / "data"), "--ready-file", str(ready)]
        self._server = Child("server", arguments, self._folder, {"COGFLARE_ADMIN_TOKEN": admin})
        self._server.wait_for(ready.exists, _SERVER_S, "was not ready")
        self.url = str(json.loads(ready.read_text())["url"])
        say(f"the server listens on {self.url}, ready after {duration(time.monotonic() - self._began)}")

    def _work(self, name: str, token: str) -> None:
        arguments = ["worker", str(EXAMPLES / name), "--server", self.url, "--model", f"{OWNER}/{name}"]
        arguments += ["--name", f"demo {name}", "--state", str(self._folder / f"worker-{name}")]
        self.workers[name] = Child(f"worker of {name}", arguments, self._folder, {"COGFLARE_WORKER_TOKEN": token})

    def _await_workers(self, api: Client) -> None:
        """Wait until the server sees both workers, showing what they say meanwhile."""
        began = time.monotonic()
        waiting = set(self.workers)
        while waiting:
            here = {
                model["model"]
                for w in api.get("/v1/workers")["results"]
                if w["state"] == "online"
                for model in w["models"]
            }
            for name, child in self.workers.items():
                for line in child.new_lines():
                    if not _PACKAGE.search(line):
                        aside(name, line)
                child.check()
            waiting = {name for name in waiting if f"{OWNER}/{name}" not in here}
            if waiting and time.monotonic() - began > _SETUP_S:
                raise self.workers[min(waiting)].error(f"was not ready after {_SETUP_S:.0f} s")
            time.sleep(_POLL_S)
        say(f"both are ready after {duration(time.monotonic() - began)}")


def _demand(*children: Child) -> None:
    """Wait for processes that were asked to end; raise `ChildError` for one that hangs or failed."""
    for child in children:
        status = child.wait(_DRAIN_S)
        if status != 0:
            raise child.error("did not stop" if status is None else f"ended with status {status}")


def _paint(client: Any, stage: _Stage, output: Path) -> None:
    """Run the picture model; its logs and frames appear while it paints."""
    say(f"a picture: predictions.create(model='{OWNER}/{PICTURE}', input={_PICTURE_INPUT})")
    prediction = client.predictions.create(model=f"{OWNER}/{PICTURE}", input=_PICTURE_INPUT)
    logged, frames = "", 0
    with _watched(stage, PICTURE, prediction):
        for _ in _states(prediction):
            lines = (prediction.logs or "")[len(logged) :]
            if prediction.status not in ("starting", "processing") or lines.endswith("\n"):
                logged += lines
                for line in lines.splitlines():
                    aside("log", line)
            for url in (prediction.output or [])[frames:]:
                frames += 1
                aside("output", url)
    url = prediction.output[-1]
    say(f"the last frame is {save(url, output)}, served at {url}")
    say(f"it took {duration(prediction.metrics['predict_time'])} on the worker")


def _write(client: Any, stage: _Stage) -> None:
    """Run the text model, printing each token as it comes."""
    say(f"a text: predictions.create(model='{OWNER}/{TEXT}', input={_TEXT_INPUT}).stream()")
    prediction = client.predictions.create(model=f"{OWNER}/{TEXT}", input=_TEXT_INPUT)
    with _watched(stage, TEXT, prediction):
        click.echo(f"    {_TEXT_INPUT['prompt']}", nl=False)
        tokens = 0
        try:
            for event in prediction.stream():
                if event.event.value == "output":
                    tokens += 1
                    click.echo(visible(event.data), nl=False)
        finally:
            click.echo()
        prediction.reload()
        if not tokens:
            raise DemoError("its stream brought no tokens")
    say(f"{tokens} tokens in {duration(prediction.metrics['predict_time'])}")


def _states(prediction: Any) -> Iterator[None]:
    """Reload a prediction again and again, until it has ended or its time is up."""
    deadline = time.monotonic() + _PREDICTION_S
    yield
    while prediction.status in ("starting", "processing"):
        if time.monotonic() > deadline:
            raise DemoError(f"the prediction is still {prediction.status} after {_PREDICTION_S:.0f} s")
        time.sleep(_POLL_S)
        prediction.reload()
        yield


@contextmanager
def _watched(stage: _Stage, name: str, prediction: Any) -> Iterator[None]:
    """Turn whatever goes wrong with a prediction into an error that shows what its worker said last."""
    try:
        yield
        if prediction.status != "succeeded" or not prediction.output:
            raise DemoError(f"it {prediction.status}: {prediction.error or 'no output'}")
    except Exception as error:
        raise stage.workers[name].error(f"or the server let prediction {prediction.id} down ({error})") from error


def _replicate() -> Any:
    """Return Replicate's client, which only the demo needs: it is no dependency, and loading it takes a while."""
    try:
        return import_module("replicate")
    except ImportError as error:
        raise click.ClickException("the demo runs Replicate's own client: pip install replicate") from error
