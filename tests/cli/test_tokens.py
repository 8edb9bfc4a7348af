"""`cogflare tokens`: limits of a worker's token, and the line that makes a friend's machine a worker."""

import json
import re

import pytest

from cli.conftest import Shell
from cli.test_commands import rows

LINE = re.compile(r"curl -fsSL (http://\S+)/join \| sh -s -- (cfw_[0-9a-z]{40}) (\S+)")


def test_a_join_line_for_a_friend(admin: Shell) -> None:
    limits = (
        "--model",
        "me/single",
        "--model",
        "me/text",
        "--model",
        "lin/*",
        "--connections",
        "2",
        "--expires-in",
        "30d",
    )
    made = admin.run(
        "tokens", "create", "--kind", "worker", "--name", "a friend's", "--account", "me", *limits, "--join"
    )
    assert made.exit_code == 0, made.output
    lines = [LINE.fullmatch(line) for line in made.stdout.splitlines()]
    assert all(lines)
    assert [line[3] for line in lines if line] == ["me/single", "me/text"]
    assert {line[1] for line in lines if line} == {admin.server.url}
    secret = lines[0][2] if lines[0] else ""
    assert secret not in made.stderr
    listed = [json.loads(line) for line in admin.ok("tokens", "list", "--json").splitlines()]
    (token,) = [token for token in listed if token["name"] == "a friend's"]
    assert (token["models"], token["max_connections"]) == (["me/single", "me/text", "lin/*"], 2)
    shown = admin.ok("tokens", "show", token["id"])
    assert "me/single, me/text, lin/*" in shown
    assert "0 of at most 2" in shown
    assert secret not in shown
    assert json.loads(admin.ok("tokens", "show", token["id"], "--json")) == token | {"connections": 0}
    (row,) = [row for row in rows(admin.ok("tokens", "list")) if row[0] == token["id"]]
    assert row[-1] == "me/single; me/text; lin/*; 2 connections"


def test_without_a_named_model_the_line_has_a_place_for_it(admin: Shell) -> None:
    made = admin.run("tokens", "create", "--kind", "worker", "--name", "x", "--join")
    line = LINE.fullmatch(made.stdout.strip())
    assert line is not None
    assert line[3] == "OWNER/MODEL"
    told = json.loads(admin.ok("tokens", "create", "--kind", "worker", "--name", "x", "--join", "--json"))
    assert told["join_lines"] == [f"curl -fsSL {admin.server.url}/join | sh -s -- {told['token']} OWNER/MODEL"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--kind", "api", "--join"), "for tokens of workers"),
        (("--kind", "api", "--model", "a/b"), "for tokens of workers"),
        (("--kind", "worker", "--model", "noop"), "not of the form owner/name"),
        (("--kind", "worker", "--model", "*/*"), "not of the form owner/name"),
        (("--kind", "worker", "--connections", "0"), "--connections"),
    ],
)
def test_mistakes_are_explained(admin: Shell, arguments: tuple[str, ...], words: str) -> None:
    refused = admin.run("tokens", "create", "--name", "x", *arguments)
    assert refused.exit_code == 2
    assert words in refused.stderr
    assert refused.stdout == ""


def test_a_token_that_is_not_there(admin: Shell) -> None:
    assert admin.run("tokens", "show", "nothing").exit_code == 2
