"""Fails before it hands its handler over."""

import runpod


def handler(job):
    return "never"


print("looking for the weights")
raise RuntimeError("no weights here")
runpod.serverless.start({"handler": handler})
