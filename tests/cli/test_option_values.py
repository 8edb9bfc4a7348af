"""What people mistype: each is refused with words that say what it should have been, never with a traceback."""

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from cogflare.cli import worker as run
from cogflare.cli.main import cogflare
from cogflare.cli.optionvalues import Line, Number, Whole

LONG = "x" * 5000
HERE = ["--server", "http://h", "--model", "me/m", "--token", "t"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and things that are none; no worker is started from here."""

    async def run_worker(options: Any) -> int:
        return 0

    monkeypatch.setattr(run, "run_worker", run_worker)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "cog.yaml").write_text("predict: predict.py:Predictor\n")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").touch()
    return tmp_path


def said(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(cogflare, words, env={"COGFLARE_SERVER": None, "COGFLARE_WORKER_TOKEN": None})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert len(result.output) < 1000, "what was given is not repeated at length"
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.parametrize("value", ["", "x", "1.5", "nan", "-1", "0", "10001", "9" * 5000, LONG])
def test_whole_numbers(value: str) -> None:
    code, text = said("worker", "model", *HERE, "--slots", value)
    assert code == 2
    assert "is no whole number" in text or "is not a whole number from 1 to 10000" in text


@pytest.mark.parametrize("value", ["", "x", "nan", "inf", "-inf", "1e400", "-1", "1e15"])
def test_numbers(value: str) -> None:
    code, text = said("worker", "model", *HERE, "--keep-model", value)
    assert code == 2
    assert "is no number" in text or "is not a number from 0 to 31536000" in text


@pytest.mark.parametrize("value", ["", "x", "nan", "0", "-1", "1e9"])
def test_gigabytes(value: str) -> None:
    code, text = said("models", "set", "me/m", "--min-vram-gb", value)
    assert code == 2
    assert "is no number" in text or "is not a number above 0, at most 100000" in text


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("--name", "a\nb", "is not one line of up to 100 characters"),
        ("--region", LONG, "is not one line of up to 200 characters"),
        ("--tag", "two words", "is no tag: letters, digits and"),
        ("--tag", "", "is no tag"),
        ("--model", LONG, "is not of the form owner/name"),
        ("--server", LONG, "this is not the address of a server"),
        ("--server", "http://h:99999", "is not the address of a server"),
        ("--token-file", "bytes", "was it copied whole?"),
        ("--token-file", "empty", "the --token-file empty holds no token"),
    ],
)
def test_about_the_worker(option: str, value: str, problem: str) -> None:
    code, text = said("worker", "model", *HERE, option, value)
    assert code == 2
    assert problem in text


def test_too_many_tags() -> None:
    code, text = said("worker", "model", *HERE, *(word for n in range(40) for word in ("--tag", f"t{n}")))
    assert (code, "40 tags are too many: 32 at most" in text) == (2, True)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["nowhere"], "the folder 'nowhere' does not exist"),
        (["empty"], "'empty' is a file; what is in a file is run with --runpod-handler FILE or --function MODULE:NAME"),
        (["--url", "http://[::1"], "is not the address of a Cog server; it looks like http://localhost:5000"),
        (["--url", "http://h:0"], "is not the address of a Cog server"),
        (["--url", "http://me:hidden@h"], "this is not the address of a Cog server"),
        (["--function", LONG], "is not of the form module:name"),
        (["--image", "r8.im/Owner/Model"], "is not the name of an image: it has no capital letters"),
        (["--image", "https://r8.im/a/b"], "it looks like r8.im/owner/model"),
        (["--image", "a@sha256:12"], "is not the name of an image"),
        (["--image", LONG], "is not the name of an image"),
        (["--image", "a", "--memory", "9999999999t"], "is no size"),
        (["--image", "a", "--gpus", LONG], "is not all, none, or numbers"),
        (["--image", "a", "-v", "/x:/y:zz"], "is not of the form source:/path"),
        (["--image", "a", "-v", "/x:/y:ro:ro"], "is not of the form source:/path"),
    ],
)
def test_about_the_model(words: list[str], problem: str) -> None:
    code, text = said("worker", *words, *HERE)
    assert code == 2
    assert problem in text
    assert "hidden" not in text


@pytest.mark.parametrize(
    "words",
    [
        ["--url", "localhost:5000"],
        ["--image", "localhost:5000/a/b_c:1.0_x"],
        ["--image", f"r8.im/a/b@sha256:{'0' * 64}"],
        ["--image", "ubuntu"],
        ["--image", f"sha256:{'0' * 64}"],
        ["--image", "a", "-v", "weights:/w:ro,nocopy", "-v", "/x:/y:rw"],
        ["model", "--name", " attic ", "--keep-model", "0"],
    ],
)
def test_what_is_right_is_taken(words: list[str]) -> None:
    assert said("worker", *words, *HERE) == (0, "")


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("--connections", "9" * 30, "is not a whole number from 1 to 1000000"),
        ("--expires-in", "99999d", "is longer than a hundred years"),
        ("--account", "a b", "is no name of an account: letters, digits and . _ -"),
        ("--name", "", "is not one line of 1 to 100 characters"),
        ("--model", LONG, "is not of the form owner/name or owner/*"),
    ],
)
def test_about_a_token(option: str, value: str, problem: str) -> None:
    code, text = said("tokens", "create", "--kind", "worker", "--name", "n", option, value)
    assert code == 2
    assert problem in text


def test_bounds_are_within() -> None:
    context = click.Context(click.Command("x"))
    assert [Whole(1, 2).convert(text, None, context) for text in ("1", "2")] == [1, 2]
    assert Number(0, is_open=True).convert("0.001", None, context) == 0.001
    assert Line(3).convert(" abc ", None, context) == "abc"
    with pytest.raises(click.BadParameter, match="is not a whole number from 1 on"):
        Whole(1).convert("0", None, context)
    with pytest.raises(click.BadParameter, match=r"above 0$"):
        Number(0, is_open=True).convert("0", None, context)
