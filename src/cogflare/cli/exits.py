"""What a shell is told about how a command ended."""

import os
import sys
from typing import NoReturn

import click

from cogflare.cli import starting

_BROKEN_PIPE = 141


def run(command: click.Command, name: str | None = None) -> NoReturn:
    """Run the command line; Ctrl-C ends with 130 as shells expect, a reader that went away with 141."""
    try:
        starting.listen()
        status = command.main(prog_name=name, standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        status = starting.INTERRUPTED
    except BrokenPipeError:
        # Nobody reads on; without this the interpreter would complain about it once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = _BROKEN_PIPE
    finally:
        starting.hush()
    sys.exit(status if isinstance(status, int) else 0)
