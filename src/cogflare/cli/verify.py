"""`cogflare verify`: whether this installation keeps its promises under faults, shown with real processes."""

import asyncio
import random
import shutil
import tempfile
from pathlib import Path

import click

from cogflare.cli.optionvalues import Whole
from cogflare.cli.output import note, print_json, print_table
from cogflare.cli.verification import report
from cogflare.cli.verification.checker import total
from cogflare.cli.verification.collect import is_empty
from cogflare.cli.verification.run import Order, Outcome, campaign, folder_of
from cogflare.store.base import StoreError

_SEEDS = 2**31
_SHOWN = 20


@click.command()
@click.option("--seed", type=Whole(0), help="What all chance follows from; a new one if there is none.")
@click.option("--seeds", type=Whole(1, 1000), default=1, show_default=True, help="Runs: this seed and the next.")
@click.option("--predictions", type=Whole(8, 100_000), default=100, show_default=True, help="Predictions of each run.")
@click.option("--database-url", help="An empty PostgreSQL database; two nodes share it, and it is emptied again.")
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), help="A new folder that keeps all histories.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a run.")
def verify(
    seed: int | None, seeds: int, predictions: int, database_url: str | None, keep: Path | None, as_json: bool
) -> None:
    """Try hard to break this installation's promises, and say whether that worked.

    Starts a server and five workers of its own in a throw-away folder, lets eight clients of two accounts create,
    watch, stream and cancel predictions, and meanwhile, about once a second, something breaks: servers, workers and
    models are killed or stopped, connections are cut, reset, slowed down or half open, the disk is full, the clock
    jumps. Webhooks go to receivers that hang, refuse and vanish. Then all that the clients and the receivers were told,
    that the models did and that the store has is held against twelve promises.

    Nothing of yours is touched. A run takes about 40 seconds and 15 more for each further 100 predictions. The faults
    follow from the seed, which is printed; the same seed plays them again. When a promise is broken the exit code
    is 1, and the folder with the history is kept and named.
    """
    first = random.randrange(_SEEDS) if seed is None else seed  # noqa: S311 - not a secret
    if database_url is not None:
        _check_database(database_url)
    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise click.UsageError(f"{keep} is not empty; name a new folder to keep histories in")
    root = keep or Path(tempfile.mkdtemp(prefix="cogflare-verify-"))
    note(f"seed {first}" if seeds == 1 else f"seeds {first} to {first + seeds - 1}")
    orders = [Order(first + number, predictions, database_url) for number in range(seeds)]
    outcomes = []
    try:
        for outcome in campaign(orders, root, note, keeps=keep is not None):
            outcomes.append(outcome)
            _tell(outcome, root, as_json=as_json, keeps=keep is not None)
    except KeyboardInterrupt:
        if keep is None:
            shutil.rmtree(root, ignore_errors=True)
        raise
    except (StoreError, TimeoutError, OSError) as error:
        raise click.ClickException(f"the harness could not do its work (its folder is {root}): {error}") from error
    if not as_json:
        verdict = outcomes[0].verdict if len(outcomes) == 1 else total(outcome.verdict for outcome in outcomes)
        print_table(report.COLUMNS, [report.cells(row) for row in verdict.rows], "nothing was tried")
    if not all(outcome.holds for outcome in outcomes):
        raise click.exceptions.Exit(1)
    if keep is None:
        root.rmdir()


def _check_database(url: str) -> None:
    """Refuse a database in which there is something, or which is none that nodes can share."""
    if not url.startswith(("postgresql://", "postgres://")):
        raise click.UsageError("--database-url takes a PostgreSQL database; SQLite is what runs without it")
    try:
        empty = asyncio.run(is_empty(url))
    except (StoreError, ValueError) as error:
        raise click.ClickException(f"the database cannot be used: {error}") from error
    if not empty:
        raise click.UsageError("the database is not empty; a run would mix with what is there, and remove it")


def _tell(outcome: Outcome, root: Path, *, as_json: bool, keeps: bool) -> None:
    """Say how a run went, and where to look if it did not go well."""
    folder = folder_of(root, outcome.seed)
    note(report.told(outcome))
    if not outcome.holds:
        complaints = [*report.complaints(outcome)]
        for complaint in complaints[:_SHOWN]:
            note(f"  {complaint}")
        if len(complaints) > _SHOWN:
            note(f"  and {len(complaints) - _SHOWN} more")
        report.write_evidence(outcome, folder)
        note(f"  kept in {folder}; play it again with: cogflare verify --seed {outcome.seed}")
    if as_json:
        print_json(report.as_json(outcome, folder if keeps or not outcome.holds else None))
