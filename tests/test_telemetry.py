"""Logs: a failure that goes on does not fill them."""

import time

import pytest
import structlog

from cogflare.telemetry import Repetitions


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
