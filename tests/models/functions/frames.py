"""Yields files one by one, each with a log line, as a progressive renderer does."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp


def run(count: int = 3) -> Iterator[Path]:
    folder = Path(mkdtemp())
    for number in range(count):
        print(f"frame {number}")
        path = folder / f"frame{number}.png"
        path.write_bytes(b"\x89PNG" + bytes([number]))
        yield path
