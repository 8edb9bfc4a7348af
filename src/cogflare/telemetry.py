"""Logs of the server: structured events on standard error, as text for people or JSON for machines."""

import logging
import sys
import time
from collections.abc import MutableMapping
from typing import Any, Final

import structlog

_QUIET_S: Final = 60.0
_REMEMBERED: Final = 1_000


class Repetitions:
    """Lets the same failure be said once a minute, with how often it happened since it was said."""

    def __init__(self) -> None:
        self._said: dict[tuple[str, str], tuple[float, int]] = {}

    def __call__(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Pass an event on, or drop it; only events with an `error` can repeat others."""
        if "error" not in event:
            return event
        key = str(event["event"]), str(event["error"])
        now = time.monotonic()
        said_at, times = self._said.get(key, (-_QUIET_S, 0))
        if now - said_at < _QUIET_S:
            self._said[key] = (said_at, times + 1)
            raise structlog.DropEvent
        if len(self._said) >= _REMEMBERED:
            self._said.clear()
        self._said[key] = (now, 0)
        if times:
            event["repeated"] = times
        return event


class _Libraries(logging.Handler):
    """Passes on what libraries say, in our format; what a stranger can make them say again and again is said once."""

    def emit(self, record: logging.LogRecord) -> None:
        method = "error" if record.levelno >= logging.ERROR else "warning"
        told = {"exc_info": record.exc_info} if record.exc_info else {}
        getattr(structlog.get_logger(), method)(record.name, error=record.getMessage(), **told)


def configure(log_format: str) -> None:
    """Set the format of all logs of this process: `text` or `json`."""
    renderer: Any = structlog.processors.JSONRenderer()
    if log_format != "json":
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            Repetitions(),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_Libraries()], level=logging.WARNING, force=True)
    # Who sends a form that cannot be read is told so; others need not hear of it.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
