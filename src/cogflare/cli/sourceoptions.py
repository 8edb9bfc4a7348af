"""The options that say where a worker's model is, for every command that takes them: together they are one source."""

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cogflare.agent.address import dialled, with_scheme
from cogflare.agent.sources import FolderSource, FunctionSource, HandlerSource, ImageSource, Source, UrlSource
from cogflare.cli.imageoptions import image_options
from cogflare.cli.optionvalues import shown

_OTHERS = "--url, --image, --function or --runpod-handler"


class _Folder(click.ParamType[Path]):
    """A folder that is there."""

    name = "folder"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        folder = Path(str(value))
        if folder.is_file():
            option = "--runpod-handler FILE or --function MODULE:NAME"
            raise click.UsageError(f"{shown(value)} is a file; what is in a file is run with {option}", ctx)
        if not str(value) or not folder.is_dir():
            raise click.UsageError(f"the folder {shown(value)} does not exist", ctx)
        return folder


class _Interpreter(click.ParamType[Path]):
    """A Python interpreter: a file, or a name that the PATH knows."""

    name = "path"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        found = shutil.which(os.fspath(value) if isinstance(value, Path) else str(value))
        if found is None:
            self.fail(f"{shown(value)} is no program; name the interpreter that has the model's packages", param, ctx)
        return Path(found).absolute()


def source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options, and call it with the `source` that they make."""

    @functools.wraps(command)
    def with_source(
        folder: Path | None,
        folder_option: Path | None,
        url: str | None,
        function: str | None,
        runpod_handler: Path | None,
        python: Path | None,
        image: ImageSource | None,
        **others: Any,
    ) -> Any:
        given = _given(folder or folder_option, url, function, runpod_handler, image, python)
        return command(source=given or _folder(Path(), python), **others)

    decorated = image_options(with_source)
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


_OPTIONS = [
    click.argument("folder", required=False, type=_Folder()),
    click.option("--folder", "folder_option", type=_Folder(), hidden=True),
    click.option("--url", help="A running Cog server to use, instead of a folder (http://localhost:5000)."),
    click.option(
        "--function",
        metavar="MODULE:NAME",
        help="A Python function to serve as the model, found from the current folder.",
    ),
    click.option(
        "--runpod-handler",
        metavar="FILE",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A file that hands a handler to runpod.serverless.start, to serve as the model.",
    ),
    click.option(
        "--python",
        type=_Interpreter(),
        help="The interpreter that has the packages of the folder, function or handler; no environment is made then.",
    ),
]


def _given(
    folder: Path | None,
    url: str | None,
    function: str | None,
    handler: Path | None,
    image: ImageSource | None,
    python: Path | None,
) -> Source | None:
    """Return the one source that is named; None when there is none."""
    sources: list[Source] = [] if image is None else [image]
    if folder is not None:
        sources.append(_folder(folder, python))
    if url is not None:
        sources.append(cog_server(url))
    if function is not None:
        sources.append(_function(function, python))
    if handler is not None:
        sources.append(HandlerSource(handler, python))
    if len(sources) > 1:
        raise click.UsageError(f"a worker has one model: give a folder, {_OTHERS}, and not two of them")
    if python is not None and (url is not None or image is not None):
        raise click.UsageError("--python is for models that the worker starts itself: a folder, function or handler")
    return sources[0] if sources else None


def _folder(folder: Path, python: Path | None) -> Source:
    # Inside a Cog image the environment says what is in cog.yaml, which the image may be without.
    is_model = (folder / "cog.yaml").is_file() or (python is not None and "COG_PREDICT_TYPE_STUB" in os.environ)
    if not is_model:
        raise click.UsageError(
            f"no cog.yaml in {folder.resolve()}: name the folder of a Cog model, or what else to run: {_OTHERS}"
        )
    return FolderSource(folder, python)


def cog_server(url: str) -> UrlSource:
    """Return the Cog server at an address; raises `BadParameter` for what is no address."""
    parts = dialled(url)
    if parts is None or parts.scheme not in ("http", "https") or parts.query or parts.fragment or parts.username:
        quoted = "this" if "@" in url else shown(url)  # a password may be in it
        raise click.BadParameter(
            f"{quoted} is not the address of a Cog server; it looks like http://localhost:5000", param_hint="--url"
        )
    return UrlSource(with_scheme(url))


def _function(entry: str, python: Path | None) -> Source:
    module, _, name = entry.partition(":")
    is_file = module.endswith(".py")
    if is_file or not all(part.isidentifier() for part in [*module.split("."), *name.split(".")]):
        raise click.BadParameter(
            f"{shown(entry)} is not of the form module:name, such as predict:run for the function run in predict.py",
            param_hint="--function",
        )
    return FunctionSource(entry, Path.cwd(), python)
