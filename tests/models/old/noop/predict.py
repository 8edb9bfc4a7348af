"""Answers its input at once."""

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(self, text: str = Input(description="What to answer", default="hello")) -> str:
        return text
