"""Sleeps in small steps, logs each one, and on request swallows the cancellation."""

import time

import runpod

print("sleeper is awake")


def handler(job):
    print("asleep")
    deadline = time.monotonic() + job["input"]["seconds"]
    while time.monotonic() < deadline:
        try:
            time.sleep(0.01)
        except BaseException:
            if not job["input"].get("stubborn"):
                raise
            print("not getting up")
    return "rested"


if __name__ == "__main__":
    runpod.serverless.start({"handler": handler})
