"""What a runner writes down so that the runner of the next agent can go on with its model: a file in the state folder.

The file is replaced as a whole. It need not survive a crash of the machine, which no model survives either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from cogflare.agent.runners.base import LogSink
from cogflare.agent.runners.process import Mark

KEEP_S = 600.0
_FILE = "server.json"

# What every session, terminal and service unit has of its own; no model asks for it.
_OF_SESSION = (
    "_", "ALACRITTY_", "CHILD_OF_COGFLARE", "COLUMNS", "DBUS_", "DISPLAY", "GNOME_", "INVOCATION_ID", "ITERM_",
    "JOURNAL_STREAM", "KITTY_", "KONSOLE_", "LINES", "LISTEN_", "LS_COLORS", "MAINPID", "MANAGERPID",
    "MEMORY_PRESSURE_", "NOTIFY_SOCKET", "OLDPWD", "PWD", "PYTEST_", "SESSION_MANAGER", "SHLVL", "SSH_", "STY",
    "SYSTEMD_", "TERM", "TMUX", "VTE_VERSION", "WATCHDOG_", "WAYLAND_", "WEZTERM_", "WINDOWID", "WSL_", "WT_",
    "XAUTHORITY", "XDG_",
)  # fmt: skip


class Server(msgspec.Struct, frozen=True):
    """A Cog server that the agent started: its minder, its port, and where its output and the minder's cord are."""

    minder: Mark
    port: int
    scratch: str


class LeftContainer(msgspec.Struct, frozen=True):
    """A container that the agent made, and where its server is; ``started`` tells one life of it from the next."""

    id: str
    started: str
    url: str


class Handover(msgspec.Struct, frozen=True):
    """The model as it was left. ``content`` tells one model, environment and command from another.

    ``files`` are the names of the files that the model was made of when it was started, for a server of our own.
    ``boot`` tells one life of a server that somebody else runs from the next.
    """

    content: str
    receiver_port: int
    receiver_secret: str
    boot: str | None = None
    server: Server | None = None
    files: list[str] = []
    container: LeftContainer | None = None


class Takeover:
    """The place in ``folder`` where handovers are. ``held`` are the runs that the last agent left, by Cog's names.

    ``held`` is None where they are not known: then no server is taken over, since it might run something unknown.
    ``forget`` removes the record of those runs: what is set up anew has none of them.
    """

    def __init__(
        self,
        folder: Path,
        held: frozenset[str] | None,
        keep_s: float = KEEP_S,
        forget: Callable[[], None] = lambda: None,
    ) -> None:
        self.held = held
        self.keep_s = keep_s
        self.forget = forget
        self._file = folder / _FILE

    def left(self, log: LogSink) -> Handover | None:
        """Return what the last agent left; a file that cannot be understood is set aside, and said."""
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Handover)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            log(f"{self._file} cannot be read and was set aside: {error}\n")
            with suppress(OSError):
                self._file.rename(self._file.with_suffix(".damaged"))
            return None

    def leave(self, handover: Handover, log: LogSink) -> None:
        """Write down how the model can be taken over."""
        draft = self._file.with_suffix(".new")
        try:
            draft.touch(mode=0o600)  # it has the receiver's secret
            draft.write_bytes(msgspec.json.encode(handover))
            draft.replace(self._file)
        except OSError as error:
            log(f"the next worker will not be able to take the model over: {error}\n")
            self.withdraw()

    def withdraw(self) -> None:
        """Forget the model: it is gone."""
        with suppress(OSError):
            self._file.unlink(missing_ok=True)


def fingerprint(*parts: object, environ: Mapping[str, str]) -> str:
    """Return what changes with the parts, and with the variables that are not the session's."""
    kept = sorted((name, value) for name, value in environ.items() if not name.startswith(_OF_SESSION))
    # A variable's value may be a secret of the model's: the file has the digest alone.
    return hashlib.sha256(msgspec.json.encode([parts, kept])).hexdigest()
