"""Telling of a run's end: its last snapshot is posted to the run's webhook until it is taken.

The next try comes after as long as has been tried already, but after `_LAST_PAUSE_S` at most; together the tries last
longer than a model is kept for the next worker. An answer in 4xx says that nobody waits for the run any more.
"""

import http.client
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from .frames import encode

_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.2, 102.4
_TRIES = 16
_TIMEOUT_S = 30.0
_HEADERS = {"content-type": "application/json", "user-agent": "cogflare-host"}


def tell(url: str, snapshot: dict[str, Any], on_taken: Callable[[], None]) -> None:
    """Post the snapshot from a thread of its own; ``on_taken`` is called when it was taken or given up."""
    threading.Thread(target=_tell, args=(url, snapshot, on_taken), daemon=True).start()


def _tell(url: str, snapshot: dict[str, Any], on_taken: Callable[[], None]) -> None:
    body, pause = encode(snapshot), _FIRST_PAUSE_S
    for _ in range(_TRIES):
        if _post(url, body):
            break
        time.sleep(pause)
        pause = min(pause * 2, _LAST_PAUSE_S)
    on_taken()


def _post(url: str, body: bytes) -> bool:
    """Post once; whether it was taken."""
    try:
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.netloc, timeout=_TIMEOUT_S)
        try:
            connection.request(
                "POST", f"{parts.path}?{parts.query}" if parts.query else parts.path or "/", body, _HEADERS
            )
            return connection.getresponse().status < 500
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError):
        return False
