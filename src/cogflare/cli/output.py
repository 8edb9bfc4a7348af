"""How the commands print: tables for people, tab-separated lines for pipes, JSON for programs.

Results go to standard output and nothing else does; notes and progress go to standard error.
"""

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import click
import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

as_json = click.option("--json", "as_json", is_flag=True, help="Print the API's JSON, one object a line.")

_DASH: Final = "-"
_SHORT: Final = 10
_LEAST: Final = 8
_LONG: Final = 26
"""Widths of a table's columns: what is short, the least that is left to a longer one, and a very long word."""


def print_json(value: Any) -> None:
    """Print a value as one line of JSON."""
    click.echo(msgspec.json.encode(value))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], empty: str) -> None:
    """Print rows: a table with headings on a terminal, else tab-separated lines without. `empty` is said of no rows."""
    lines = [[cell(value) for value in row] for row in rows]
    if not lines:
        note(empty)
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        for line in lines:
            click.echo("\t".join(line))
        return
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column, width in zip(table.columns, _widths(columns, lines, console.width), strict=True):
        column.width = width
    for line in lines:
        table.add_row(*(Text(text, overflow="fold") for text in line))
    console.print(table)


def _widths(columns: Sequence[str], lines: Iterable[Sequence[str]], room: int) -> list[int]:
    """Return how wide each column of a table may be, two blanks beside each.

    What other commands take stays in one piece: the first column. So do short cells, then words, as long as there is
    room for that; the last column, which says the most, gives way first.
    """
    cells = list(zip(columns, *lines, strict=True))
    whole = [max(map(len, column)) for column in cells]
    word = [min(_LONG, max(map(len, _words(column)))) for column in cells]
    short, words = ([w if w <= most else low for w, low in zip(whole, word, strict=True)] for most in (_SHORT, _LEAST))
    first, last = whole[:1], [min(_LEAST, width) for width in whole[1:][-1:]]
    tight = [min(_LEAST, width) for width in whole]
    tries = (short, short[:-1] + last, words[:-1] + last, tight)
    left = room - 2 * len(whole)
    widths = next((found for tried in tries if sum(found := (first + tried[1:])) <= left), first + tight[1:])
    # What is over goes where it is missed, a character at a time, to what lacks least.
    for _ in range(left - sum(widths)):
        wanting = [place for place, width in enumerate(widths) if width < whole[place]]
        if not wanting:
            break
        widths[min(wanting, key=lambda place: whole[place] - widths[place])] += 1
    return widths


def _words(cells: Iterable[str]) -> list[str]:
    return [word for cell in cells for word in cell.split()] or [""]


def print_fields(fields: Iterable[tuple[str, Any]]) -> None:
    """Print the named values of one thing, a line each."""
    shown = [(name, cell(value, "\n" + " " * 14)) for name, value in fields]
    for name, text in shown:
        click.echo(f"{name + ':':<13} {text}")


def note(text: str) -> None:
    """Say something that is no result."""
    click.echo(text, err=True)


def cell(value: Any, newline: str = " ") -> str:
    """Write any JSON value for a person; what a terminal would obey is made visible instead."""
    if value is None or value == "" or value == [] or value == {}:
        return _DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    lines = (visible(line) for line in text.expandtabs(4).splitlines())
    return newline.join(lines) or _DASH


def visible(text: str) -> str:
    """Replace control characters, which could move the cursor or rename the window, by their escapes."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def for_terminal(text: str) -> str:
    """Make a model's text harmless for a terminal; a pipe gets it as it is."""
    if not sys.stdout.isatty():
        return text
    return "\n".join(visible(line.expandtabs(4)) for line in text.split("\n"))


def counted(number: int, noun: str) -> str:
    """Write a number of things: `1 run`, `2 runs`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def time_of(text: str | None) -> str:
    """Shorten an RFC 3339 time to seconds."""
    return _DASH if not text else text[:19].replace("T", " ") + "Z"


def age(text: str | None) -> str:
    """Say how long ago an RFC 3339 time was."""
    seconds = seconds_between(text, datetime.now(UTC).isoformat())
    if seconds is None:
        return _DASH
    whole = max(0, int(seconds))
    scales = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
    scale, unit = next(pair for pair in scales if whole >= pair[0] * 2 or pair[0] == 1)
    return f"{whole // scale} {unit} ago"


def seconds_between(first: str | None, second: str | None) -> float | None:
    """Return the seconds from one RFC 3339 time to another, None where one of them is missing."""
    if not first or not second:
        return None
    return (datetime.fromisoformat(second) - datetime.fromisoformat(first)).total_seconds()


def duration(seconds: float | None) -> str:
    """Write seconds as a person would: `0.42 s`, `12 s`, `3 min 20 s`, `5 h 2 min`, `4 days`."""
    if seconds is None:
        return _DASH
    if seconds < 10:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} days"
