"""`cogflare worker doctor`: whether this machine can be a worker, what it lacks, and what earlier workers left on it.

Nothing is changed and nothing is started. What stands in the way has failed; what only some models need is a warning.
"""

import asyncio
import os
import platform
import shutil
import sys
from collections.abc import AsyncIterator
from importlib import import_module
from pathlib import Path
from typing import Final, cast

import click
import httpx2
import msgspec

from cogflare import __version__
from cogflare.agent.address import DIRECT, ServerAddress
from cogflare.agent.admission import reading
from cogflare.agent.gpu import is_gpu_here
from cogflare.agent.identity import default_state
from cogflare.agent.machine import Site, survey
from cogflare.agent.runners.cogserver import CogServer
from cogflare.agent.sources import UrlSource
from cogflare.agent.unreached import why_unreached
from cogflare.cli.findings import Finding, conclude, show
from cogflare.cli.leftovers import Leftovers
from cogflare.cli.sourceoptions import cog_server
from cogflare.cli.worker import ServerType, read_token
from cogflare.protocol.messages import Machine

_TIMEOUT: Final = httpx2.Timeout(15.0, connect=5.0)
_LEAST_FREE: Final = 5_000_000_000
_DOCKER: Final = "cogflare.cli.containers:findings"


class _Health(msgspec.Struct):
    status: str
    version: str = ""


@click.command(short_help="See whether this machine can be a worker.")
@click.option(
    "--server",
    type=ServerType(),
    envvar="COGFLARE_SERVER",
    show_envvar=True,
    help="The server that a worker here would dial; without it the server is not looked at.",
)
@click.option("--token", envvar="COGFLARE_WORKER_TOKEN", show_envvar=True, help="Worker token.")
@click.option("--token-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="File with it.")
@click.option("--model", metavar="OWNER/NAME", hidden=True, help="Taken so that the words of `run` fit; not looked at.")
@click.option("--url", help="A running Cog server that a worker here would use; it is looked at too.")
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="COGFLARE_STATE",
    help="Where workers keep their state (default: ~/.local/state/cogflare/worker).",
)
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="COGFLARE_CACHE",
    help="Where environments of models are kept (default: ~/.cache/cogflare).",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def doctor(
    server: ServerAddress | None,
    token: str | None,
    token_file: Path | None,
    model: str | None,
    url: str | None,
    state: Path | None,
    cache: Path | None,
    as_json: bool,
) -> None:
    """See whether this machine can be a worker, and what is left on it of earlier ones.

    Looks at Python and uv, the server, the token and whether the versions fit, the GPU and its driver, the Docker
    daemon and the NVIDIA Container Toolkit, the disk, and at models and containers that a worker left behind. Ends
    with 1 where a worker would fail; what only some models need is a warning.
    """
    given = read_token(token, token_file)() if token or token_file else None
    source = None if url is None else cog_server(url)
    folders = state or default_state(), cache or Path.home() / ".cache" / "cogflare"
    preflight = Preflight(server, given, source, *folders)
    findings: list[Finding] = []
    asyncio.run(_examine(preflight, findings, as_json))
    conclude(findings, as_json, "this machine can be a worker")


async def _examine(preflight: "Preflight", findings: list[Finding], as_json: bool) -> None:
    async for finding in preflight.run():
        findings.append(finding)
        show(finding, as_json)


