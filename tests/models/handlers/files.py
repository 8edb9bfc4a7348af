"""One file in, which it opens itself; files out on their own and in a list, beside text that only looks like one."""

from pathlib import Path
from tempfile import mkdtemp
from urllib.request import urlopen

import runpod


def handler(job):
    with urlopen(job["input"]["source"]) as source:
        shouted = source.read().upper()
    return {
        "single": write("shout.txt", shouted),
        "many": [
            write(f"copy{number}.bin", shouted + bytes([number])) for number in range(job["input"].get("copies", 2))
        ],
        "text": "data:text/plain,not a file",
    }


def write(name, content):
    path = Path(mkdtemp()) / name
    path.write_bytes(content)
    return path


runpod.serverless.start({"handler": handler})
