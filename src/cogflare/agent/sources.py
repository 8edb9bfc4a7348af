"""What a worker may run: where the model is, and what it is to be given. Values only, made by the command line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class FolderSource:
    """A folder with a ``cog.yaml``. ``python`` is an interpreter with the model's packages; None: one is made."""

    folder: Path
    python: Path | None = None


@dataclass(frozen=True, slots=True)
class UrlSource:
    """A Cog server that somebody else runs, such as http://localhost:5000."""

    url: str


@dataclass(frozen=True, slots=True)
class FunctionSource:
    """A Python function, ``module:name``, found from ``folder``. ``python`` None: the agent's own."""

    entry: str
    folder: Path
    python: Path | None = None


@dataclass(frozen=True, slots=True)
class HandlerSource:
    """A file that gives a handler to ``runpod.serverless.start``, run unchanged."""

    path: Path
    python: Path | None = None


@dataclass(frozen=True, slots=True)
class ImageSource:
    """A Cog image, run through the Docker API.

    ``gpus`` is "all", "none", or device numbers such as "0,1"; "auto" takes all there are. ``memory`` and ``shm`` are
    bytes. ``volumes`` are ``source:/path[:ro]`` as `docker run -v` takes them, ``env`` are ``NAME=value``.
    """

    image: str
    gpus: str = "auto"
    memory: int | None = None
    shm: int | None = None
    network: Literal["auto", "bridge", "host"] = "auto"
    volumes: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    pull: Literal["missing", "always", "never"] = "missing"


Source = FolderSource | UrlSource | FunctionSource | HandlerSource | ImageSource
