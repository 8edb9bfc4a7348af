"""What `cogflare worker doctor` says of Docker. Apart, because the client of Docker's API takes long to load."""

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import msgspec

from cogflare.agent.gpu import is_gpu_here
from cogflare.agent.runners.base import SetupFailed
from cogflare.agent.runners.dockerhost import DockerHost, said
from cogflare.agent.runners.dockerimage import WORKER_LABEL, knows_gpus
from cogflare.cli.findings import Finding
from cogflare.cli.leftovers import Leftovers

_NO_DOCKER: Final = "only images need it (--image): https://docs.docker.com/engine/install"
_LABELLED: Final = msgspec.json.encode({"label": [WORKER_LABEL]}).decode()


async def findings(leftovers: Leftovers) -> AsyncIterator[Finding]:
    """Look at the Docker daemon, whether containers see the GPU, and at containers without a worker."""
    try:
        host = await DockerHost.reach()
    except SetupFailed as error:
        yield Finding("docker", "warning", str(error), _NO_DOCKER)
        return
    try:
        yield Finding("docker", "ok", f"the daemon answers (Docker {host.info.get('ServerVersion', '?')})")
        if is_gpu_here():
            yield _toolkit(host.info)
        async with said("the containers of workers cannot be listed"):
            found = await host.docker.containers.list(all=True, filters=_LABELLED)
        yield leftovers.containers(container["Labels"] for container in found)
    except SetupFailed as error:
        yield Finding("containers", "warning", str(error))
    finally:
        await host.close()


def _toolkit(info: Mapping[str, Any]) -> Finding:
    """Say whether containers are given GPUs."""
    if knows_gpus(info):
        return Finding("gpu toolkit", "ok", "containers are given GPUs")
    todo = "install nvidia-container-toolkit, then: nvidia-ctk runtime configure --runtime=docker; restart Docker"
    return Finding("gpu toolkit", "warning", "containers see no GPU", todo)
