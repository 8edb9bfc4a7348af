"""A node for each test of the API."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from api.node import Node
from cogflare.store.open import open_database


@pytest.fixture
async def node(new_url: Callable[[str], str], tmp_path: Path) -> AsyncIterator[Node]:
    """Yield a node on SQLite; what differs between the databases is tested below the API."""
    db = open_database(new_url("sqlite"))
    await db.migrate()
    running = Node(db, tmp_path)
    await running.vault.unlock(db)
    yield running
    await running.http.aclose()
    await running.settle()
    await db.aclose()
