"""Handlers of a RunPod worker, started as `handler.py KIND` with the options of the `runpod` package.

`plain` answers once, `generator` yields parts and keeps nothing, `aggregate` yields parts and keeps them for the end,
`cog` hands its input to the Cog server at COG_URL and answers with Cog's own prediction.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import runpod


async def plain(job: dict[str, Any]) -> Any:
    """Answer with `output`, after `seconds`; `fail` is raised, `error` is returned, `progress` is told on the way."""
    wanted = job["input"]
    for text in wanted.get("progress", []):
        runpod.serverless.progress_update(job, text)
        await asyncio.sleep(0.2)  # each is sent by a thread of its own
    await asyncio.sleep(wanted.get("seconds", 0))
    if "fail" in wanted:
        raise ValueError(wanted["fail"])
    if "error" in wanted:
        return {"error": wanted["error"]}
    return wanted.get("output", {"echo": wanted})


async def generator(job: dict[str, Any]) -> AsyncIterator[Any]:
    """Yield each of `parts`, `seconds` after the one before; `fail` is raised at the end."""
    for part in job["input"].get("parts", []):
        yield part
        await asyncio.sleep(job["input"].get("seconds", 0))
    if "fail" in job["input"]:
        raise ValueError(job["input"]["fail"])


async def cog(job: dict[str, Any]) -> Any:
    """Run a prediction on Cog's server."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{os.environ['COG_URL']}/predictions", json=job["input"]) as response,
    ):
        return await response.json()


SLOTS = 8  # a worker with one asks for the next job a second after the last
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"handler": plain, "concurrency_modifier": lambda now: SLOTS},
    "generator": {"handler": generator},
    "aggregate": {"handler": generator, "return_aggregate_stream": True},
    "cog": {"handler": cog},
}

if __name__ == "__main__":
    runpod.serverless.start(KINDS[sys.argv.pop(1)])
