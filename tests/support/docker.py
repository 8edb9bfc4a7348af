"""A real Docker daemon for tests, and a Cog image for each test model, made from a bare Debian root.

The daemon needs no privileges but root's: it copies files (`vfs`), changes no firewall and has no bridge, so that
containers are on the host network. All images have one layer in common, with Python, the real `cog` and every model in
it; an image adds what it is started with, as `cog build` would. `NoDocker` says why there is none here.
"""

import ctypes
import fcntl
import hashlib
import io
import json
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

import httpx2
import pytest

from cogflare.agent.runners.cogyaml import read_config, read_schema
from cogflare.agent.runners.image import ImageRunner
from cogflare.agent.sources import ImageSource
from support.debian import NoDebian, bare_root, kept_folder, locked, why_not
from support.runners import MODELS, MemorySink, Rig, Rigger

COG_VERSION = "0.23.1"
NO_BRIDGE = ("--bridge=none", "--iptables=false")

_UP_S = 60.0
_STOP_S = 20.0
_CHUNK = 1 << 20
_HOME = "dk-"
_OLD_S = 3600
# What no model needs: every container has a copy of the rest.
_LEFT_OUT = (
    "boot", "dev", "home", "proc", "sys", "tmp", "usr/include", "usr/lib/apt", "usr/lib/python3.11/test",
    "usr/lib/x86_64-linux-gnu/gconv", "usr/lib/x86_64-linux-gnu/perl-base", "usr/local", "usr/sbin", "usr/share/doc",
    "usr/share/i18n", "usr/share/locale", "usr/share/man", "usr/share/perl5", "usr/share/python-wheels",
    "usr/share/zoneinfo", "var/cache", "var/lib/apt", "var/lib/dpkg",
)  # fmt: skip
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


class NoDocker(Exception):
    """No Docker daemon can be started on this machine."""


