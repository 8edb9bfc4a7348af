"""Cog images as workers, through a real server and a real Docker daemon: they survive, and leave nothing behind."""

from __future__ import annotations

import io
import signal
from collections.abc import Iterator

import pytest
from replicate.client import Client

from support.docker import Dockerd, image_of, wardens
from support.processes import Server, Stage, Worker, until


@pytest.fixture
def clean(dockerd: Dockerd) -> Iterator[Dockerd]:
    """A daemon in which a test has to leave no container."""
    yield dockerd
    left = dockerd.containers()
    for container in left:
        dockerd.remove(container)
    assert left == [], "containers were left behind"


class Images:
    """Starts workers of images in the daemon."""

    def __init__(self, stage: Stage, server: Server, daemon: Dockerd) -> None:
        self._stage, self._server, self._daemon = stage, server, daemon

    def start(self, model: str, *words: str, name: str = "gpu", **variables: str) -> Worker:
        """Start `cogflare worker --image` for a test model; return once it is connected."""
        words = ("--image", image_of(model), *words)
        environment = {"DOCKER_HOST": self._daemon.url, **variables}
        return self._stage.worker(self._server, f"me/{model}", words, name=name, environment=environment).connected()


@pytest.fixture
def images(clean: Dockerd, stage: Stage) -> Images:
    return Images(stage, stage.server(), clean)


@pytest.fixture
def server(images: Images) -> Server:
    return images._server


def test_the_official_client_runs_an_image_and_gets_its_files(images: Images, server: Server, clean: Dockerd) -> None:
    worker = images.start("echo")
    client = Client(api_token=server.token(), base_url=server.url)
    file = client.files.create(io.BytesIO(b"in a container"), filename="input.txt")
    output = str(client.run("me/echo", input={"source": file.urls["get"]}))
    client._client.close()
    assert server.http.get(output, follow_redirects=True).content == b"in a container"
    worker.end()
    assert "pulling" not in worker.log()
    assert clean.containers() == []


def test_a_killed_container_costs_no_prediction(images: Images, server: Server, clean: Dockerd) -> None:
    worker = images.start("sleeper")
    prediction = server.create("me/sleeper", seconds=2)
    until(lambda: "asleep" in (server.get(prediction)["logs"] or ""), "prediction that runs")
    (container,) = clean.containers()
    clean.kill(container)
    shown = server.ended(prediction, 60)
    assert (shown["status"], shown["output"]) == ("succeeded", "rested")
    assert [attempt["outcome"] for attempt in server.attempts(prediction)] == ["lost", "succeeded"]
    assert clean.containers() != [container]
    worker.end()
    assert clean.containers() == []


def test_the_worker_after_a_killed_one_goes_on_with_its_container(
    images: Images, server: Server, clean: Dockerd
) -> None:
    worker = images.start("sleeper")
    prediction = server.create("me/sleeper", seconds=6)
    until(lambda: "asleep" in (server.get(prediction)["logs"] or ""), "prediction that runs")
    (container,) = before = clean.containers()
    worker.kill9()
    after = images.start("sleeper")
    assert clean.containers() == before, "the container goes on"
    shown = server.ended(prediction)
    assert (shown["status"], shown["output"]) == ("succeeded", "rested")
    assert shown["logs"] == "asleep\n"
    assert len(server.attempts(prediction)) == 1
    after.end()
    assert clean.containers() == []
    until(lambda: not wardens(container), "end of what saw to the container")


def test_a_worker_that_is_stopped_twice_leaves_nothing(images: Images, server: Server, clean: Dockerd) -> None:
    worker = images.start("sleeper")
    server.create("me/sleeper", seconds=60)
    until(lambda: any(row["busy"] for row in server.workers().values()), "prediction that runs")
    worker.signal(signal.SIGINT)
    until(lambda: "drain" in worker.log() or "finish" in worker.log(), "word of the first signal")
    worker.signal(signal.SIGINT)
    assert worker.join() == 130
    assert clean.containers() == []


def test_a_variable_of_the_model_is_a_secret(images: Images, stage: Stage, clean: Dockerd) -> None:
    secret = stage.plant("hf_GuessMe0123456789")
    worker = images.start("noop", "--env", "HF_TOKEN", HF_TOKEN=secret)
    (container,) = clean.containers()
    assert f"HF_TOKEN={secret}" in clean.inspect(container)["Config"]["Env"]
    assert (stage.folder / "state" / "gpu").exists()
    worker.end()
