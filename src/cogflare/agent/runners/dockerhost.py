"""The Docker daemon of this machine: reached, asked for its networks, and made to have an image.

Whatever goes wrong is a `SetupFailed`, in words for whoever started the worker.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from ipaddress import IPv4Network
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from aiodocker import Docker
from aiodocker.containers import DockerContainer
from aiodocker.exceptions import DockerError

from cogflare.agent.runners.base import LogSink, SetupFailed
from cogflare.agent.runners.dockerimage import WORKER_LABEL, Image, Network
from cogflare.agent.runners.dockerlogin import login_for
from cogflare.agent.runners.process import free_port
from cogflare.agent.sources import ImageSource

REMOVE_S: Final = 30.0
_ANSWER_S: Final = 300.0  # a busy disk makes a daemon slow
_REACH_S: Final = 20.0
_SAY_EACH_S: Final = 5.0
_DESKTOP_ADDRESS: Final = "host.docker.internal"
_NO_ANSWER: Final = 900  # what the client calls an error of the connection
_SOCKETS: Final = ("/run/docker.sock", "/var/run/docker.sock")


class DockerHost:
    """A daemon that answers. ``info`` is what it tells of itself."""

    def __init__(self, docker: Docker, info: Mapping[str, Any]) -> None:
        self.docker, self.info = docker, info

    @classmethod
    async def reach(cls) -> DockerHost:
        """Find the daemon by ``DOCKER_HOST``, the current context or its usual socket; raises `SetupFailed`."""
        docker = _client()
        try:
            async with asyncio.timeout(_REACH_S):
                return cls(docker, await docker.system.info())
        except BaseException as error:
            await docker.close()
            if isinstance(error, DockerError | TimeoutError):
                raise SetupFailed(_why_unreachable(error)) from error
            raise

    def socket(self) -> str | None:
        """The path of the daemon's Unix socket, where it has one."""
        path = getattr(self.docker.connector, "path", None)
        return path if sys.platform != "win32" else None

    async def close(self) -> None:
        """Close the connections; may be called twice."""
        await self.docker.close()

    async def image(self, source: ImageSource, log: LogSink) -> Image:
        """Return the image, pulled if need be."""
        if source.pull != "always" and (found := await self._inspect(source.image)):
            return found
        if source.pull == "never":
            raise SetupFailed(f"the image {source.image} is not on this machine, and is not to be pulled")
        await self._pull(source.image, log)
        if found := await self._inspect(source.image):
            return found
        raise SetupFailed(f"the image {source.image} was pulled and is gone again")

    async def _inspect(self, name: str) -> Image | None:
        async with said(f"the image {name} cannot be looked at"):
            try:
                return msgspec.convert(await self.docker.images.inspect(name), Image)
            except DockerError as error:
                if error.status == HTTPStatus.NOT_FOUND:
                    return None
                raise

    async def _pull(self, name: str, log: LogSink) -> None:
        log(f"pulling {name}\n")
        progress, next_word = Progress(), time.monotonic() + _SAY_EACH_S
        login = await login_for(name, log)
        try:
            async for event in self.docker.images.pull(name, auth=login, stream=True):
                progress.take(event)
                if time.monotonic() >= next_word:
                    next_word = time.monotonic() + _SAY_EACH_S
                    log(f"pulling {name}: {progress}\n")
        except DockerError as error:
            why = "its registry wants a login (`docker login`), or has no such image" if _is_denied(error) else ""
            raise SetupFailed(
                f"the image {name} cannot be pulled: {error.message}" + (f": {why}" * bool(why))
            ) from error
        log(f"pulled {name}: {progress}\n")

    async def network(self, wanted: str) -> Network:
        """Return the network for a container: "bridge", "host", or the first of them that there is ("auto")."""
        if wanted == "host":
            return _host_network()
        async with said("the networks of Docker cannot be listed"):
            networks = await self.docker.networks.list(filters={"name": "bridge", "driver": "bridge"})
        gateway = next((found for net in networks if net["Name"] == "bridge" and (found := _gateway(net))), None)
        if gateway is None:
            if wanted == "bridge":
                raise SetupFailed("this Docker daemon has no bridge network; try --network host")
            return _host_network()
        if self.is_virtual_machine():
            return Network("127.0.0.1", _DESKTOP_ADDRESS)
        try:
            socket.create_server((gateway, 0)).close()
        except OSError as error:
            raise SetupFailed(
                f"a container could not reach this worker at {gateway}, the address of Docker's bridge"
                f" ({error.strerror}); let the worker run on the network of the machine that runs Docker,"
                " or try --network host"
            ) from error
        return Network(gateway, gateway)

    def is_virtual_machine(self) -> bool:
        """Whether containers run in a machine inside this one, as with Docker Desktop."""
        return sys.platform == "darwin" or "Docker Desktop" in str(self.info.get("OperatingSystem"))

    async def of_worker(self, worker: str) -> list[DockerContainer]:
        """Return all containers that agents of this worker have made, running or not."""
        filters = msgspec.json.encode({"label": [f"{WORKER_LABEL}={worker}"]}).decode()
        async with said("the containers of earlier workers cannot be listed", REMOVE_S):
            return await self.docker.containers.list(all=True, filters=filters)


