"""Streams numbered words."""

import time

import runpod


def handler(job):
    for number in range(job["input"].get("count", 5)):
        if number == 0:
            print("first word")
        yield f"w{number} "
        time.sleep(job["input"].get("delay_s", 0.0))


runpod.serverless.start({"handler": handler, "return_aggregate_stream": True})
