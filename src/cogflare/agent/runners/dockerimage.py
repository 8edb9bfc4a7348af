"""What an image says of itself, and how a container of it is to be made. Values in, values out: no daemon, no I/O."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from cogflare.agent.runners.cogrelease import CogRelease
from cogflare.agent.runners.outputs import OutputShape
from cogflare.agent.sources import ImageSource

WORKER_LABEL: Final = "cogflare.worker"
CORD_LABEL: Final = "cogflare.cord"
_MODEL_LABEL: Final = "cogflare.model"
_COG_LABELS: Final = ("run.cog.", "org.cogmodel.", "org.cogmodel.cog_", "org.cogreplicate.")
_SERVER: Final = "cog.server.http"
PORT: Final = 5000
_SHM_WITH_GPU: Final = 6 << 30
_LOG: Final = {"Type": "json-file", "Config": {"max-size": "16m", "max-file": "2"}}
_ID_LEN: Final = 64


class _Config(msgspec.Struct, rename="pascal"):
    env: list[str] | None = None
    cmd: list[str] | None = None
    entrypoint: list[str] | None = None
    labels: dict[str, str] | None = None


class Image(msgspec.Struct, rename="pascal"):
    """An image as the daemon describes it."""

    id: str
    repo_digests: list[str] | None = None
    config: _Config = msgspec.field(default_factory=_Config)

    def version(self, name: str) -> str:
        """The digest, in 64 hex digits, under which a registry has the image; for a local one that of its config."""
        repository = name.partition("@")[0]
        if ":" in repository.rpartition("/")[2]:
            repository = repository.rpartition(":")[0]
        for known in self.repo_digests or ():
            of, _, digest = known.partition("@sha256:")
            if of == repository and len(digest) == _ID_LEN:
                return digest
        return self.id.removeprefix("sha256:")

    def schema(self) -> dict[str, Any] | None:
        """The model's OpenAPI document, where `cog build` has left it."""
        with suppress(msgspec.DecodeError):
            return msgspec.json.decode(self._label("openapi_schema"), type=dict[str, Any])
        return None

    def slots(self) -> int:
        """How many runs the model takes at once, as far as the image says."""
        with suppress(KeyError, ValueError):
            return max(1, int(self.environ()["COG_MAX_CONCURRENCY"]))
        with suppress(msgspec.DecodeError, TypeError, KeyError, ValueError, AttributeError):
            return max(1, int(self._cog_config()["concurrency"]["max"]))
        return 1

    def wants_gpu(self) -> bool:
        """Whether ``cog.yaml`` asks for a GPU."""
        with suppress(msgspec.DecodeError, TypeError, KeyError):
            return self._cog_config()["build"]["gpu"] is True
        return False

    def environ(self) -> dict[str, str]:
        """The environment variables that the image sets."""
        return dict(entry.split("=", 1) for entry in self.config.env or () if "=" in entry)

    def release(self) -> CogRelease:
        """The release of Cog that built it, so that its server is of that."""
        return CogRelease.of(self.cog_version())

    def cog_version(self) -> str:
        """The version of Cog that built it, where it says so."""
        return self._label("version")

    def runs_cog(self) -> bool:
        """Whether the image is started as Cog's own server, which takes its options at the end."""
        return _SERVER in [*(self.config.entrypoint or ()), *(self.config.cmd or ())]

    def _label(self, name: str) -> str:
        labels = self.config.labels or {}
        return next((labels[prefix + name] for prefix in _COG_LABELS if prefix + name in labels), "")

    def _cog_config(self) -> Any:
        return msgspec.json.decode(self._label("config"))


