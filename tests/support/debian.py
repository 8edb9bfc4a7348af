"""A bare Debian root folder, as `debootstrap` makes it from the mirror that this machine itself uses.

It is made once a machine and kept under the temporary folder, since it takes half a minute; nobody changes it: what a
test wants to change it copies. `NoDebian` says why there is none here.
"""

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("python3", "python3-venv", "curl", "ca-certificates")
_KEPT = Path(tempfile.gettempdir()) / f"cogflare-tests-{os.geteuid()}"
_APT = Path("/etc/apt")
_COMPLETE = "complete"
_BUILD_S = 600


class NoDebian(Exception):
    """No Debian root can be made on this machine."""


class Archive(NamedTuple):
    """A package archive that this machine installs from."""

    mirror: str
    suite: str
    components: tuple[str, ...]


def kept_folder() -> Path:
    """Return the folder of this user in which things are that take long to make, for all processes and all runs."""
    _KEPT.mkdir(mode=0o700, exist_ok=True)
    assert _KEPT.lstat().st_uid == os.geteuid(), f"{_KEPT} is somebody else's"
    return _KEPT


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the lock file; the kernel lets go of it when this process dies."""
    with file.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def bare_root(cache: Path | None = None) -> Path:
    """Return a Debian root with Python and curl in it, and nothing of ours; raises `NoDebian`. Change nothing in it."""
    cache = cache or kept_folder()
    archive = own_archive()
    home = cache / f"debian-{archive.suite}"
    with locked(cache / f"{home.name}.lock"):
        if not (home / _COMPLETE).exists():
            shutil.rmtree(home, ignore_errors=True)  # the torn work of a process that died
            _build(home, archive)
            (home / _COMPLETE).touch()
    return home / "root"


def why_not() -> str | None:
    """Return why no root can be made here; None if it looks as if one could."""
    if os.geteuid() != 0:
        return "debootstrap needs root"
    if shutil.which("debootstrap") is None:
        return "debootstrap is not installed"
    return None


def own_archive() -> Archive:
    """Return the main archive that this machine's apt is told of; raises `NoDebian`."""
    files = [_APT / "sources.list", *sorted((_APT / "sources.list.d").glob("*"))]
    for file in files:
        if file.is_file() and (found := _archive(file)):
            return found
    raise NoDebian(f"no archive of a distribution stands in {_APT}")


def _archive(file: Path) -> Archive | None:
    """The first archive of the file that has a `main` and a suite such as bookworm (bookworm-updates is not one)."""
    for uris, suites, components in (_stanzas if file.suffix == ".sources" else _lines)(file.read_text()):
        whole = [suite for suite in suites if re.fullmatch("[a-z]+", suite)]
        if whole and "main" in components and uris and uris[0].rstrip("/").endswith(("/debian", "/ubuntu")):
            return Archive(uris[0], whole[0], tuple(components))
    return None


def _stanzas(text: str) -> Iterator[tuple[list[str], list[str], list[str]]]:
    for stanza in re.split(r"\n\s*\n", text):
        fields = dict(re.findall(r"^([A-Za-z-]+):[ \t]*(.*)$", stanza, re.MULTILINE))
        if "deb" in fields.get("Types", "").split() and fields.get("Enabled", "yes") != "no":
            yield fields.get("URIs", "").split(), fields.get("Suites", "").split(), fields.get("Components", "").split()


def _lines(text: str) -> Iterator[tuple[list[str], list[str], list[str]]]:
    for uri, suite, components in re.findall(r"^deb\s+(?:\[.*?\]\s+)?(\S+)\s+(\S+)(.*)$", text, re.MULTILINE):
        yield [uri], [suite], components.split()


def _build(home: Path, archive: Archive) -> None:
    if reason := why_not():
        raise NoDebian(reason)
    home.mkdir(parents=True)
    command = [
        "debootstrap",
        "--variant=minbase",
        f"--include={','.join(PACKAGES)}",
        f"--components={','.join(archive.components)}",
        archive.suite,
        str(home / "root"),
        archive.mirror,
    ]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_BUILD_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise NoDebian(f"debootstrap took more than {_BUILD_S} s") from error
    if done.returncode:
        raise NoDebian(f"debootstrap failed:\n{done.stdout.decode(errors='replace')[-2000:]}")
