"""A handler that yields, as RunPod's documentation writes them."""

import asyncio

import runpod


async def handler(job):
    for word in job["input"]["prompt"].split():
        await asyncio.sleep(0.01)
        yield {"token": word}


runpod.serverless.start({"handler": handler, "return_aggregate_stream": True})
