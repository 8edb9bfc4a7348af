"""Yields files one by one, each with a log line and a metric, as a progressive renderer does."""

from collections.abc import Iterator
from tempfile import mkdtemp

from cog import BaseRunner, Input, Path, current_scope


class Runner(BaseRunner):
    def run(self, count: int = Input(description="How many files", default=3, ge=0, le=100)) -> Iterator[Path]:
        folder = Path(mkdtemp())
        for number in range(count):
            print(f"frame {number}")
            current_scope().record_metric("frames", number + 1)
            path = folder / f"frame{number}.png"
            path.write_bytes(b"\x89PNG" + bytes([number]))
            yield path
