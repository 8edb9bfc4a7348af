"""The options of a worker whose model is a Cog image, run through Docker: together they are one `ImageSource`."""

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cogflare.agent.sources import ImageSource
from cogflare.cli.optionvalues import shown

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", re.IGNORECASE)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_GPU = r"(?:\d{1,3}|(?:GPU|MIG)-[0-9A-Za-z/-]+)"
_GPUS = re.compile(rf"auto|all|none|{_GPU}(?:,{_GPU})*")
_VARIABLE = re.compile(r"[A-Za-z_][0-9A-Za-z_]*")
_LABEL = r"[0-9A-Za-z](?:[0-9A-Za-z-]*[0-9A-Za-z])?"
_PART = r"[0-9a-z]+(?:(?:\.|__?|-+)[0-9a-z]+)*"
_IMAGE = re.compile(
    rf"(?:{_LABEL}(?:\.{_LABEL})*(?::\d+)?/)?{_PART}(?:/{_PART})*"  # a registry, and a name there
    r"(?::[0-9A-Za-z_][0-9A-Za-z_.-]{0,127})?(?:@[0-9a-z]+:[0-9a-f]{32,})?"
)
_MAX_IMAGE = 500
_MAX_SIZE = 1 << 50
_MODES = frozenset(["ro", "rw", "z", "Z", "nocopy", "cached", "delegated", "consistent"]) | {
    f"{r}{kind}" for r in ("", "r") for kind in ("private", "shared", "slave")
}


class _Size(click.ParamType[int]):
    """A number of bytes, with a unit as Docker has them: 512m, 6g."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = _SIZE.fullmatch(str(value).strip())
        size = 0 if found is None else round(float(found[1]) * _UNITS[found[2].lower()])
        if not 0 < size <= _MAX_SIZE:
            self.fail(f"{shown(value)} is no size; it looks like 512m or 6g", param, ctx)
        return size


def image_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options, and call it with the `image` that they make: None where none was named."""

    @functools.wraps(command)
    def with_image(
        image: str | None,
        gpus: str | None,
        memory: int | None,
        shm: int | None,
        network: str | None,
        volumes: tuple[str, ...],
        env: tuple[str, ...],
        pull: str | None,
        **others: Any,
    ) -> Any:
        given = {"gpus": gpus, "memory": memory, "shm": shm, "network": network, "pull": pull}
        wishes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if volumes:
            wishes["volumes"] = tuple(map(_volume, volumes))
        if env:
            wishes["env"] = tuple(map(_variable, env))
        return command(image=_source(image, wishes), **others)

    for option in reversed(_OPTIONS):
        with_image = option(with_image)
    return with_image


_OPTIONS = [
    click.option("--image", metavar="IMAGE", help="A Cog image to run with Docker (r8.im/owner/model)."),
    click.option(
        "--gpus", metavar="auto|all|none|IDS", help="GPUs for the image: all, none, or numbers such as 0,1 (auto: all)."
    ),
    click.option("--memory", type=_Size(), help="Memory that the image's container may have (default: no limit)."),
    click.option(
        "--shm", type=_Size(), help="Shared memory of the container (default: 6g with a GPU, else Docker's 64m)."
    ),
    click.option(
        "--network",
        type=click.Choice(["auto", "bridge", "host"]),
        help="Network of the container (auto: bridge, or host where Docker has no bridge).",
    ),
    click.option(
        "-v",
        "--volume",
        "volumes",
        multiple=True,
        metavar="SOURCE:/PATH[:ro]",
        help="A folder or Docker volume for the container, for weights and caches; may be given again.",
    ),
    click.option(
        "--env",
        multiple=True,
        metavar="NAME[=VALUE]",
        help="An environment variable for the container; without =VALUE this command's own. May be given again.",
    ),
    click.option("--pull", type=click.Choice(["missing", "always", "never"]), help="When to pull the image (missing)."),
]


def _source(image: str | None, wishes: dict[str, Any]) -> ImageSource | None:
    if image is None:
        if wishes:
            name = {"volumes": "volume"}.get(first := next(iter(wishes)), first)
            raise click.UsageError(f"--{name} is for an --image")
        return None
    if not _IMAGE.fullmatch(image) or len(image) > _MAX_IMAGE:
        like = "it has no capital letters" if _IMAGE.fullmatch(image.lower()) else "it looks like r8.im/owner/model:tag"
        raise click.BadParameter(f"{shown(image)} is not the name of an image: {like}", param_hint="--image")
    if not _GPUS.fullmatch(wishes.get("gpus", "auto")):
        raise click.BadParameter(
            f"{shown(wishes['gpus'])} is not all, none, or numbers such as 0,1", param_hint="--gpus"
        )
    return ImageSource(image, **wishes)


def _volume(volume: str) -> str:
    """Return the volume as Docker wants it: a folder by its whole path."""
    source, colon, target = volume.partition(":")
    modes = target.split(":")[1:]
    is_known = not modes or (len(modes) == 1 and _MODES.issuperset(modes[0].split(",")))
    if not colon or not source or not target.startswith("/") or not is_known:
        raise click.BadParameter(
            f"{shown(volume)} is not of the form source:/path or source:/path:ro", param_hint="--volume"
        )
    if source.startswith((".", "~", "/")):
        source = str(Path(source).expanduser().absolute())
    return f"{source}:{target}"


def _variable(variable: str) -> str:
    """Return the variable with its value, which comes from this command's environment where none is said."""
    name, equals, _ = variable.partition("=")
    if not _VARIABLE.fullmatch(name):
        raise click.BadParameter("it begins with no name of a variable", param_hint="--env")  # it may be a secret
    if equals:
        return variable
    if name not in os.environ:
        raise click.BadParameter(f"{name} is not set here", param_hint="--env")
    return f"{name}={os.environ[name]}"
