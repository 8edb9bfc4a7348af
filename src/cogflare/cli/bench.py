"""`cogflare bench`: how fast this machine creates and runs predictions, with everything real but the model."""

import tempfile
from pathlib import Path
from typing import TypeVar

import click
import msgspec

from cogflare.cli.benchmark import standing, thorough
from cogflare.cli.benchmark.measure import Measured, fsync_ms, machine, run
from cogflare.cli.benchmark.stage import StageError
from cogflare.cli.benchmark.standing import Standing
from cogflare.cli.optionvalues import Number
from cogflare.cli.output import note, print_table

COLUMNS = ("measurement", "per s", "p50 ms", "p99 ms", "errors")
STANDING_COLUMNS = ("idle links", "memory MB", "KB per link", "CPU % of a core")
_STANDING_S = 10.0

Row = TypeVar("Row", Measured, Standing)


@click.command()
@click.option("--seconds", type=Number(0.5, 600), default=5.0, show_default=True, help="Length of each run.")
@click.option(
    "--database-url", help="An empty PostgreSQL database to use instead of SQLite; it is filled with test data."
)
@click.option("--all", "is_all", is_flag=True, help="Also what takes minutes: long queues, streams, idle links, nodes.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line.")
def bench(seconds: float, database_url: str | None, is_all: bool, as_json: bool) -> None:
    """Measure this machine: a real server and a real agent around a model that does nothing.

    Every acknowledged write is on disk (fsync) before it is answered. The load generator shares the machine.
    """
    note(f"{machine()}; fdatasync {fsync_ms(Path(tempfile.gettempdir())):.2f} ms")
    rows: list[Measured] = []
    standings: list[Standing] = []
    try:
        for row in run(seconds, lambda: database_url, note):
            _take(row, rows, as_json)
        if is_all and standing.is_possible():
            for links in standing.run(_STANDING_S, lambda: database_url, note, standing.LINKS):
                _take(links, standings, as_json)
        if is_all:
            for row in thorough.run(seconds, lambda: database_url, note):
                _take(row, rows, as_json)
    except StageError as error:
        raise click.ClickException(str(error)) from error
    if not as_json:
        print_table(COLUMNS, [cells(row) for row in rows], "nothing was measured")
        if standings:
            click.echo()
            print_table(STANDING_COLUMNS, [standing_cells(row) for row in standings], "nothing was measured")


def _take(row: Row, rows: list[Row], as_json: bool) -> None:
    rows.append(row)
    if as_json:
        click.echo(msgspec.json.encode(row))


def cells(row: Measured) -> tuple[str, str, str, str, int]:
    """Return a row of the table."""
    return (row.name, f"{row.per_s:,.0f}", f"{row.p50_ms:.2f}", f"{row.p99_ms:.2f}", row.errors)


def standing_cells(row: Standing) -> tuple[str, str, str, str]:
    """Return a row of the table of standing load."""
    per_link = f"{row.kb_per_link:.1f}" if row.links else ""
    return (f"{row.links:,}", f"{row.memory_mb:.0f}", per_link, f"{row.cpu_percent:.1f}")
