"""Fails in its setup."""

from cog import BaseRunner


class Runner(BaseRunner):
    def setup(self) -> None:
        print("looking for the weights")
        raise RuntimeError("no weights here")

    def run(self) -> str:
        return "never"
