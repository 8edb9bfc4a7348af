"""`cogflare verify` as a command: what it prints, what it leaves behind, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from cogflare.cli.main import cogflare
from cogflare.cli.verification import report
from cogflare.cli.verification.checker import INVARIANTS, Verdict, check
from cogflare.cli.verification.history import Accepted, Recorder, read
from cogflare.cli.verification.run import HISTORY, Outcome
from support.postgres import PostgresServer


def verify(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command with `folder` for its temporary files."""
    return subprocess.run(
        [sys.executable, "-m", "cogflare.cli", "verify", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={"TMPDIR": str(folder), "PATH": ""},
    )


def test_a_run_that_holds_prints_a_table_and_leaves_nothing(tmp_path: Path) -> None:
    done = verify("--seed", "3", "--predictions", "16", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == [*INVARIANTS]
    assert rows[0][1:3] == ["16", "holds"]
    assert "seed 3" in done.stderr
    assert [*tmp_path.iterdir()] == []


def test_a_run_on_postgres_empties_the_database_again(tmp_path: Path, restartable: PostgresServer) -> None:
    url = restartable.create_database()
    kept = tmp_path / "kept"
    arguments = ("--seed", "3", "--predictions", "16", "--database-url", url, "--keep", str(kept), "--json")
    done = verify(*arguments, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["seed"], told["holds"], told["folder"]) == (3, True, str(kept / "seed-3"))
    assert {event.what for event in read([kept / "seed-3" / HISTORY]) if hasattr(event, "what")} == {
        "server",
        "agent",
        "model",
    }
    assert "CREATE" not in restartable.dump_schema(url).replace("CREATE SCHEMA", "")


def test_a_database_in_use_is_refused(restartable: PostgresServer) -> None:
    restartable.execute("CREATE TABLE mine (id integer)")
    done = CliRunner().invoke(cogflare, ["verify", "--database-url", restartable.url("postgres")])
    assert done.exit_code == 2
    assert "the database is not empty" in done.output


def test_a_database_that_nodes_cannot_share_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(cogflare, ["verify", "--database-url", f"sqlite:///{tmp_path}/x.db"])
    assert done.exit_code == 2
    assert "PostgreSQL" in done.output


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    done = CliRunner().invoke(cogflare, ["verify", "--keep", str(tmp_path)])
    assert done.exit_code == 2
    assert "not empty" in done.output


def test_a_broken_promise_is_told_with_its_evidence(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / HISTORY)
    recorder.note(Accepted(1_000_000, "one/1", "tag-one-1-0-0", "p1", "starting"))
    recorder.close()
    outcome = Outcome(7, 20.0, {"kill": 3}, check(read([tmp_path / HISTORY])), ["server-1 ended by itself: exit 1"])

    assert not outcome.holds
    assert report.told(outcome) == "seed 7: 2 BROKEN; 20 s, 3 faults (3 kill)"
    assert report.cells(outcome.verdict.rows[0]) == (INVARIANTS[0], 1, "BROKEN: 1", "")
    report.write_evidence(outcome, tmp_path)
    text = (tmp_path / "violations.txt").read_text()
    assert "(1) p1: accepted at 0.000 s, and it is not stored" in text
    assert '"event":"Accepted"' in text
    assert "server-1 ended by itself" in text


def test_a_process_that_ends_by_itself_is_no_success() -> None:
    assert not Outcome(1, 1.0, {}, Verdict([], []), ["server-1 ended by itself: exit 1"]).holds
