"""The server that a worker dials: one URL from the user, the addresses that follow from it."""

from typing import Final
from urllib.parse import SplitResult, urljoin, urlsplit

from cogflare.protocol.messages import LINK_PATH

_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
DIRECT: Final = {f"all://{host}": None for host in ("127.0.0.1", "[::1]", "localhost")}
"""Mounts for an HTTP client: a proxy from the environment cannot know what listens on this machine."""
_SHOWN: Final = 200
_PORTS = {"http": 80, "https": 443}
Origin = tuple[str, str, int]  # scheme, host, port


def with_scheme(url: str) -> str:
    """Return the URL with a scheme; one without gets http on this machine, and https, which hides tokens, elsewhere."""
    if "://" in url:
        return url
    try:
        host = urlsplit(f"//{url}").hostname
    except ValueError:
        host = None
    return f"{'http' if host in _LOOPBACK else 'https'}://{url}"


def tls_advice(error: str) -> str | None:
    """Return what to do about the error of a TLS handshake; None for another error."""
    if "CERTIFICATE_VERIFY_FAILED" in error:
        reason = error.partition("verify failed: ")[2].partition(" (_ssl")[0] or "not trusted"
        return f"its certificate is not trusted ({reason}); SSL_CERT_FILE=FILE names one (PEM) to trust"
    if "WRONG_VERSION_NUMBER" in error or "record layer failure" in error:
        return "it does not speak TLS; write http:// for a server without a certificate"
    return None


class ServerAddress:
    """A server's base URL; `http`, `https`, `ws` and `wss` are taken, and a path in front of the routes."""

    def __init__(self, url: str) -> None:
        parts = dialled(url)
        scheme = _SCHEMES.get(parts.scheme) if parts is not None else None
        if parts is None or scheme is None or parts.query or parts.fragment:
            shown = repr(url) if len(url) <= _SHOWN and "@" not in url else "this"  # a password may be in it
            raise ValueError(f"{shown} is not the address of a server; it looks like https://gateway.example.com")
        if parts.username or parts.password:
            raise ValueError("not the address of a server: leave out user and password, a token says who you are")
        self.base = f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self.origin = origin_of(self.base)

    @property
    def is_here(self) -> bool:
        """Say whether the server is on this machine."""
        return self.origin[1] in _LOOPBACK

    @property
    def is_safe(self) -> bool:
        """Say whether what goes there is hidden from others on the way (TLS)."""
        return self.origin[0] == "https"

    @property
    def link(self) -> str:
        """The WebSocket address of the worker link."""
        return "ws" + self.base.removeprefix("http") + LINK_PATH

    def attempt(self, prediction: str, attempt: int, leaf: str) -> str:
        """Return the address of something that belongs to an attempt."""
        return f"{self.base}/worker/v1/attempts/{prediction}/{attempt}/{leaf}"

    def resolve(self, reference: str) -> str:
        """Return the absolute URL of what the server named; relative references start from the URL that was dialled."""
        return urljoin(f"{self.base}/", reference)

    def is_own(self, url: str) -> bool:
        """Say whether the URL has the server's own origin."""
        try:
            return origin_of(url) == self.origin
        except ValueError:
            return False


def dialled(url: str) -> SplitResult | None:
    """Return the parts of an address whose host and port can be dialled; None for another one."""
    try:
        parts = urlsplit(with_scheme(url))
        host = (parts.hostname or "").encode("idna").decode()
        return parts if host.isprintable() and host.split() == [host] and parts.port != 0 else None
    except ValueError:
        return None


def origin_of(url: str) -> Origin:
    """Return scheme, host and port of an http(s) URL; raise `ValueError` for anything else."""
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError("not an http(s) URL with a host")
    return parts.scheme, parts.hostname, parts.port or _PORTS[parts.scheme]
