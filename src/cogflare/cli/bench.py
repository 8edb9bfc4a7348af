"""`cogflare bench`: how fast this machine creates and runs predictions, with everything real but the model."""

import tempfile
from pathlib import Path

import click
import msgspec

from cogflare.cli.benchmark.measure import Measured, fsync_ms, machine, run
from cogflare.cli.benchmark.stage import StageError
from cogflare.cli.output import note, print_table

_COLUMNS = ("measurement", "per s", "p50 ms", "p99 ms", "errors")


@click.command()
@click.option("--seconds", type=click.FloatRange(0.5, 600), default=5.0, show_default=True, help="Length of each run.")
@click.option(
    "--database-url", help="An empty PostgreSQL database to use instead of SQLite; it is filled with test data."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line.")
def bench(seconds: float, database_url: str | None, as_json: bool) -> None:
    """Measure this machine: a real server and a real agent around a model that does nothing.

    Every acknowledged write is on disk (fsync) before it is answered. The load generator shares the machine.
    """
    note(f"{machine()}; fdatasync {fsync_ms(Path(tempfile.gettempdir())):.2f} ms")
    rows: list[Measured] = []
    try:
        for row in run(seconds, lambda: database_url, note):
            rows.append(row)
            if as_json:
                click.echo(msgspec.json.encode(row))
    except StageError as error:
        raise click.ClickException(str(error)) from error
    if not as_json:
        print_table(_COLUMNS, [cells(row) for row in rows], "nothing was measured")


def cells(row: Measured) -> tuple[str, str, str, str, int]:
    """Return a row of the table."""
    return (row.name, f"{row.per_s:,.0f}", f"{row.p50_ms:.2f}", f"{row.p99_ms:.2f}", row.errors)
