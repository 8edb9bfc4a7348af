"""A worker that is killed in the middle of sending a large file over a slow link: the next one goes on, once."""

import asyncio
import hashlib
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from anyio.from_thread import start_blocking_portal

from cogflare.cli.verification.proxy import Direction, Proxy
from support.processes import Server, Stage, until
from support.runners import MODELS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="models are taken over on Linux alone")

SEED = random.Random(3).randbytes(1 << 20)
MEGABYTE = 1 << 20


class SlowLink(Proxy):
    """A link that counts what workers send over it."""

    def __init__(self) -> None:
        super().__init__("link")
        self.sent = 0

    async def _read(self, direction: Direction, reader: asyncio.StreamReader) -> bytes:
        data = await super()._read(direction, reader)
        self.sent += len(data) if direction == "up" else 0
        return data


@contextmanager
def slow_link(server: Server, bytes_per_s: float) -> Iterator[SlowLink]:
    link = SlowLink()
    link.target = httpx2.URL(server.url).port
    link.slow(bytes_per_s, 0)
    with start_blocking_portal() as portal:
        portal.call(link.start)
        try:
            yield link
        finally:
            portal.call(link.close)


def arrived(stage: Stage) -> int:
    """Return how many bytes of files that are on their way have arrived."""
    return sum(part.stat().st_size for part in stage.folder.rglob("files/parts/*.upload"))


def check(stage: Stage, server: Server, cache: Path, model: str, values: dict[str, object], size: int) -> str:
    """Kill the worker in the middle of sending an output of that size; return its URL."""
    with slow_link(server, size / 8) as link:
        folder = MODELS / model
        worker = stage.cog(server, f"me/{model}", folder, cache, name="home", url=link.url).connected()
        body = {"input": values}
        prediction = server.ask("POST", f"/v1/models/me/{model}/predictions", json=body)["id"]
        until(lambda: arrived(stage) > size // 3, "third of the file", 60)
        worker.kill9()
        sent = link.sent
        stage.cog(server, f"me/{model}", folder, cache, name="home", url=link.url)
        ended = server.ended(prediction, 60)
        assert ended["status"] == "succeeded", ended["error"]
        [attempt] = server.attempts(prediction)
        assert attempt["outcome"] == "succeeded"
        assert sent > size // 3
        assert link.sent - sent < size - size // 3 + 4 * MEGABYTE, "it started over"
    output = ended["output"]
    return str(output if isinstance(output, str) else output["one"])


def digest_of(url: str) -> str:
    digest = hashlib.sha256()
    with httpx2.stream("GET", url, trust_env=False) as answer:
        for chunk in answer.iter_bytes():
            digest.update(chunk)
    return digest.hexdigest()


def test_a_worker_killed_in_the_middle_of_200_megabytes_goes_on(stage: Stage, cog_cache: Path) -> None:
    server = stage.server()
    source = server.ask("POST", "/v1/files", files={"content": ("seed", SEED, "image/png")})["urls"]["get"]
    url = check(stage, server, cog_cache, "echo", {"source": source, "megabytes": 200}, 200 * MEGABYTE)
    assert digest_of(url) == hashlib.sha256(SEED * 200).hexdigest()


def test_a_file_that_came_inside_a_result_goes_on_too(stage: Stage, cog_cache: Path) -> None:
    """Files in objects and lists come with the last word of the run, which the model says once."""
    server = stage.server()
    content = SEED * 24
    source = server.ask("POST", "/v1/files", files={"content": ("seed", content, "image/png")})["urls"]["get"]
    url = check(stage, server, cog_cache, "shapes", {"one": source, "some": []}, len(content))
    assert digest_of(url) == hashlib.sha256(content).hexdigest()
