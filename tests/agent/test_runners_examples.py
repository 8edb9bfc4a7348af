"""The example models, run as a user runs them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cogflare.agent.runners.base import Finished, Log, Output
from cogflare.agent.runners.cogfolder import CogFolderRunner
from support.runners import MemorySink, Rig

pytestmark = pytest.mark.anyio

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
async def example(request: pytest.FixtureRequest, cog_cache: Path) -> AsyncIterator[Rig]:
    sink = MemorySink()
    rig = Rig(CogFolderRunner("examples", request.param, EXAMPLES / request.param, cog_cache, sink), sink)
    rig.offer = await rig.runner.setup(rig.setup_log.append)
    yield rig
    await rig.runner.close()


@pytest.mark.parametrize("example", ["cppn"], indirect=True)
async def test_cppn_paints_from_coarse_to_fine(example: Rig) -> None:
    events = await example.events({"prompt": "light on the river", "seed": 1, "width": 128, "height": 96, "frames": 3})
    frames = [event.item for event in events if isinstance(event, Output)]
    assert [frame.rpartition(":")[2] for frame in frames] == ["output-0.png", "output-1.png", "output-2.png"]
    for frame in frames:
        assert example.sink.files[frame][16:24] == (128).to_bytes(4, "big") + (96).to_bytes(4, "big")
    log = "".join(event.text for event in events if isinstance(event, Log))
    assert log.startswith("seed 1\n")
    assert "100%" in log


@pytest.mark.parametrize("example", ["cppn"], indirect=True)
async def test_cppn_paints_the_same_for_the_same_seed(example: Rig) -> None:
    request = {"prompt": "a", "seed": 4, "width": 64, "height": 64, "frames": 1}
    pictures = []
    for number in range(2):
        end = (await example.events(request, id=f"p{number}"))[-1]
        assert isinstance(end, Finished)
        pictures.append(example.sink.files[end.output[0]])
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize("example", ["markov"], indirect=True)
async def test_markov_streams_words(example: Rig) -> None:
    events = await example.events({"prompt": "The machine", "max_tokens": 30, "seed": 2, "delay_ms": 1})
    end = events[-1]
    assert isinstance(end, Finished)
    assert end.status == "succeeded"
    assert [event.item for event in events if isinstance(event, Output)] == end.output
    assert len(end.output) == 30
    assert end.metrics["output_token_count"] == 30
    assert "read 2" in "".join(example.setup_log)
