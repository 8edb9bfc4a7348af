"""A systemd unit that runs a worker."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cogflare.cli.asked import Asked, service_name

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
{environment}ExecStart={command}
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
_TRUSTED: Final = "SSL_CERT_FILE"
_CARRIED: Final = (_TRUSTED, "DOCKER_HOST", "CUDA_VISIBLE_DEVICES")
"""Variables that a worker obeys and a service does not inherit; none of them is secret."""


def notes(asked: Asked) -> Iterator[str]:
    """Say what a unit will not find as it stands, and where to put it."""
    if named := [value for value in asked.values("env") if "=" not in value]:
        service = service_name(asked.model)
        yield (
            f"the service does not have {', '.join(named)} of your environment: put a line {named[0]}=VALUE into a file"
            f" that only root can read, and its name into the unit: EnvironmentFile=/etc/cogflare/{service}.env"
        )


def text(asked: Asked) -> str:
    """Return a systemd unit."""
    command = [*_agent(), *asked.words("server", "model"), "--server", asked.server.base, "--model", asked.model]
    return _UNIT.format(
        service=service_name(asked.model),
        model=asked.model,
        user=_user(),
        folder=str(Path.cwd()).replace("%", "%%"),
        environment="".join(_variable(name) for name in _CARRIED if name != _TRUSTED or asked.server.is_safe),
        command=" ".join(map(_quoted, command)),
    )


def _user() -> str:
    """Return who the worker is to be: whose home holds its state."""
    try:
        return Path.home().owner()
    except KeyError:  # a user without a name
        return str(os.getuid())


def _variable(name: str) -> str:
    """Return the line that gives the service a variable of this command's, if it is set."""
    value = os.environ.get(name, "")
    return f"Environment={_quoted(f'{name}={value}', is_command=False)}\n" if value and value.isprintable() else ""


def _agent() -> list[str]:
    """Return what starts the agent: on a machine that joined, the name that later versions keep."""
    linked = Path(sys.prefix).parent.parent / "bin" / "cogflare-worker"
    if Path(sys.prefix).parent.name == "agent" and linked.exists():
        return [str(linked)]
    return [sys.executable, "-m", "cogflare.cli.workergroup"]


def _quoted(word: str, *, is_command: bool = True) -> str:
    """Write a word for ExecStart, or for Environment, where a dollar stands for itself."""
    safe = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    safe = safe.replace("$", "$$") if is_command else safe
    return f'"{safe}"' if safe != word or not word or any(char in word for char in " \t';#") else word