class Dockerd:
    """One daemon in a temporary folder, reached by a Unix socket; it ends with everything that it has started."""

    def __init__(self, network: Sequence[str] = NO_BRIDGE) -> None:
        self._network = network
        _clear_up()
        # Short, because the path of a Unix socket may have 107 bytes.
        self._home = Path(tempfile.mkdtemp(prefix=_HOME))
        self._life = (self._home / "life").open("ab")
        fcntl.flock(self._life, fcntl.LOCK_EX)
        self._process: subprocess.Popen[bytes] | None = None
        self._layer = ""
        self.url = f"unix://{self._home}/docker.sock"
        self.http = httpx2.Client(
            transport=httpx2.HTTPTransport(uds=f"{self._home}/docker.sock"), base_url="http://docker", timeout=120
        )

    def start(self) -> Self:
        """Start the daemon; return once it takes requests and has the test models' images; raises `NoDocker`."""
        if reason := why_not():
            raise NoDocker(reason)
        if shutil.which("dockerd") is None:
            raise NoDocker("dockerd is not installed")
        try:
            layer = model_layer()
        except NoDebian as error:
            raise NoDocker(str(error)) from error
        self._run()
        self._layer = _digest(layer)
        configs = {image_of(model): cog_config(model) for model in models()}
        self._load(configs, layer)
        return self

    def _run(self) -> None:
        places = {"data-root": "data", "exec-root": "exec", "pidfile": "pid"}
        arguments = [f"--{name}={self._home / place}" for name, place in places.items()]
        arguments += ["--storage-driver=vfs", "--shutdown-timeout=1", "--ip-forward=false", *self._network]
        with (self._home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["dockerd", f"--host={self.url}", *arguments],
                stdout=log,
                stderr=log,
                preexec_fn=_stop_with_parent,
            )
        end = time.monotonic() + _UP_S
        while not (self._listens() and self._answers()):
            if self._process.poll() is not None or time.monotonic() > end:
                said = (self._home / "log").read_text(errors="replace")[-2000:]
                raise NoDocker(f"dockerd did not come up:\n{said}")
            time.sleep(0.05)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client, suppress(OSError):
            client.connect(f"{self._home}/docker.sock")
            return True
        return False

    def _answers(self) -> bool:
        with suppress(httpx2.HTTPError):
            return self.http.get("/_ping").status_code == 200
        return False

    def load(self, name: str, config: Mapping[str, Any]) -> str:
        """Make an image of that name, with the content of all others, that is started in another way; return its id."""
        return self._load({name: config})[name]

    def load_over(self, name: str, config: Mapping[str, Any], above: Path) -> None:
        """Make an image of that name, which has a layer above the content of all others."""
        self._load({name: config}, above=above)

    def _load(
        self, configs: Mapping[str, Mapping[str, Any]], layer: Path | None = None, above: Path | None = None
    ) -> dict[str, str]:
        """Load images into the daemon; the layer, which all have, goes with the first."""
        layers = [self._layer] if above is None else [self._layer, _digest(above)]
        documents = {name: image_document(config, *layers) for name, config in configs.items()}
        with tempfile.TemporaryFile(dir=self._home) as file:
            with tarfile.open(fileobj=file, mode="w") as archive:
                manifest = []
                for name, document in documents.items():
                    _add(archive, told := f"{hashlib.sha256(document).hexdigest()}.json", document)
                    manifest.append(
                        {
                            "Config": told,
                            "RepoTags": [name if ":" in name else f"{name}:latest"],
                            "Layers": ["layer.tar", "above.tar"][: len(layers)],
                        }
                    )
                if layer is not None:
                    archive.add(layer, "layer.tar")
                if above is not None:
                    archive.add(above, "above.tar")
                _add(archive, "manifest.json", json.dumps(manifest).encode())
            file.seek(0)
            answer = self.http.post("/images/load", content=iter(lambda: file.read(_CHUNK), b""), params={"quiet": "1"})
        assert answer.status_code == 200, answer.text
        assert "errorDetail" not in answer.text, answer.text
        return {name: f"sha256:{hashlib.sha256(document).hexdigest()}" for name, document in documents.items()}

    def containers(self, label: str = "cogflare.worker") -> list[str]:
        """Return the ids of all containers with that label, running or not."""
        filters = json.dumps({"label": [label]})
        found = self.http.get("/containers/json", params={"all": "1", "filters": filters}).json()
        return [container["Id"] for container in found]

    def inspect(self, container: str) -> dict[str, Any]:
        """Return all that the daemon knows of a container."""
        found: dict[str, Any] = self.http.get(f"/containers/{container}/json").json()
        return found

    def kill(self, container: str) -> None:
        """Kill a container, as `docker kill` does."""
        self.http.post(f"/containers/{container}/kill").raise_for_status()

    def remove(self, container: str) -> None:
        """Remove a container, whatever it does."""
        self.http.delete(f"/containers/{container}", params={"force": "1"})

    def stop(self) -> None:
        """End the daemon and its containers, whose remains stay."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """End the daemon, its containers and its mounts, and remove all it has written."""
        self.stop()
        self.http.close()
        self._life.close()
        _remove(self._home)


def _clear_up() -> None:
    """Remove what daemons have left whose tests were killed."""
    for life in Path(tempfile.gettempdir()).glob(f"{_HOME}*/life"):
        with suppress(OSError), life.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(life.parent)


def _remove(home: Path) -> None:
    for mount in reversed(_mounts(home)):
        subprocess.run(["umount", "--lazy", mount], check=False)
    shutil.rmtree(home, ignore_errors=True)


def _stop_with_parent() -> None:
    """Have the kernel ask the daemon to end, with its containers, when the tests' process dies."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _mounts(below: Path) -> list[str]:
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return [mount for mount in mounts if mount.startswith(f"{below}/")]


def wardens(container: str) -> list[int]:
    """Return the processes that see to the end of a container."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = file.read_bytes().decode(errors="replace").split("\0")
            if container in words and any(word.endswith("/warden.py") for word in words):
                found.append(int(file.parent.name))
    return found


def models() -> list[str]:
    """Return the test models that are Cog's."""
    return sorted(file.parent.name for file in MODELS.glob("*/cog.yaml"))


def image_of(model: str) -> str:
    """Return the name of a test model's image."""
    return f"cogflare.test/models/{model}:latest"


