"""Fails in its setup."""

from cog import BasePredictor


class Predictor(BasePredictor):
    def setup(self) -> None:
        print("looking for the weights")
        raise RuntimeError("no weights here")

    def predict(self) -> str:
        return "never"
