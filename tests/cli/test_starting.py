"""Ctrl-C at any time of a command's life, the first half second included, in which Python loads its modules."""

import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPTS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]


def as_script(name: str) -> list[str]:
    """Return what the installed script of that name does."""
    module, _, function = SCRIPTS[name].partition(":")
    return ["-c", f"import sys; from {module} import {function}; sys.argv[0] = {name!r}; sys.exit({function}())"]


COMMANDS = {
    "cogflare": as_script("cogflare"),
    "cogflare-worker": as_script("cogflare-worker"),
    "python -m cogflare.cli": ["-m", "cogflare.cli"],
    "python -m cogflare.cli.workergroup": ["-m", "cogflare.cli.workergroup"],
}


def started(words: list[str], handler: signal.Handlers = signal.SIG_DFL) -> subprocess.Popen[str]:
    """Start a command that says of each module when it has been loaded."""
    return subprocess.Popen(
        [sys.executable, "-X", "importtime", *words, "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # pytest may run with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, handler) and None,
    )


def loaded(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stderr is not None
    for line in process.stderr:
        yield line.rpartition("|")[2].strip() if line.startswith("import time:") else line


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("module", ["click", "httpx2", "cogflare.agent.main"])
def test_ctrl_c_while_modules_are_loaded_is_quiet(name: str, module: str) -> None:
    with started(COMMANDS[name]) as process:
        said = loaded(process)
        assert module in said
        process.send_signal(signal.SIGINT)
        rest = [line for line in said if "\n" in line]
        assert process.wait(30) == 130
    assert rest == []


def test_ctrl_c_that_is_ignored_stays_so() -> None:
    with started(COMMANDS["cogflare"], signal.SIG_IGN) as process:
        said = loaded(process)
        assert "click" in said
        process.send_signal(signal.SIGINT)
        assert "cogflare.cli.workercommands" in said
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 0
    assert "Usage: cogflare " in out
