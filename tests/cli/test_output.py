"""How values are written for people."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest

from cogflare.cli.downloads import file_urls, save
from cogflare.cli.output import age, cell, duration, print_table, time_of


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        ("", "-"),
        ([], "-"),
        (True, "yes"),
        (0, "0"),
        ("a\nb\tc", "a b   c"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ({"a": [1]}, '{"a":[1]}'),
        ("größe", "größe"),
    ],
)
def test_cells(value: Any, text: str) -> None:
    assert cell(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.123, "0.12 s"),
        (12.4, "12 s"),
        (200, "3 min 20 s"),
        (7 * 3600 + 60, "7 h 1 min"),
        (5 * 86400, "5 days"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_a_table_keeps_ids_and_words_whole_on_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "80")
    id, url = "01m82cg6zsqsbfptt8pdhchhcc", "https://one.example/" + "x" * 60
    row = (id, "them/markov", "succeeded", "3 min ago", "0.44 s", f"the wire and {url}")
    print_table(("id", "model", "status", "created", "ran", "output or error"), [row], "none")
    lines = click.unstyle(capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= 80
    assert all(word in "\n".join(lines) for word in (id, "them/markov", "succeeded", "0.44 s"))
    # What did not fit goes on below, and nothing of it is lost.
    place = next(line.index("output") for line in lines if "output" in line)
    assert url in "".join(line[place:].strip() for line in lines)


def test_times() -> None:
    assert time_of("2026-01-02T03:04:05.678000Z") == "2026-01-02 03:04:05Z"
    assert age((datetime.now(UTC) - timedelta(minutes=5)).isoformat()).startswith("5 min")
    assert (time_of(None), age(None)) == ("-", "-")


def test_files_are_found_wherever_they_stand() -> None:
    output = {"a": "http://x/1", "b": ["https://x/2", 3, None], "c": "text", "d": "data:text/plain,x"}
    assert list(file_urls(output)) == ["http://x/1", "https://x/2"]


def test_a_file_name_cannot_lead_elsewhere(tmp_path: Path, site: str) -> None:
    for path in ("/a/..%2F..%2Fetc%2Fpasswd", "/a/.hidden", "/a/", "/a/x%00y.png"):
        saved = save(site + path, tmp_path / "out")
        assert saved.parent == tmp_path / "out"
        assert not saved.name.startswith(".")
        assert saved.read_bytes() == b"<html>welcome</html>"
