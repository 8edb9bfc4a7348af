"""What answers of providers over HTTP mean, and their words for it."""

import re
from typing import Final

import msgspec

from cogflare.net.client import Reply
from cogflare.providers.base import Busy, Denied, ProviderError, Refused, Unanswered

_MAX_WORDS: Final = 2_000
_MAX_PLACE: Final = 200
_RESETS: Final = re.compile(r"resets in ~?(\d{1,6})\s*s", re.ASCII)
_TAG: Final = re.compile(r"\s*<")


def failure(host: str, reply: Reply) -> ProviderError:
    """Return what an answer that is no success means for a call."""
    said = words(reply)
    match reply.status:
        case 401 | 402 | 403:
            return Denied(f"{host} does not take the key: {said}")
        case 429:
            return Busy(f"{host} takes nothing more for now: {said}", pause_s(reply))
        case 408 | 425:
            return Unanswered(f"{host} does not answer: {said}")
        case status if 300 <= status < 400:
            where = reply.headers.get("location", "somewhere else").partition("?")[0][:_MAX_PLACE]
            return Denied(f"{host} sends on to {where}: the address of the provider has to be the right one at once")
        case status if status >= 500:
            return Unanswered(f"{host} has failed: {said}")
    return Refused(f"{host} refuses: {said}")


def words(reply: Reply) -> str:
    """Return what an answer says for people: of a problem document its detail, else the text, else the status."""
    status = f"HTTP {reply.status}"
    try:
        document = msgspec.json.decode(reply.body)
    except (ValueError, RecursionError):
        text = reply.body[:_MAX_WORDS].decode(errors="replace").replace("\0", " ").strip()
        return status if not text or _TAG.match(text) else f"{text} ({status})"
    found = document if isinstance(document, str) else ""
    if isinstance(document, dict):
        members = (document.get(name) for name in ("detail", "error", "message", "title"))
        found = next((text for text in members if isinstance(text, str) and text.strip()), "")
    found = found.replace("\0", " ").strip()[:_MAX_WORDS]
    return f"{found} ({status})" if found else status


def pause_s(reply: Reply) -> float | None:
    """Return how long the provider wants to be left alone, None if it does not say."""
    if reply.retry_after_s is not None:
        return reply.retry_after_s
    found = _RESETS.search(words(reply))
    return None if found is None else float(found[1])
