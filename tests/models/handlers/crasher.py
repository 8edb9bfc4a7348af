"""Takes its whole process down in mid-run, as an out-of-memory kill would."""

import os

import runpod


def handler(job):
    if job["input"].get("crash", True):
        print("about to die", flush=True)
        os._exit(13)
    return "alive"


runpod.serverless.start({"handler": handler})
