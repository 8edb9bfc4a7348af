"""Files for inputs: small ones inside the input, large ones that the server moves to its storage, and uploads."""

import asyncio
import base64
import hashlib
import random
from typing import Any, Protocol

import httpx2
import msgspec

INLINE_BYTES = 8_000
"""What the nodes of a run leave in an input; more is moved."""

_PAUSE_S = 0.3
_TRIES = 100
_SIZES = {"inline": (0, 10, 1_000), "moved": (7_000, 60_000), "uploaded": (0, 100, 60_000)}


class Source(msgspec.Struct, frozen=True):
    """A file as an input names it, and the digest of its bytes."""

    url: str
    sha256: str


class Sender(Protocol):
    """What sends requests to any node."""

    async def send(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """Send one; raises `httpx2.TransportError`."""
        ...


async def make(sender: Sender, tag: str, dice: random.Random) -> Source | None:
    """Return a file for the input of a prediction; None if no server took an upload."""
    how = dice.choice([*_SIZES])
    content = (f"{tag} input ".encode() * 6_000)[: dice.choice(_SIZES[how])]
    sha256 = hashlib.sha256(content).hexdigest()
    if how != "uploaded":
        return Source(f"data:application/octet-stream;base64,{base64.b64encode(content).decode()}", sha256)
    for _ in range(_TRIES):
        try:
            answer = await sender.send("POST", "/v1/files", files={"content": ("input.bin", content)})
        except httpx2.TransportError:
            await asyncio.sleep(_PAUSE_S)
            continue
        if answer.is_success:
            return Source(answer.json()["urls"]["get"], sha256)
        await asyncio.sleep(_PAUSE_S)
    return None
