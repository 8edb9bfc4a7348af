"""What several server nodes do together on one PostgreSQL; all of them share this machine with it."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from cogflare.cli.benchmark.measure import QUEUE_PATH, Measured, Say, press_stage, row
from cogflare.cli.benchmark.noop import QUEUE
from cogflare.cli.benchmark.stage import Stage

NODES = 2
_CLIENTS = 32  # of each node


def run(seconds: float, database_url: Callable[[], str | None], say: Say) -> Iterator[Measured]:
    """Measure creates and full predictions over all nodes, each with clients and a worker of its own."""
    say(f"durable creates, {NODES} nodes")
    with tempfile.TemporaryDirectory() as folder, Stage(Path(folder), database_url(), NODES) as stage:
        stage.stop(stage.worker(1, model=QUEUE))
        figures = press_stage(stage, _CLIENTS, seconds, None, path=QUEUE_PATH)
    yield row(f"create, {NODES} nodes, {NODES * _CLIENTS} clients, nobody works", figures)
    say(f"full no-op predictions, {NODES} nodes")
    with tempfile.TemporaryDirectory() as folder, Stage(Path(folder), database_url(), NODES) as stage:
        for node in range(NODES):
            stage.worker(_CLIENTS, node=node)
        figures = press_stage(stage, _CLIENTS, seconds, "wait")
    yield row(f"full no-op prediction, {NODES} nodes, {NODES * _CLIENTS} slots and clients", figures)
