"""Predictions that overflow to an endpoint of RunPod: a real worker of its package behind a queue on this machine."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from support.processes import Server, Stage, until
from support.runpod import KEY, RunPod

NOBODY = {"idle": 0, "initializing": 0, "ready": 0, "running": 0, "throttled": 0, "unhealthy": 0}
GPU_FREE_S = 2.0


@pytest.fixture(scope="module")
def runpod() -> Iterator[RunPod]:
    with RunPod() as runpod:
        runpod.worker("plain", "plain")
        runpod.worker("parts", "generator")
        yield runpod


def overflowing(stage: Stage, runpod: RunPod, model: str = "me/single", **options: Any) -> Server:
    """Start a server that knows the platform, and send the predictions of a model to an endpoint."""
    server = stage.server(outgoing_networks="127.0.0.0/8")
    stage.plant(KEY)
    order = {"kind": "runpod", "base_url": runpod.url, "key": KEY, "price_per_s": 0.01}
    assert server.ask("PUT", "/v1/providers/runpod", json=order)["check"]["ok"]
    route(server, model, endpoint="plain", **options)
    return server


def route(server: Server, model: str = "me/single", **options: Any) -> None:
    server.ask("PUT", f"/v1/models/{model}/route", json={"route": ["workers", {"runpod": options}]})


def receipt(server: Server, prediction: str) -> Any:
    return server.ask("GET", f"/v1/predictions/{prediction}/receipt")


def test_a_model_of_nobody_runs_at_an_endpoint(stage: Stage, runpod: RunPod) -> None:
    server = overflowing(stage, runpod)
    shown = server.ended(server.create(output={"a": ["ü", None]}, seconds=0.2, progress=["half"]))
    assert (shown["status"], shown["output"], shown["logs"]) == ("succeeded", {"a": ["ü", None]}, "half\n")
    [attempt] = receipt(server, shown["id"])["attempts"]
    assert (attempt["place"], attempt["name"]) == ("provider", "runpod")
    assert 0.2 <= attempt["run_s"] < 20
    assert attempt["cost"] == pytest.approx(attempt["run_s"] * 0.01, rel=0.01)
    failed = server.ended(server.create(fail="CUDA out of memory"))
    assert (failed["status"], failed["error"]) == ("failed", "CUDA out of memory")


def test_parts_are_shown_while_it_runs(stage: Stage, runpod: RunPod) -> None:
    server = overflowing(stage, runpod, "me/parts")
    route(server, "me/parts", endpoint="parts")
    prediction = server.create("me/parts", parts=["a", "b", "c"], seconds=0.7)
    until(lambda: server.get(prediction)["output"], "part")
    assert server.get(prediction)["status"] == "processing"
    assert server.ended(prediction)["output"] == ["a", "b", "c"]


def test_a_cancel_frees_the_gpu_of_the_endpoint(stage: Stage, runpod: RunPod) -> None:
    server = overflowing(stage, runpod)
    prediction = server.create(seconds=600)
    server.processing(prediction)
    before = time.monotonic()
    server.ask("POST", f"/v1/predictions/{prediction}/cancel")
    jobs = runpod.endpoint("plain").jobs
    until(lambda: all(job.is_over for job in jobs.values()), "end of the job")
    assert time.monotonic() - before < GPU_FREE_S
    assert list(jobs.values())[-1].status == "CANCELLED"


def test_a_run_goes_on_there_while_the_server_is_away_and_is_not_made_again(stage: Stage, runpod: RunPod) -> None:
    server = overflowing(stage, runpod)
    prediction = server.create(seconds=2, output="found again")
    server.processing(prediction)
    jobs = len(runpod.endpoint("plain").jobs)
    server.kill9()
    # The route names another endpoint when it comes back; the run is followed where it is.
    server.start()
    route(server, endpoint="elsewhere")
    assert server.ended(prediction)["output"] == "found again"
    assert len(runpod.endpoint("plain").jobs) == jobs
    assert len(server.attempts(prediction)) == 1


def test_an_endpoint_without_workers_is_told_and_not_waited_for(stage: Stage, runpod: RunPod) -> None:
    server = overflowing(stage, runpod, "me/nobodys")
    runpod.endpoint("dead").counts = NOBODY
    stage.scripted(server, name="own").connected()
    server.processing(kept := server.create(seconds=600))
    for model in ("me/single", "me/nobodys"):
        route(server, model, endpoint="dead")
    mine, nobodys = server.create(output="at home"), server.create("me/nobodys")
    for endpoint, ok, text in (("dead", False, "has no workers"), ("plain", True, "1 idle")):
        check = server.ask("POST", f"/v1/providers/runpod/check?endpoint={endpoint}")["check"]
        assert check["ok"] is ok
        assert text in check["text"]
    until(lambda: server.attempts(mine), "try at the endpoint")
    server.ask("POST", f"/v1/predictions/{kept}/cancel")
    assert server.ended(mine)["output"] == "at home"
    failed = server.ended(nobodys)
    assert failed["status"] == "failed"
    assert "the endpoint dead has no workers" in failed["error"]
    assert not runpod.endpoint("dead").jobs
