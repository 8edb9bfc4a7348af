"""Images of Cog before coglet as workers, through a real server and a real Docker daemon."""

from __future__ import annotations

import io

import pytest
from replicate.client import Client

from support.docker import Dockerd, wardens
from support.oldcog import load_old_image
from support.processes import Stage, Worker, until


class OldImages:
    """Starts workers of old images in the daemon."""

    def __init__(self, stage: Stage, daemon: Dockerd) -> None:
        self.server = stage.server()
        self.daemon = daemon
        self._stage = stage

    def start(self, release: str, model: str) -> Worker:
        """Start `cogflare worker --image` for a model of that release; return once it is connected."""
        words = ("--image", load_old_image(self.daemon, release, model))
        environment = {"DOCKER_HOST": self.daemon.url}
        worker = self._stage.worker(self.server, f"me/{model}", words, name="gpu", environment=environment)
        return worker.connected()


@pytest.fixture
def old(stage: Stage, dockerd: Dockerd) -> OldImages:
    return OldImages(stage, dockerd)


@pytest.mark.parametrize("release", ["0.6.1", "0.8.6", "0.16.12"])
def test_the_official_client_sends_and_gets_files(old: OldImages, release: str) -> None:
    worker, server = old.start(release, "files"), old.server
    client = Client(api_token=server.token(), base_url=server.url)
    file = client.files.create(io.BytesIO(b"an old container"), filename="input.txt")
    output = client.run("me/files", input={"source": file.urls["get"], "copies": 1}, use_file_output=False)
    version = client.models.get("me/files").latest_version
    client._client.close()
    assert isinstance(output, dict)
    assert server.http.get(output["single"], follow_redirects=True).content == b"AN OLD CONTAINER"
    assert server.http.get(output["many"][0], follow_redirects=True).content == b"AN OLD CONTAINER\0"
    assert version is not None
    assert version.cog_version == release
    assert "source" in version.openapi_schema["components"]["schemas"]["Input"]["properties"]
    worker.end()
    assert old.daemon.containers() == []


def test_a_run_is_seen_canceled_and_outlives_its_worker(old: OldImages) -> None:
    worker, server = old.start("0.9.26", "sleeper"), old.server
    first = server.create("me/sleeper", seconds=60)
    until(lambda: "asleep" in (server.get(first)["logs"] or ""), "prediction that runs")
    server.ask("POST", f"/v1/predictions/{first}/cancel")
    assert server.ended(first)["status"] == "canceled"
    second = server.create("me/sleeper", seconds=5)
    until(lambda: "asleep" in (server.get(second)["logs"] or ""), "prediction that runs")
    (container,) = before = old.daemon.containers()
    worker.kill9()
    after = old.start("0.9.26", "sleeper")
    assert old.daemon.containers() == before, "the container goes on"
    shown = server.ended(second)
    assert (shown["status"], shown["output"], shown["logs"]) == ("succeeded", "rested", "asleep\n")
    assert len(server.attempts(second)) == 1
    after.end()
    assert old.daemon.containers() == []
    until(lambda: not wardens(container), "end of what saw to the container")
