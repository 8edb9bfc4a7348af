"""A worker and its server part for a while, in mid-prediction: what has to hold once they meet again.

All times of the link are the defaults. A second worker, which nothing is wrong with, stands by: it would take over what
was given up. The models yield text, which is never run again once it has been shown.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx2
from anyio.from_thread import start_blocking_portal

from cogflare.cli.verification.proxy import Proxy
from support.processes import Server, Stage, until
from support.scripted_worker import item, line

_STEP_S = 0.5
_BACK_S = 25.0  # the longest pause of a worker between two tries, and what a handshake may take
_GOES_ON_S = 10.0

Act = Callable[[], object]


class _Run:
    """Two predictions of one worker: one ends while server and worker are apart, one some time after."""

    def __init__(self, stage: Stage, server: Server, away_s: float, url: str = "") -> None:
        self._stage = stage
        self.server = server
        self.worker = stage.scripted(server, "text", slots=2, url=url).connected()
        self._steps = {self._create(seconds): _steps(seconds) for seconds in (away_s / 2, away_s + _GOES_ON_S)}
        for prediction in self._steps:
            until(lambda prediction=prediction: server.get(prediction)["output"], "output")  # type: ignore[misc]
        stage.scripted(server, "text", slots=2).connected()

    def _create(self, seconds: float) -> str:
        steps = _steps(seconds)
        return self.server.create("me/text", seconds=seconds, items=steps, log=steps)

    def check(self) -> None:
        """Check that the worker comes back soon, and that everything ended there, after one run of its model."""
        until(lambda: self.worker.state == "online", "worker that is back", _BACK_S)
        for prediction, steps in self._steps.items():
            shown = self.server.ended(prediction, 2 * _GOES_ON_S)
            assert (shown["status"], shown["error"]) == ("succeeded", None)
            assert shown["output"] == [item(index) for index in range(steps)]
            assert shown["logs"] == "".join(line(index) for index in range(steps))
            [attempt] = self.server.attempts(prediction)
            assert (attempt["worker"], attempt["outcome"]) == (self.worker.id, "succeeded")
            assert self._stage.pids(prediction) == [self.worker.pid]


def check_network_away(stage: Stage, away_s: float) -> None:
    """Take the network of a worker away: nobody is told, and what was under way arrives late or not at all."""
    server = _server(stage)
    with _network(server) as (url, cut, heal):
        run = _Run(stage, server, away_s, url)
        cut()
        time.sleep(away_s)
        assert run.worker.state == "away"
        heal()
        run.check()


def check_server_away(stage: Stage, away_s: float) -> None:
    """Take two servers away, one by a stop in order and one by a kill, and start them again where they were."""
    stopped, killed = runs = [_Run(stage, _server(stage), away_s) for _ in range(2)]
    assert stopped.server.stop() == 0
    killed.server.kill9()
    time.sleep(away_s)
    for run in runs:
        assert run.worker.is_running
        run.server.start()
    for run in runs:
        run.check()


def _server(stage: Stage) -> Server:
    return stage.server(heartbeat_s="5", silence_s="15", close_grace_s="15", lease_s="60")


@contextmanager
def _network(server: Server) -> Iterator[tuple[str, Act, Act]]:
    """Yield the URL of a network in front of the server, what cuts it, and what heals it."""
    proxy = Proxy("network")
    proxy.target = httpx2.URL(server.url).port
    with start_blocking_portal() as portal:
        portal.call(proxy.start)
        try:
            yield proxy.url, lambda: portal.call(proxy.cut), lambda: portal.call(proxy.heal)
        finally:
            portal.call(proxy.close)


def _steps(seconds: float) -> int:
    return int(seconds / _STEP_S)
