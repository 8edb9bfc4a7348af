"""Hosts of functions and handlers, each in a folder and with a worker's stand-in of its own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from support.hosting import Host, Outside, write_module


class HostMaker(Protocol):
    """Starts a host over a function, or over a handler file."""

    def __call__(self, source: str, name: str = "predict", *, slots: int = 1, python: str = ...) -> Host: ...


@pytest.fixture
def outside() -> Iterator[Outside]:
    server = Outside()
    yield server
    server.close()


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    """The hosts of a test, which are ended after it."""
    started: list[Host] = []
    yield started
    for host in started:
        host.close()


@pytest.fixture
def function(tmp_path: Path, hosts: list[Host], outside: Outside) -> "HostMaker":
    """Starts hosts over functions in the source of a module, and waits until they are set up or are not going to be."""

    def make(source: str, name: str = "predict", **options: object) -> Host:
        write_module(tmp_path, source)
        host = Host(tmp_path, "function", f"model:{name}", upload_url=f"{outside.url}/files", **options)  # type: ignore[arg-type]
        hosts.append(host)
        return host.settled()

    return make


@pytest.fixture
def handler(tmp_path: Path, hosts: list[Host], outside: Outside) -> "HostMaker":
    """Starts hosts over the source of a handler file."""

    def make(source: str, name: str = "handler.py", **options: object) -> Host:
        path = write_module(tmp_path, source, name)
        host = Host(tmp_path, "runpod", str(path), upload_url=f"{outside.url}/files", **options)  # type: ignore[arg-type]
        hosts.append(host)
        return host.settled()

    return make
