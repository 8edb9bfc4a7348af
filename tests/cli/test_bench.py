"""The long measurements of the benchmark, on a small scale: that they measure what they say, not how much."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cogflare.cli.bench import cells, standing_cells
from cogflare.cli.benchmark import backlog, nodes, standing, streams
from cogflare.cli.benchmark.measure import Measured
from cogflare.cli.benchmark.stage import Stage, StageError
from cogflare.cli.benchmark.standing import Standing


def quiet(_: str) -> None:
    """Report nothing."""


@pytest.mark.skipif(not standing.is_possible(), reason="needs /proc")
def test_idle_links_take_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "_SETTLE_S", 0)
    none, some = standing.run(0.2, lambda: None, quiet, [50])
    assert (none.links, some.links) == (0, 50)
    assert none.memory_mb > 10
    assert 1 < some.kb_per_link < 500


def test_a_crowd_is_as_many_workers_and_ends_with_their_server(tmp_path: Path) -> None:
    with Stage(tmp_path) as stage:
        crowd = stage.crowd(30)
        workers = stage.call("GET", "/v1/workers").json()["results"]
        assert [worker["state"] for worker in workers] == ["online"] * 30
        assert len({worker["id"] for worker in workers}) == 30
    assert crowd.returncode not in (0, None)


def test_creates_are_measured_while_predictions_stream() -> None:
    [row] = streams.run(0.5, lambda: None, quiet, 4)
    assert row.errors == 0
    assert row.per_s > 1
    assert 0 < row.p50_ms <= row.p99_ms


def test_streams_that_do_not_run_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """So short a script is over, or not begun, while creates are measured."""
    monkeypatch.setattr(streams, "_START_S", 0)
    with pytest.raises(StageError, match=r"did not start|fell behind"):
        list(streams.run(0.1, lambda: None, quiet, 1))


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_claims_are_measured_behind_a_queue(new_url: Callable[[str], str], kind: str) -> None:
    rows = list(backlog.run(0.3, lambda: new_url(kind), quiet, [3, 1500]))
    assert [row.name for row in rows] == ["claim, 3 queued by 8 accounts", "claim, 1,500 queued by 8 accounts"]
    for row in rows:
        assert 0 < row.p50_ms <= row.p99_ms


def test_nodes_are_measured_together(new_url: Callable[[str], str]) -> None:
    creates, full = nodes.run(0.5, lambda: new_url("postgres"), quiet)
    for row in (creates, full):
        assert row.errors == 0
        assert row.per_s > 1


def test_rows_are_shown_as_cells() -> None:
    assert cells(Measured("x", 1234.5, 0.5, 1.25, 3)) == ("x", "1,234", "0.50", "1.25", 3)
    assert standing_cells(Standing(0, 58.4, 0.0, 0.26)) == ("0", "58", "", "0.3")
    assert standing_cells(Standing(10_000, 371.2, 31.28, 9.81)) == ("10,000", "371", "31.3", "9.8")
