"""Logs a line, then raises the message it was given."""

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(self, message: str = Input(description="What to raise", min_length=3)) -> str:
        print("this will not end well")
        raise ValueError(message)
