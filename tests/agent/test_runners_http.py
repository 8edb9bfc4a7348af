"""What is special to a Cog server that somebody else runs, and to servers of other ages."""

from __future__ import annotations

import os
import signal

import pytest

from cogflare.agent.runners.base import Job, Log, RestartRefused, RunLost, SetupFailed
from cogflare.agent.runners.coghttp import CogHttpRunner
from cogflare.agent.runners.process import free_port
from support.runners import MemorySink, Offspring, Rigger

pytestmark = pytest.mark.anyio


async def test_a_restart_is_refused(http_rig: Rigger) -> None:
    model = await http_rig("noop")
    with pytest.raises(RestartRefused):
        await model.runner.restart()


async def test_a_server_that_is_not_there_fails_the_setup() -> None:
    runner = CogHttpRunner("acme", "none", f"http://127.0.0.1:{free_port()}", MemorySink(), reach_s=0.05)
    with pytest.raises(SetupFailed, match="does not answer"):
        await runner.setup(lambda text: None)
    await runner.close()


async def test_a_server_that_goes_away_loses_its_run(
    offspring: Offspring, http_rig: Rigger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cogflare.agent.runners.driver._WATCH_S", 0.1)
    model = await http_rig("sleeper")
    runs = model.runner.run(Job(id="p1", attempt=1, input={"seconds": 60}))
    async for event in runs:
        if isinstance(event, Log):
            break
    os.kill(offspring()[0], signal.SIGKILL)
    with pytest.raises(RunLost, match="does not answer"):
        assert all([isinstance(event, Log) async for event in runs])
    assert "does not answer" in await model.runner.wait_broken()
