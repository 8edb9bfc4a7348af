"""`cogflare worker`: what it says before it starts, and that it starts."""

import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cogflare.agent.main import WorkerOptions
from cogflare.agent.sources import FolderSource, FunctionSource, HandlerSource
from cogflare.cli import worker as command

SERVER = "http://127.0.0.1:9"
GIVEN = ["--model", "acme/m", "--server", SERVER, "--token", "t"]


def _invoke(*args: str, **env: str) -> Result:
    return CliRunner().invoke(command.worker, args, env={"COGFLARE_SERVER": None, "COGFLARE_WORKER_TOKEN": None, **env})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "cog.yaml").write_text("predict: predict.py:Predictor\n")
    return tmp_path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[WorkerOptions]:
    seen: list[WorkerOptions] = []

    async def run_worker(options: WorkerOptions) -> int:
        seen.append(options)
        return 0

    monkeypatch.setattr(command, "run_worker", run_worker)
    return seen


def test_help_tells_how_to_leave_and_what_the_codes_mean() -> None:
    text = _invoke("--help").output
    for word in (
        "Ctrl-C",
        "Exit codes",
        "COGFLARE_SERVER",
        "COGFLARE_WORKER_TOKEN",
        "--token-file",
        "--slots",
        "--keep-model",
    ):
        assert word in text


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--model", "acme"], "owner/name"),
        (["--model", "acme/m/x"], "owner/name"),
        (["--server", "ftp://x"], "not the address of a server"),
        (["--server", "https://me:two words@x"], "leave out user and password"),
        (["--token", ""], "cogflare tokens create"),
        (["--token", "two words"], "copied whole"),
        (["--slots", "0"], "--slots"),
        (["--url", "ftp://localhost:5000"], "not the address of a Cog server"),
        (["/nowhere"], "does not exist"),
    ],
)
def test_mistakes_are_explained(model: Path, started: list[WorkerOptions], args: list[str], problem: str) -> None:
    given = {"--model": "acme/m", "--server": SERVER, "--token": "t", "--folder": str(model)}
    if args[0] == "--url":
        del given["--folder"]
    if args[0].startswith("--"):
        given[args[0]] = args[1]
        args = []
    result = _invoke(*args, *[part for pair in given.items() for part in pair])
    assert result.exit_code == 2
    assert problem in re.sub(r"\s+", " ", result.output)
    assert "two words" not in result.output
    assert started == []


def test_a_folder_without_a_model_is_said(tmp_path: Path) -> None:
    result = _invoke("--model", "acme/m", "--server", SERVER, "--token", "t", str(tmp_path))
    assert result.exit_code == 2
    assert "no cog.yaml" in result.output


@pytest.mark.parametrize(
    "args",
    [
        ["--url", "http://localhost:5000", "MODEL"],
        ["--function", "predict:run", "MODEL"],
        ["--image", "r8.im/acme/m", "--function", "predict:run"],
        ["--function", "predict:run", "--url", "http://localhost:5000"],
        ["--function", "predict:run", "--runpod-handler", "MODEL/handler.py"],
    ],
)
def test_a_worker_has_one_model(model: Path, started: list[WorkerOptions], args: list[str]) -> None:
    (model / "handler.py").touch()
    result = _invoke(*GIVEN, *[arg.replace("MODEL", str(model)) for arg in args])
    assert result.exit_code == 2
    assert "one model" in result.output
    assert started == []


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--function", "predict.py:run"], "such as predict:run"),
        (["--function", "predict"], "module:name"),
        (["--function", "my-module:run"], "module:name"),
        (["--function", "predict:run()"], "module:name"),
        (["--runpod-handler", "absent.py"], "does not exist"),
        (["--function", "predict:run", "--python", "/nowhere/python"], "is no program"),
        (["--url", "http://localhost:5000", "--python", "python3"], "that the worker starts itself"),
        (["--image", "r8.im/acme/m", "--python", "python3"], "that the worker starts itself"),
        (["--function", "predict:run", "--gpus", "all"], "for an --image"),
        (["--function", "predict:run", "--tag", "two words"], "--tag"),
        (["--function", "predict:run", "--region", "a" * 201], "--region"),
    ],
)
def test_mistakes_about_the_model_are_explained(started: list[WorkerOptions], args: list[str], problem: str) -> None:
    result = _invoke(*GIVEN, *args)
    assert result.exit_code == 2
    assert problem in re.sub(r"\s+", " ", result.output)
    assert started == []


def test_a_function_is_a_source(model: Path, started: list[WorkerOptions], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model)
    result = _invoke(*GIVEN, "--function", "pack.age:model.run", "--region", "home", "--tag", "fast", "--tag", "fast")
    assert (result.exit_code, result.output) == (0, "")
    [options] = started
    assert options.source == FunctionSource("pack.age:model.run", model, None)
    assert (options.region, options.tags) == ("home", ("fast",))


def test_a_handler_is_a_source(model: Path, started: list[WorkerOptions]) -> None:
    handler, python = model / "handler.py", model / "bin" / "python"
    handler.touch()
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    result = _invoke(*GIVEN, "--runpod-handler", str(handler), "--python", str(python))
    assert (result.exit_code, result.output) == (0, "")
    assert started[0].source == HandlerSource(handler, python)


def test_an_interpreter_is_found_by_its_name(
    model: Path, started: list[WorkerOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    python = model / "bin" / "python3.0"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(python.parent))
    assert _invoke(*GIVEN, "--python", "python3.0", str(model)).exit_code == 0
    assert started[0].source == FolderSource(model, python)


def test_inside_an_image_a_folder_needs_no_cog_yaml(
    tmp_path: Path, started: list[WorkerOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COG_PREDICT_TYPE_STUB", "predict.py:Predictor")
    assert _invoke(*GIVEN, "--python", sys.executable, str(tmp_path)).exit_code == 0
    assert started[0].source == FolderSource(tmp_path, Path(sys.executable))
    assert "no cog.yaml" in _invoke(*GIVEN, str(tmp_path)).output


def test_the_environment_and_a_token_file_will_do(model: Path, started: list[WorkerOptions]) -> None:
    file = model / "token"
    file.write_text(" first \n")
    result = _invoke("--model", "acme/m", "--token-file", str(file), str(model), COGFLARE_SERVER=SERVER)
    assert (result.exit_code, result.output) == (0, "")
    [options] = started
    assert (options.owner, options.model, options.source, options.server.base) == (
        "acme",
        "m",
        FolderSource(model),
        SERVER,
    )
    assert options.token() == "first"
    file.write_text("second")
    assert options.token() == "second"
    file.unlink()
    assert options.token() == "second"


def test_a_state_folder_that_cannot_be_is_an_error(model: Path) -> None:
    blocked = model / "file"
    blocked.write_text("")
    result = _invoke("--model", "acme/m", "--server", SERVER, "--token", "t", "--state", str(blocked / "x"), str(model))
    assert result.exit_code == 1
    assert "cannot keep its state" in result.output


def test_a_model_that_cannot_be_set_up_ends_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handlers = signal.getsignal(signal.SIGTERM)
    args: list[Any] = ["--model", "acme/m", "--server", SERVER, "--token", "t", "--state", str(tmp_path / "state")]
    (tmp_path / "cog.yaml").write_text("predict: [not, a, predictor]\n")
    result = _invoke(*args, "--cache", str(tmp_path / "cache"), str(tmp_path))
    assert result.exit_code == 1
    assert signal.getsignal(signal.SIGTERM) == handlers
