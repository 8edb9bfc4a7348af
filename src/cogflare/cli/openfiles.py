"""How many files and sockets this process may have open: every client and every worker is one."""

import resource
from contextlib import suppress


def raise_limit() -> None:
    """Raise the soft limit to the hard one: shells set it low for the sake of old programs, and a server needs room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # Where the hard limit is "unlimited", some systems do not take it as the soft one.
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
