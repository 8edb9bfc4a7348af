"""Streams numbered words, marked for Cog's event stream."""

import time

from cog import BaseRunner, ConcatenateIterator, Input, streaming


class Runner(BaseRunner):
    @streaming
    def run(
        self,
        count: int = Input(description="How many words", default=5, ge=0, le=100_000),
        delay_s: float = Input(description="Pause between words", default=0.0, ge=0, le=10),
    ) -> ConcatenateIterator[str]:
        for number in range(count):
            if number == 0:
                print("first word")
            yield f"w{number} "
            time.sleep(delay_s)
