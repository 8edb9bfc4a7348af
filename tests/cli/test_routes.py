"""`cogflare routes`: what a route means, where a fault in one is, and what a server keeps of it."""

import json

import pytest

from cli.conftest import Shell
from cogflare.cli.routes import place_in
from support.processes import Server, Stage

OVERFLOW = '["workers", {"replicate": {"when": "wait > 30s or no_workers", "budget_per_day": 5}}]'
KEY = "a-key-that-nobody-asks-for"


@pytest.fixture(scope="module")
def server(stage: Stage) -> Server:
    """A server whose account has a provider, of which nothing is there."""
    server = stage.server(outgoing_networks="127.0.0.0/8")
    order = {"kind": "replicate", "base_url": "http://127.0.0.1:9/v1", "key": stage.plant(KEY)}
    server.ask("PUT", "/v1/providers/replicate", json=order)
    return server


def test_check_says_what_each_place_means(shell: Shell) -> None:
    assert shell.ok("routes", "check", OVERFLOW).splitlines() == [
        "1. workers: your own workers, as soon as one has a free slot",
        "2. replicate: when wait > 30s or no_workers; at most $5.00 a day, then it waits for another place",
    ]
    options = (
        "[{replicate = {over_budget = 'refuse', budget_per_month = 2.5, price_per_s = 0.001, model = 'a/b',"
        " endpoint = 'e1', shape = 'cog'}}]"
    )
    assert shell.ok("routes", "check", options) == (
        "1. replicate: at any time; at most $2.50 a month, then new predictions are refused; counted as"
        " $0.0010 a second; called a/b there; at the endpoint e1; in the shape cog\n"
    )
    checked = json.loads(shell.ok("routes", "check", "classic", "--json"))
    assert [hop["name"] for hop in checked["hops"]] == ["workers", "replicate"]
    assert checked["missing"] == []
    missing = shell.run("routes", "check", '["workers", "nobody", "runpod"]')
    assert missing.exit_code == 2
    assert "`cogflare providers add nobody --kind …`" in missing.stderr
    assert "`cogflare providers add runpod`" in missing.stderr


def test_check_names_providers_that_are_not_there(shell: Shell) -> None:
    checked = shell.run("routes", "check", '["workers", "friend"]')
    assert checked.exit_code == 2
    assert "providers add friend" in checked.stderr
    alone = shell.run("routes", "check", "classic", COGFLARE_SERVER="http://127.0.0.1:9")
    assert alone.exit_code == 0
    assert "was not checked" in alone.stderr


@pytest.mark.parametrize(
    ("line", "under", "said"),
    [
        ('["workers", {"replicate": {"when": "wait > 30q"}}]', "q", "unknown unit"),
        ('["workers", {"replicate": {"wen": "busy"}}]', "wen", "unknown option"),
        ('["workers", {"replicate": {"when": "busy", "budget_per_day": "5"}}]', "budget_per_day", "amount"),
        ('["workers", "workers"]', '"workers"]', "stands twice"),
        ("['workers', {replicate = {when = 'queue > 3'}}]", "queue", "unknown name"),
        ('["workers", }', "}", "JSON"),
    ],
)
@pytest.mark.parametrize("command", [["check"], ["set", "me/single"], ["set", "--account-wide"]])
def test_a_fault_has_a_mark_under_it(shell: Shell, command: list[str], line: str, under: str, said: str) -> None:
    refused = shell.run("routes", *command, line)
    assert refused.exit_code == 2
    told = refused.stderr.splitlines()
    [number] = [index for index, text in enumerate(told) if text.strip() == "^"]
    assert told[number - 1][told[number].index("^") :].startswith(under)
    assert said in told[-1]


def test_a_fault_far_to_the_right_is_shown_in_its_surroundings(shell: Shell) -> None:
    line = '["workers", {"replicate": {"when": "' + "busy or " * 50 + 'bsy"}}]'
    told = shell.run("routes", "check", line).stderr.splitlines()
    assert max(map(len, told[:-1])) < 120
    assert told[3][told[3].index("^") :] == "^"
    assert told[2][told[3].index("^") :].startswith("bsy")


def test_places_that_cannot_be_found_have_no_mark() -> None:
    for place in ("policy", "somewhere", "[7].replicate"):
        assert place_in('["workers"]', place) is None
    assert place_in("[", "character 99") == 1


def test_routes_are_set_listed_shown_and_removed(shell: Shell) -> None:
    told = shell.run("routes", "set", "me/single", OVERFLOW)
    assert told.exit_code == 0, told.output
    assert told.stdout.startswith("1. workers: ")
    assert shell.run("routes", "set", "classic").stderr.startswith("all models without")
    listed = [line.split("\t")[:2] for line in shell.ok("routes", "list").splitlines()]
    assert [model for model, _ in listed] == ["all others", "me/single"]
    assert json.loads(listed[1][1]) == json.loads(OVERFLOW)
    assert shell.ok("routes", "show", "me/single").splitlines()[-1].startswith("2. replicate: when wait > 30s")
    other = shell.run("routes", "show", "me/other")
    assert "no route of its own" in other.stderr
    assert "no_workers or queued > workers" in other.stdout
    assert json.loads(shell.ok("routes", "show", "--json"))["model"] is None
    assert shell.run("routes", "remove").exit_code == 2
    for place in ("me/single", "--account-wide"):
        assert shell.run("routes", "remove", place).exit_code == 0
        assert shell.run("routes", "remove", place).exit_code == 2
    gone = shell.run("routes", "show", "me/single")
    assert gone.exit_code == 2
    assert "own workers" in gone.stderr
    assert "no routes" in shell.run("routes", "list").stderr


def test_what_the_server_refuses_is_said_in_its_words(shell: Shell) -> None:
    refused = shell.run("routes", "set", "me/single", '["workers", "nobody"]')
    assert refused.exit_code == 2
    assert "there is no provider nobody" in refused.stderr
    for words in (["me", "workers"], ["a/b", "workers", "more"], ["a/b", "workers", "--account-wide"]):
        assert shell.run("routes", "set", *words).exit_code == 2
