"""Measure everything and write the results page: `python -m bench [--seconds N] [--write]`."""

import argparse
import datetime
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from bench import cog
from cogflare.cli.bench import cells
from cogflare.cli.benchmark import measure
from cogflare.cli.benchmark.measure import Measured
from tests.support.postgres import PostgresServer

_PAGE = Path(__file__).parents[1] / "docs" / "reference" / "performance.md"
_MARK = "<!-- results -->"
_GATES = "Gates on two cores, SQLite: creates >= 3,000/s, full no-op >= 1,500/s, request to an idle worker p50 <= 5 ms."


def say(text: str) -> None:
    """Report progress."""
    print(f"… {text}", file=sys.stderr, flush=True)


def table(title: str, rows: Iterable[Measured]) -> str:
    """Return a Markdown table, row by row as it is measured."""
    lines = [f"### {title}", "", "| Measurement | per s | p50 ms | p99 ms | errors |", "|---|--:|--:|--:|--:|"]
    for row in rows:
        line = "| " + " | ".join(str(cell) for cell in cells(row)) + " |"
        print(line, flush=True)
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each run (default: 8)")
    parser.add_argument("--write", action="store_true", help="put the results into docs/reference/performance.md")
    options = parser.parse_args()
    disk = measure.fsync_ms(Path(tempfile.gettempdir()))
    about = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {measure.machine()}; fdatasync of 4 KB {disk:.2f} ms."
    parts = [about, _GATES, table("SQLite, synchronous=FULL", measure.run(options.seconds, lambda: None, say))]
    server = PostgresServer(durable=True)
    server.start()
    try:
        rows = measure.run(options.seconds, server.create_database, say)
        parts.append(table("PostgreSQL, fsync on, one node", rows))
    finally:
        server.close()
    parts.append(table("What Cogflare adds to Cog (SQLite)", cog.run(options.seconds, say)))
    if options.write:
        head = _PAGE.read_text().partition(_MARK)[0]
        _PAGE.write_text(f"{head}{_MARK}\n\n" + "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
