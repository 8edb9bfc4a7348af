"""Yields files one by one, each with a log line."""

from tempfile import mkdtemp
from typing import Iterator  # noqa: UP035 - the first versions of Cog know no other

from cog import BasePredictor, Input, Path


class Predictor(BasePredictor):
    def predict(self, count: int = Input(description="How many files", default=3, ge=0, le=100)) -> Iterator[Path]:
        for number in range(count):
            print(f"frame {number}")
            path = Path(mkdtemp()) / "frame.png"
            path.write_bytes(b"\x89PNG" + bytes([number]))
            yield path
