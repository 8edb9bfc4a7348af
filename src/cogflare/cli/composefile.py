"""A compose file that runs a worker: in a container of the model's image, or of a plain Python one."""

import os
import shlex
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click
import yaml

from cogflare.agent.address import ServerAddress
from cogflare.agent.sources import FolderSource, FunctionSource, HandlerSource, ImageSource, Source, UrlSource
from cogflare.cli.asked import SOURCE_PARAMS, Asked, service_name

_NOTE: Final = """\
# Save as compose.yaml, then: docker compose up -d
# The container takes the agent from the server when it starts, and keeps it in the volume.
"""
_FETCH: Final = "import urllib.request as u; print(u.urlopen({url!r}).read().decode())"
_PYTHON_IMAGE: Final = "python:3.12-slim"
_MODEL: Final = "/model"
_HOME: Final = "/cogflare"
_SECRET: Final = "cogflare-worker-token"  # noqa: S105  # its name
_ITS_PYTHON: Final = ("--python", "python3")  # the image's, since the agent's own has no packages of the model
_CERTIFICATE: Final = "/cogflare-server.pem"
_OF_COMPOSE: Final = ("server", "model", "token_file", "state", "cache")
_GPUS: Final = {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


def notes(asked: Asked) -> Iterator[str]:
    """Say what of a compose file will not work as it stands, and what to write instead."""
    _, service, _ = _container(asked.source)
    if asked.server.is_here and service.get("network_mode") != "host":
        scheme, _, port = asked.server.origin
        yield (
            f"in the container {asked.server.base} is the container itself: the worker will not find its server. Name"
            f" the server as other machines do (--server {scheme}://{socket.gethostname()}:{port}, if it listens there:"
            " cogflare serve --host 0.0.0.0), or add network_mode: host to the service."
        )
    if isinstance(asked.source, FunctionSource | HandlerSource):
        yield f"{_PYTHON_IMAGE} has no packages but Python's own: where the model needs some, name an image with them."


def text(asked: Asked) -> str:
    """Return a compose file; its container runs the join script of the server as a pod does."""
    image, service, source = _container(asked.source)
    kept = asked.words(*_OF_COMPOSE, *(str(param.name) for param in SOURCE_PARAMS))
    if not asked.values("name"):
        kept += ["--name", socket.gethostname()]  # the container's own is a number that changes
    fetch = shlex.join(["python3", "-c", _FETCH.format(url=f"{asked.server.base}/join")])
    places = ["--state", f"{_HOME}/state", "--cache", f"{_HOME}/cache"]
    join = shlex.join(["-", asked.model, *source, *kept, *places])
    # In two steps: a script that cannot be fetched fails the container, which then tries again.
    steps = f'script=$({fetch}) && export COGFLARE_WORKER_TOKEN="$(cat /run/secrets/{_SECRET})" && '
    command = f'{steps}exec sh -c "$script" join {join}'
    trusted = _trusted(asked.server)
    worker = {
        "image": image,
        "init": True,
        "restart": "unless-stopped",  # "on-failure" would not come up with the machine
        "stop_grace_period": "30m",
        "entrypoint": ["sh", "-c"],
        "command": [command],
        # As they were given: of a variable that is only named, the value stays where it is.
        "environment": [f"COGFLARE_HOME={_HOME}", *trusted.values(), *asked.values("env")],
        "secrets": [_SECRET],
        "volumes": [f"agent:{_HOME}", *service.pop("volumes", []), *trusted],
        **service,
    }
    kept_by_docker = [name for volume in worker["volumes"] if not (name := volume.partition(":")[0]).startswith("/")]
    document = _escaped(
        {
            "services": {service_name(asked.model): worker},
            "volumes": {name: {} for name in kept_by_docker},
            "secrets": {_SECRET: {"file": str(asked.token_file)}},
        }
    )
    return _NOTE + yaml.safe_dump(document, sort_keys=False, width=10_000, allow_unicode=True)


def _container(source: Source) -> tuple[str, dict[str, Any], list[str]]:
    """Return the image, what the service has besides, and the words that say in the container what to run."""
    if isinstance(source, ImageSource):
        return source.image, _image_service(source), []
    if isinstance(source, UrlSource):
        return _PYTHON_IMAGE, {"network_mode": "host"}, ["--url", source.url]
    if source.python is not None:
        raise click.UsageError("--python names an interpreter of this machine, which a container does not have")
    if isinstance(source, FolderSource):
        return _PYTHON_IMAGE, _mounted(source.folder), [_MODEL]
    if isinstance(source, FunctionSource):
        return _PYTHON_IMAGE, _mounted(source.folder), ["--function", source.entry, *_ITS_PYTHON]
    assert isinstance(source, HandlerSource)
    words = ["--runpod-handler", f"{_MODEL}/{source.path.name}", *_ITS_PYTHON]
    return _PYTHON_IMAGE, _mounted(source.path.parent), words


def _mounted(folder: Path) -> dict[str, Any]:
    """Return a service that has the folder of the model, and works in it."""
    return {"volumes": [f"{folder.absolute()}:{_MODEL}"], "working_dir": _MODEL, **_devices("auto")}


def _image_service(source: ImageSource) -> dict[str, Any]:
    """Return what the options of an image are in the words of a compose file."""
    service: dict[str, Any] = {"volumes": list(source.volumes), **_devices(source.gpus)}
    if source.memory is not None:
        service["mem_limit"] = source.memory
    if source.shm is not None:
        service["shm_size"] = source.shm
    if source.network != "auto":
        service["network_mode"] = source.network
    if source.pull != "missing":
        service["pull_policy"] = source.pull
    return service


def _devices(gpus: str) -> dict[str, Any]:
    """Return the reservation of GPUs; "auto" is all that this machine has."""
    if gpus == "none" or (gpus == "auto" and not Path("/dev/nvidia0").exists()):
        return {}
    chosen: Mapping[str, Any] = _GPUS
    if gpus not in ("auto", "all"):
        chosen = {**{name: value for name, value in _GPUS.items() if name != "count"}, "device_ids": gpus.split(",")}
    return {"shm_size": "6gb", "deploy": {"resources": {"reservations": {"devices": [dict(chosen)]}}}}


def _trusted(server: ServerAddress) -> dict[str, str]:
    """Return the volume with the certificate that this command is told to trust, and the variable that names it."""
    file = os.environ.get("SSL_CERT_FILE")
    if not file or not server.is_safe:
        return {}
    return {f"{Path(file).absolute()}:{_CERTIFICATE}:ro": f"SSL_CERT_FILE={_CERTIFICATE}"}


def _escaped(value: Any) -> Any:
    """Return a document in which a dollar stands for itself; compose would put variables there."""
    if isinstance(value, dict):
        return {name: _escaped(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_escaped(each) for each in value]
    return value.replace("$", "$$") if isinstance(value, str) else value
