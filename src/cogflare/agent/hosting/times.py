"""The time of day, as Cog writes it."""

import time


def now() -> str:
    """Return the time in RFC 3339, in UTC."""
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{nanoseconds:09}+00:00"
