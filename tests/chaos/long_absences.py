"""Absences of minutes, which no daily run of the tests waits for: `make chaos`, or pytest with this file's name."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.absences import check_network_away, check_server_away
from support.processes import Stage


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage(tmp_path) as stage:
        yield stage


def test_the_server_is_away_for_five_minutes(stage: Stage) -> None:
    check_server_away(stage, 300)


@pytest.mark.parametrize("round_", range(3))
def test_the_network_of_a_worker_is_away_for_half_a_minute_again_and_again(stage: Stage, round_: int) -> None:
    """The pauses between its tries are drawn by lot."""
    check_network_away(stage, 30)
