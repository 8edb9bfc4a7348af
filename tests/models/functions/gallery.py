"""Returns a plain list of files of very different sizes, so that their uploads would end in another order."""

from pathlib import Path
from tempfile import mkdtemp


def run(count: int = 6) -> list[Path]:
    return [write(number) for number in range(count)]


def write(number: int) -> Path:
    path = Path(mkdtemp()) / f"picture{number}.png"
    path.write_bytes(bytes([number]) * (1 if number % 2 else 300_000))
    return path
