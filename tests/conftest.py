"""Fixtures of all tests: one PostgreSQL server a session, and a fresh database of each kind per test.

`make test` shares the tests among several processes (pytest-xdist), a file to one of them; each has servers of its own.
"""

import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from cogflare.store.base import Database
from cogflare.store.open import open_database
from support.buckets import Miniflare, Moto
from support.docker import Dockerd, NoDocker, image_rigs
from support.postgres import PostgresServer
from support.runners import Rigger

ROOT = Path(__file__).parent
# What waits most comes first where several processes share the tests, so that none is left with it at the end.
SLOWEST = ("e2e", "chaos", "agent", "cli")


def is_one_of_many() -> bool:
    """Whether other processes run tests of this run too."""
    return "PYTEST_XDIST_WORKER" in os.environ


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests in an order that is good for several processes, each of which takes one file after the other."""
    if is_one_of_many():
        rank = {ROOT / name: number for number, name in enumerate(SLOWEST)}
        items.sort(key=lambda item: rank.get(item.path.parent, len(SLOWEST)))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def cog_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which real workers keep the environments of their models: each is built once, by one of us."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if is_one_of_many() else base) / "environments"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    server = PostgresServer()
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture(scope="session")
def moto() -> Iterator[Moto]:
    server = Moto()
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture(scope="session")
def miniflare() -> Iterator[Miniflare]:
    if not Miniflare.is_possible():
        pytest.skip("Node, which runs Cloudflare's simulator of R2, is not on this machine")
    server = Miniflare()
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture(scope="session")
def dockerd() -> Iterator[Dockerd]:
    """A Docker daemon with the test models' images; no test runs on the daemon of this machine."""
    server = Dockerd()
    try:
        yield server.start()
    except NoDocker as reason:
        if os.environ.get("COGFLARE_REQUIRE_DOCKER"):
            pytest.fail(f"no Docker, which was required: {reason}")
        pytest.skip(f"NO DOCKER, SO IMAGES ARE NOT TESTED: {reason}")
    finally:
        server.close()


@pytest.fixture
async def image_rig(dockerd: Dockerd, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rigger]:
    """Makes rigs whose runner has the model in a container."""
    async with image_rigs(dockerd, monkeypatch) as make:
        yield make


@pytest.fixture
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Yield what makes the URL of a new, empty database of a kind, which goes some time after the test."""
    numbers = itertools.count(1)
    made: list[tuple[PostgresServer, str]] = []

    def make(kind: str) -> str:
        if kind == "sqlite":
            return f"sqlite:///{tmp_path}/{next(numbers)}.db"
        server: PostgresServer = request.getfixturevalue("postgres_server")
        made.append((server, url := server.create_database()))
        return url

    yield make
    for server, url in made:
        server.release(url)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, new_url: Callable[[str], str]) -> str:
    return new_url(str(request.param))


@pytest.fixture
async def store(url: str) -> AsyncIterator[Database]:
    """Yield a database with the product's schema."""
    opened = open_database(url)
    await opened.migrate()
    yield opened
    await opened.aclose()