@dataclass(frozen=True, slots=True)
class Network:
    """How container and worker reach each other.

    The worker listens on ``listen``, which the container calls ``advertised``. Without a ``port`` of this machine the
    container has a network of its own, and the daemon picks the port under which its server is here.
    """

    listen: str
    advertised: str
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A container to be: its image, what the person wants of it, and its GPUs (device requests, as the daemon says)."""

    owner: str
    model: str
    worker: str
    source: ImageSource
    image: Image
    shape: OutputShape | None
    slots: int | None
    gpus: list[dict[str, Any]]

    @property
    def places(self) -> int:
        """How many runs the model takes at once."""
        return self.image.release().slots(self.slots or self.image.slots())

    def server_port(self, network: Network) -> str:
        """The port on which the server listens, as the container sees it."""
        told = self.image.environ().get("PORT") if self.image.release().takes_port else None
        return str(network.port or told or PORT)

    def body(self, network: Network, upload_url: str) -> dict[str, Any]:
        """What the daemon is asked for; the image's own command stays."""
        port = self.server_port(network)
        host: dict[str, Any] = {
            "NetworkMode": "host" if network.port else "bridge",
            # Coglet names a socket of the network it is in after its process id: two that are both 1 there would meet.
            "PidMode": "host" if network.port else "",
            "Binds": list(self.source.volumes),
            "DeviceRequests": self.gpus,
            "LogConfig": _LOG,
            "RestartPolicy": {"Name": "no"},
        }
        if network.port is None:
            host["PortBindings"] = {f"{port}/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}
        if self.source.memory:
            host["Memory"] = self.source.memory
        if shm := self.source.shm or (_SHM_WITH_GPU if self.gpus else 0):
            host["ShmSize"] = shm
        return {
            "Image": self.image.id,
            "Cmd": [*(self.image.config.cmd or ()), *self._arguments(network, upload_url)],
            "Env": [f"{name}={value}" for name, value in self.environ(port).items()],
            "ExposedPorts": {} if network.port else {f"{port}/tcp": {}},
            "Labels": {WORKER_LABEL: self.worker, _MODEL_LABEL: f"{self.owner}/{self.model}"},
            "HostConfig": host,
        }

    def _arguments(self, network: Network, upload_url: str) -> list[str]:
        """What Cog's server is told besides what the image tells it."""
        if not self.image.runs_cog():
            return []
        release = self.image.release()
        # On the network of this machine nobody else has business with the model's server.
        host = ["--host", network.listen] if network.port and release.takes_host else []
        # Files of a list come as data URLs: uploaded ones coglet lists as their uploads end, in disorder.
        uploads = self.shape is not None and not self.shape.items_are_files if release.is_coglet else release.goes_on
        return [*host, *(["--upload-url", upload_url] if uploads else [])]

    def environ(self, port: str) -> dict[str, str]:
        """The variables that are set besides the image's; those of the person come last."""
        release = self.image.release()
        has_large_snapshots = release.is_coglet and (self.shape is None or self.shape.items_are_files)
        return {
            "PORT": port,
            "PYTHONUNBUFFERED": "1",
            "COG_LOG_LEVEL": release.quiet,
            # Each snapshot of a file iterator has all its files so far in it.
            "COG_THROTTLE_RESPONSE_INTERVAL": "0.5" if has_large_snapshots else "0.05",
            "COG_STREAM_HISTORY_CAPACITY": "65536",
            **({"COG_MAX_CONCURRENCY": str(self.slots)} if self.slots else {}),
            **dict(entry.split("=", 1) for entry in self.source.env),
        }

    def name(self) -> str:
        """A name for the container, by which people find it."""
        return f"cogflare-{self.owner}-{self.model}-{secrets.token_hex(4)}"


def gpu_requests(wanted: str, info: Mapping[str, Any], *, is_gpu_here: bool) -> list[dict[str, Any]]:
    """Return the device requests for the GPUs that are wanted ("auto", "all", "none", "0,1") of such a daemon."""
    if wanted == "none" or (wanted == "auto" and not (is_gpu_here and knows_gpus(info))):
        return []
    every = wanted in ("auto", "all")
    ids = ["all"] if every else [number.strip() for number in wanted.split(",")]
    if "nvidia" not in (info.get("Runtimes") or {}) and _has_cdi(info):
        return [{"Driver": "cdi", "DeviceIDs": [f"nvidia.com/gpu={number}" for number in ids]}]
    request: dict[str, Any] = {"Driver": "", "Capabilities": [["gpu"]]}
    return [request | ({"Count": -1} if every else {"DeviceIDs": ids})]


def knows_gpus(info: Mapping[str, Any]) -> bool:
    """Whether the daemon has NVIDIA's runtime, or GPUs described for it (CDI)."""
    return "nvidia" in (info.get("Runtimes") or {}) or _has_cdi(info)


def _has_cdi(info: Mapping[str, Any]) -> bool:
    found = info.get("DiscoveredDevices") or ()
    return any(str(device.get("ID", "")).startswith("nvidia.com/gpu") for device in found)
