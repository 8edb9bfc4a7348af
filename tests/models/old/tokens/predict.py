"""Yields numbered words."""

import time

from cog import BasePredictor, Input

try:
    from cog import ConcatenateIterator
except ImportError:  # the first versions of Cog have none
    from collections.abc import Iterator as ConcatenateIterator


class Predictor(BasePredictor):
    def predict(
        self,
        count: int = Input(description="How many words", default=5, ge=0, le=100_000),
        delay_s: float = Input(description="Pause between words", default=0.0, ge=0, le=10),
    ) -> ConcatenateIterator[str]:
        for number in range(count):
            if number == 0:
                print("first word")
            yield f"w{number} "
            time.sleep(delay_s)
