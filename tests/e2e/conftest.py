"""Stages for end-to-end tests: one of its own for a test that kills processes, one a module for those that do not."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.processes import Stage


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage(tmp_path) as stage:
        yield stage


@pytest.fixture(scope="module")
def shared_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage(tmp_path_factory.mktemp("stage")) as stage:
        yield stage
