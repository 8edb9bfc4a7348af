"""Logs a line, then raises the message it was given."""

from cog import BaseRunner, Input


class Runner(BaseRunner):
    def run(self, message: str = Input(description="What to raise", min_length=1)) -> str:
        print("this will not end well")
        raise ValueError(message)
