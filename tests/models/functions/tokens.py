"""Streams numbered words."""

import time
from collections.abc import Iterator


def run(count: int = 5, delay_s: float = 0.0) -> Iterator[str]:
    for number in range(count):
        if number == 0:
            print("first word")
        yield f"w{number} "
        time.sleep(delay_s)
