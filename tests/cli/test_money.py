"""`cogflare budgets` and `cogflare costs` against a real server."""

import json

import pytest

from cli.conftest import Shell
from cogflare.cli.money import money
from support.processes import Server, Stage, until

KEYS = {"since", "until", "results", "total", "saved"}


@pytest.fixture(scope="module")
def server(stage: Stage) -> Server:
    """A server with a worker, which may use others on this machine."""
    server = stage.server(outgoing_networks="127.0.0.0/8")
    stage.scripted(server, "single").connected()
    return server


def test_budgets_are_set_listed_and_removed(shell: Shell) -> None:
    token = shell.server.new_token("api")["id"]
    places = {
        "the account": [],
        "model me/single": ["--model", "me/single"],
        f"token {token} (test)": ["--of-token", token],
    }
    for place, options in places.items():
        told = shell.run("budgets", "set", "$2.50", "--per", "day", *options)
        assert told.exit_code == 0, told.output
        assert told.stderr == f"{place}: $2.50 a day, of which $2.50 is left now\n"
    rows = [line.split("\t") for line in shell.ok("budgets", "list").splitlines()]
    assert sorted(rows) == sorted([place, "day", "$2.50", "$0.00", "$0.00", "$2.50"] for place in places)
    one = json.loads(shell.ok("budgets", "set", "0.000001", "--per", "month", "--json"))
    assert (one["amount"], one["period"]) == (0.000001, "month")
    assert shell.run("budgets", "remove", "--per", "month").exit_code == 0
    for options in places.values():
        assert shell.run("budgets", "remove", "--per", "day", *options).exit_code == 0
        gone = shell.run("budgets", "remove", "--per", "day", *options)
        assert gone.exit_code == 2
        assert "budgets list" in gone.stderr
    assert "no budgets" in shell.run("budgets", "list").stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["five", "--per", "day"], "no amount"),
        (["-1", "--per", "day"], "No such option"),
        (["1e3", "--per", "day"], "no amount"),
        (["5000000000", "--per", "day"], "no amount"),
        (["5"], "--per"),
        (["5", "--per", "week"], "week"),
        (["5", "--per", "day", "--model", "single"], "owner/name"),
        (["5", "--per", "day", "--model", "a/b", "--of-token", "x"], "one of"),
        (["5", "--per", "day", "--of-token", "nobody"], "no token nobody"),
    ],
)
def test_what_is_no_budget_is_refused(shell: Shell, arguments: list[str], said: str) -> None:
    refused = shell.run("budgets", "set", *arguments)
    assert refused.exit_code == 2
    assert said in refused.stderr


def test_costs_of_an_account_that_has_spent_nothing(shell: Shell) -> None:
    told = shell.run("costs", "--since", "7d", "--by", "day,model,provider,token")
    assert told.exit_code == 0
    assert "nothing was run at providers" in told.stderr
    assert "spent:        $0.00 on 0 runs\n" in told.stdout
    found = json.loads(shell.ok("costs", "--by", "total", "--json"))
    assert found.keys() == KEYS
    assert found["results"] == []


def test_own_runs_are_counted_and_priced_once_a_price_is_known(shell: Shell) -> None:
    shell.ok("predict", "me/single", "-i", "output=mine", "--json")
    until(lambda: saved(shell)["runs"] == 1, "run that is counted")
    told = shell.ok("costs")
    assert "saved:        1 run on own workers; no price is known" in told
    order = {"kind": "replicate", "base_url": "http://127.0.0.1:9/v1", "key": "a-key-that-nobody-asks-for"}
    shell.server.ask("PUT", "/v1/providers/replicate", json={**order, "price_per_run": 0.25})
    shell.server.ask("PUT", "/v1/models/me/single/route", json={"route": "classic"})
    assert saved(shell)["amount"] == 0.25
    assert "saved:        $0.25 by 1 run on own workers\n" in shell.ok("costs")


def saved(shell: Shell) -> dict[str, float]:
    """Return what own workers saved."""
    found: dict[str, float] = json.loads(shell.ok("costs", "--json"))["saved"]
    return found


@pytest.mark.parametrize(
    "arguments", [["--by", "colour"], ["--since", "yesterday"], ["--since", "1h", "--until", "2h"]]
)
def test_what_cannot_be_asked_is_refused(shell: Shell, arguments: list[str]) -> None:
    assert shell.run("costs", *arguments).exit_code == 2


def test_amounts_are_written_for_people() -> None:
    amounts = [None, 0, 12.5, 1234567.891, 0.0005, 0.000725]
    assert [money(amount) for amount in amounts] == [
        "unknown",
        "$0.00",
        "$12.50",
        "$1,234,567.89",
        "$0.0005",
        "$0.000725",
    ]
