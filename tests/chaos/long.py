"""The harness at length: 20 seeds on SQLite, 10 on PostgreSQL with two nodes and restarts, 500 predictions each.

python -m chaos.long [--first SEED] [--sqlite N] [--postgres N] [--predictions N] [--keep FOLDER]

Prints a line for each seed and one table at the end; the exit code is 1 if anything was broken.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from cogflare.cli.output import print_table
from cogflare.cli.verification import report
from cogflare.cli.verification.checker import total
from cogflare.cli.verification.run import Order, Outcome, campaign, folder_of
from support.postgres import PostgresServer


def crash(server: PostgresServer) -> Callable[[], None]:
    """Return what kills the database under its nodes and starts it again."""

    def restart() -> None:
        server.crash()
        server.start()

    return restart


def on_sqlite(seeds: range, predictions: int, folder: Path) -> Iterator[Outcome]:
    return campaign([Order(seed, predictions) for seed in seeds], folder, note, keeps=False)


def on_postgres(seeds: range, predictions: int, folder: Path) -> Iterator[Outcome]:
    server = PostgresServer(durable=True)
    try:
        server.start()
        orders = (Order(seed, predictions, server.create_database(), crash(server)) for seed in seeds)
        yield from campaign(orders, folder, note, keeps=False)
    finally:
        server.close()


def note(text: str) -> None:
    """Show progress only to a person who watches."""
    if sys.stderr.isatty():
        click.echo(text, err=True)


def tell(kind: str, outcome: Outcome, folder: Path) -> None:
    click.echo(f"{kind:<10} {report.told(outcome)}")
    if not outcome.holds:
        report.write_evidence(outcome, folder_of(folder, outcome.seed))
        for complaint in report.complaints(outcome):
            click.echo(f"  {complaint}")
        click.echo(f"  kept in {folder_of(folder, outcome.seed)}")


@click.command()
@click.option("--first", default=1, help="The first seed on each database.")
@click.option("--sqlite", default=20, help="Seeds on SQLite.")
@click.option("--postgres", default=10, help="Seeds on PostgreSQL.")
@click.option("--predictions", default=500, help="Predictions of each run.")
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), help="Where histories of failures go.")
def main(first: int, sqlite: int, postgres: int, predictions: int, keep: Path | None) -> None:
    """Run the harness at length."""
    root = keep or Path(tempfile.mkdtemp(prefix="cogflare-chaos-"))
    outcomes: list[Outcome] = []
    for kind, runs, count in (("sqlite", on_sqlite, sqlite), ("postgres", on_postgres, postgres)):
        folder = root / kind
        for outcome in runs(range(first, first + count), predictions, folder):
            tell(kind, outcome, folder)
            outcomes.append(outcome)
    verdict = total(outcome.verdict for outcome in outcomes)
    print_table(report.COLUMNS, [report.cells(row) for row in verdict.rows], "nothing was run")
    faults = report.faults_of(outcomes)
    click.echo(f"{faults.total()} faults: {', '.join(f'{count} {kind}' for kind, count in faults.most_common())}")
    sys.exit(0 if all(outcome.holds for outcome in outcomes) else 1)


if __name__ == "__main__":
    main()
