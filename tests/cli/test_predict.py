"""`cogflare predict` against a real server: what it prints, what it saves, how it ends."""

import json
import signal
from pathlib import Path

import pytest

from cli.conftest import Shell
from support.processes import Server, Stage, until, version_of
from support.runners import MODELS


def test_a_value_is_printed_and_everything_else_stays_beside(shell: Shell) -> None:
    result = shell.run("predict", "me/single", "-i", "output=hello", "-i", "log=2")
    assert (result.exit_code, result.stdout) == (0, "hello\n")
    assert "succeeded after" in result.stderr
    assert "prediction " in result.stderr
    assert result.stderr.count("log ") == 2 or len(result.stderr.splitlines()) >= 4


def test_text_is_printed_as_one(shell: Shell) -> None:
    result = shell.run("predict", "me/text", "-i", "items=3")
    final = json.loads(shell.ok("predictions", "list", "--limit", "1", "--json"))
    assert result.stdout == "".join(final["output"])
    assert len(final["output"]) == 3


def test_text_comes_while_it_is_made(shell: Shell) -> None:
    with shell.start("predict", "me/text", "-i", "items=40", "-i", "seconds=4") as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(30) == 130


def test_json_is_the_final_prediction(shell: Shell) -> None:
    final = json.loads(shell.ok("predict", "me/single", "-i", 'output={"a": [1, null]}', "--json"))
    assert (final["status"], final["output"]) == ("succeeded", {"a": [1, None]})


def test_a_version_can_be_named(shell: Shell) -> None:
    assert shell.ok("predict", f"me/single:{version_of('single')}", "-i", "output=x") == "x\n"
    assert shell.run("predict", f"me/single:{'0' * 64}").exit_code == 2


def test_a_failure_is_1_and_says_why(shell: Shell) -> None:
    result = shell.run("predict", "me/single", "-i", "fail=out of paint")
    assert result.exit_code == 1
    assert "failed" in result.stderr
    assert "out of paint" in result.stderr


def test_a_cancel_by_someone_else_is_3(shell: Shell) -> None:
    with shell.start("predict", "me/single", "-i", "seconds=60") as process:
        assert process.stderr is not None
        prediction = process.stderr.readline().split()[1]
        shell.server.processing(prediction)
        shell.ok("predictions", "cancel", prediction)
        assert process.wait(30) == 3


def test_ctrl_c_cancels(shell: Shell) -> None:
    with shell.start("predict", "me/single", "-i", "seconds=60") as process:
        assert process.stderr is not None
        prediction = process.stderr.readline().split()[1]
        shell.server.processing(prediction)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(30) == 130
    assert f"canceled: {prediction}" in said
    assert shell.server.ended(prediction)["status"] == "canceled"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["me/nothing"], "cogflare worker FOLDER --model me/nothing"),
        (["nothing"], "owner/name"),
        (["me/single", "-i", "output"], "key=value"),
        (["me/single", "-i", "colour=red"], "it has: seconds, items"),
        (["me/single", "-i", "items=many"], "a whole number"),
        (["me/single", "-i", "items=-1"], "- input.items: Must be greater than or equal to 0"),
        (["me/single", "-i", "file=@absent"], "cannot read absent"),
    ],
)
def test_what_is_refused(shell: Shell, arguments: list[str], words: str) -> None:
    result = shell.run("predict", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""


def test_no_wait_leaves_it_running(shell: Shell) -> None:
    prediction = shell.ok("predict", "me/single", "--no-wait").strip()
    assert shell.server.ended(prediction)["status"] == "succeeded"
    assert json.loads(shell.ok("predict", "me/single", "--no-wait", "--json"))["status"] == "starting"


def test_the_server_may_be_killed_meanwhile(tmp_path: Path) -> None:
    with Stage(tmp_path) as stage:
        server = stage.server()
        stage.scripted(server, "single").connected()
        shell = Shell(server, server.token())
        with shell.start("predict", "me/single", "-i", "seconds=3", "-i", "output=done") as process:
            assert process.stderr is not None
            assert process.stdout is not None
            server.processing(process.stderr.readline().split()[1])
            server.kill9()
            until(lambda: "the server is away" in (process.stderr.readline() if process.stderr else ""), "notice")
            server.start()
            assert process.stdout.read() == "done\n"
            assert process.wait(30) == 0


# --- files, made by a stock Cog server --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frames(stage: Stage, server: Server, cog_cache: Path) -> None:
    """Real workers of the models `frames` and `files`."""
    started = [stage.cog(server, f"me/{name}", MODELS / name, cog_cache) for name in ("frames", "files")]
    for worker in started:
        worker.connected()


@pytest.mark.usefixtures("frames")
def test_files_are_saved_beside_what_is_there(shell: Shell, tmp_path: Path) -> None:
    for _ in range(2):
        printed = shell.ok("predict", "me/frames", "-i", "count=2", "-o", "out").splitlines()
    saved = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert saved == ["output-0-2.png", "output-0.png", "output-1-2.png", "output-1.png"]
    path, url = printed[0].split("\t")
    assert (path, url.rpartition("/")[2]) == ("out/output-0-2.png", "output-0.png")
    assert Path(path).read_bytes() == b"\x89PNG\x00"


@pytest.mark.usefixtures("frames")
def test_json_saves_no_files_unless_told(shell: Shell, tmp_path: Path) -> None:
    final = json.loads(shell.ok("predict", "me/frames", "-i", "count=1", "--json"))
    assert len(final["output"]) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("frames")
def test_a_file_goes_in_and_files_come_out(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "quiet.txt").write_text("hush")
    printed = shell.ok("predict", "me/files", "-i", "source=@quiet.txt", "-i", "copies=1", "-o", "out")
    saved = [Path(line.split("\t")[0]) for line in printed.splitlines() if line.startswith("out/")]
    assert len(saved) == 2
    assert all(path.read_bytes().startswith(b"HUSH") for path in saved)
    assert '"text":"data:text/plain,not a file"' in printed


@pytest.mark.usefixtures("frames")
def test_a_folder_that_cannot_be_written(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    result = shell.run("predict", "me/frames", "-i", "count=1", "-o", "out/deep")
    assert result.exit_code == 1
    assert "was not saved in out/deep" in result.stderr
