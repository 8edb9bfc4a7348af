"""Webhooks, as far as they are rules: which events are told, to which host, and when a message is tried again.

Pure: no clock and no network.
"""

from typing import Final, Literal
from urllib.parse import urlsplit

import msgspec

Event = Literal["start", "output", "logs", "completed"]
"""What a filter may name."""
Subject = Literal["created", "start", "output", "logs", "completed"]
"""What a message may be about: creations are told of in the dialect of 2022."""

DEFAULT_EVENTS: Final = frozenset({"output", "completed"})
FIRST_PAUSE_US: Final = 5_000_000
LONGEST_PAUSE_US: Final = 3_600_000_000
UNKNOWN_HOST: Final = "unknown"

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_events: Final = msgspec.json.Decoder(list[str])


def host_of(url: str) -> str:
    """Return `host:port` of a URL, in lower case."""
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)
    except ValueError:
        return UNKNOWN_HOST
    return f"{parts.hostname}:{port}" if parts.hostname else UNKNOWN_HOST


def lane_of(account: str, url: str) -> str:
    """Return the account and the host that its messages go to: what shares one receiver's patience.

    The account is in it because paths of one host may be receivers of different people.
    """
    return f"{account} {host_of(url)}"


def account_of(lane: str) -> str:
    """Return whose messages are in a lane."""
    return lane.rpartition(" ")[0]


def wanted_events(text: str | None) -> frozenset[str]:
    """Return the events of a filter as stored (a JSON list); without one, outputs and the end."""
    return DEFAULT_EVENTS if text is None else frozenset(_events.decode(text))


def pause_us(tries: int, share: float, retry_after_s: float | None = None) -> int:
    """Return how long to wait after a failed try, in microseconds.

    Pauses double from 5 seconds to an hour; `share` (0 to 1) picks from the upper half. What the receiver asks for
    counts where it is longer, up to an hour.
    """
    bound = min(LONGEST_PAUSE_US, FIRST_PAUSE_US << min(tries - 1, 30))
    pause = bound // 2 + int(bound // 2 * share)
    asked = 0 if retry_after_s is None else int(min(max(retry_after_s, 0.0), LONGEST_PAUSE_US / 1e6) * 1_000_000)
    return max(pause, asked)
