"""Logs a line, then raises the message it was given."""

import runpod


def handler(job):
    print("this will not end well")
    raise ValueError(job["input"]["message"])


runpod.serverless.start({"handler": handler})
