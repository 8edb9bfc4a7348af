"""Places of providers, once a module, and a rig at each of them."""

from collections.abc import AsyncIterator, Iterator

import pytest

from providers.rig import CogflarePlace, HiddenPlace, Place, Rig
from providers.runpod_place import RunPodPlace
from support.processes import Server, Stage
from support.runpod import RunPod


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage(tmp_path_factory.mktemp("stage")) as stage:
        yield stage


@pytest.fixture(scope="module")
def server(stage: Stage) -> Server:
    """A server with workers of the models single and text, and without one of the model iterator, which it knows."""
    server = stage.server()
    cold = stage.scripted(server, "iterator").connected()
    workers = [stage.scripted(server, "single", slots=4), stage.scripted(server, "text", slots=4)]
    cold.end()
    for worker in workers:
        worker.connected()
    return server


@pytest.fixture(scope="module")
def cogflare(stage: Stage, server: Server) -> Iterator[CogflarePlace]:
    place = CogflarePlace(stage, server)
    with place.upstream:
        yield place


@pytest.fixture(scope="module")
def replicate(stage: Stage, server: Server) -> Iterator[HiddenPlace]:
    place = HiddenPlace(stage, server)
    with place.upstream:
        yield place


@pytest.fixture(scope="module")
def runpod() -> Iterator[RunPodPlace]:
    with RunPod() as runpod:
        yield RunPodPlace(runpod)


@pytest.fixture(params=["cogflare", "replicate", "runpod"])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    """A rig at each place: a fixture of the same name."""
    place: Place = request.getfixturevalue(str(request.param))
    rig = Rig(place)
    yield rig
    place.heal()
    await rig.client.aclose()
