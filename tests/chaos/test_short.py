"""The harness on a small scale, as `cogflare verify` runs it: one seed on SQLite, one on PostgreSQL with two nodes.

`python -m chaos.long` (`make chaos`) runs many more.
"""

from pathlib import Path

from chaos.long import crash
from cogflare.cli.verification import report
from cogflare.cli.verification.run import Order, Outcome, campaign
from support.postgres import PostgresServer

PREDICTIONS = 120


def run(order: Order, folder: Path) -> Outcome:
    [outcome] = campaign([order], folder, print, keeps=True)
    print(report.told(outcome))
    return outcome


def check(outcome: Outcome, kinds: int) -> None:
    assert [*report.complaints(outcome)] == []
    tries = {row.invariant: row.tries for row in outcome.verdict.rows}
    assert tries[1] == PREDICTIONS
    assert min(tries[invariant] for invariant in (2, 4, 5, 7, 8, 9, 10, 11, 12)) >= 5, tries
    assert sum(outcome.faults.values()) >= 10
    assert len(outcome.faults) >= kinds


def test_sqlite_holds_under_faults(tmp_path: Path) -> None:
    check(run(Order(1, PREDICTIONS), tmp_path), kinds=5)


def test_postgres_with_two_nodes_holds_under_faults(tmp_path: Path, restartable: PostgresServer) -> None:
    url = restartable.create_database()
    check(run(Order(2, PREDICTIONS, url, crash(restartable)), tmp_path), kinds=5)
