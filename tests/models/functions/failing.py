"""Logs a line, then raises the message it was given."""


def run(message: str) -> str:
    print("this will not end well")
    raise ValueError(message)
