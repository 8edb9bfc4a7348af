"""Measure everything and write the results page: `python -m bench [--seconds N] [--write]`."""

import argparse
import datetime
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from bench import cog
from cogflare.cli.bench import COLUMNS, STANDING_COLUMNS, cells, standing_cells
from cogflare.cli.benchmark import measure, standing, thorough
from tests.support.postgres import PostgresServer

_PAGE = Path(__file__).parents[1] / "docs" / "reference" / "performance.md"
_MARK = "<!-- results -->"
_GATES = """\
Gates on two cores, SQLite: creates >= 3,000/s, full no-op >= 1,500/s, request to an idle worker p50 <= 5 ms.
Aims: 10,000 idle links in <= 400 MB, no processor time without work, a claim behind 1,000,000 jobs as fast as behind
100, a create while 200 predictions stream p99 <= 50 ms."""
_STANDING_S = 10.0


def say(text: str) -> None:
    """Report progress."""
    print(f"… {text}", file=sys.stderr, flush=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table, row by row as it is measured."""
    first, *others = columns
    heads = [f"{first[0].upper()}{first[1:]}", *others]
    lines = [f"### {title}", "", f"| {' | '.join(heads)} |", f"|---{'|--:' * len(others)}|"]
    for row in rows:
        line = "| " + " | ".join(str(cell) for cell in row) + " |"
        print(line, flush=True)
        lines.append(line)
    return "\n".join(lines)


def all_rows(seconds: float, database_url: Callable[[], str | None]) -> Iterator[Sequence[object]]:
    """Measure everything about one kind of database; `database_url` gives a fresh one each time (None: SQLite)."""
    measured = chain(measure.run(seconds, database_url, say), thorough.run(seconds, database_url, say))
    return map(cells, measured)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each run (default: 8)")
    parser.add_argument("--write", action="store_true", help="put the results into docs/reference/performance.md")
    options = parser.parse_args()
    disk = measure.fsync_ms(Path(tempfile.gettempdir()))
    about = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {measure.machine()}; fdatasync of 4 KB {disk:.2f} ms."
    parts = [about, _GATES, table("SQLite, synchronous=FULL", COLUMNS, all_rows(options.seconds, lambda: None))]
    if standing.is_possible():
        idle = standing.run(_STANDING_S, lambda: None, say, standing.LINKS)
        parts.append(table("Standing load (SQLite)", STANDING_COLUMNS, map(standing_cells, idle)))
    server = PostgresServer(durable=True)
    server.start()
    try:
        rows = all_rows(options.seconds, server.create_database)
        parts.append(table("PostgreSQL, fsync on, one node where no number is said", COLUMNS, rows))
    finally:
        server.close()
    added = map(cells, cog.run(options.seconds, say))
    parts.append(table("What Cogflare adds to Cog (SQLite)", COLUMNS, added))
    if options.write:
        head = _PAGE.read_text().partition(_MARK)[0]
        _PAGE.write_text(f"{head}{_MARK}\n\n" + "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
