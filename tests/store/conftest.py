"""Fixtures of the store: databases with a schema of these tests, or the one that ships, and the way to bare rows."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cogflare.store.base import Database
from cogflare.store.open import open_database
from store.scene import Rows, Scene

SQL = Path(__file__).parent / "sql"


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    """Yield a database with the schema of these tests."""
    opened = open_database(url, sql=SQL)
    await opened.migrate()
    yield opened
    await opened.aclose()


@pytest.fixture
def quick_url(url: str) -> str:
    """Return the URL of a database that never waits for the disk."""
    return f"{url}?synchronous=off" if url.startswith("sqlite") else url


@pytest.fixture
async def store(quick_url: str) -> AsyncIterator[Database]:
    """Yield a database with the schema that ships."""
    opened = open_database(quick_url)
    await opened.migrate()
    yield opened
    await opened.aclose()


@pytest.fixture
async def rows(store: Database, url: str) -> AsyncIterator[Rows]:
    """Yield the way to the bare rows of `store`."""
    opened = await Rows.open(url)
    yield opened
    await opened.aclose()


@pytest.fixture
def scene(store: Database, rows: Rows) -> Scene:
    return Scene(store, rows)
