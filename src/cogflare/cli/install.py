"""`cogflare worker install`: what makes a worker come up with its machine, as text; nothing is written or started."""

import click

from cogflare.cli import composefile, unitfile
from cogflare.cli.asked import Asked


@click.command(
    context_settings={"ignore_unknown_options": True}, short_help="Print a systemd unit or a compose file of a worker."
)
@click.option("--systemd", "kind", flag_value="systemd", default=True, help="Print a systemd unit (the default).")
@click.option("--compose", "kind", flag_value="compose", help="Print a compose file for Docker.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS OF RUN]...")
def install(kind: str, words: tuple[str, ...]) -> None:
    """Print a systemd unit or a compose file that runs a worker with the given options; nothing is written.

    Takes the options of `cogflare worker run`, --token-file among them: what others on the machine can read holds no
    token. Run it as the user and in the folder of the worker to be.
    """
    asked = Asked(words)
    printed = unitfile if kind == "systemd" else composefile
    click.echo(printed.text(asked), nl=False)
    for note in printed.notes(asked):
        click.echo(f"Note: {note}", err=True)
