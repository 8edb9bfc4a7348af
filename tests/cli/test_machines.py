"""Commands about what workers run on and what models require, with workers that tell of GPUs."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from cli.conftest import Shell
from support.nvml import GAMER, TWO_QUADROS, Library
from support.processes import Stage, until

HOME = {"region": "home", "tags": ["fast", "eu"]}


def rows(text: str) -> list[list[str]]:
    return [line.split("\t") for line in text.splitlines()]


@pytest.fixture
def equipped(stage: Stage, tmp_path: Path) -> Shell:
    """A server with three workers of one model: two GPUs, one large GPU, and one that tells nothing of its machine."""
    server = stage.server()
    for name, record in (("quadros", TWO_QUADROS), ("gamer", GAMER)):
        folder = tmp_path / name
        folder.mkdir()
        library = Library(folder)
        library.says(record)
        site = HOME if name == "gamer" else {"region": "", "tags": []}
        stage.scripted(server, name=name, environment=library.environment, site=site).connected()
    stage.scripted(server, name="old").connected()
    return Shell(server, server.token())


def test_workers_models_and_predictions_tell_what_is_required_and_what_is_there(equipped: Shell) -> None:
    listed = {row[1]: row[6:] for row in rows(equipped.ok("workers", "list"))}
    assert listed == {
        "quadros": ["ok", "2 x Quadro RTX 4000", "8 GB", "-"],
        "gamer": ["ok", "NVIDIA GeForce RTX 4090 D", "24 GB", "home"],
        "old": ["ok", "-", "-", "-"],
    }
    said = equipped.ok("models", "set", "me/single", "--min-vram-gb", "24", "--require-tag", "fast")
    assert "requires:     24 GB of VRAM, tag fast\n" in said
    assert "requires:     24 GB of VRAM, tag fast\n" in equipped.ok("models", "show", "me/single")
    ids = {name: worker["id"] for name, worker in equipped.server.workers().items()}

    def refusal() -> str | None:
        found: str | None = equipped.server.workers()["quadros"]["models"][0]["unmet"]
        return found

    assert until(refusal, "refusal") == "lacks 24 GB of VRAM (has 8) and the tag fast"
    shown = equipped.ok("workers", "show", ids["quadros"])
    for line in (
        "gpu:          Quadro RTX 4000, 8 GB, 8.0 GB free",
        "driver:       535.129.03, CUDA 12.2",
        "may run:      anything",
        "may connect:  any number, 3 now",
        "expires:      never",
    ):
        assert line in shown.splitlines()
    assert rows(shown)[-1][-1] == "no: lacks 24 GB of VRAM (has 8) and the tag fast"
    able = equipped.ok("workers", "show", ids["gamer"])
    assert rows(able)[-1][-1] == "yes"
    assert "tags:         fast, eu" in able.splitlines()
    assert "machine:      its agent tells nothing of it" in equipped.ok("workers", "show", ids["old"]).splitlines()
    assert json.loads(equipped.ok("workers", "show", ids["gamer"], "--json"))["machine"]["region"] == "home"
    run = json.loads(equipped.ok("predict", "me/single", "-i", "output=one", "--json"))
    [attempt] = equipped.server.attempts(run["id"])
    assert attempt["worker"] == ids["gamer"]


def test_what_waits_is_told_why_and_goes_when_nothing_is_required(equipped: Shell) -> None:
    equipped.ok("models", "set", "me/single", "--min-vram-gb", "200")
    until(lambda: all(w["models"][0]["unmet"] for w in equipped.server.workers().values()), "refusals")
    waiting = equipped.ok("predict", "me/single", "-i", "output=two", "--no-wait").strip()
    why = equipped.ok("predictions", "why", waiting)
    assert "gamer lacks 200 GB of VRAM (has 24)" in why
    assert "worker old does not say whether it has 200 GB of VRAM" in why
    assert "reason:       requirements_unmet" in why.splitlines()
    assert "unfit:        quadros: lacks 200 GB of VRAM (has 8)" in why.splitlines()
    equipped.ok("models", "set", "me/single", "--require-tag", "fast")
    assert "requires:     200 GB of VRAM, tag fast" in equipped.ok("models", "show", "me/single").splitlines()
    equipped.ok("models", "set", "me/single", "--min-vram-gb", "none")
    assert equipped.server.ended(waiting)["status"] == "succeeded"
    assert "requires:     tag fast" in equipped.ok("models", "show", "me/single").splitlines()
    equipped.ok("models", "set", "me/single", "--require-tag", "none")
    assert "requires:     nothing" in equipped.ok("models", "show", "me/single").splitlines()


def test_a_terminal_shows_gpus_and_says_who_gets_nothing(equipped: Shell) -> None:
    equipped.ok("models", "set", "me/single", "--require-tag", "fast")
    until(lambda: equipped.server.workers()["old"]["models"][0]["unmet"], "refusal")
    terminal, end = pty.openpty()
    environment = {**os.environ, **equipped.environment, "TERM": "xterm", "COLUMNS": "140"}
    command = [sys.executable, "-m", "cogflare.cli", "workers", "list"]
    with subprocess.Popen(command, stdout=end, env=environment) as process:
        os.close(end)
        shown = b""
        while shown.count(b"gets nothing of") < 2:
            shown += os.read(terminal, 4096)
        assert process.wait(30) == 0
    os.close(terminal)
    lines = shown.decode().splitlines()
    assert "gpu" in lines[1]
    assert "region" in lines[1]
    assert any("24 GB" in line and "home" in line for line in lines)
    assert [line.split(" (")[0] for line in lines if "gets nothing of me/single: it" in line] == ["quadros", "old"]


@pytest.mark.parametrize(
    "arguments", [("--min-vram-gb", "0"), ("--min-vram-gb", "much"), ("--require-tag", "two words")]
)
def test_what_is_no_requirement_is_refused(shell: Shell, arguments: tuple[str, ...]) -> None:
    assert shell.run("models", "set", "me/single", *arguments).exit_code == 2


def test_an_unknown_worker_is_refused(shell: Shell) -> None:
    assert shell.run("workers", "show", "nobody").exit_code == 2
