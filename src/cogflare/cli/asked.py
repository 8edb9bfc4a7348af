"""What `cogflare worker install` was asked for: the words of `run`, checked as `run` checks them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
from click.core import ParameterSource

from cogflare.agent.address import ServerAddress
from cogflare.agent.sources import Source
from cogflare.cli.sourceoptions import source_options
from cogflare.cli.worker import worker as run

_LASTING: Final = ("state", "cache", "keep_model")  # what the environment says of these holds for a service, too


class Asked:
    """A worker as somebody asked for it, checked as `run` checks it. Raises click's usage errors."""

    def __init__(self, words: Sequence[str]) -> None:
        here = click.get_current_context(silent=True)
        context = run.make_context("run", list(words), parent=here and here.parent)
        parsed, _, _ = run.make_parser(context).parse_args(list(words))
        said, around = ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT
        self._given = {name: value for name, value in parsed.items() if context.get_parameter_source(name) is said}
        lasting = (name for name in _LASTING if context.get_parameter_source(name) is around)
        self._given |= {name: context.params[name] for name in lasting}
        self.params = context.params
        self.source: Source = _SOURCE(**context.params)
        self.server: ServerAddress = context.params["server"]
        self.model: str = context.params["model"]
        if self._given.get("token") or context.params["token_file"] is None:
            raise click.UsageError("a service reads its token from a file: pass --token-file FILE, and no --token")
        self.token_file = Path(context.params["token_file"]).absolute()
        if any(not word.isprintable() for word in (*words, str(Path.cwd()))):
            raise click.UsageError("the options, or this folder, have characters that a file of settings cannot hold")

    def words(self, *left_out: str) -> list[str]:
        """Return the options as they were given, paths made absolute, the folder first."""
        told: list[str] = []
        for param in run.params:
            if param.name is None or param.name not in self._given or param.name in left_out:
                continue
            for value in self.values(param.name):
                told = [value, *told] if isinstance(param, click.Argument) else [*told, *_option(param, value)]
        return told

    def values(self, name: str) -> list[str]:
        """Return the values of an option as they were given, paths made absolute."""
        meant, given = self.params.get(name), self._given.get(name)
        if isinstance(meant, Path):
            return [str(meant.absolute())]
        if isinstance(meant, ServerAddress):
            return [meant.base]
        if given is None or given is False:
            return []
        return [str(each) for each in given] if isinstance(given, list | tuple) else [str(given)]


def service_name(model: str) -> str:
    """Return the name of the service; a model's name has only characters that both systems take."""
    return f"cogflare-{model.replace('/', '-').lower()}"


def _only_source(source: Source, **others: object) -> Source:
    return source


_SOURCE: Final = source_options(_only_source)
SOURCE_PARAMS: Final[list[click.Parameter]] = getattr(_SOURCE, "__click_params__", [])


def _option(param: click.Parameter, value: str) -> list[str]:
    """Return an option as it is written."""
    name = max(param.opts, key=len)
    return [name] if isinstance(param, click.Option) and param.is_flag else [name, value]
