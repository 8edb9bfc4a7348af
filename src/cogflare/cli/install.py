"""`cogflare worker install`: what makes a worker come up with its machine, as text; nothing is written or started."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import yaml
from click.core import ParameterSource

from cogflare.agent.address import ServerAddress
from cogflare.agent.sources import FolderSource, FunctionSource, HandlerSource, ImageSource, Source, UrlSource
from cogflare.cli.sourceoptions import source_options
from cogflare.cli.worker import worker as run

_UNIT: Final = """\
# As root: write this to /etc/systemd/system/{service}.service, then
#     systemctl daemon-reload && systemctl enable --now {service}
[Unit]
Description=Cogflare worker for {model}
Wants=network-online.target
After=network-online.target docker.service

[Service]
User={user}
WorkingDirectory={folder}
ExecStart={command}
Restart=on-failure
RestartSec=5
# The server refused the worker: a restart does not mend that.
RestartPreventExitStatus=2
# The model outlives a worker that is killed, and the next one takes it over.
KillMode=process
TimeoutStopSec=1800

[Install]
WantedBy=multi-user.target
"""
_COMPOSE_NOTE: Final = """\
# Save as compose.yaml, then: docker compose up -d
# The container takes the agent from the server when it starts, and keeps it in the volume.
"""
_FETCH: Final = "import urllib.request as u; print(u.urlopen({url!r}).read().decode())"
_PYTHON_IMAGE: Final = "python:3.12-slim"
_MODEL: Final = "/model"
_HOME: Final = "/cogflare"
_SECRET: Final = "cogflare-worker-token"  # noqa: S105  # its name
_OF_COMPOSE: Final = ("server", "model", "token_file", "state", "cache")
_GPUS: Final = {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--systemd", "kind", flag_value="systemd", default=True, help="Print a systemd unit (the default).")
@click.option("--compose", "kind", flag_value="compose", help="Print a compose file for Docker.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS OF RUN]...")
def install(kind: str, words: tuple[str, ...]) -> None:
    """Print a systemd unit or a compose file that runs a worker with the given options; nothing is written.

    Takes the options of `cogflare worker run`, --token-file among them: what others on the machine can read holds no
    token. Run it as the user and in the folder of the worker to be.
    """
    asked = Asked(words)
    click.echo(unit(asked) if kind == "systemd" else compose(asked), nl=False)


class Asked:
    """A worker as somebody asked for it, checked as `run` checks it. Raises click's usage errors."""

    def __init__(self, words: Sequence[str]) -> None:
        here = click.get_current_context(silent=True)
        context = run.make_context("run", list(words), parent=here and here.parent)
        parsed, _, _ = run.make_parser(context).parse_args(list(words))
        said = ParameterSource.COMMANDLINE
        self._given = {name: value for name, value in parsed.items() if context.get_parameter_source(name) is said}
        self.params = context.params
        self.source: Source = _SOURCE(**context.params)
        self.server: ServerAddress = context.params["server"]
        self.model: str = context.params["model"]
        if self._given.get("token") or context.params["token_file"] is None:
            raise click.UsageError("a service reads its token from a file: pass --token-file FILE, and no --token")
        self.token_file = Path(context.params["token_file"]).absolute()
        if any(not word.isprintable() for word in words):
            raise click.UsageError("the options have characters that a file of settings cannot hold")

    def words(self, *left_out: str) -> list[str]:
        """Return the options as they were given, paths made absolute, the folder first."""
        told: list[str] = []
        for param in run.params:
            if param.name is None or param.name not in self._given or param.name in left_out:
                continue
            for value in self.values(param.name):
                told = [value, *told] if isinstance(param, click.Argument) else [*told, *_option(param, value)]
        return told

    def values(self, name: str) -> list[str]:
        """Return the values of an option as they were given, paths made absolute."""
        meant, given = self.params.get(name), self._given.get(name)
        if isinstance(meant, Path):
            return [str(meant.absolute())]
        if isinstance(meant, ServerAddress):
            return [meant.base]
        return [str(each) for each in given] if isinstance(given, list | tuple) else [str(given)] if given else []


