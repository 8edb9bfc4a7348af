"""Whether a server would have this worker, read from its answer before minutes go into setting a model up."""

from importlib.metadata import version
from typing import Final

import httpx2
import msgspec

from cogflare.agent.address import ServerAddress
from cogflare.agent.link import refusal_text
from cogflare.protocol import versions
from cogflare.protocol.versions import Speaks

_JSON: Final = ("application/problem+json", "application/json")


class Word(msgspec.Struct, frozen=True):
    """What the answer means to the person at the worker; empty: nothing stands against it."""

    text: str = ""
    is_final: bool = False


class _Range(msgspec.Struct, frozen=True):
    oldest: int
    newest: int


class _Notice(msgspec.Struct, frozen=True):
    """A problem document of the worker link's address; a server that is older than it tells no `protocol`."""

    detail: str = ""
    server: str = ""
    protocol: _Range | None = None


def reading(server: ServerAddress, answer: httpx2.Response | None) -> Word:
    """Return what the answer to `Transfer.inquire` says; None is a server that does not answer, and may come back."""
    if answer is None or answer.status_code >= 500 or answer.status_code in (408, 429):
        return Word()
    notice = _notice(answer)
    if answer.status_code == 403 and notice is not None and notice.detail:
        return Word(f"{server.base} refuses this worker: {notice.detail}", is_final=True)
    if answer.status_code in (401, 403):
        return Word(refusal_text(server, answer.status_code), is_final=True)
    if notice is None:
        told = f"{server.base} does not answer like a Cogflare server (HTTP {answer.status_code}): is that its address?"
        return Word(f"{told} Going on, since a proxy in front of it may answer so while it starts")
    if notice.protocol is not None:
        ours = versions.here(version("cogflare"))
        theirs = Speaks(notice.protocol.oldest, notice.protocol.newest, notice.server)
        if versions.agreed(ours, theirs) is None:
            return Word(versions.advice(ours, theirs), is_final=True)
    return Word()


def _notice(answer: httpx2.Response) -> _Notice | None:
    """Return the problem document of the answer; None: Cogflare does not answer so."""
    if answer.headers.get("content-type", "").partition(";")[0] not in _JSON:
        return None
    try:
        return msgspec.json.decode(answer.content, type=_Notice)
    except msgspec.DecodeError:
        return None
