"""Sleeps in small steps, on request swallows the cancellation, and on request keeps a diary of its runs."""

import os
import time

from cog import BasePredictor, Input

try:
    from cog.server.exceptions import CancelationException
except ImportError:  # the first servers cannot cancel

    class CancelationException(Exception):
        """Never raised."""


class Predictor(BasePredictor):
    def setup(self) -> None:
        print("sleeper is awake")

    def predict(
        self,
        seconds: float = Input(description="How long to sleep", ge=0, le=600),
        stubborn: bool = Input(description="Swallow the cancellation", default=False),
        diary: str = Input(description="The file to write to", default=""),
        snores: bool = Input(description="Log all the time", default=False),
    ) -> str:
        write(diary, "begin")
        print("asleep")
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                time.sleep(0.01)
                if snores:
                    print("z")
            except CancelationException:
                if not stubborn:
                    raise
                print("not getting up")
        write(diary, "end")
        return "rested"


def write(diary: str, event: str) -> None:
    if diary:
        with open(diary, "a") as file:
            file.write(f"{event} {os.getpid()}\n")
