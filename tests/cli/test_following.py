"""What is shown of a prediction while it runs."""

from pathlib import Path
from typing import Any

import pytest

from cogflare.cli.following import Feed

TEXT = {
    "components": {
        "schemas": {
            "Output": {
                "type": "array",
                "items": {"type": "string"},
                "x-cog-array-type": "iterator",
                "x-cog-array-display": "concatenate",
            }
        }
    }
}


def state(status: str, logs: str = "", output: Any = None, **more: Any) -> dict[str, Any]:
    times = {"created_at": "2026-01-02T03:04:05.000000Z", "started_at": "2026-01-02T03:04:05.500000Z"}
    return {"id": "p", "status": status, "logs": logs, "output": output, "error": None, **times, **more}


def shown(*states: dict[str, Any], schema: Any = None) -> None:
    feed = Feed(schema, Path())
    for one in states:
        feed.show(one)


def test_each_line_is_shown_once_and_only_whole(capsys: pytest.CaptureFixture[str]) -> None:
    shown(
        state("starting"),
        state("processing", "a\nb"),
        state("processing", "a\nbb\nc"),
        state("succeeded", "a\nbb\nc", metrics={"predict_time": 1.5, "total_time": 2.0}),
    )
    said = capsys.readouterr().err.splitlines()
    assert said == ["started after 0.50 s", "a", "bb", "c", "succeeded after 1.50 s of running, 2.00 s in all"]


def test_a_progress_bar_is_shown_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    shown(state("processing", "10%\r50%\r"), state("succeeded", "10%\r50%\r100%\n\x1b[31mred\x1b[0m\x07\n"))
    said = capsys.readouterr().err.splitlines()
    assert said[1:] == ["100%", r"red\x07", "succeeded"]


def test_text_is_written_as_it_comes(capsys: pytest.CaptureFixture[str]) -> None:
    shown(state("processing", output=["a ", "b"]), state("succeeded", output=["a ", "b", " c"]), schema=TEXT)
    assert capsys.readouterr().out == "a b c"


def test_a_run_that_begins_anew_is_told_and_shown_from_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    shown(
        state("processing", "one\ntwo\n", ["a", "b"]),
        state("processing", "", None),
        state("succeeded", "one\n", ["a"]),
        schema=TEXT,
    )
    captured = capsys.readouterr()
    assert "the run begins anew on another one\none\n" in captured.err
    assert captured.out == "aba"


def test_removed_data_at_the_end_is_no_new_run(capsys: pytest.CaptureFixture[str]) -> None:
    shown(state("processing", "one\n", ["a"]), state("canceled", "", None), schema=TEXT)
    assert "anew" not in capsys.readouterr().err


def test_a_failure_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    shown(state("failed", error="out of paint"))
    assert "failed: out of paint" in capsys.readouterr().err


def test_output_that_was_never_declared_is_shown_item_by_item(capsys: pytest.CaptureFixture[str]) -> None:
    shown(state("processing", output=["a"]), state("succeeded", output=["a", {"b": 1}]))
    shown(state("succeeded", output={"b": 1}))
    assert capsys.readouterr().out == 'a\n{"b":1}\n{"b":1}\n'


def test_a_file_of_the_server_is_saved_though_never_declared(
    capsys: pytest.CaptureFixture[str], site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with_file = f"{site}/f/{'0' * 40}/a.txt"
    feed = Feed(None, Path("saved"))
    feed.show(state("succeeded", output=[with_file, f"{site}/page"]))
    assert capsys.readouterr().out == f"saved/a.txt\t{with_file}\n{site}/page\n"
