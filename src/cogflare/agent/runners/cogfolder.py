"""Runs a folder with a Cog model without a container: the real Cog server, in a Python environment of the model's own.

The environment is built from ``cog.yaml`` and stays in the cache, or is that of an interpreter which has all the model
needs, as inside a Cog image. System packages and GPU drivers that ``cog.yaml`` asks for are the machine's business.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cogflare.agent.depot import Depot
from cogflare.agent.runners.base import LogSink, SetupFailed, UploadSink
from cogflare.agent.runners.cogrelease import CogRelease, reach_s
from cogflare.agent.runners.cogyaml import CogConfig, read_config, read_schema, source_files
from cogflare.agent.runners.environment import ensure, scrubbed
from cogflare.agent.runners.handover import Takeover
from cogflare.agent.runners.interpreter import called_python, cog_of, with_interpreter
from cogflare.agent.runners.launched import LaunchedRunner
from cogflare.agent.runners.open import Bench
from cogflare.agent.runners.outputs import OutputShape
from cogflare.agent.sources import FolderSource

COG_VERSION = "0.23.1"
_REACH_S = 60.0
ENTRY = "COG_PREDICT_TYPE_STUB"


class CogFolderRunner(LaunchedRunner):
    """A runner over the model in ``folder``. ``slots`` and ``cog_version`` stand above what ``cog.yaml`` says.

    With a ``python`` no environment is built, and ``cog_version`` is the one that it has.
    """

    def __init__(
        self,
        owner: str,
        name: str,
        folder: Path,
        cache_dir: Path,
        sink: UploadSink,
        *,
        slots: int | None = None,
        cog_version: str = COG_VERSION,
        python: Path | None = None,
        takeover: Takeover | None = None,
        depot: Depot | None = None,
    ) -> None:
        super().__init__(owner, name, self._ready, sink, takeover=takeover, depot=depot)
        self._folder, self._cache_dir, self._python = folder.resolve(), cache_dir.resolve(), python
        self._slots, self._cog_version = slots, cog_version

    async def _ready(self, log: LogSink) -> _CogLaunch:
        # Inside a Cog image the environment has what `cog build` has taken from its cog.yaml.
        entry = scrubbed().get(ENTRY, "") if self._python else None
        config, schema = read_config(self._folder, self._slots, entry), read_schema(self._folder)
        if self._python is not None:
            python = called_python(self._python, self._cache_dir)
            release = await cog_of(python, self._folder)
            if not release.takes_port:
                raise SetupFailed("a Cog server before 0.5 has port 5000 and no other: run the model's image instead")
            return _CogLaunch(config, python, self._folder, schema, release)
        for asked in config.unmet:
            log(f"cog.yaml asks for {asked}, which this machine has to bring\n")
        bin_dir = await ensure(self._cache_dir, self._folder, config.wishes(self._cog_version), log)
        return _CogLaunch(config, bin_dir / "python", self._folder, schema, CogRelease.of(self._cog_version))


class _CogLaunch:
    """The launch of a Cog server. Before coglet, each works out its schema itself."""

    entry = ""

    def __init__(
        self, config: CogConfig, python: Path, folder: Path, schema: dict[str, Any] | None, release: CogRelease
    ) -> None:
        self.python, self.folder, self.root = python, folder, folder
        self.shape = OutputShape(schema) if schema is not None or release.is_coglet else None
        self.slots, self.reach_s = release.slots(config.slots), reach_s(release, _REACH_S)
        self._stub, self._release = config.entry, release
        self._has_file_lists = release.is_coglet and self.shape is not None and self.shape.items_are_files

    def files(self) -> list[str]:
        """All files of the folder."""
        return source_files(self.folder)

    def arguments(self, port: int, upload_url: str) -> list[str]:
        """The server's command line."""
        host = ["--host", "127.0.0.1"] if self._release.takes_host else []
        # Files of a list or iterator come as data URLs: uploaded ones coglet lists as their uploads end, in disorder.
        has_uploads = self._release.goes_on and not self._has_file_lists
        uploads = ["--upload-url", upload_url] if has_uploads else []
        return ["-m", "cog.server.http", *host, *uploads]

    def environ(self, port: int) -> dict[str, str]:
        """The server's environment variables."""
        return with_interpreter(scrubbed(), self.python) | {
            "PORT": str(port),
            ENTRY: self._stub,
            "COG_MAX_CONCURRENCY": str(self.slots),
            "COG_LOG_LEVEL": self._release.quiet,
            # Each snapshot of a file iterator has all its files so far in it.
            "COG_THROTTLE_RESPONSE_INTERVAL": "0.5" if self._has_file_lists else "0.05",
            "COG_STREAM_HISTORY_CAPACITY": "65536",
        }


def open_folder(source: FolderSource, bench: Bench) -> CogFolderRunner:
    """Return the runner for a folder."""
    return CogFolderRunner(
        bench.owner,
        bench.name,
        source.folder,
        bench.cache,
        bench.sink,
        slots=bench.slots,
        python=source.python,
        takeover=bench.takeover,
        depot=bench.depot,
    )
