"""Sleeps, and writes down in a file when each run begins and ends, so that runs can be counted from outside."""

import os
import time

from cog import BaseRunner, Input


class Runner(BaseRunner):
    def run(
        self,
        diary: str = Input(description="The file to write to"),
        seconds: float = Input(description="How long to sleep", ge=0, le=600),
    ) -> str:
        write(diary, "begin")
        for step in range(10):
            print(f"step {step}")
            time.sleep(seconds / 10)
        write(diary, "end")
        return "rested"


def write(diary: str, event: str) -> None:
    with open(diary, "a") as file:
        file.write(f"{event} {os.getpid()}\n")
