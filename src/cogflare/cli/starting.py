"""How a command begins and ends: Ctrl-C is quiet while its modules are being loaded, and once it has done its work.

So nothing is imported here but what any interpreter has by then; the rest is named, and loaded from here.
"""

import os
import signal
from importlib import import_module
from types import FrameType
from typing import Any, Final

INTERRUPTED: Final = 130
_RUN: Final = "cogflare.cli.exits:run"


def start(command: str, name: str | None = None) -> None:
    """Load a command, `module:attribute`, and run it; `name` is what its help calls it."""
    hush()
    run, loaded = _load(_RUN), _load(command)
    run(loaded, name)


def hush() -> None:
    """Let Ctrl-C end the process at once: nothing has to be put in order. Where it is ignored it stays so."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def listen() -> None:
    """Let Ctrl-C raise `KeyboardInterrupt`."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)


def _load(named: str) -> Any:
    module, _, attribute = named.partition(":")
    return getattr(import_module(module), attribute)
