"""Runs a Python function, or a file with a RunPod handler, in a host process that serves it as a Cog server would.

The host (`agent/hosting/`) is a script of the standard library alone, so any interpreter runs it, and the
model's packages never meet the agent's. Only the host knows the function's schema.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Literal

from cogflare.agent.depot import Depot
from cogflare.agent.runners.base import LogSink, Offer, SetupFailed, UploadSink
from cogflare.agent.runners.cogyaml import source_files
from cogflare.agent.runners.environment import scrubbed
from cogflare.agent.runners.handover import Takeover
from cogflare.agent.runners.interpreter import answer, with_interpreter
from cogflare.agent.runners.launched import LaunchedRunner
from cogflare.agent.runners.open import Bench
from cogflare.agent.sources import FunctionSource, HandlerSource

_BOOT = Path(__file__).parents[1] / "hosting" / "boot.py"
_OLDEST = (3, 10)
_LACKS = "ModuleNotFoundError: "
# The interpreter's version, and where a module or package is, without importing it.
_LOOK = """\
import sys
sys.path[:] = filter(None, sys.path)  # what lies in the folder is not to be taken for Python's own
import importlib.util, json
sys.path.insert(0, "")
spec = importlib.util.find_spec(sys.argv[1]) if sys.argv[1] else None
folders = list(spec.submodule_search_locations or []) if spec else []
file = spec.origin if spec and spec.has_location else None
print(json.dumps([sys.version_info[:2], folders[:1] or [file]]))
"""


class FunctionRunner(LaunchedRunner):
    """A runner over a function or a handler. ``python`` has the packages that it wants; None: the agent's own."""

    def __init__(
        self,
        owner: str,
        name: str,
        source: FunctionSource | HandlerSource,
        sink: UploadSink,
        *,
        slots: int | None = None,
        takeover: Takeover | None = None,
        depot: Depot | None = None,
    ) -> None:
        super().__init__(owner, name, self._ready, sink, takeover=takeover, depot=depot)
        self._source, self._slots = source, slots or 1
        self._python = (source.python or Path(sys.executable)).absolute()

    async def setup(self, log: LogSink) -> Offer:
        """Set the model up; raises `SetupFailed`, which says where a package that it lacks was looked for."""
        try:
            return await super().setup(log)
        except SetupFailed as error:
            first, *rest = str(error).splitlines() or [""]
            if not first.startswith(_LACKS):
                raise
            advice = f"{self._python} was asked for it; --python names the interpreter that has the model's packages"
            raise SetupFailed("\n".join([f"{first}: {advice}", *rest])) from error

    async def _ready(self, log: LogSink) -> _HostLaunch:
        source = self._source
        if isinstance(source, HandlerSource):
            path = source.path.resolve()
            await _look(self._python, path.parent, "")
            return _HostLaunch(self._python, "runpod", str(path), path.parent, path, self._slots)
        folder, module = source.folder.resolve(), source.entry.partition(":")[0].partition(".")[0]
        found = await _look(self._python, folder, module)
        if found is None:
            raise SetupFailed(f"there is no Python module {module} in {folder}, nor in the packages of {self._python}")
        return _HostLaunch(self._python, "function", source.entry, folder, found, self._slots)


async def _look(python: Path, folder: Path, module: str) -> Path | None:
    """Look whether the interpreter will do, and return where it finds the module or package; raises `SetupFailed`."""
    said = await answer(python, ["-c", _LOOK, module], folder, "cannot look for the function")
    version, [found] = json.loads(said)
    if tuple(version) < _OLDEST:
        raise SetupFailed(f"{python} is Python {version[0]}.{version[1]}: functions need 3.10 or newer")
    return Path(found) if found else None


class _HostLaunch:
    """The launch of a host. The model is made of the file or package ``found``, whatever else it imports."""

    shape, reach_s = None, 60.0

    def __init__(
        self,
        python: Path,
        mode: Literal["function", "runpod"],
        target: str,
        folder: Path,
        found: Path,
        slots: int,
    ) -> None:
        self.python, self.folder, self.slots = python, folder, slots
        self.root = found.parent
        self.entry = target if mode == "function" else ""
        self._mode, self._target, self._found = mode, target, found

    def files(self) -> list[str]:
        """The file, or all files of the package."""
        if self._found.is_file():
            return [self._found.name]
        return [f"{self._found.name}/{name}" for name in source_files(self._found)]

    def arguments(self, port: int, upload_url: str) -> list[str]:
        """The host's command line."""
        where = ["--port", str(port), "--upload-url", upload_url, "--slots", str(self.slots)]
        return [str(_BOOT), self._mode, self._target, *where]

    def environ(self, port: int) -> dict[str, str]:
        """The host's environment variables."""
        return with_interpreter(scrubbed(), self.python)


def open_function(source: FunctionSource | HandlerSource, bench: Bench) -> FunctionRunner:
    """Return the runner for a function or a handler."""
    about = bench.owner, bench.name, source, bench.sink
    return FunctionRunner(*about, slots=bench.slots, takeover=bench.takeover, depot=bench.depot)
