"""Limits in time and creates that are sent again, with real processes: servers that die, models that do not stop."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from replicate.client import Client
from replicate.exceptions import ModelError

from cogflare.api.wire import format_time
from support.processes import Stage, until

CREATE = "/v1/models/me/single/predictions"


@pytest.fixture
def client(stage: Stage) -> Iterator[Client]:
    """The official client of a server on which a model may run for one second."""
    server = stage.server(run_limit_s="1")
    stage.scripted(server, "single").connected()
    client = Client(api_token=server.token(), base_url=server.url)
    yield client
    client._client.close()


def test_a_model_that_does_not_stop_keeps_its_slot_and_no_more(stage: Stage, client: Client) -> None:
    with pytest.raises(ModelError) as failed:
        client.run("me/single", input={"seconds": 60, "stubborn": 2})
    assert failed.value.prediction.error == "Prediction ran longer than its limit of 1 s"
    assert client.run("me/single", input={"output": "next"}) == "next"
    entries = [json.loads(line) for line in stage.diary.read_text().splitlines()]
    runs = [(entry["event"], entry["prediction"]) for entry in entries]
    first, second = dict.fromkeys(prediction for _, prediction in runs)
    assert runs == [("begin", first), ("end", first), ("begin", second), ("end", second)]


def test_deadlines_are_kept_by_a_server_that_was_away(stage: Stage) -> None:
    server = stage.server()
    stage.scripted(server, "single").connected()
    after: dict[str, Any] = {"headers": {"Cancel-After": "5s"}, "json": {"input": {"seconds": 60}}}
    created = [server.ask("POST", CREATE, **after) for _ in range(2)]
    runs, waits = (one["id"] for one in created)
    server.processing(runs)
    server.kill9()
    until(lambda: format_time(time.time_ns() // 1000) > created[1]["deadline"], "deadlines")
    server.start()
    ended = {id: server.ended(id) for id in (runs, waits)}
    assert {id: (one["status"], one["error"]) for id, one in ended.items()} == {
        runs: ("canceled", None),
        waits: ("aborted", None),
    }
    assert all(one["completed_at"] >= one["deadline"] for one in ended.values())
    until(lambda: all(worker["busy"] == 0 for worker in server.workers().values()), "free slots")


def test_a_client_that_gives_up_waiting_and_asks_again_gets_the_same_prediction(stage: Stage) -> None:
    server = stage.server()
    stage.scripted(server, "single", slots=3).connected()
    body = {"input": {"seconds": 1.5, "output": "done"}}

    def send(number: int, patience_s: float) -> httpx2.Response:
        headers = {"Prefer": "wait", "X-Stainless-Retry-Count": str(number)}
        return server.call("POST", CREATE, json=body, headers=headers, timeout=patience_s)

    with pytest.raises(httpx2.ReadTimeout):
        send(0, 0.5)
    with pytest.raises(httpx2.ReadTimeout):
        send(1, 0.3)
    answer = send(2, 20)
    assert (answer.json()["status"], answer.json()["output"]) == ("succeeded", "done")
    assert [one["id"] for one in server.ask("GET", "/v1/predictions")["results"]] == [answer.json()["id"]]


def test_a_key_and_an_id_outlive_the_server(stage: Stage) -> None:
    server = stage.server()
    stage.scripted(server, "single").connected()
    body = {"input": {"seconds": 0.1}}
    keyed = server.ask("POST", CREATE, json=body, headers={"Idempotency-Key": "k"})
    named = server.ask("PUT", f"{CREATE}/job", json=body)
    server.restart()
    assert server.ask("POST", CREATE, json=body, headers={"Idempotency-Key": "k"})["id"] == keyed["id"]
    again = server.call("PUT", f"{CREATE}/job", json=body)
    assert (again.status_code, again.json()["id"]) == (200, named["id"])
    assert {server.ended(one["id"])["status"] for one in (keyed, named)} == {"succeeded"}
    assert len(server.ask("GET", "/v1/predictions")["results"]) == 2
