"""Predictions that overflow from one server to another: what clients see of it, and what becomes of them."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import httpx2
from replicate.client import Client

from support.pairs import Pair
from support.processes import Server, Stage, until, version_of
from support.scripted_worker import item, line

ALWAYS = ["workers", {"far": {"when": "no_workers or busy"}}]
GPU_FREE_S = 2.0


def busy(stage: Stage, server: Server) -> str:
    """Start the only worker of a server, and a prediction that keeps it."""
    stage.scripted(server, name="own").connected()
    kept = server.create(seconds=600)
    server.processing(kept)
    return kept


def is_idle(server: Server) -> bool:
    """Say whether nothing runs on the workers of a server."""
    return all(worker["busy"] == 0 for worker in server.workers().values())


@contextmanager
def official(server: Server) -> Iterator[Client]:
    """Replicate's own client of a server."""
    client = Client(base_url=server.url, api_token=server.token())
    try:
        yield client
    finally:
        client._client.close()


def test_what_own_workers_have_no_room_for_runs_at_the_other_server(stage: Stage) -> None:
    pair = Pair(stage)
    stage.scripted(pair.far, name="far").connected()
    busy(stage, pair.near)
    pair.route(ALWAYS)
    prediction = pair.near.create(seconds=1, log=20, output="from afar")
    until(lambda: line(3) in pair.near.get(prediction)["logs"], "logs while it runs")
    assert pair.near.get(prediction)["status"] == "processing"
    shown = pair.near.ended(prediction)
    assert (shown["status"], shown["output"]) == ("succeeded", "from afar")
    assert shown["logs"] == "".join(line(number) for number in range(20))
    [run] = pair.far_runs()
    assert pair.remote_ids(prediction) == [run["id"]]
    receipt = pair.near.ask("GET", f"/v1/predictions/{prediction}/receipt")
    [attempt] = receipt["attempts"]
    assert (attempt["place"], attempt["name"]) == ("provider", "far")
    assert attempt["run_s"] >= 1


def test_files_are_here_when_the_other_server_is_gone(stage: Stage) -> None:
    pair = Pair(stage)
    stage.scripted(pair.far, name="far").connected()
    pair.route("far")
    shown = pair.near.ended(pair.near.create(file="written far away"))
    pair.far.kill9()
    assert shown["status"] == "succeeded", shown["error"]
    assert shown["output"].startswith(pair.near.url)
    assert httpx2.get(shown["output"], trust_env=False).text == "written far away"


def test_a_cancel_frees_the_gpu_of_the_other_server(stage: Stage) -> None:
    pair = Pair(stage)
    far = stage.scripted(pair.far, name="far").connected()
    pair.route("far")
    prediction = pair.near.create(seconds=600)
    pair.near.processing(prediction)
    assert not is_idle(pair.far)
    assert pair.near.ask("POST", f"/v1/predictions/{prediction}/cancel")["status"] == "canceled"
    until(lambda: is_idle(pair.far), "free GPU")
    assert far.is_running
    [run] = pair.far_runs()
    assert run["status"] == "canceled"
    canceled = datetime.fromisoformat(pair.near.get(prediction)["completed_at"])
    freed = datetime.fromisoformat(pair.far.attempts(run["id"])[0]["slot_freed_at"])
    assert (freed - canceled).total_seconds() < GPU_FREE_S


def test_the_official_client_sees_no_difference(stage: Stage) -> None:
    pair = Pair(stage)
    for kind in ("single", "text"):
        stage.scripted(pair.far, kind, name=f"far-{kind}").connected()
        pair.route("far", f"me/{kind}")
    with official(pair.near) as client:
        assert client.run("me/single", input={"output": {"deep": [1, 2]}}) == {"deep": [1, 2]}
        assert "".join(client.run("me/text", input={"items": 20, "seconds": 0.5})) == "".join(map(item, range(20)))
        streamed = [str(event) for event in client.stream("me/text", input={"items": 20, "seconds": 1})]
    assert "".join(streamed) == "".join(map(item, range(20)))
    assert pair.near.ask("GET", "/v1/models/me/text")["latest_version"]["id"]


def test_a_version_that_only_the_other_server_has_is_found_by_its_bare_id(stage: Stage) -> None:
    """So the official client asks for `owner/name:version`."""
    pair = Pair(stage)
    stage.scripted(pair.far, name="far").connected()
    pair.route("far")
    with official(pair.near) as client:
        assert client.run(f"me/single:{version_of('single')}", input={"output": "by version"}) == "by version"
    unknown = pair.near.call("POST", "/v1/predictions", json={"version": "0" * 64, "input": {}})
    assert unknown.status_code == 422


