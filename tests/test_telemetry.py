"""Logs: a failure that goes on does not fill them."""

import json
import logging
import time

import pytest
import structlog

from cogflare.telemetry import Repetitions, configure


def test_the_same_failure_is_said_once_a_minute_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    repetitions = Repetitions()

    def say(event: str, **details: str) -> dict[str, object] | None:
        try:
            return dict(repetitions(None, "error", {"event": event, **details}))
        except structlog.DropEvent:
            return None

    assert say("store refused", error="full", role="a") == {"event": "store refused", "error": "full", "role": "a"}
    assert [say("store refused", error="full", role="b") for _ in range(5)] == [None] * 5
    assert say("store refused", error="away") is not None
    assert say("worker gone") == say("worker gone") == {"event": "worker gone"}
    now += 61
    assert say("store refused", error="full") == {"event": "store refused", "error": "full", "repeated": 5}
    assert say("store refused", error="full") is None


def test_what_libraries_say_comes_in_our_format_and_once(capsys: pytest.CaptureFixture[str]) -> None:
    before = logging.root.handlers[:], logging.root.level
    try:
        configure("json")
        for _ in range(3):
            logging.getLogger("a.library").warning("Invalid HTTP request received.")
    finally:
        logging.root.handlers[:], logging.root.level = before
        structlog.reset_defaults()
    (line,) = capsys.readouterr().err.splitlines()
    said = json.loads(line)
    assert (said["event"], said["error"], said["level"]) == (
        "a.library",
        "Invalid HTTP request received.",
        "warning",
    )
