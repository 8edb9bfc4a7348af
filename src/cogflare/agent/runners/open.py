"""Opens the runner for a source; the only place that knows which kinds there are.

A driver is called with (source, bench): only the chosen one is imported, so that no worker needs what others run on.
"""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import cast

from cogflare.agent.depot import Depot
from cogflare.agent.runners.base import Runner, UploadSink
from cogflare.agent.runners.handover import Takeover
from cogflare.agent.shelf import Shelf
from cogflare.agent.sources import Source

_DRIVERS = {
    "FolderSource": "cogflare.agent.runners.cogfolder:open_folder",
    "FunctionSource": "cogflare.agent.runners.function:open_function",
    "HandlerSource": "cogflare.agent.runners.function:open_function",
    "ImageSource": "cogflare.agent.runners.image:open_image",
    "UrlSource": "cogflare.agent.runners.coghttp:open_url",
}


@dataclass(frozen=True, slots=True)
class Bench:
    """What a worker has for whatever runner it gets.

    ``worker`` is the worker's id, ``slots`` what the person said. A runner whose model cannot reach this machine's
    loopback says so to the ``shelf``, which hands input files out.
    """

    owner: str
    name: str
    worker: str
    slots: int | None
    cache: Path
    sink: UploadSink
    takeover: Takeover
    depot: Depot
    shelf: Shelf


def open_runner(source: Source, bench: Bench) -> Runner:
    """Return the runner for what is to be run; nothing is started yet."""
    module, _, name = _DRIVERS[type(source).__name__].partition(":")
    return cast(Runner, getattr(import_module(module), name)(source, bench))
