"""Sleeps in small steps, logs each one, and on request swallows the cancellation."""

import time

from cog import BaseRunner, CancelationException, Input


class Runner(BaseRunner):
    def setup(self) -> None:
        print("sleeper is awake")

    def run(
        self,
        seconds: float = Input(description="How long to sleep", ge=0, le=600),
        stubborn: bool = Input(description="Swallow the cancellation", default=False),
    ) -> str:
        print("asleep")
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                time.sleep(0.01)
            except CancelationException:
                if not stubborn:
                    raise
                print("not getting up")
        return "rested"
