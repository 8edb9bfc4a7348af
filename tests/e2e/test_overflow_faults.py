"""Overflow to a server that fails, and from one that is killed: each prediction ends once, and is paid for once."""

import signal
from collections.abc import Callable, Iterator

import pytest

from support.pairs import Pair
from support.processes import Server, Stage, until
from support.upstream import Create, Upstream

PREDICTIONS = 300
FAR_KILLS = 3


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """A proxy whose server is set by the test."""
    with Upstream("http://127.0.0.1:1") as upstream:
        yield upstream


def pair_behind(stage: Stage, upstream: Upstream, *, hidden: bool = False, slots: int = 1) -> Pair:
    """Return a pair whose far server, with a worker, is behind the proxy; `hidden`: as if it were Replicate."""
    far = stage.server(outgoing_networks="127.0.0.0/8")
    stage.scripted(far, name="far", slots=slots).connected()
    upstream.target, upstream.hidden = far.url, hidden
    pair = Pair(stage, far=far, via=upstream.url, kind="replicate" if hidden else "cogflare")
    pair.route("far")
    return pair


class Killer:
    """Kills the near server at a step of its first submit, and says when it has."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.is_done = False

    def kill(self, create: Create) -> None:
        """Kill it, once."""
        if not self.is_done:
            self._server.kill9()
            self.is_done = True

    def freeze(self, create: Create) -> None:
        """Stop its time, once: what arrives from now on is not read."""
        if not self.is_done:
            assert self._server.process is not None
            self._server.process.signal(signal.SIGSTOP)


def while_on_its_way(upstream: Upstream, killer: Killer) -> None:
    """The server is killed when its request has arrived, and goes on from there."""
    upstream.hooks["arrived"] = killer.kill


def while_it_is_lost(upstream: Upstream, killer: Killer) -> None:
    """The server is killed with its request, which is never passed on."""
    upstream.fail("cut", "create", times=1)
    upstream.hooks["arrived"] = killer.kill


def before_the_answer(upstream: Upstream, killer: Killer) -> None:
    """The other server has answered, and nobody is there any more to hear it."""
    upstream.hooks["answered"] = killer.kill


def before_the_save(upstream: Upstream, killer: Killer) -> None:
    """The answer has come to the machine, but not to the store."""
    upstream.hooks["answered"] = killer.freeze
    upstream.hooks["passed"] = killer.kill


@pytest.mark.parametrize("hidden", [False, True], ids=["cogflare", "replicate"])
@pytest.mark.parametrize("step", [while_on_its_way, while_it_is_lost, before_the_answer, before_the_save])
def test_a_kill_in_the_middle_of_a_submit_makes_one_run(
    stage: Stage, upstream: Upstream, step: Callable[[Upstream, Killer], None], hidden: bool
) -> None:
    pair = pair_behind(stage, upstream, hidden=hidden)
    killer = Killer(pair.near)
    step(upstream, killer)
    prediction = pair.near.create(output="once")
    until(lambda: killer.is_done, "kill")
    pair.near.start()
    shown = pair.near.ended(prediction, 60)
    assert (shown["status"], shown["output"]) == ("succeeded", "once")
    [run] = pair.far_runs()
    assert pair.remote_ids(prediction) == [run["id"]]


@pytest.mark.parametrize("is_saved", [False, True], ids=["before", "after"])
def test_a_kill_before_or_after_a_submit_makes_one_run(stage: Stage, upstream: Upstream, is_saved: bool) -> None:
    pair = pair_behind(stage, upstream)
    prediction = pair.near.create(seconds=1, output="once")
    if is_saved:
        until(lambda: pair.remote_ids(prediction), "id of the run")
    pair.near.restart()
    assert pair.near.ended(prediction)["output"] == "once"
    [run] = pair.far_runs()
    assert pair.remote_ids(prediction) == [run["id"]]


def test_a_server_that_is_killed_and_throttles_and_forgets_runs_everything_once(
    stage: Stage, upstream: Upstream
) -> None:
    pair = pair_behind(stage, upstream, slots=30)
    pair.add("far", upstream.url, "cogflare", max_concurrent=60)
    upstream.fail("busy", "create", share=0.1, retry_after_s=1)
    upstream.fail("busy", "poll", share=0.02, retry_after_s=1)
    for what in ("error", "late_error", "lose", "cut"):
        upstream.fail(what, "create", share=0.05)
    upstream.fail("error", "poll", share=0.05)
    upstream.fail("stale", "poll", share=0.2)
    made = []
    for number in range(PREDICTIONS):
        made.append(pair.near.create(seconds=0.3, log=3, output=number))
        if number % (PREDICTIONS // FAR_KILLS) == PREDICTIONS // FAR_KILLS // 2:
            pair.far.restart()
    for number, prediction in enumerate(made):
        shown = pair.near.ended(prediction, 120)
        assert (shown["status"], shown["output"]) == ("succeeded", number), shown["error"]
    upstream.heal()
    named = {remote for prediction in made for remote in pair.remote_ids(prediction)}
    runs = pair.far_runs()
    assert {run["id"] for run in runs} <= named
    assert len(runs) == PREDICTIONS
    assert all(run["status"] == "succeeded" for run in runs)


def test_what_a_status_that_goes_back_shows_is_not_shown(stage: Stage, upstream: Upstream) -> None:
    pair = pair_behind(stage, upstream)
    prediction = pair.near.create(seconds=2, log=10, output="done")
    until(lambda: len(pair.near.get(prediction)["logs"].splitlines()) > 3, "logs")
    upstream.fail("stale", "poll", share=0.5)
    lines, status = 0, list[str]()
    while not status or status[-1] == "processing":
        shown = pair.near.get(prediction)
        assert len(shown["logs"].splitlines()) >= lines
        lines = len(shown["logs"].splitlines())
        status.append(shown["status"])
    assert status[-1] == "succeeded"
    assert "starting" not in status


@pytest.mark.parametrize("price", [{"price_per_run": 0.01}, {"price_per_s": 0.05}], ids=["per run", "per second"])
def test_a_budget_of_ten_runs_is_not_passed_by_more_than_one(
    stage: Stage, upstream: Upstream, price: dict[str, float]
) -> None:
    pair = pair_behind(stage, upstream, slots=100)
    pair.add("far", upstream.url, "cogflare", max_concurrent=100, **price)
    pair.route([{"far": {"budget_per_day": 0.1}}])
    made = [pair.near.create(seconds=0.2) for _ in range(100)]

    def ended() -> int:
        return sum(pair.near.get(prediction)["status"] == "succeeded" for prediction in made)

    def is_spent() -> bool:
        why = pair.near.ask("GET", f"/v1/predictions/{made[-1]}?explain=1")["explanation"]
        spent = pair.near.ask("GET", "/v1/costs")["total"]["cost"]
        is_quiet = all(run["status"] == "succeeded" for run in pair.far_runs())
        return bool(why["code"] == "budget_exhausted" and spent > 0.085 and is_quiet)

    until(is_spent, "budget that is spent")
    count = len(pair.far_runs())
    assert 9 <= count <= 11
    until(lambda: ended() == count, "word of what ended there")
    # The day's budget is used up: what was on its way may still come, and no restart makes room for more.
    pair.near.restart()
    pair.near.create()
    until(is_spent, "budget that is spent")
    assert count <= len(pair.far_runs()) <= 11
    assert pair.near.ask("GET", "/v1/costs")["total"]["cost"] == pytest.approx(0.1, abs=0.02)