def cog_config(model: str, **changes: Any) -> dict[str, Any]:
    """Return how `cog build` has a model's image started; `changes` replace fields of it."""
    config = read_config(MODELS / model, None)
    labels = {"run.cog.version": COG_VERSION, "run.cog.config": json.dumps({"concurrency": {"max": config.slots}})}
    if (schema := read_schema(MODELS / model)) is not None:
        labels["run.cog.openapi_schema"] = json.dumps(schema)
    return {
        "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", f"COG_PREDICT_TYPE_STUB={config.entry}", "PYTHONUNBUFFERED=1"],
        "Cmd": ["python", "-m", "cog.server.http"],
        "ExposedPorts": {"5000/tcp": {}},
        "WorkingDir": f"/models/{model}",
        "Labels": labels,
        **changes,
    }


def image_document(config: Mapping[str, Any], *layers: str) -> bytes:
    """Return the document of an image with these layers."""
    return json.dumps(
        {
            "architecture": _MACHINES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "created": "2024-01-01T00:00:00Z",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": list(layers)},
            "history": [{"created": "2024-01-01T00:00:00Z", "created_by": "tests"}] * len(layers),
        }
    ).encode()


def model_layer() -> Path:
    """Return the layer of all images: a file that is made once for the same models; raises `NoDebian`."""
    root, content = bare_root(), hashlib.sha256(f"{COG_VERSION} {_LEFT_OUT}".encode())
    for file in _model_files():
        content.update(f"\0{file.relative_to(MODELS)}\0".encode() + file.read_bytes())
    cache = kept_folder()
    layer = cache / f"layer-{content.hexdigest()[:16]}.tar"
    with locked(cache / "layers.lock"):
        if not layer.exists():
            for old in cache.glob("layer-*"):
                if time.time() - old.stat().st_mtime > _OLD_S:  # nobody loads it any more
                    old.unlink()
            draft = layer.with_suffix(".new")
            _make_layer(root, draft)
            draft.rename(layer)
    return layer


def _make_layer(root: Path, layer: Path) -> None:
    python = (root / "usr/bin/python3").readlink().name.removeprefix("python")
    excluded = [root / place for place in _LEFT_OUT]

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if root / member.name in excluded else member

    with tempfile.TemporaryDirectory() as packages, tarfile.open(layer, "w") as archive:
        uv = Path(sys.executable).parent / "uv"
        wanted = ["--target", packages, "--python-version", python, f"cog=={COG_VERSION}"]
        done = subprocess.run([uv, "pip", "install", "--quiet", *wanted], capture_output=True, check=False)
        if done.returncode:
            raise NoDebian(f"cog cannot be had: {done.stderr.decode(errors='replace')[-2000:]}")
        for entry in sorted(root.iterdir()):
            archive.add(entry, entry.name, filter=plain)
        for name in ("tmp", "dev", "proc", "sys"):
            archive.addfile(_folder(name))
        archive.add(packages, f"usr/local/lib/python{python}/dist-packages")
        link = tarfile.TarInfo("usr/local/bin/python")
        link.type, link.linkname = tarfile.SYMTYPE, "/usr/bin/python3"
        archive.addfile(link)
        for file in _model_files():
            archive.add(file, f"models/{file.relative_to(MODELS)}")


def _folder(name: str) -> tarfile.TarInfo:
    folder = tarfile.TarInfo(name)
    folder.type, folder.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
    return folder


def _model_files() -> Iterator[Path]:
    for model in models():
        for file in sorted((MODELS / model).rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                yield file


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return f"sha256:{hashlib.file_digest(content, 'sha256').hexdigest()}"


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


@asynccontextmanager
async def image_rigs(daemon: Dockerd, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rigger]:
    """Makes rigs whose runner has the model in a container of the daemon's."""
    monkeypatch.setenv("DOCKER_HOST", daemon.url)
    rigs: list[Rig] = []

    async def make(model: str, slots: int | None = None, **wishes: Any) -> Rig:
        sink, source = MemorySink(), ImageSource(image_of(model), **wishes)
        rig = Rig(ImageRunner("acme", model, source, f"worker-{len(rigs)}", sink, slots=slots), sink)
        rigs.append(rig)
        rig.offer = await rig.runner.setup(rig.setup_log.append)
        return rig

    yield make
    for rig in rigs:
        await rig.runner.close()
