"""Writes on from a prompt, word by word, as a Markov chain over the fable in ``light.txt``.

It is a language model of the smallest kind: after the last two words comes one that has followed them before, or, at a
higher temperature, one that has followed the last word alone. It is trained in ``setup`` in a few milliseconds.
"""

from __future__ import annotations

import random
import re
import time
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

from cog import BaseRunner, ConcatenateIterator, Input, current_scope, streaming

TEXT = Path(__file__).parent / "light.txt"
TOKEN = re.compile(r"[\w'-]+|[^\w\s]")
SENTENCE_END = (".", "?", "!")
SIGNS = (*SENTENCE_END, ",", ";", ":")

Context = tuple[str, ...]


class Runner(BaseRunner):
    def setup(self) -> None:
        tokens = TOKEN.findall(TEXT.read_text(encoding="utf-8"))
        self.followers: dict[Context, Counter[str]] = defaultdict(Counter)
        for length in (1, 2):
            for place in range(len(tokens) - length):
                self.followers[tuple(tokens[place : place + length])][tokens[place + length]] += 1
        self.openings = [after for before, after in pairwise(tokens) if before in SENTENCE_END]
        print(f"read {len(tokens)} words, {len(set(tokens))} of them different")

    @streaming
    def run(
        self,
        prompt: str = Input(description="How it begins; the last words count", default="Once the lamp"),
        max_tokens: int = Input(description="How many words and signs to write at most", default=120, ge=1, le=2000),
        temperature: float = Input(description="0 is the likeliest word, 2 is any", default=0.9, ge=0.0, le=2.0),
        seed: int | None = Input(description="For the same words again; empty for any", default=None, ge=0),
        delay_ms: float = Input(description="Milliseconds to think about each word", default=20.0, ge=0, le=1000),
    ) -> ConcatenateIterator[str]:
        dice = random.Random(seed)  # noqa: S311 - no secret depends on it
        tokens = TOKEN.findall(prompt)
        for _ in range(max_tokens):
            token = self.next_token(tokens, temperature, dice)
            tokens.append(token)
            yield token if token in SIGNS else f" {token}"
            time.sleep(delay_ms / 1000)
        current_scope().record_metric("output_token_count", max_tokens)

    def next_token(self, tokens: list[str], temperature: float, dice: random.Random) -> str:
        """One that has followed the last two words or, now and then when it is warm, the last one."""
        lengths = (1,) if dice.random() < 0.25 * temperature else (2, 1)
        for length in lengths:
            known = self.followers.get(tuple(tokens[-length:]))
            if known:
                return drawn(known, temperature, dice)
        return dice.choice(self.openings)


def drawn(known: Counter[str], temperature: float, dice: random.Random) -> str:
    """One of the known words: the likeliest at 0, in proportion at 1, nearly any at 2."""
    if temperature == 0:
        return known.most_common(1)[0][0]
    weights = [count ** (1 / temperature) for count in known.values()]
    return dice.choices(list(known), weights)[0]
