"""Sleeps in small steps, logs each one, and on request swallows the cancellation."""

import time

print("sleeper is awake")


def run(seconds: float, stubborn: bool = False) -> str:
    print("asleep")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            time.sleep(0.01)
        except BaseException:
            if not stubborn:
                raise
            print("not getting up")
    return "rested"
