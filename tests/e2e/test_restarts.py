"""Restarts under clients that know nothing of it: Replicate's own, in `run()`, on a socket that outlives the server.

The socket is held by this process, as systemd holds it for a unit with socket activation: who connects while no server
runs waits in the backlog. A stop in order answers what is under way and closes each connection with an answer that
says so. A kill cannot: a client whose request was being answered at that moment sees its connection break, and
Replicate's client raises that; all others notice nothing.
"""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from replicate.client import Client

from support.processes import Server, Stage, until

CLIENTS = 100
_PAUSE_S = 1.5


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        yield listener


@pytest.fixture
def server(stage: Stage, listener: socket.socket) -> Server:
    """A server on that socket, with a worker that has room for everybody."""
    server = stage.server(listener=listener)
    stage.scripted(server, slots=CLIENTS + 10).connected()
    return server


class Callers:
    """Clients that call `run()`, each in a thread of its own and over a connection of its own."""

    def __init__(self, server: Server) -> None:
        self._url, self._token = server.url, server.token()
        self._over = threading.Event()
        self._threads = ThreadPoolExecutor(CLIENTS + 10)

    def __enter__(self) -> "Callers":
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._threads.shutdown()

    def run_long(self) -> list[Future[Any]]:
        """Let each run one prediction of some seconds; half of them hold the create's connection, half poll."""
        return [
            self._threads.submit(self._run, seconds=8 + number % 6, output=number, wait=number % 2 == 0)
            for number in range(CLIENTS)
        ]

    def run_short(self) -> list[Future[int]]:
        """Let ten run one short prediction after the other until `finish`; the results count them."""
        return [self._threads.submit(self._again_and_again, number) for number in range(10)]

    def finish(self, futures: list[Future[int]]) -> int:
        """End the short runs, and return how many there were; raises what a client raised."""
        self._over.set()
        return sum(future.result() for future in futures)

    def _again_and_again(self, number: int) -> int:
        client, count = Client(api_token=self._token, base_url=self._url), 0
        with client._client:
            while not self._over.is_set():
                count += 1
                answer = client.run("me/single", input={"seconds": 0.1, "output": [number, count]})
                assert answer == [number, count]
        return count

    def _run(self, *, seconds: float, output: int, wait: bool) -> Any:
        client = Client(api_token=self._token, base_url=self._url)
        # Those who waited for the same server would go on in step.
        client.poll_interval += output / 200
        with client._client:
            return client.run("me/single", input={"seconds": seconds, "output": output}, wait=wait)


def wait_until_all_run(stage: Stage) -> None:
    """Wait until the long predictions run."""
    until(lambda: len(stage.runs()) >= CLIENTS, "predictions of all clients")


def check_ran_once(stage: Stage, server: Server) -> None:
    """Check that every prediction succeeded after one run of its model."""
    until(lambda: not any(worker["busy"] for worker in server.workers().values()), "free slots")
    assert set(stage.runs().values()) == {1}
    for prediction in stage.runs():
        assert server.get(prediction)["status"] == "succeeded"


def test_clients_notice_nothing_of_restarts_in_order(stage: Stage, server: Server) -> None:
    with Callers(server) as callers:
        results = callers.run_long()
        wait_until_all_run(stage)
        shorts = callers.run_short()
        for _ in range(3):
            time.sleep(_PAUSE_S)
            assert server.stop() == 0
            server.start()
        assert [future.result() for future in results] == list(range(CLIENTS))
        assert callers.finish(shorts) > 30
    check_ran_once(stage, server)


def test_a_kill_breaks_only_requests_that_are_being_answered(stage: Stage, server: Server) -> None:
    with Callers(server) as callers:
        results = callers.run_long()
        wait_until_all_run(stage)
        # The first ends the held creates: from then on everybody polls.
        for act in (server.stop, server.kill9, server.stop):
            time.sleep(_PAUSE_S)
            act()
            server.start()
        errors = [future.exception() for future in results]
        broken = [error for error in errors if error is not None]
        print(f"{len(broken)} of {CLIENTS} clients saw their connection break: {broken}")
        assert len(broken) <= CLIENTS // 4
        # Cut off in the middle: nobody was refused, and no answer was wrong.
        assert {type(error) for error in broken} <= {httpx.RemoteProtocolError, httpx.ReadError}
        for number, future in enumerate(results):
            assert errors[number] is not None or future.result() == number
    check_ran_once(stage, server)


def test_who_connects_while_no_server_runs_is_served_by_the_next(server: Server) -> None:
    server.stop()
    with ThreadPoolExecutor(20) as threads:
        waiting = [threads.submit(server.ask, "GET", "/v1/account") for _ in range(20)]
        time.sleep(_PAUSE_S)
        assert not any(future.done() for future in waiting)
        server.start()
        assert {future.result()["username"] for future in waiting} == {"me"}


def test_the_last_answers_of_a_server_close_their_connections(server: Server) -> None:
    with httpx.Client(headers={"Authorization": f"Bearer {server.token()}"}, trust_env=False) as client:
        order = {"input": {"seconds": 5}}
        with ThreadPoolExecutor(1) as threads:
            held = threads.submit(
                client.post,
                f"{server.url}/v1/models/me/single/predictions",
                json=order,
                headers={"Prefer": "wait=30"},
            )
            until(lambda: server.ask("GET", "/v1/predictions")["results"], "prediction")
            assert server.stop() == 0
            answer = held.result()
    assert (answer.status_code, answer.json()["status"]) == (201, "starting")
    assert answer.headers["connection"] == "close"


def test_a_wrong_fd_is_told(stage: Stage) -> None:
    with socket.socket() as unbound:
        for fd, reason in ((unbound.fileno(), "is no TCP socket that listens"), (0, "is no socket")):
            arguments = ["-m", "cogflare.cli", "serve", "--fd", str(fd), "--data", str(stage.folder / "data")]
            process = stage.spawn(f"wrong-{fd}", arguments, {}, [fd] if fd else [])
            assert process.join() == 1
            assert f"--fd {fd} {reason}" in process.log()
