"""Bare Debian machines for tests: a copy of a Debian root, in which commands run as on a machine of their own.

They have the network of this machine, its package index and certificates, and nothing else of it. Each command is in a
namespace of processes of its own, so that all it has started ends with it.
"""

import os
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from support.debian import NoDebian, bare_root, why_not
from support.docker import model_layer
from support.processes import die_with_parent

PATH: Final = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
_OF_COG: Final = ("usr/local", "models")
_INDEX: Final = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX")
_PROXIES: Final = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
_CERTIFICATES: Final = "/etc/ssl/certs/ca-certificates.crt"
_TOOLS: Final = (
    "sh",
    "curl",
    "env",
    "timeout",
    "id",
    "df",
    "awk",
    "mkdir",
    "tr",
    "grep",
    "sed",
    "rm",
    "mv",
    "ln",
    "cat",
)


def need_debian() -> None:
    """Skip the test where no Debian root can be made; fail where one has to be."""
    reason = why_not()
    if reason is None:
        try:
            bare_root()
            return
        except NoDebian as error:
            reason = str(error)
    if os.environ.get("COGFLARE_REQUIRE_DOCKER"):
        pytest.fail(f"no bare Debian, which was required: {reason}")
    pytest.skip(f"NO DEBIAN ROOT, SO JOINING IS NOT TESTED: {reason}")


class Box:
    """A machine below `folder`; what its commands say is in `folder/NAME.log`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "root"
        folder.mkdir(parents=True)
        subprocess.run(["cp", "-a", "--reflink=auto", str(bare_root()), str(self.root)], check=True)
        for name in ("proc", "sys"):
            (self.root / name).mkdir(exist_ok=True)
        shutil.copy("/etc/resolv.conf", self.root / "etc/resolv.conf")
        self._settings = {
            name: value for name, value in os.environ.items() if name in _INDEX or name.lower() in _PROXIES
        }
        if Path(_CERTIFICATES).exists():
            # That of a proxy that this machine's index is reached through may be among them.
            shutil.copy(_CERTIFICATES, self.root / _CERTIFICATES[1:])
            self._settings["SSL_CERT_FILE"] = _CERTIFICATES
        own = Path.home()
        for place, there in (
            (Path("/etc"), "etc"),
            (own / ".config/pip", "root/.config/pip"),
            (own / ".pip", "root/.pip"),
        ):
            if (place / "pip.conf").is_file():
                (self.root / there).mkdir(parents=True, exist_ok=True)
                lines = (place / "pip.conf").read_text().splitlines()
                # Folders of this machine are not on that one.
                kept = [line for line in lines if "file:" not in line and "find-links" not in line]
                (self.root / there / "pip.conf").write_text("\n".join(kept) + "\n")

    def add_cog(self, model: str) -> None:
        """Make it what a Cog image is: the model in /src, Cog and its packages in the image's own Python."""
        with tarfile.open(model_layer()) as layer:
            members = [member for member in layer.getmembers() if member.name.startswith(_OF_COG)]
            layer.extractall(self.root, members, filter="fully_trusted")
        (self.root / "models" / model).rename(self.root / "src")

    def tools_only(self, *left_out: str) -> str:
        """Return a PATH with the commands that every machine has, and no Python."""
        folder = self.root / "opt/tools"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in _TOOLS:
            if name not in left_out:
                (folder / name).symlink_to(f"/usr/bin/{name}")
        return "/opt/tools"

    def start(
        self, name: str, command: str, environment: Mapping[str, str] | None = None, hidden: str = ""
    ) -> "Command":
        """Start a shell command in the machine's home folder; the folder `hidden` is empty for it."""
        settings = {"HOME": "/root", "PATH": PATH, **self._settings, **(environment or {})}
        return Command(self, name, command, settings, hidden)

    def run(self, name: str, command: str, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Run a command to its end; return its exit code and what it said."""
        with self.start(name, command, environment) as started:
            return started.join(), started.log()

    def close(self) -> None:
        """Remove the machine, which is large; what its commands said stays."""
        shutil.rmtree(self.root)


class Command:
    """A command in a box; everything that it has started is killed when it is left."""

    def __init__(self, box: Box, name: str, command: str, environment: Mapping[str, str], hidden: str) -> None:
        self._root = box.root
        self._log = box.folder / f"{name}.log"
        set_up = f"mount -t proc proc {box.root}/proc"
        if hidden:
            set_up += f" && mount -t tmpfs none {box.root}{hidden}"
        inside = [
            "chroot",
            str(box.root),
            "/usr/bin/env",
            "-i",
            *(f"{key}={value}" for key, value in environment.items()),
        ]
        inside += ["/bin/sh", "-c", f"cd /root && {command}"]
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*namespaces, f"{set_up} && exec {shlex.join(inside)}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        print(f"--- {self._log.name} ---\n{self.log()[-3000:]}")

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def join(self, timeout_s: float = 120) -> int:
        """Wait for its end and return the exit code."""
        return self._process.wait(timeout_s)

    def log(self) -> str:
        """Return all that it has said."""
        return self._log.read_text(errors="replace")

    def processes(self) -> dict[int, str]:
        """Return the command lines of the processes in the box, by their ids on this machine."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(folder / "root") == str(self._root):
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            except OSError:
                continue  # it has just ended
        return found
