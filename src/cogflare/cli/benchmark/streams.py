"""What a durable create costs while many predictions stream: their words share the writer with everybody else."""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cogflare.cli.benchmark.measure import Measured, Say, press_stage, row
from cogflare.cli.benchmark.noop import ITEM_S, OWNER, STREAM
from cogflare.cli.benchmark.stage import Stage, StageError

STREAMS = 200
_CLIENTS = 8
_PAUSE_S = 0.05
_PATH = f"/v1/models/{OWNER}/{STREAM}/predictions"
_START_S = 30.0


def run(seconds: float, database_url: Callable[[], str | None], say: Say, streams: int) -> Iterator[Measured]:
    """Measure creates that nobody waits for, while so many predictions run and yield ten items a second each."""
    say(f"creates while {streams} predictions stream")
    with tempfile.TemporaryDirectory() as folder, Stage(Path(folder), database_url()) as stage:
        # Every slot is taken by a stream, so that what is measured stays in the queue.
        stage.worker(streams, model=STREAM)
        script = {"input": {"items": int((seconds + 2 * _START_S) / ITEM_S)}}
        created = [stage.call("POST", _PATH, json=script).json()["id"] for _ in range(streams)]
        for prediction in created:
            _wait_until_it_runs(stage, prediction)
        before, begun = len(_shown(stage, created[-1])["output"] or ()), time.monotonic()
        figures = press_stage(stage, _CLIENTS, seconds, None, _PAUSE_S, _PATH)
        pace = (len(_shown(stage, created[-1])["output"] or ()) - before) / (time.monotonic() - begun)
    if pace < 0.5 / ITEM_S:
        raise StageError(f"the streams fell behind: {pace:.1f} items a second each")
    yield row(f"create while {streams} predictions stream {pace:.1f} items/s each", figures)


def _wait_until_it_runs(stage: Stage, prediction: str) -> None:
    deadline = time.monotonic() + _START_S
    while _shown(stage, prediction)["status"] != "processing":
        if time.monotonic() > deadline:
            raise StageError(f"prediction {prediction} did not start")
        time.sleep(0.05)


def _shown(stage: Stage, prediction: str) -> dict[str, Any]:
    shown: dict[str, Any] = stage.call("GET", f"/v1/predictions/{prediction}").json()
    return shown
