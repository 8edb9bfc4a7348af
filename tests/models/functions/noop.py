"""Answers its input at once."""


def run(text: str = "hello") -> str:
    return text
