"""Answers its input at once: the floor under every latency measurement."""

from cog import BaseRunner, Input


class Runner(BaseRunner):
    def run(self, text: str = Input(description="What to answer", default="hello")) -> str:
        return text
