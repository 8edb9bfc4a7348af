"""Two runs at once or none: each waits until another one has begun."""

import asyncio

import runpod

waiting = []


async def handler(job):
    if waiting:
        waiting.pop().set_result(None)
    else:
        waiting.append(asyncio.get_running_loop().create_future())
        await waiting[0]
    return job["input"]["name"]


runpod.serverless.start({"handler": handler, "concurrency_modifier": lambda current: 2})
