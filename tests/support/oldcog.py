"""Cog of the years before coglet: releases pinned in environments of their own, which are installed once.

`tests/clients/cog-RELEASE` has what pins a release, `tests/models/old` the models for all of them. An image of a
release is that of the tests' models with another layer, in which the release stands in place of today's Cog.
"""

import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Final

from cogflare.agent.runners.cogfolder import CogFolderRunner
from support.clients import PythonClient
from support.debian import bare_root, kept_folder, locked
from support.docker import Dockerd
from support.runners import MODELS, MemorySink, Rig

OLD_MODELS: Final = MODELS / "old"
_OLD_S: Final = 3600
_EMPTIED: Final = ".wh..wh..opq"  # the name of a file by which a folder of a layer hides that of the layers below


class OldCog(PythonClient):
    """A release of Cog, without what it wants for anything but its HTTP server."""

    options = ("--no-deps",)

    def __init__(self, release: str) -> None:
        super().__init__(f"cog-{release}", {})

    @property
    def python(self) -> Path:
        """The interpreter that has it."""
        return self.home / "bin" / "python"

    def _install(self) -> None:
        super()._install()
        compiled = [str(self.python), "-m", "compileall", "-q", "-j", "2", str(self.home / "lib")]
        subprocess.run(compiled, check=False)  # servers start in a third of the time


class OldRigs:
    """Rigs over models of one release at a time, each of which tests leave for the next."""

    def __init__(self, cache: Path) -> None:
        self._cache, self._release = cache, ""
        self._kept: dict[tuple[str, int | None], Rig] = {}

    async def make(self, release: str, model: str, slots: int | None = None) -> Rig:
        """Return a rig whose runner starts the model's folder with that release of Cog."""
        if release != self._release:
            await self.close()
            self._release = release
        kept = self._kept.pop((model, slots), None)
        if kept is None or await kept.runner.health() is not None or kept.sink.failure:
            if kept:
                await kept.runner.close()
            kept = await self._set_up(release, model, slots)
        kept.sink.files.clear()
        kept.sink.puts.clear()
        self._kept[model, slots] = kept
        return kept

    async def _set_up(self, release: str, model: str, slots: int | None) -> Rig:
        sink, python = MemorySink(), OldCog(release).ready().python
        rig = Rig(
            CogFolderRunner("acme", model, OLD_MODELS / model, self._cache, sink, slots=slots, python=python), sink
        )
        rig.offer = await rig.runner.setup(rig.setup_log.append)
        return rig

    async def close(self) -> None:
        """End all models."""
        kept, self._kept = self._kept, {}
        for rig in kept.values():
            await rig.runner.close()


def load_old_image(daemon: Dockerd, release: str, model: str) -> str:
    """Put the image of a model of that release into the daemon; return its name."""
    name = f"cogflare.test/old/{model}:{release}"
    config = {
        "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "PYTHONUNBUFFERED=1"],
        "Cmd": ["python", "-m", "cog.server.http"],
        "ExposedPorts": {"5000/tcp": {}},
        "WorkingDir": f"/old/{model}",
        # What was before there was `run.cog.version`.
        "Labels": {"org.cogmodel.cog_version": release, "org.cogmodel.config": "{}"},
    }
    daemon.load_over(name, config, _layer(release))
    return name


def _layer(release: str) -> Path:
    """Return the layer with that release and all models, which is made once for the same ones."""
    pins = OldCog(release).source / "requirements.txt"
    files = [file for file in sorted(OLD_MODELS.rglob("*")) if file.is_file() and "__pycache__" not in file.parts]
    content = hashlib.sha256(b"\0".join(file.read_bytes() for file in (pins, *files)))
    layer = kept_folder() / f"old-{release}-{content.hexdigest()[:16]}.tar"
    with locked(kept_folder() / "old.lock"):
        if not layer.exists():
            for former in kept_folder().glob(f"old-{release}-*"):
                if time.time() - former.stat().st_mtime > _OLD_S:  # nobody loads it any more
                    former.unlink()
            draft = layer.with_suffix(".new")
            _make_layer(pins, files, draft)
            draft.rename(layer)
    return layer


def _make_layer(pins: Path, files: list[Path], layer: Path) -> None:
    python = (bare_root() / "usr/bin/python3").readlink().name.removeprefix("python")
    place = f"usr/local/lib/python{python}/dist-packages"
    with tempfile.TemporaryDirectory() as packages, tarfile.open(layer, "w") as archive:
        wanted = ["--no-deps", "--require-hashes", "--target", packages, "--python-version", python, "-r", str(pins)]
        uv = [str(Path(sys.executable).parent / "uv"), "pip", "install", "--quiet"]
        subprocess.run([*uv, *wanted], check=True)
        archive.addfile(tarfile.TarInfo(f"{place}/{_EMPTIED}"), io.BytesIO())
        archive.add(packages, place)
        for file in files:
            archive.add(file, f"old/{file.relative_to(OLD_MODELS)}")