class Progress:
    """How far a pull has come; its text is for people."""

    def __init__(self) -> None:
        self._layers: dict[str, tuple[int, int]] = {}
        self._done: set[str] = set()

    def take(self, event: Mapping[str, Any]) -> None:
        """Take in one event of the daemon's."""
        layer, status, detail = event.get("id", ""), event.get("status", ""), event.get("progressDetail") or {}
        if status == "Pulling fs layer":
            self._layers.setdefault(layer, (0, 0))
        elif status == "Downloading" and detail.get("total"):
            self._layers[layer] = (detail.get("current", 0), detail["total"])
        elif status in ("Download complete", "Pull complete", "Already exists"):
            _, total = self._layers.get(layer, (0, 0))
            self._layers[layer] = (total, total)
        if status in ("Pull complete", "Already exists"):
            self._done.add(layer)

    def __str__(self) -> str:
        if not self._layers:
            return "all of it was here"
        here, total = (sum(sizes) / 1e6 for sizes in zip((0, 0), *self._layers.values(), strict=True))
        return f"{len(self._done)} of {len(self._layers)} layers, {here:,.0f} of {total:,.0f} MB"


@asynccontextmanager
async def said(what: str, limit_s: float = _ANSWER_S) -> AsyncIterator[None]:
    """Turn what a daemon answers, and its silence, into a `SetupFailed` that begins with ``what``."""
    try:
        async with asyncio.timeout(limit_s):
            yield
    except DockerError as error:
        raise SetupFailed(f"{what}: {error.message}{_advice(error.message)}") from error
    except TimeoutError as error:
        raise SetupFailed(f"{what}: Docker does not answer") from error


def _client() -> Docker:
    url = os.environ.get("DOCKER_HOST") or None  # stands above a context, as for `docker` itself
    parts = urlsplit(url or "")
    if parts.scheme == "ssh" or (parts.scheme in ("tcp", "http", "https") and not _is_loopback(parts.hostname)):
        raise SetupFailed(f"DOCKER_HOST={url} is another machine: the worker has to run on the machine of its model")
    try:
        return Docker(url=url)
    except (AssertionError, ValueError) as error:
        lack = f"DOCKER_HOST is not set and there is no {_SOCKETS[1]}; is Docker installed and started?"
        if url:
            lack = f"DOCKER_HOST={url} is no address; it looks like unix://{_SOCKETS[1]} or tcp://127.0.0.1:2375"
        raise SetupFailed(f"no Docker here: {lack}") from error
    except DockerError as error:
        raise SetupFailed(f"Docker's configuration cannot be used: {error.message}") from error


def _is_loopback(host: str | None) -> bool:
    return host in ("localhost", "::1") or (host or "").startswith("127.")


def _why_unreachable(error: DockerError | TimeoutError) -> str:
    if isinstance(error, TimeoutError):
        return f"Docker does not answer within {_REACH_S:g} s"
    if "Permission denied" in error.message:
        return (
            "this user may not use Docker: `sudo usermod -aG docker $USER` allows it, after the next login"
            f" ({error.message})"
        )
    if error.status == _NO_ANSWER:
        return f"Docker does not answer; is it started? ({error.message})"
    return f"Docker cannot be used: {error.message}"


def _is_denied(error: DockerError) -> bool:
    return any(word in error.message.lower() for word in ("denied", "unauthorized", "authentication", "credentials"))


def _advice(message: str) -> str:
    if "could not select device driver" in message:
        return "; GPUs in containers need the NVIDIA Container Toolkit, and Docker restarted after it was installed"
    return ""


def _host_network() -> Network:
    return Network("127.0.0.1", "127.0.0.1", free_port())


def _gateway(network: Mapping[str, Any]) -> str | None:
    """This machine's address in a network; of a bridge that it has just made itself Docker tells the subnet alone."""
    for told in (network.get("IPAM") or {}).get("Config") or ():
        with suppress(ValueError, KeyError):
            subnet = IPv4Network(told["Subnet"])
            return str(told.get("Gateway") or subnet[1])
    return None
