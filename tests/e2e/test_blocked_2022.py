"""Workers of 2022 whose event loops are blocked for long: nobody answers, and nothing is lost."""

import httpx2
import pytest

from e2e.test_workers_2022 import create, runs, start
from support.processes import Stage


def test_a_run_that_blocks_its_worker_for_a_minute_ends_well(stage: Stage) -> None:
    """No ping is answered and nothing is read for 60 s; on the way its start, and at the end all of it, is seen."""
    server = stage.server(silence_s="1", close_grace_s="2", lease_s="5")
    start(stage, server)
    prediction = create(server, seconds=60, output="late")
    server.processing(prediction)
    ended = server.ended(prediction, deadline_s=90)
    assert (ended["status"], ended["output"]) == ("succeeded", "late")
    assert ended["metrics"]["predict_time"] == pytest.approx(60, abs=2)
    assert [attempt["outcome"] for attempt in server.attempts(prediction)] == ["succeeded"]
    assert runs(stage, prediction) == 1


def test_several_workers_of_a_model_blocked_at_once(stage: Stage) -> None:
    server = stage.server()
    for _ in range(3):
        start(stage, server)
    predictions = [create(server, seconds=2, files=[str(number)] * 3) for number in range(6)]
    for number, prediction in enumerate(predictions):
        ended = server.ended(prediction)
        assert [httpx2.get(url).text for url in ended["output"]] == [str(number)] * 3
        assert runs(stage, prediction) == 1
