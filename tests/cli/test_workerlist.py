"""What `workers list` shows of many workers, most of which left long ago."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cli.conftest import Shell
from cogflare.cli import machines, workerlist
from support.processes import Stage, until

HOUR_S = 3_600


def worker(name: str, state: str, ago_s: float, **others: Any) -> dict[str, Any]:
    """Return a worker as the API tells of it, whose state has changed so long ago."""
    then = (datetime.now(UTC) - timedelta(seconds=ago_s)).isoformat()
    fields = {"models": [{"model": "me/m", "unmet": None}], "busy": 0, "slots": 1, "machine": None}
    about = {"quarantine": None, "setup_since": None, "connected_at": then, "changed_at": then}
    return {"id": f"id-{name}", "name": name, "state": state, **fields, **about, **others}


def quarantine(reason: str) -> dict[str, str]:
    return {"reason": reason, "since": datetime.now(UTC).isoformat()}


def listed(capsys: pytest.CaptureFixture[str], *workers: dict[str, Any], everyone: bool = False) -> list[str]:
    workerlist.show(workers, everyone)
    return [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()]


def test_who_left_long_ago_is_counted_only(capsys: pytest.CaptureFixture[str]) -> None:
    left = [worker(f"pod-{number}", "offline", 5 * 24 * HOUR_S) for number in range(40)]
    workerlist.show([*left, worker("gpu", "online", 9 * HOUR_S)], everyone=False)
    out, err = capsys.readouterr()
    assert out.split("\t")[:3] == ["id-gpu", "gpu", "online"]
    assert out.count("\n") == 1
    assert err == "left out: 40 workers that left long ago: --all shows them too\n"
    assert len(listed(capsys, *left, everyone=True)) == 40
    workerlist.show(left, everyone=False)
    assert capsys.readouterr() == ("", "no workers but 40 workers that left long ago: --all shows them too\n")


def test_no_workers_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    workerlist.show([], everyone=False)
    assert capsys.readouterr().err == "no workers: `cogflare worker` connects one\n"


def test_who_is_looked_for_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    asked = [
        worker("away", "away", 9 * HOUR_S),
        worker("just left", "offline", 60),
        worker("not well", "offline", 9 * HOUR_S, quarantine=quarantine("its model does not come up")),
        worker("coming", "offline", 9 * HOUR_S, setup_since=datetime.now(UTC).isoformat()),
    ]
    gone = worker("not well once", "offline", 25 * HOUR_S, quarantine=quarantine("its model did not come up"))
    assert listed(capsys, *asked, gone) == ["away", "just left", "not well", "coming"]


@pytest.mark.parametrize(
    ("unmet", "state", "ill", "told"),
    [
        (None, "online", None, "yes"),
        ("lacks a tag", "online", None, "no: lacks a tag"),
        (None, "online", "its model crashed", "no: it is quarantined"),
        (None, "offline", "its model crashed", "no: it is quarantined"),
        (None, "draining", None, "no: it is draining"),
        (None, "offline", None, "no: it is offline"),
    ],
)
def test_what_a_worker_gets(unmet: str | None, state: str, ill: str | None, told: str) -> None:
    offers = [{"model": "me/m", "version": "v" * 64, "slots": 1, "unmet": unmet}]
    shown = worker("gpu", state, 1, models=offers, quarantine=quarantine(ill) if ill else None)
    assert machines.offers(shown) == [("me/m", "v" * 12, 1, told)]


def test_states_and_times(capsys: pytest.CaptureFixture[str]) -> None:
    workerlist.show(
        [
            worker("a", "online", 7_200),
            worker("b", "away", 180),
            worker("c", "offline", 240),
            worker("d", "offline", 1, setup_since=datetime.now(UTC).isoformat(), connected_at=None),
        ],
        everyone=False,
    )
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [(row[2], row[5]) for row in rows] == [
        ("online", "2 h ago"),
        ("away", "lost 3 min ago"),
        ("offline", "left 4 min ago"),
        ("setting up", "-"),
    ]


def test_a_terminal_shows_how_long_names_and_reasons_begin(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "160")
    long = worker("n" * 100, "online", 60, id="w1", quarantine=quarantine("x" * 5000))
    workerlist.show([long], everyone=False)
    out = capsys.readouterr().out
    table, _, reason = out.partition("n" * 100)
    assert "…" in table
    assert "was quarantined" in reason
    assert len(out) < 1000
    assert out.rstrip().endswith("x…")


def test_a_worker_that_was_sent_home_has_left(shell: Shell, stage: Stage) -> None:
    stage.scripted(shell.server, "single", name="goer").connected().end()
    row = until(lambda: next((r for r in shell.ok("workers", "list").splitlines() if "offline" in r), ""), "goodbye")
    assert row.split("\t")[1] == "goer"
    assert row.split("\t")[5].startswith("left ")
    assert "goer" in shell.ok("workers", "list", "--all")
