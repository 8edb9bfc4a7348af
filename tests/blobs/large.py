"""A process that stores a large blob and reads it again; prints how far its memory grew meanwhile, as JSON.

Arguments: folder, setting `storage`, bytes; the S3 options come as JSON from standard input.
"""

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from cogflare.app import SystemClock
from cogflare.blobs.base import BlobStore, Label
from cogflare.blobs.bucket import S3Options
from cogflare.blobs.open import open_blobs
from cogflare.domain.ids import new_key

_CHUNK = os.urandom(256 << 10)
_LABEL = Label("application/octet-stream")


async def _body(size: int) -> AsyncIterator[bytes]:
    for number in range(size // len(_CHUNK)):
        yield number.to_bytes(8, "big") + _CHUNK[8:]


async def _move(blobs: BlobStore, size: int) -> None:
    key = new_key()
    stored = await blobs.put(key, _body(size), size, _LABEL)
    assert stored.size == size
    digest, reader = hashlib.sha256(), await blobs.open(key)
    async for piece in reader:
        digest.update(piece)
    await reader.aclose()
    assert digest.hexdigest() == stored.sha256
    await blobs.delete(key)


async def _grow(blobs: BlobStore, size: int) -> None:
    key = new_key()
    assert await blobs.append(key, 0, _body(size), size) == size
    assert (await blobs.seal(key, _LABEL)).size == size
    await blobs.delete(key)


def _memory(name: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


async def main(folder: str, storage: str, size: str) -> None:
    blobs = open_blobs(Path(folder), storage, msgspec.json.decode(sys.stdin.read(), type=S3Options), SystemClock())
    await _move(blobs, 1 << 20)
    before = _memory("VmRSS")
    await _move(blobs, int(size))
    await _grow(blobs, int(size) // 8)
    await blobs.aclose()
    print(json.dumps({"before": before, "grown": _memory("VmHWM") - before}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
