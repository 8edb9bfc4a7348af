"""Why an address gave no answer, in words for whoever dialled it."""

import errno
import re
import socket
from collections.abc import Iterator
from typing import Final

import httpx2

from cogflare.agent.address import tls_advice

_NUMBER: Final = re.compile(r"\[Errno (\d+)\]")
_UNKNOWN: Final = "its name is not known here (DNS): is it spelled right, and is this machine on a network?"
_LATE: Final = "it did not answer in time: is it overloaded, behind a firewall, or at another port?"
_BROKEN: Final = "the connection broke before the answer"
_NO_ROUTE: Final = "there is no way to it: is this machine on a network?"
_NUMBERS: Final = {
    errno.ECONNREFUSED: "the connection was refused: does it run, and is the port right?",
    errno.ECONNRESET: _BROKEN,
    errno.EPIPE: _BROKEN,
    errno.EHOSTUNREACH: _NO_ROUTE,
    errno.ENETUNREACH: _NO_ROUTE,
    errno.EADDRNOTAVAIL: _NO_ROUTE,
    errno.ETIMEDOUT: _LATE,
}
_KINDS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (socket.gaierror, _UNKNOWN),
    (httpx2.TimeoutException, _LATE),
    (TimeoutError, _LATE),
    (httpx2.ReadError, _BROKEN),
    (httpx2.WriteError, _BROKEN),
    (httpx2.CloseError, _BROKEN),
    (httpx2.RemoteProtocolError, "what listens there broke off, or does not speak HTTP"),
)


def why_unreached(error: BaseException) -> str:
    """Say what came between, and what to do about it where that is known."""
    causes = list(_causes(error))
    for cause in causes:
        if said := tls_advice(str(cause)) or _by_number(cause):
            return said
    if isinstance(error, httpx2.ProxyError):
        return f"the proxy of this machine's settings (HTTPS_PROXY) gave no way through: {error}"
    # What has a number has said so; the kinds that are left tell less the further out they are.
    for cause in reversed(causes):
        if said := next((text for kind, text in _KINDS if isinstance(cause, kind)), ""):
            return said
    inner = next((cause for cause in reversed(causes) if isinstance(cause, OSError) and str(cause)), error)
    return str(inner) or f"an error without a word ({type(error).__name__})"


def _by_number(error: BaseException) -> str | None:
    """Return what the kernel's number means; some errors have it only in their text."""
    if isinstance(error, socket.gaierror):
        return None
    number = error.errno if isinstance(error, OSError) else None
    found = _NUMBER.search(str(error))
    return _NUMBERS.get(number or (int(found[1]) if found else 0))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what has led to it."""
    while error is not None:
        yield error
        group = error if isinstance(error, BaseExceptionGroup) else None
        error = group.exceptions[0] if group else error.__cause__ or error.__context__
