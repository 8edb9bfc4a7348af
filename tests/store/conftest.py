"""Fixtures of the store: a PostgreSQL server for the session, and a fresh database of each kind per test."""

import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from cogflare.store.base import Database
from cogflare.store.open import open_database
from store.scene import Rows, Scene
from support.postgres import PostgresServer

SQL = Path(__file__).parent / "sql"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    server = PostgresServer()
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """Return what makes the URL of a new, empty database of a kind."""
    numbers = itertools.count(1)

    def make(kind: str) -> str:
        if kind == "sqlite":
            return f"sqlite:///{tmp_path}/{next(numbers)}.db"
        server: PostgresServer = request.getfixturevalue("postgres_server")
        return server.create_database()

    return make


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, new_url: Callable[[str], str]) -> str:
    return new_url(str(request.param))


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
