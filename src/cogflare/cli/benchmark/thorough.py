"""The measurements that take minutes: behind long queues, beside many streams, over several nodes."""

from collections.abc import Callable, Iterator

from cogflare.cli.benchmark import backlog, nodes, readers, streams
from cogflare.cli.benchmark.measure import Measured, Say


def run(seconds: float, database_url: Callable[[], str | None], say: Say) -> Iterator[Measured]:
    """Measure all of them; several nodes only where `database_url` gives a database that nodes can share."""
    yield from streams.run(seconds, database_url, say, streams.STREAMS)
    yield from readers.run(seconds, database_url, say)
    if database_url() is not None:
        yield from nodes.run(seconds, database_url, say)
    yield from backlog.run(seconds, database_url, say, backlog.QUEUED)
