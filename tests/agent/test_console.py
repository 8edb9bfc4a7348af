"""What a worker says to the person who runs it."""

import io

from cogflare.agent.console import Console


def test_what_the_model_has_said_is_not_said_again() -> None:
    console = Console(stream=(out := io.StringIO()))
    console.model("loading\nValueError: no\n")
    assert [line[10:] for line in out.getvalue().splitlines()] == ["  loading", "  ValueError: no"]
    assert console.unsaid("ValueError: no\nloading\nValueError: no\nnews\n") == "ValueError: no\nnews"
    assert console.unsaid("") == ""
