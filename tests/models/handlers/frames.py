"""Yields files one by one, each with a log line, as a progressive renderer does."""

from pathlib import Path
from tempfile import mkdtemp

import runpod


def handler(job):
    folder = Path(mkdtemp())
    for number in range(job["input"].get("count", 3)):
        print(f"frame {number}")
        path = folder / f"frame{number}.png"
        path.write_bytes(b"\x89PNG" + bytes([number]))
        yield path


runpod.serverless.start({"handler": handler})
