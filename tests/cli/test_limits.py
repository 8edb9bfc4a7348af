"""Cancels of whatever a filter matches, and what owners set for models, from the command line."""

import json

import pytest

from cli.conftest import Shell
from support.processes import Stage

FAR = "2100-01-01T00:00:00Z"


@pytest.fixture
def waiting(shell: Shell, stage: Stage) -> list[str]:
    """Three predictions that cannot end by themselves, of which one runs."""
    stage.scripted(shell.server, "iterator", name="slow").connected()
    made = [shell.server.create("me/iterator", seconds=600) for _ in range(3)]
    shell.server.processing(made[0])
    return made


def test_a_filter_cancels_after_a_question(shell: Shell, waiting: list[str]) -> None:
    asked = shell.run("predictions", "cancel", "--model", "me/iterator")
    assert asked.exit_code == 1
    assert "not ended (model me/iterator)? [y/N]" in asked.stderr
    assert "nothing was canceled; --yes does not ask" in asked.stderr
    assert {shell.server.get(one)["status"] for one in waiting} == {"processing", "starting"}
    name = ("predictions", "cancel", "--model", "me/iterator", "--yes")
    assert shell.ok(*name, "--created-after", FAR) == "0\tcanceled\n"
    assert shell.ok(*name, "--status", "starting") == "2\tcanceled\n"
    assert shell.server.get(waiting[0])["status"] == "processing"
    assert shell.ok("predictions", "cancel", "--all", "--yes", "--created-before", FAR) == "1\tcanceled\n"
    assert {shell.server.get(one)["status"] for one in waiting} == {"canceled"}


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--yes",),
        ("some-id", "--all"),
        ("--status", "succeeded"),
        ("--model", "nothing"),
        ("--created-after", "x", "--yes"),
    ],
)
def test_what_says_nothing_or_too_much_cancels_nothing(shell: Shell, arguments: tuple[str, ...]) -> None:
    assert shell.run("predictions", "cancel", *arguments).exit_code == 2


def test_what_holds_for_a_model_is_set_and_shown(shell: Shell) -> None:
    shown = shell.ok("models", "set", "me/single", "--run-limit", "1h30m", "--max-queued", "5", "--rerun")
    lines = (
        "description:  -",
        "run limit:    1 h 30 min",
        "start limit:  the server's",
        "may wait:     5",
        "rerun:        yes",
        "requires:     nothing",
    )
    assert shown.splitlines() == list(lines)
    assert "run limit:    1 h 30 min\n" in shell.ok("models", "show", "me/single")
    shell.ok("models", "set", "me/single", "--start-limit", "never", "--description", "default")
    limits = json.loads(shell.ok("models", "show", "me/single", "--json"))
    assert limits["description"] == "default"
    assert limits["limits"] == {"run_limit_s": 5400, "start_limit_s": 0, "max_queued": 5, "rerun": True}
    shell.ok("models", "set", "me/single", *("--run-limit", "default", "--max-queued", "default", "--no-rerun"))
    limits = json.loads(shell.ok("models", "show", "me/single", "--json"))["limits"]
    assert limits == {"run_limit_s": None, "start_limit_s": 0, "max_queued": None, "rerun": False}


@pytest.mark.parametrize(
    "arguments", [(), ("--run-limit", "soon"), ("--max-queued", "0"), ("--max-queued", "many"), ("--start-limit", "0s")]
)
def test_what_cannot_be_set_is_refused(shell: Shell, arguments: tuple[str, ...]) -> None:
    refused = shell.run("models", "set", "me/single", *arguments)
    assert refused.exit_code == 2
    assert "Traceback" not in refused.output
