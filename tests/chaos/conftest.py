"""PostgreSQL for the harness: a server of its own, because it is restarted under the runs."""

from collections.abc import Iterator

import pytest

from support.postgres import PostgresServer


@pytest.fixture(scope="module")
def restartable() -> Iterator[PostgresServer]:
    server = PostgresServer(durable=True)
    try:
        yield server.start()
    finally:
        server.close()
