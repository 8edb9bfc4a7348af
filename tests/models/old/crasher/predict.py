"""Takes its whole process down in mid-run, as an out-of-memory kill would."""

import os

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(self, crash: bool = Input(description="Die instead of answering", default=True)) -> str:
        if crash:
            print("about to die", flush=True)
            os._exit(13)
        return "alive"