def unit(asked: Asked) -> str:
    """Return a systemd unit."""
    command = [*_agent(), *asked.words("server", "model"), "--server", asked.server.base, "--model", asked.model]
    return _UNIT.format(
        service=_service(asked.model),
        model=asked.model,
        user=Path.home().owner(),
        folder=Path.cwd(),
        command=" ".join(map(_quoted, command)),
    )


def compose(asked: Asked) -> str:
    """Return a compose file; its container runs the join script of the server as a pod does."""
    image, service, source = _container(asked.source)
    kept = asked.words(
        "server", "model", "token_file", "state", "cache", *(str(param.name) for param in _SOURCE_PARAMS)
    )
    fetch = shlex.join(["python3", "-c", _FETCH.format(url=f"{asked.server.base}/join")])
    places = ["--state", f"{_HOME}/state", "--cache", f"{_HOME}/cache"]
    join = shlex.join(["-", asked.model, *source, *kept, *places])
    # In two steps: a script that cannot be fetched fails the container, which then tries again.
    steps = f'script=$({fetch}) && export COGFLARE_WORKER_TOKEN="$(cat /run/secrets/{_SECRET})" && '
    command = f'{steps}exec sh -c "$script" join {join}'
    worker = {
        "image": image,
        "init": True,
        "restart": "on-failure",
        "stop_grace_period": "30m",
        "entrypoint": ["sh", "-c"],
        "command": [command.replace("$", "$$")],
        # As they were given: of a variable that is only named, the value stays where it is.
        "environment": [f"COGFLARE_HOME={_HOME}", *asked.values("env")],
        "secrets": [_SECRET],
        "volumes": [f"agent:{_HOME}", *service.pop("volumes", [])],
        **service,
    }
    document = {
        "services": {_service(asked.model): worker},
        "volumes": {"agent": {}},
        "secrets": {_SECRET: {"file": str(asked.token_file)}},
    }
    return _COMPOSE_NOTE + yaml.safe_dump(document, sort_keys=False, width=10_000, allow_unicode=True)


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
        return _PYTHON_IMAGE, _mounted(source.folder), ["--function", source.entry]
    assert isinstance(source, HandlerSource)
    return _PYTHON_IMAGE, _mounted(source.path.parent), ["--runpod-handler", f"{_MODEL}/{source.path.name}"]


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
    return service


def _devices(gpus: str) -> dict[str, Any]:
    """Return the reservation of GPUs; "auto" is all that this machine has."""
    if gpus == "none" or (gpus == "auto" and not Path("/dev/nvidia0").exists()):
        return {}
    chosen: Mapping[str, Any] = _GPUS
    if gpus not in ("auto", "all"):
        chosen = {**{name: value for name, value in _GPUS.items() if name != "count"}, "device_ids": gpus.split(",")}
    return {"shm_size": "6gb", "deploy": {"resources": {"reservations": {"devices": [dict(chosen)]}}}}


def _only_source(source: Source, **others: object) -> Source:
    return source


_SOURCE: Final = source_options(_only_source)
_SOURCE_PARAMS: Final[list[click.Parameter]] = getattr(_SOURCE, "__click_params__", [])


def _option(param: click.Parameter, value: str) -> list[str]:
    """Return an option as it is written."""
    name = max(param.opts, key=len)
    return [name] if isinstance(param, click.Option) and param.is_flag else [name, value]


def _agent() -> list[str]:
    """Return what starts the agent: on a machine that joined, the name that later versions keep."""
    linked = Path(sys.prefix).parent.parent / "bin" / "cogflare-worker"
    if Path(sys.prefix).parent.name == "agent" and linked.exists():
        return [str(linked)]
    return [sys.executable, "-m", "cogflare.cli.workergroup"]


def _service(model: str) -> str:
    """Return the name of the service; a model's name has only characters that both systems take."""
    return f"cogflare-{model.replace('/', '-').lower()}"


def _quoted(word: str) -> str:
    """Write a word for ExecStart."""
    safe = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{safe}"' if safe != word or not word or any(char in word for char in " \t';#") else word
