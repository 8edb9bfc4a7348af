"""Fixtures of errands: a provider that is the test itself, and a node that has runs there."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cogflare.store.base import Database
from cogflare.store.open import open_database
from engine.far import Far, Node
from support.memory_blobs import MemoryBlobStore


@pytest.fixture
async def quick(tmp_path: Path) -> AsyncIterator[Database]:
    """Yield a database that never waits for the disk."""
    opened = open_database(f"sqlite:///{tmp_path}/quick.db?synchronous=off")
    await opened.migrate()
    yield opened
    await opened.aclose()


@pytest.fixture
def far() -> Far:
    return Far()


@pytest.fixture
async def node(quick: Database, far: Far) -> AsyncIterator[Node]:
    """Yield a node whose roles tick."""
    opened = Node(quick, far, MemoryBlobStore())
    opened.begin()
    yield opened
    await opened.halt()
