"""The `cogflare` command: every subcommand, and what a shell is told about how it ended."""

import os
import sys
from importlib.metadata import version

import click

from cogflare.cli.backup import backup
from cogflare.cli.bench import bench
from cogflare.cli.demo import demo
from cogflare.cli.doctor import doctor
from cogflare.cli.files import files
from cogflare.cli.fleet import account, models, workers
from cogflare.cli.money import budgets, costs
from cogflare.cli.predict import predict
from cogflare.cli.predictions import predictions
from cogflare.cli.providers import providers
from cogflare.cli.routes import routes
from cogflare.cli.serve import serve
from cogflare.cli.tokens import tokens
from cogflare.cli.verify import verify
from cogflare.cli.webhooks import webhooks
from cogflare.cli.worker import worker

_INTERRUPTED = 130
_BROKEN_PIPE = 141


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("cogflare"), prog_name="cogflare")
def cogflare() -> None:
    """One Replicate-compatible API in front of every GPU you can reach."""


for command in (
    serve,
    worker,
    predict,
    predictions,
    files,
    models,
    workers,
    providers,
    routes,
    budgets,
    costs,
    tokens,
    webhooks,
    account,
    backup,
    doctor,
    demo,
    bench,
    verify,
):
    cogflare.add_command(command)


def main() -> None:
    """Run the command line; Ctrl-C ends with 130 as shells expect, a reader that went away with 141."""
    try:
        status = cogflare.main(standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        status = _INTERRUPTED
    except BrokenPipeError:
        # Nobody reads on; without this the interpreter would complain about it once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = _BROKEN_PIPE
    sys.exit(status if isinstance(status, int) else 0)
