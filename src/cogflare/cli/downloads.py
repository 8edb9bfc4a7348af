"""Output files: found in an output, fetched, and saved beside what is there already."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import unquote, urlsplit

import click
import httpx2

from cogflare.agent.address import DIRECT
from cogflare.agent.unreached import why_unreached

OUR_FILE: Final = re.compile(r"/f/[0-9a-z]{40}/[^/]+\Z")
"""How the URL of a file that this kind of server keeps ends."""
_TIMEOUT: Final = httpx2.Timeout(60, connect=10)
_UNSAFE: Final = re.compile(r"[^\w.+-]+")
_MAX_NAME: Final = 120


class DownloadError(click.ClickException):
    """An output file could not be saved; the prediction itself is not touched by that."""


def file_urls(output: Any) -> Iterator[str]:
    """Yield the URLs of an output that is declared to hold files, wherever they stand in it."""
    if isinstance(output, str):
        if output.startswith(("http://", "https://")):
            yield output
    elif isinstance(output, list):
        for item in output:
            yield from file_urls(item)
    elif isinstance(output, dict):
        for item in output.values():
            yield from file_urls(item)


def save(url: str, folder: Path) -> Path:
    """Save the file at `url` in `folder` (made if need be) under its own name, numbered where that is taken.

    The API token is not sent: an output URL is its own permission, and may lead to another host.
    """
    target = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target, file = _create(folder, _name(url))
        with file:
            for chunk in _content(url):
                file.write(chunk)
    except BaseException as error:
        # A file that is only half there would look like the whole one.
        if target is not None:
            target.unlink(missing_ok=True)
        if isinstance(error, OSError | httpx2.HTTPError | httpx2.InvalidURL):
            # What follows the path may be a signature.
            raise DownloadError(f"{url.partition('?')[0]} was not saved in {folder}: {_reason(error)}") from error
        raise
    return target


def _reason(error: Exception) -> str:
    """Say what went wrong; a redirect may have led to another host than the one of the URL."""
    if isinstance(error, httpx2.TransportError):
        return f"no answer from {error.request.url.netloc.decode()}: {why_unreached(error)}"
    return str(error)


def _content(url: str) -> Iterator[bytes]:
    with (
        httpx2.Client(timeout=_TIMEOUT, follow_redirects=True, mounts=DIRECT) as client,
        client.stream("GET", url) as response,
    ):
        if not response.is_success:
            raise httpx2.HTTPError(f"its server answered {response.status_code}")
        yield from response.iter_bytes()


def _name(url: str) -> str:
    """Return a file name without anything that could lead out of the folder or hide the file."""
    name = unquote(urlsplit(url).path.rpartition("/")[2])
    return _UNSAFE.sub("_", name).lstrip(".")[-_MAX_NAME:] or "output"


def _create(folder: Path, name: str) -> tuple[Path, IO[bytes]]:
    """Open a file that did not exist: `name`, or `name-2` and so on."""
    path, number = folder / name, 1
    while True:
        try:
            return path, path.open("xb")
        except FileExistsError:
            number += 1
            path = folder / f"{Path(name).stem}-{number}{Path(name).suffix}"
