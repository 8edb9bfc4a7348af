"""The `cogflare` command: every subcommand."""

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
from cogflare.cli.workercommands import worker


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