def test_what_waits_at_a_cold_provider_comes_back_when_a_worker_is_free(stage: Stage) -> None:
    """The other server has no worker: the run waits there, is canceled there, and runs here, once."""
    pair = Pair(stage)
    far = stage.scripted(pair.far, name="far").connected()
    kept = busy(stage, pair.near)
    far.end()
    pair.route(ALWAYS)
    prediction = pair.near.create(output="at home")
    why = f"/v1/predictions/{prediction}?explain=1"
    until(lambda: pair.near.ask("GET", why)["explanation"]["code"] == "provider_cold", "run that waits there")
    pair.near.ask("POST", f"/v1/predictions/{kept}/cancel")
    shown = pair.near.ended(prediction)
    assert (shown["status"], shown["output"]) == ("succeeded", "at home")
    [run] = pair.far_runs()
    assert run["status"] in ("canceled", "aborted")
    assert [attempt["outcome"] for attempt in pair.near.attempts(prediction)] == ["lost", "succeeded"]
    assert stage.runs()[prediction] == 1


def test_a_prediction_goes_on_there_while_this_server_is_away(stage: Stage) -> None:
    pair = Pair(stage)
    stage.scripted(pair.far, name="far").connected()
    pair.route("far")
    prediction = pair.near.create(seconds=2, log=20, output="found again")
    pair.near.processing(prediction)
    pair.near.kill9()
    time.sleep(0.5)
    pair.near.start()
    shown = pair.near.ended(prediction)
    assert (shown["status"], shown["output"]) == ("succeeded", "found again")
    assert shown["logs"] == "".join(line(number) for number in range(20))
    assert len(pair.far_runs()) == 1
    assert len(pair.near.attempts(prediction)) == 1


def test_a_stop_in_order_leaves_runs_to_the_next_start(stage: Stage) -> None:
    pair = Pair(stage)
    stage.scripted(pair.far, name="far").connected()
    pair.route("far")
    prediction = pair.near.create(seconds=2, output="still there")
    pair.near.processing(prediction)
    assert pair.near.stop() == 0
    assert pair.far_runs()[0]["status"] == "processing"
    pair.near.start()
    assert pair.near.ended(prediction)["output"] == "still there"
    assert len(pair.far_runs()) == 1


def test_errors_of_the_other_server_are_passed_on_in_words(stage: Stage) -> None:
    pair = Pair(stage)
    stage.scripted(pair.far, name="far").connected()
    pair.route("far")
    shown = pair.near.ended(pair.near.create(fail="CUDA out of memory"))
    assert (shown["status"], shown["error"]) == ("failed", "CUDA out of memory")


def test_servers_that_send_to_each_other_do_not_go_round_for_ever(stage: Stage) -> None:
    pair = Pair(stage)
    worker = stage.scripted(pair.far, name="far").connected()
    pair.route("far")
    assert pair.near.ended(pair.near.create())["status"] == "succeeded"
    worker.end()
    # The far one has no workers any more, and sends to the near one.
    far = pair.far
    far.stop()
    far._settings["COGFLARE_OUTGOING_NETWORKS"] = "127.0.0.0/8"
    far.start()
    order = {"kind": "cogflare", "base_url": pair.near.url, "key": stage.plant(pair.near.token("api"))}
    far.ask("PUT", "/v1/providers/near", json=order)
    far.ask("PUT", "/v1/models/me/single/route", json={"route": ["near"]})
    before = len(pair.far_runs())
    prediction = pair.near.create()
    time.sleep(3)
    assert len(pair.far_runs()) - before <= 3
    pair.near.ask("POST", f"/v1/predictions/{prediction}/cancel")
    until(lambda: all(run["status"] not in ("starting", "processing") for run in pair.far_runs()), "end of the rest")


def test_a_signal_in_the_middle_of_an_overflow_changes_nothing(stage: Stage) -> None:
    """A node that is stopped and goes on finds its runs where they were."""
    pair = Pair(stage, lease_s="2")
    stage.scripted(pair.far, name="far", slots=4).connected()
    pair.route("far")
    predictions = [pair.near.create(seconds=2, output=number) for number in range(4)]
    for prediction in predictions:
        pair.near.processing(prediction)
    assert pair.near.process is not None
    pair.near.process.signal(signal.SIGSTOP)
    time.sleep(3)
    pair.near.process.signal(signal.SIGCONT)
    for number, prediction in enumerate(predictions):
        assert pair.near.ended(prediction)["output"] == number
    assert len(pair.far_runs()) == 4
