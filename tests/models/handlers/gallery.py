"""Returns a plain list of files of very different sizes, so that their uploads would end in another order."""

from pathlib import Path
from tempfile import mkdtemp

import runpod


def handler(job):
    return [write(number) for number in range(job["input"].get("count", 6))]


def write(number):
    path = Path(mkdtemp()) / f"picture{number}.png"
    path.write_bytes(bytes([number]) * (1 if number % 2 else 300_000))
    return path


runpod.serverless.start({"handler": handler})
