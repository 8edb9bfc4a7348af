"""`cogflare worker`: connect this machine's model to a server."""

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import click

from cogflare.agent.address import ServerAddress
from cogflare.agent.main import WorkerOptions, run_worker
from cogflare.agent.runners.handover import KEEP_S
from cogflare.agent.sources import Source
from cogflare.cli.optionvalues import Line, Number, TagName, Whole, shown
from cogflare.cli.sourceoptions import source_options
from cogflare.domain.requirements import MAX_TAGS

_MAX_NAME = 100
_MAX_REGION = 200
_YEAR_S = 31_536_000
_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,99}/[0-9A-Za-z][0-9A-Za-z._-]{0,99}")


class ServerType(click.ParamType[ServerAddress]):
    """The address of a server."""

    name = "url"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> ServerAddress:
        if isinstance(value, ServerAddress):
            return value
        try:
            return ServerAddress(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command(short_help="Run a model; this is what is done without a command.")
@source_options
@click.option(
    "--server",
    required=True,
    type=ServerType(),
    envvar="COGFLARE_SERVER",
    show_envvar=True,
    help="Address of the server, for example https://gateway.example.com.",
)
@click.option(
    "--token",
    envvar="COGFLARE_WORKER_TOKEN",
    show_envvar=True,
    help="Worker token. Better in the environment or a file: others on this machine can read a command line.",
)
@click.option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with the worker token; read again at every connection.",
)
@click.option("--model", required=True, metavar="OWNER/NAME", help="The model that this worker offers.")
@click.option("--slots", type=Whole(1, 10_000), help="Predictions at a time (default: what the model says).")
@click.option(
    "--name",
    type=Line(_MAX_NAME),
    default="",
    help="How the worker is shown to operators (default: this machine's name).",
)
@click.option(
    "--region", type=Line(_MAX_REGION), default="", metavar="TEXT", help="Where this machine is, in words of your own."
)
@click.option(
    "--tag", "tags", type=TagName(), multiple=True, help="What models may require of this machine; may be given again."
)
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="COGFLARE_STATE",
    help="Where the worker keeps its identity and unsent results (default: ~/.local/state/cogflare/worker).",
)
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="COGFLARE_CACHE",
    help="Where environments of models are kept (default: ~/.cache/cogflare).",
)
@click.option(
    "--allow-private-inputs", is_flag=True, help="Let predictions name input files on this machine's own network."
)
@click.option(
    "--keep-model",
    type=Number(0, _YEAR_S),
    default=KEEP_S,
    show_default=True,
    metavar="SECONDS",
    envvar="COGFLARE_KEEP_MODEL_S",
    show_envvar=True,
    help="How long the model outlives a worker that was killed, for the next one to take it over with what it runs.",
)
@click.option("--json", "as_json", is_flag=True, help="Write the log as JSON, one object a line.")
def worker(
    source: Source,
    server: ServerAddress,
    token: str | None,
    token_file: Path | None,
    model: str,
    slots: int | None,
    name: str,
    region: str,
    tags: tuple[str, ...],
    state: Path | None,
    cache: Path | None,
    allow_private_inputs: bool,
    keep_model: float,
    as_json: bool,
) -> None:
    """Run a model for a server: the Cog model in FOLDER (default: the current folder), or what an option names.

    The worker dials out, so it needs no open port. Press Ctrl-C once to finish what runs and leave, twice to leave at
    once. Exit codes: 0 drained, 1 the model was not set up or is gone, 2 refused by the server, 130 stopped.
    """
    owner, model_name = _model(model)
    options = WorkerOptions(
        server=server,
        token=read_token(token, token_file),
        owner=owner,
        model=model_name,
        source=source,
        slots=slots,
        name=name,
        state=state,
        cache=cache,
        allow_private_inputs=allow_private_inputs,
        keep_model_s=keep_model,
        region=region,
        tags=_tags(tags),
        json=as_json,
    )
    try:
        code = asyncio.run(run_worker(options))
    except OSError as error:
        raise click.ClickException(f"the worker cannot keep its state: {error}") from error
    raise SystemExit(code)


def _model(model: str) -> tuple[str, str]:
    if not _NAME.fullmatch(model):
        raise click.BadParameter(f"{shown(model)} is not of the form owner/name", param_hint="--model")
    owner, _, name = model.partition("/")
    return owner, name


def _tags(tags: tuple[str, ...]) -> tuple[str, ...]:
    told = tuple(dict.fromkeys(tags))
    if len(told) > MAX_TAGS:
        raise click.BadParameter(f"{len(told)} tags are too many: {MAX_TAGS} at most", param_hint="--tag")
    return told


def read_token(token: str | None, file: Path | None) -> Callable[[], str]:
    """Return what reads the token; a token that no header can carry is refused here, without showing it."""
    value = token or ""

    def read() -> str:
        nonlocal value
        if file is not None:
            with suppress(OSError):  # while it is being replaced
                value = file.read_text(errors="replace")
        return value.strip()

    value = read()
    if not value and file is not None:
        raise click.UsageError(f"the --token-file {file} holds no token")
    if not value:
        raise click.UsageError(
            "a worker token is needed: make one with `cogflare tokens create --kind worker --name my-gpu` and pass it"
            " as COGFLARE_WORKER_TOKEN or in a --token-file"
        )
    if not value.isascii() or not value.isprintable() or " " in value:
        raise click.UsageError("the worker token has characters that no token has; was it copied whole?")
    return read
