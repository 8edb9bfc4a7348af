"""Stopping the code of a run in the main thread: a signal raises `Canceled` in it, wherever it stands.

with interrupts:            from here on a cancel is raised
    with interrupts.shield: but not here, where something is half done
"""

import signal
import threading
from types import FrameType, TracebackType

_SIGNAL = signal.SIGUSR1


class Canceled(BaseException):
    """The run was canceled; no model that catches `Exception` holds it up."""


class Interrupts:
    """What may be interrupted, and whether that is wanted. Made in the main thread."""

    def __init__(self) -> None:
        self._main = threading.get_ident()
        self._is_open = False
        self._is_wanted = False
        self._shields = 0
        self.shield = _Shield(self)
        signal.signal(_SIGNAL, self._on_signal)

    def request(self) -> None:
        """Interrupt what runs; from any thread."""
        self._is_wanted = True
        signal.pthread_kill(self._main, _SIGNAL)

    def open(self) -> None:
        """Let the code that follows be interrupted."""
        self._is_open = True
        self.check()

    def close(self) -> None:
        """No code is to be interrupted any more; a request that came too late is dropped."""
        self._is_open = self._is_wanted = False

    def enter(self) -> None:
        """Hold interruptions back, in the main thread."""
        if threading.get_ident() == self._main:
            self._shields += 1

    def leave(self) -> None:
        """Let what was held back come."""
        if threading.get_ident() == self._main:
            self._shields -= 1
            self.check()

    def check(self) -> None:
        """Raise `Canceled` if that is wanted and nothing speaks against it."""
        if self._is_wanted and self._is_open and not self._shields:
            self._is_wanted = False
            raise Canceled

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.check()


class _Shield:
    """Holds interruptions back."""

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts

    def __enter__(self) -> None:
        self._interrupts.enter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._interrupts.leave()
