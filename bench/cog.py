"""What Cogflare adds to a Cog prediction: the same server asked directly, and through gateway and agent."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import uvloop

from cogflare.agent.runners.cogyaml import read_config
from cogflare.agent.runners.environment import ensure, scrubbed
from cogflare.agent.runners.process import free_port
from cogflare.cli.benchmark.load import press, request
from cogflare.cli.benchmark.measure import Measured, Say
from cogflare.cli.benchmark.stage import Stage

_MODEL = Path(__file__).parents[1] / "tests" / "models" / "noop"
_CACHE = Path.home() / ".cache" / "cogflare"
_COG = "0.23.1"
_BODY = b'{"input":{"text":"hello"}}'
# Right after an answer Cog's slot may count as taken for a moment; a pause keeps that out of the comparison.
_PAUSE_S = 0.02


def run(seconds: float, say: Say) -> Iterator[Measured]:
    """Measure a no-op model on a real Cog server, directly and through Cogflare, one client, both idle."""
    say("a Cog server, directly and through Cogflare")
    with _cog(say) as url:
        yield _press(url, "", "/predictions", None, seconds, "Cog no-op model, asked directly")
        with tempfile.TemporaryDirectory() as folder, Stage(Path(folder)) as stage, _worker(stage, url, Path(folder)):
            path = "/v1/models/bench/cog/predictions"
            yield _press(stage.url, stage.token, path, "wait", seconds, "Cog no-op model, through Cogflare")


def _press(url: str, token: str, path: str, prefer: str | None, seconds: float, name: str) -> Measured:
    payload = request(url, token, path, _BODY, prefer)

    async def both() -> Measured:
        await press(url, payload, 1, 1.0, _PAUSE_S)
        figures = await press(url, payload, 1, seconds, _PAUSE_S)
        return Measured(name, figures.per_s, figures.p50_ms, figures.p99_ms, figures.errors)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(both())


@contextmanager
def _cog(say: Say) -> Iterator[str]:
    """Start a stock Cog server with the no-op model; yields its URL."""
    wishes = read_config(_MODEL, None).wishes(_COG)
    bin_dir = asyncio.run(ensure(_CACHE, _MODEL, wishes, lambda text: say(text.rstrip())))
    port = free_port()
    environ = {
        **scrubbed(),
        "PATH": f"{bin_dir}{os.pathsep}{os.environ['PATH']}",
        "PORT": str(port),
        "COG_PREDICT_TYPE_STUB": "predict.py:Runner",
    }
    server = subprocess.Popen(
        [bin_dir / "python", "-m", "cog.server.http", "--host", "127.0.0.1"],
        cwd=_MODEL,
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _until(lambda: httpx2.get(f"{url}/health-check").json()["status"] == "READY")
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(10)


@contextmanager
def _worker(stage: Stage, cog_url: str, folder: Path) -> Iterator[None]:
    """Run the real worker in front of the Cog server."""
    token = stage.call("POST", "/v1/tokens", json={"kind": "worker", "name": "cog"}).json()["token"]
    with (folder / "cog-worker.log").open("wb") as log:
        worker = subprocess.Popen(
            [
                *(sys.executable, "-m", "cogflare.cli", "worker"),
                *("--server", stage.url, "--model", "bench/cog"),
                *("--url", cog_url, "--state", str(folder / "cog-worker")),
            ],
            env={**os.environ, "COGFLARE_WORKER_TOKEN": token},
            stdout=log,
            stderr=log,
        )
    try:
        _until(lambda: any(w["state"] == "online" for w in stage.call("GET", "/v1/workers").json()["results"]))
        yield
    finally:
        worker.send_signal(signal.SIGINT)
        worker.wait(15)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            if condition():
                return
        except httpx2.HTTPError:
            pass
        if time.monotonic() > deadline:
            raise TimeoutError("the Cog server or its worker did not come up")
        time.sleep(0.1)