class Preflight:
    """The checks of one machine, for a worker of one server (None: no server in particular)."""

    def __init__(
        self, server: ServerAddress | None, token: str | None, source: UrlSource | None, state: Path, cache: Path
    ) -> None:
        self._server = server
        self._token = token
        self._source = source
        self._leftovers = Leftovers(state)
        self._state = state
        self._cache = cache

    async def run(self) -> AsyncIterator[Finding]:
        """Go through all checks."""
        yield _python()
        yield _uv()
        if self._server is None:
            yield Finding("server", "warning", "not looked at", "name it with --server, and a token with --token-file")
        else:
            async with httpx2.AsyncClient(timeout=_TIMEOUT, mounts=DIRECT) as http:
                async for finding in self._there(http, self._server):
                    yield finding
        if self._source is not None:
            yield await _model(self._source)
        yield _gpu(await survey(Site(self._cache), None))
        async for finding in _containers(self._leftovers):
            yield finding
        yield _disk(self._cache)
        if (place := _unwritable(self._state)) is not None:
            yield Finding("state", "failed", f"{place} cannot be written to", "name another folder with --state")
        for finding in self._leftovers.folders():
            yield finding

    async def _there(self, http: httpx2.AsyncClient, server: ServerAddress) -> AsyncIterator[Finding]:
        """Look at the server, at the token, and whether the two versions fit."""
        todo = "see that this is its address; its operator sees with `cogflare doctor` whether it can be reached"
        try:
            answer = await http.get(f"{server.base}/health")
            health = msgspec.json.decode(answer.content, type=_Health)
        except httpx2.HTTPError as error:
            yield Finding("server", "failed", f"{server.base} does not answer: {why_unreached(error)}", todo)
            return
        except msgspec.DecodeError:
            yield Finding("server", "failed", f"{server.base} answers, but not like a Cogflare server", todo)
            return
        yield Finding("server", "ok", f"{server.base} answers (cogflare {health.version})")
        yield await self._admission(http, server)
        yield _versions(health.version)

    async def _admission(self, http: httpx2.AsyncClient, server: ServerAddress) -> Finding:
        """Ask what the server thinks of the token; it answers before any hello."""
        if self._token is None:
            return Finding("token", "warning", "not looked at", "pass --token-file, or COGFLARE_WORKER_TOKEN")
        headers = {"Authorization": f"Bearer {self._token}"}
        try:
            answer = await http.get(server.link.replace("ws", "http", 1), headers=headers)
        except httpx2.HTTPError as error:
            return Finding("token", "warning", f"the server did not answer: {why_unreached(error)}")
        word = reading(server, answer)
        if word.text:
            return Finding("token", "failed" if word.is_final else "warning", word.text)
        return Finding("token", "ok", "the server takes it")


def _containers(leftovers: Leftovers) -> AsyncIterator[Finding]:
    """Look at Docker, with what most commands had better not load."""
    module, _, name = _DOCKER.partition(":")
    return cast(AsyncIterator[Finding], getattr(import_module(module), name)(leftovers))


async def _model(source: UrlSource) -> Finding:
    """Look at a Cog server that somebody else runs."""
    server = CogServer(source.url)
    try:
        health = await server.health()
    except (httpx2.HTTPError, ValueError) as error:
        todo = "start the Cog server there, or name where it is with --url"
        return Finding("model", "failed", f"{source.url} does not answer: {why_unreached(error)}", todo)
    finally:
        await server.close()
    return Finding("model", "ok", f"{source.url} answers ({health.status.lower()})")


def _python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()}, {sys.executable}, cogflare {__version__}")


def _uv() -> Finding:
    found = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if found is None:
        own = f"{sys.version_info.major}.{sys.version_info.minor}"
        return Finding("uv", "warning", "not found", f"models that want another Python than {own} need it: install uv")
    return Finding("uv", "ok", found)


def _versions(server: str) -> Finding:
    """Compare the releases; the protocol may fit all the same, which the token's check has told."""
    if server == __version__:
        return Finding("versions", "ok", f"server and worker are both cogflare {server}")
    todo = "run the server's join line again, which installs the worker that fits"
    return Finding("versions", "warning", f"the server is cogflare {server or '?'}, the worker {__version__}", todo)


def _gpu(machine: Machine) -> Finding:
    if machine.gpus:
        names = ", ".join(f"{gpu.name} ({gpu.vram_mb / 1024:.0f} GB)" for gpu in machine.gpus)
        return Finding("gpu", "ok", f"{names}, driver {machine.driver or '?'}")
    if is_gpu_here():
        todo = "install or repair the NVIDIA driver, until nvidia-smi lists the GPU"
        return Finding("gpu", "warning", "there is one, but its driver does not name it", todo)
    todo = "models run on the CPU; for an NVIDIA GPU, install its driver"
    return Finding("gpu", "warning", "no NVIDIA GPU or driver", todo)


def _nearest(folder: Path) -> Path:
    """Return the folder, or what is there of the way to it."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _unwritable(folder: Path) -> Path | None:
    """Return what keeps a folder from being made or written to; None if nothing does."""
    place = _nearest(folder)
    return None if place.is_dir() and os.access(place, os.W_OK | os.X_OK) else place


def _disk(cache: Path) -> Finding:
    if (place := _unwritable(cache)) is not None:
        return Finding("disk", "failed", f"{place} cannot be written to", "name another folder with --cache")
    free = shutil.disk_usage(_nearest(cache)).free
    detail = f"{free / 1e9:.1f} GB free for {cache}"
    if free < _LEAST_FREE:
        return Finding("disk", "warning", detail, "make room, or name another folder with --cache")
    return Finding("disk", "ok", detail)
