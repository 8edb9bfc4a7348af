"""`cogflare predictions why` and `receipt` against real servers, one of which overflows to the other."""

import json
import signal

import pytest

from cli.conftest import Shell
from support.pairs import Pair
from support.processes import Server, Stage, until


@pytest.fixture(scope="module")
def pair(stage: Stage) -> Pair:
    """A server with one slot of its own, and another server that it may use."""
    pair = Pair(stage)
    stage.scripted(pair.near, "single", name="own").connected()
    stage.scripted(pair.far, "text", name="far").connected()
    pair.route("far", "me/text")
    return pair


@pytest.fixture(scope="module")
def server(pair: Pair) -> Server:
    return pair.near


def test_why_says_the_reason_its_place_and_what_helps(shell: Shell, server: Server) -> None:
    running = server.create(seconds=600)
    server.processing(running)
    waiting = [server.create() for _ in range(2)]
    told = shell.ok("predictions", "why", waiting[1])
    assert told.splitlines()[0].startswith("The only slot of 1 worker is taken, and 1 comes before it.")
    for name, text in (("reason", "behind_n"), ("place", "2 of 2 that wait"), ("workers", "1 with 1 slot, 0 free")):
        assert f"{name + ':':<13} {text}\n" in told
    reason = json.loads(shell.ok("predictions", "why", waiting[0], "--json"))
    assert (reason["code"], reason["position"]) == ("all_busy", 1)
    assert "reason:       running\n" in shell.ok("predictions", "why", running)
    for prediction in (running, *waiting):
        shell.ok("predictions", "cancel", prediction)
    assert "reason:       ended\n" in shell.ok("predictions", "why", running)
    until(lambda: all(worker["busy"] == 0 for worker in server.workers().values()), "free slot")


def test_why_names_what_is_missing(shell: Shell, server: Server, stage: Stage) -> None:
    stage.scripted(server, "iterator", name="leaver").connected().end()
    waiting = server.create("me/iterator")
    told = shell.ok("predictions", "why", waiting)
    assert "reason:       no_worker_has_model\n" in told
    assert "cogflare worker --model me/iterator" in told
    shell.ok("predictions", "cancel", waiting)


def test_who_waits_for_a_prediction_is_told_why(shell: Shell, server: Server, stage: Stage) -> None:
    stage.scripted(server, "iterator", name="another").connected().end()
    with shell.start("predict", "me/iterator") as command:
        assert command.stderr is not None
        said = ""
        while "me/iterator" not in said.partition("cogflare worker")[2]:
            line = command.stderr.readline()
            assert line, said
            said += line
        command.send_signal(signal.SIGINT)
        command.communicate(timeout=30)
    for prediction in server.ask("GET", "/v1/predictions?status=starting")["results"]:
        shell.ok("predictions", "cancel", prediction["id"])


def test_a_receipt_shows_each_attempt_and_its_cost(shell: Shell, server: Server) -> None:
    prediction = server.create(output="x" * 5_000, seconds=0.1)
    server.ended(prediction)
    told = shell.ok("predictions", "receipt", prediction)
    assert "cost:         $0.00\n" in told
    assert "output:       4.9 KiB\n" in told
    [row] = [line.split("\t") for line in told.splitlines() if "\t" in line]
    assert row[:2] == ["1", "worker own"]
    assert row[6:8] == ["succeeded", "$0.00"]
    assert json.loads(shell.ok("predictions", "receipt", prediction, "--json"))["attempts"][0]["place"] == "worker"


