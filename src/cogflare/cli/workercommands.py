"""`cogflare worker`: runs a model, unless its first word is the name of another command.

It is `cogflare-worker` on machines that only run workers: what is imported here is all that the agent has there.
"""

import click

from cogflare import __version__
from cogflare.cli.install import install
from cogflare.cli.preflight import doctor
from cogflare.cli.worker import worker as run


class WorkerGroup(click.Group):
    """Takes what does not begin with the name of a command as words for `run`."""

    default = "run"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the name of the default command in front of its words."""
        if not args or args[0] not in {*self.commands, *ctx.help_option_names, "--version"}:
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show that of the default command, and that there are others."""
        words = self.commands[self.default].collect_usage_pieces(ctx)
        formatter.write_usage(ctx.command_path, " ".join([f"[{self.default}]", *words]))
        others = "|".join(name for name in self.list_commands(ctx) if name != self.default)
        formatter.write_usage(ctx.command_path, f"{others} [OPTIONS]", prefix="or:    ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show the options of the default command too: they are what most people look for."""
        command = self.commands[self.default]
        command.format_options(click.Context(command, parent=ctx, info_name=self.default), formatter)
        self.format_commands(ctx, formatter)


@click.group(
    cls=WorkerGroup,
    short_help="Run a model for a server on this machine.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="cogflare")
def worker() -> None:
    """Run a model for a server: the Cog model in FOLDER (default: the current folder), or what an option names.

    This is `run`, which need not be written. The other commands see to the machine; the first word decides, so a
    folder that is called like one of them is written ./doctor.
    """


for command, name in ((run, "run"), (doctor, "doctor"), (install, "install")):
    worker.add_command(command, name)
