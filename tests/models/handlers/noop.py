"""Answers its input at once."""

import runpod


def handler(job):
    return job["input"].get("text", "hello")


runpod.serverless.start({"handler": handler})