def test_what_ran_elsewhere_says_so_everywhere(shell: Shell, server: Server, pair: Pair) -> None:
    """The model has never been here: its provider is asked for it when it is first to run."""
    ran = shell.run("predict", "me/text", "-i", "items=3", "--json")
    assert ran.exit_code == 0, ran.output
    prediction = json.loads(ran.stdout)["id"]
    told = until(lambda: _with_cost(shell, prediction), "settled errand")
    assert "cost:         unknown\n" in told
    [row] = [line.split("\t") for line in told.splitlines() if "\t" in line]
    assert row[1] == "provider far"
    [attempt] = [line.split("\t") for line in shell.ok("predictions", "attempts", prediction).splitlines()]
    assert attempt[1] == "far"
    spent = until(lambda: shell.run("costs", "--by", "provider,model").stdout.splitlines()[:-2], "line of costs")
    assert spent[0].split("\t")[:3] == ["me/text", "far", "1"]
    assert spent[0].endswith("\tunknown")
    assert "spent:        unknown on 1 run" in shell.ok("costs")


def test_a_request_may_wish_where_it_runs(shell: Shell, server: Server) -> None:
    kept = shell.ok("predict", "me/text", "-i", "items=1", "--route", "workers", "--no-wait").strip()
    assert json.loads(shell.ok("predictions", "why", kept, "--json"))["code"] == "no_worker_has_model"
    shell.ok("predictions", "cancel", kept)
    assert shell.run("predict", "me/text", "-i", "items=1", "--route", '["workers", "far"]').exit_code == 0
    for route, said in (("nobody", "no provider nobody"), ('["workers", {"far": {"wen": 1}}]', "^")):
        refused = shell.run("predict", "me/text", "--route", route)
        assert refused.exit_code == 2
        assert said in refused.stderr


def test_a_model_that_no_provider_has_is_refused_in_its_words(shell: Shell, pair: Pair) -> None:
    pair.route([{"far": {"model": "me/not-there"}}], "me/elsewhere")
    refused = shell.run("predict", "me/elsewhere", "-i", "items=1")
    assert refused.exit_code == 2
    assert "no provider of its route: far: there is no model me/not-there there" in refused.stderr


def test_over_budget_is_a_clear_refusal_or_a_wait(shell: Shell, pair: Pair) -> None:
    hop = {"price_per_run": 0.6, "budget_per_day": 1}
    before = json.loads(shell.ok("costs", "--json"))["total"]["cost"]
    pair.route([{"far": {**hop, "over_budget": "refuse"}}], "me/text")
    assert shell.run("predict", "me/text", "-i", "items=1").exit_code == 0
    refused = shell.run("predict", "me/text", "-i", "items=1")
    assert refused.exit_code == 2
    assert "HTTP 402" in refused.stderr
    assert "$1.00 a day does not cover another run" in refused.stderr
    assert "$0.60" in refused.stderr
    pair.route([{"far": hop}], "me/text")
    waiting = shell.server.create("me/text", items=1)
    until(lambda: "budget_exhausted" in shell.ok("predictions", "why", waiting), "reason")
    told = shell.ok("predictions", "why", waiting)
    assert "not used:     far: the budget that the route gives to far" in told
    assert "route:        nowhere (budget_exhausted)\n" in told
    pair.route([{"far": {**hop, "budget_per_day": 2}}], "me/text")
    assert shell.server.ended(waiting)["status"] == "succeeded"
    until(lambda: round(spent(shell) - before, 6) == 1.2, "cost of two runs")
    assert "cost:         $0.60\n" in shell.ok("predictions", "receipt", waiting)


def spent(shell: Shell) -> float:
    """Return what was spent in all."""
    return float(json.loads(shell.ok("costs", "--json"))["total"]["cost"])


def _with_cost(shell: Shell, prediction: str) -> str:
    """Return the receipt once its errand is over."""
    total = json.loads(shell.ok("costs", "--json"))["total"]
    return shell.ok("predictions", "receipt", prediction) if total["runs"] else ""


def test_what_is_not_there_is_said(shell: Shell) -> None:
    for command in ("why", "receipt"):
        missing = shell.run("predictions", command, "nothing")
        assert missing.exit_code == 2
        assert "predictions list" in missing.stderr
