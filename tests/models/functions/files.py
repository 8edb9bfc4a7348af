"""One file in; files out on their own, in a list and inside an object, beside text that only looks like one."""

from pathlib import Path
from tempfile import mkdtemp
from typing import TypedDict


class Shouted(TypedDict):
    single: Path
    many: list[Path]
    text: str


def run(source: Path, copies: int = 2) -> Shouted:
    shouted = source.read_bytes().upper()
    return Shouted(
        single=write("shout.txt", shouted),
        many=[write(f"copy{number}.bin", shouted + bytes([number])) for number in range(copies)],
        text="data:text/plain,not a file",
    )


def write(name: str, content: bytes) -> Path:
    path = Path(mkdtemp()) / name
    path.write_bytes(content)
    return path
