"""Reading a folder with a Cog model: its ``cog.yaml``, its schema, its slots, and a digest of its content."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import yaml

from cogflare.agent.runners.base import SetupFailed
from cogflare.agent.runners.environment import Wishes, own_python

_SCHEMA_PATH = Path(".cog") / "openapi_schema.json"
_BLOCK = 1 << 20


class CogConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What we take from a ``cog.yaml``. ``unmet`` names what it asks of the machine, for the log."""

    entry: str
    slots: int
    python: str
    packages: tuple[str, ...]
    requirements: str
    requirements_file: str
    unmet: tuple[str, ...]

    def wishes(self, cog_version: str) -> Wishes:
        """The environment that the model wants."""
        return Wishes(
            cog=cog_version,
            python=self.python,
            packages=self.packages,
            requirements=self.requirements,
            requirements_file=self.requirements_file,
        )


def read_config(folder: Path, slots: int | None, entry: str | None = None) -> CogConfig:
    """Read the folder's ``cog.yaml``; ``slots`` stands above what it says. Raises `SetupFailed`.

    An ``entry`` is given where the environment is there already, as in a Cog image: no requirements are read then, and
    if it is not empty, the file may be missing.
    """
    file = folder / "cog.yaml"
    try:
        raw = {"run": entry} if entry and not file.exists() else yaml.safe_load(file.read_text())
        if not isinstance(raw, dict):
            raise SetupFailed(f"{folder / 'cog.yaml'} is not a mapping")
        build = raw.get("build") or {}
        requirements_file = str(build.get("python_requirements") or "")
        is_wanted = requirements_file and entry is None
        requirements = (folder / requirements_file).read_text() if is_wanted else ""
        entry = str(raw.get("run") or raw.get("predict") or "")
        if not entry:
            raise SetupFailed(f"{folder / 'cog.yaml'} names no model: it has neither run: nor predict:")
        return CogConfig(
            entry=entry,
            slots=slots or _slots(folder, raw, entry),
            python=str(build.get("python_version") or own_python()),
            packages=tuple(str(package) for package in build.get("python_packages") or ()),
            requirements=requirements,
            requirements_file=requirements_file,
            unmet=tuple(f"{key}: {build[key]}" for key in ("system_packages", "run") if build.get(key)),
        )
    except yaml.YAMLError as error:
        raise SetupFailed(f"{folder / 'cog.yaml'} is not YAML: {' '.join(str(error).split())}") from error
    except (OSError, AttributeError) as error:
        raise SetupFailed(f"the model's folder cannot be read: {error}") from error


def _slots(folder: Path, raw: dict[str, Any], entry: str) -> int:
    """How many runs the model takes at once: ``concurrency: max`` or the decorator, which `cog build` reads too."""
    said = (raw.get("concurrency") or {}).get("max")
    return int(said or _decorated(folder / entry.partition(":")[0]) or 1)


def _decorated(path: Path) -> int | None:
    """The ``max`` of ``@concurrent(max=N)`` in that source, if it has one."""
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:
        return None  # the server says it better
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) in ("concurrent", "cog.concurrent"):
                    return _constant_max(decorator)
    return None


def _constant_max(call: ast.Call) -> int | None:
    for keyword in call.keywords:
        if keyword.arg == "max" and isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, int):
            return keyword.value.value
    return None


def read_schema(folder: Path) -> dict[str, Any] | None:
    """The schema that `cog build` left in the folder, or None: then every input is taken as it is."""
    try:
        return msgspec.json.decode((folder / _SCHEMA_PATH).read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise SetupFailed(f"{_SCHEMA_PATH} is not JSON: {error}") from error


def source_files(folder: Path) -> list[str]:
    """The names of the folder's files, caches and what begins with a dot left out."""
    return [path.relative_to(folder).as_posix() for path in sorted(_source_files(folder))]


def digest_of(folder: Path, files: Iterable[str]) -> str:
    """A digest of names and content of these files of the folder, without those that are gone."""
    digest = hashlib.sha256()
    for name in files:
        path, told = folder / name, name.encode()
        # A model that an earlier agent left may be at work in the folder.
        with suppress(FileNotFoundError), path.open("rb") as file:
            size = path.stat().st_size
            digest.update(len(told).to_bytes(4, "big") + told + size.to_bytes(8, "big"))
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def _source_files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name.startswith(".") or path.name == "__pycache__" or path.suffix == ".pyc":
            continue
        if path.is_dir():
            yield from _source_files(path)
        elif path.is_file():
            yield path
