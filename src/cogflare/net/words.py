"""What the senders of requests share: reading addresses and answers, and saying in words what went wrong.

The words name the host, never a path or a query, which may be secrets.
"""

from collections.abc import Mapping
from email.utils import parsedate_to_datetime

import httpcore2
import httpx2

from cogflare.net.base import OutgoingError


def parsed(url: str) -> tuple[httpcore2.URL, str]:
    """Return the URL to ask, and its host (with its port, if it names one); raises `OutgoingError`."""
    try:
        found = httpx2.URL(url)
        host = found.host  # read as late as here where it is one of IDNA
    except (httpx2.InvalidURL, UnicodeError) as error:
        raise OutgoingError(f"the address is not a URL: {error}") from error
    if found.scheme not in ("http", "https"):
        raise OutgoingError(f"the address is not an http(s) URL, it begins with {found.scheme[:20]!r}")
    if not host:
        raise OutgoingError("the address names no host")
    if found.userinfo:
        raise OutgoingError("the address has a user name in it, which is not supported: use its query for a secret")
    if found.port is not None and not 0 < found.port < 65536:
        raise OutgoingError(f"the address names the port {found.port}, which there is not")
    target = httpcore2.URL(scheme=found.raw_scheme, host=found.raw_host, port=found.port, target=found.raw_path)
    return target, found.netloc.decode("ascii")


def retry_after_s(headers: Mapping[bytes, str]) -> float | None:
    """Return how long the host wants to be left alone; a date counts from the host's own."""
    wanted = headers.get(b"retry-after", "").strip()
    if wanted.isascii() and wanted.isdigit():
        return float(wanted[:9])
    try:
        pause = parsedate_to_datetime(wanted) - parsedate_to_datetime(headers.get(b"date", ""))
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, pause.total_seconds())


def unconnected(host: str, error: Exception) -> str:
    """Say why there is no connection: the name, TLS, or nobody who listens."""
    text = str(error)
    if "cannot be resolved" in text:
        return f"the name of {host} cannot be resolved"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        reason = text.partition("verify failed: ")[2].partition(" (_ssl")[0] or "not trusted"
        return f"the certificate of {host} is not trusted ({reason})"
    if "_ssl.c" in text or "SSL" in text:
        return f"{host} does not speak TLS as it should: {reason_of(error)}"
    return f"no connection to {host}: refused, or nobody there"


def reason_of(error: Exception) -> str:
    """Return what an error says."""
    return str(error).strip()[:200] or type(error).__name__
