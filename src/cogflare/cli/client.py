"""The API as the commands see it: one small HTTP client whose every error says what to do next.

click.ClickException
└── ApiError            exit code 2: the server answered, and refused
    ├── NotFound        404
    └── Unreachable     exit code 1: no usable answer; what was asked may or may not have happened
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, Final
from urllib.parse import quote, unquote, urlsplit

import click
import httpx2

from cogflare.agent.address import DIRECT, tls_advice, with_scheme
from cogflare.agent.unreached import why_unreached
from cogflare.cli.output import visible

DEFAULT_SERVER = "http://127.0.0.1:8000"
_TIMEOUT = httpx2.Timeout(30, connect=5)
_TOKENLESS = (
    "this server wants a token: set COGFLARE_TOKEN to one (`cogflare serve` shows an admin token at its first start,"
    " `cogflare tokens create` makes others)"
)


_NAMED: Final = re.compile(
    r"/v1/(?P<kind>prediction|model|worker|token|file|provider)s/(?P<name>(?<=models/)[^/]+/[^/]+|(?<!models/)[^/]+)"
)


class ApiError(click.ClickException):
    """The server refused the request."""

    exit_code = 2

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class NotFound(ApiError):
    """The server does not know what was named; `detail` is how it says so itself."""

    def __init__(self, message: str, status: int = 404, detail: str = "") -> None:
        super().__init__(message, status)
        self.detail = detail


class Unreachable(ApiError):
    """The server cannot be reached, or fails; asking again later may help."""

    exit_code = 1


class Client:
    """Requests to one server; the token goes there and nowhere else, and is never shown."""

    def __init__(self, server: str, token: str | None) -> None:
        self.server = _base(server)
        self._has_token = bool(token)
        self._http = httpx2.Client(timeout=_TIMEOUT, headers=_headers(token), mounts=DIRECT)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, **params: str | int | None) -> Any:
        """Return the JSON at `path`; parameters that are None are left out."""
        return self._request("GET", path, params=_given(params))

    def post(self, path: str, body: Any = None, **params: str | None) -> Any:
        """Send JSON (or nothing) and return the JSON that comes back, None for an empty answer."""
        return self._request("POST", path, json=body, params=_given(params))

    def upload(self, path: str, content: tuple[str, IO[bytes], str], fields: Mapping[str, str]) -> Any:
        """Send a file (its name, its open content, its media type) as a form and return the JSON that comes back."""
        return self._request("POST", path, files={"content": content}, data=fields)

    def put(self, path: str, body: Any) -> Any:
        """Put JSON at `path` and return the JSON that comes back."""
        return self._request("PUT", path, json=body)

    def patch(self, path: str, body: Any) -> Any:
        """Change what is at `path` and return the JSON that comes back."""
        return self._request("PATCH", path, json=body)

    def delete(self, path: str) -> None:
        """Delete what is at `path`."""
        self._request("DELETE", path)

    def pages(self, path: str, limit: int, **params: str | int | None) -> Iterator[dict[str, Any]]:
        """Yield up to `limit` results of a list, following its pages."""
        page = self.get(path, **params)
        while True:
            for result in page["results"]:
                if limit <= 0:
                    return
                limit -= 1
                yield result
            if limit <= 0 or not page.get("next"):
                return
            # Only path and query: the server may know itself under another name than the one that was dialled.
            target = urlsplit(page["next"])
            page = self.get(f"{target.path}?{target.query}")

    def _request(self, method: str, path: str, **options: Any) -> Any:
        try:
            response = self._http.request(method, self.server + path, **options)
        except httpx2.ConnectError as error:
            if advice := tls_advice(str(error)):
                raise Unreachable(f"no safe connection to {self.server}: {advice}") from error
            raise Unreachable(
                f"nothing answers at {self.server}: {why_unreached(error)}\n"
                "Start a server with `cogflare serve`, or name another one with --server or COGFLARE_SERVER."
            ) from error
        except httpx2.TimeoutException as error:
            raise Unreachable(f"{self.server} did not answer in time; is it overloaded? Try again.") from error
        except httpx2.RemoteProtocolError as error:
            hint = "; does it want https?" if self.server.startswith("http:") else ""
            raise Unreachable(f"{self.server} broke off: {why_unreached(error)}{hint}") from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise Unreachable(f"the request to {self.server} failed: {why_unreached(error)}") from error
        return self._answer(response, path)

    def _answer(self, response: httpx2.Response, path: str) -> Any:
        """Return the JSON of a good answer; raise `ApiError` for any other."""
        if response.is_success and not response.content:
            return None
        try:
            body = response.json()
        except ValueError:
            body = None
        if response.is_success and body is not None:
            return body
        detail = body.get("detail") if isinstance(body, dict) else None
        if not isinstance(detail, str):
            raise Unreachable(
                f"{self.server} does not answer as Cogflare would (HTTP {response.status_code}): is the address right?"
            )
        # It may quote what a provider said.
        words = "\n".join(visible(line) for line in detail.strip().splitlines())
        raise self._refusal(response.status_code, words, path)

    def _refusal(self, status: int, detail: str, path: str) -> ApiError:
        if status == 401:
            hint = "the server does not know this token, or it has expired: check COGFLARE_TOKEN or --token"
            return ApiError(hint if self._has_token else _TOKENLESS, status)
        if status == 403:
            return ApiError(f"{detail.removesuffix('.')}. The token came from COGFLARE_TOKEN or --token.", status)
        if status == 404:
            return NotFound(_missing(path) or detail, status, detail)
        if status >= 500:
            return Unreachable(f"the server failed (HTTP {status}): {detail}", status)
        # What is wrong with an input comes as a list, one line each.
        gap = "\n" if detail.startswith("- ") else " "
        return ApiError(f"the server refused this (HTTP {status}):{gap}{detail}", status)


def _given(params: Mapping[str, str | int | None]) -> dict[str, str | int]:
    return {name: value for name, value in params.items() if value is not None}


def quoted(*names: str) -> str:
    """Write names from a command line as the end of a path; raises `UsageError` for one that would lead elsewhere."""
    for name in names:
        if name in ("", ".", "..") or "/" in name:
            raise click.UsageError(f"{name!r} is no id, and no name")
    return "/".join(quote(name, safe="") for name in names)


def with_client(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command `--server` and `--token`, and a `Client` as its first argument."""

    @functools.wraps(command)
    def invoke(*args: Any, server: str, token: str | None, **options: Any) -> None:
        with Client(server, token) as client:
            command(client, *args, **options)

    with_token = click.option(
        "--token",
        envvar="COGFLARE_TOKEN",
        show_envvar=True,
        help="API token. Better in the environment: others on this machine can read a command line.",
    )(invoke)
    return click.option(
        "--server",
        metavar="URL",
        envvar="COGFLARE_SERVER",
        default=DEFAULT_SERVER,
        show_default=True,
        show_envvar=True,
        help="Address of the server.",
    )(with_token)


def _base(server: str) -> str:
    """Return the base URL without the API's `/v1`, which paths bring along."""
    url = with_scheme(server)
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_usable = False
    if not is_usable or parts.query or parts.fragment or parts.username:
        # Not shown: someone may have put a secret there.
        raise click.UsageError(f"--server must be an address such as {DEFAULT_SERVER}")
    return url.rstrip("/").removesuffix("/v1")


def _headers(token: str | None) -> dict[str, str]:
    if not token:
        return {}
    if not token.isascii() or not token.isprintable() or " " in token:
        raise click.UsageError("the token has characters that no token has; was it copied whole?")
    return {"authorization": f"Bearer {token}"}


def _missing(path: str) -> str | None:
    """Say what a 404 is about, and how to find what there is."""
    found = _NAMED.match(path)
    if found is None:
        return None
    kind, name = found["kind"], unquote(found["name"])
    return f"the server has no {kind} {name}: `cogflare {kind}s list` shows what it has"
