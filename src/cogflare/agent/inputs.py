"""Input files: fetched here, under this worker's rules, and handed to the model as files of this machine.

Which fields are files is what the model's schema says (`format: uri`); a model without a schema gets its input as it
is. `data:` URLs stay. Everything that goes wrong is the prediction's failure, in words for whoever made it.
"""

import asyncio
import re
import shutil
import ssl
import tempfile
import time
from collections.abc import Collection
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import httpcore2
import httpx2
import msgspec
from msgspec import Raw

from cogflare.agent.address import ServerAddress
from cogflare.agent.scratch import Scratch
from cogflare.agent.shelf import Shelf
from cogflare.domain.filefields import Place, file_places, file_schema
from cogflare.net.guard import Forbidden, GuardedNetwork

_HOPS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_OVERLOADED = (429, 502, 503, 504, 507)
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
_TIMEOUTS = {"timeout": {"connect": 10.0, "read": 30.0, "write": 30.0, "pool": 30.0}}
_PREFIX = "cogflare-input-"
_FILE_PATH = re.compile(r"/(?:f|files)/[0-9a-z]{40}/", re.ASCII)
_NAME = re.compile(r"[^0-9A-Za-z._-]+")
_TOLD = re.compile(r"""filename\*=utf-8''([^;\s]+)""", re.IGNORECASE), re.compile(r'filename="?([^";]+)', re.IGNORECASE)


_HEADERS = ((b"Accept", b"*/*"), (b"User-Agent", b"cogflare"), (b"Accept-Encoding", b"identity"))


class InputError(Exception):
    """The input cannot be given to the model; the message names the field."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one input file may cost, and for how long the server is asked again for one of its own."""

    bytes: int = 512 * 1024 * 1024
    total_s: float = 600.0
    patience_s: float = 120.0


@dataclass(slots=True)
class Fetched:
    """An input for the model, and the files behind it until `InputFiles.drop`."""

    input: Raw
    urls: list[str] = field(default_factory=list)
    folder: Path | None = None


class InputFiles:
    """Fetches the files that inputs name.

    URLs of the server's own origin are trusted, and where it sends requests for its files; others must be public.
    """

    def __init__(
        self,
        server: ServerAddress,
        shelf: Shelf,
        *,
        allow_private: bool = False,
        limits: Limits | None = None,
        folder: Path | None = None,
        verify: ssl.SSLContext | None = None,
    ) -> None:
        self._server = server
        self._shelf = shelf
        self._allow_private = allow_private
        self._limits = limits or Limits()
        self._folder = folder
        self._scratch: Scratch | None = None
        self._schema: dict[str, Any] | None = None
        tls = verify or httpx2.create_ssl_context()
        self._anywhere = httpcore2.AsyncConnectionPool(ssl_context=tls)
        self._public = httpcore2.AsyncConnectionPool(
            ssl_context=tls, network_backend=GuardedNetwork(httpcore2.AnyIOBackend())
        )

    def learn(self, openapi_schema: Raw | None) -> None:
        """Take the model's schema; without one, or with one that makes no sense, inputs pass as they are."""
        try:
            self._schema = file_schema(msgspec.json.decode(openapi_schema)) if openapi_schema is not None else None
        except msgspec.DecodeError:
            self._schema = None

    async def fetch(self, given: Raw) -> Fetched:
        """Return the input with its files replaced by URLs of this machine; raises `InputError`."""
        if self._schema is None:
            return Fetched(given)
        try:
            value = msgspec.json.decode(given)
        except (msgspec.DecodeError, RecursionError) as error:
            raise InputError(f"input: {error}") from error
        fetched = Fetched(given)
        try:
            for place in list(file_places(self._schema, value)):
                await self._one(place, fetched)
        except BaseException:
            self.drop(fetched)
            raise
        if fetched.urls:
            fetched.input = Raw(msgspec.json.encode(value))
        return fetched

    async def restore(self, urls: list[str], folder: str) -> Fetched:
        """Take over the files of an input that an earlier agent had fetched, as far as they can be had."""
        fetched = Fetched(Raw(b"{}"), urls, Path(folder) if folder else None)
        with suppress(OSError):
            for number, url in enumerate(urls):
                await self._shelf.put_back(Path(folder) / str(number), url)
        return fetched

    def sweep(self, kept: Collection[str]) -> None:
        """Delete what earlier agents have fetched, but for these folders; it needs a folder of our own."""
        for folder in self._folder.glob(f"{_PREFIX}*") if self._folder is not None else ():
            if str(folder) not in kept:
                shutil.rmtree(folder, ignore_errors=True)

    def drop(self, fetched: Fetched) -> None:
        """Delete the files of an input."""
        for url in fetched.urls:
            self._shelf.take_down(url)
        if fetched.folder is not None:
            shutil.rmtree(fetched.folder, ignore_errors=True)

    async def aclose(self) -> None:
        """Close the connections and the shelf; files that are nobody's to go on with are removed."""
        await self._anywhere.aclose()
        await self._public.aclose()
        await self._shelf.aclose()
        if self._scratch is not None:
            self._scratch.remove()

    def _new_folder(self) -> Path:
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self._folder))
        self._scratch = self._scratch or Scratch.make("input")
        return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self._scratch.path))

    async def _one(self, place: Place, fetched: Fetched) -> None:
        url = place.url
        scheme = url.partition(":")[0].lower()
        if scheme == "data":
            return
        if scheme not in ("http", "https"):
            raise InputError(f"{place.path}: only http(s) and data: URLs can be files")
        if fetched.folder is None:
            fetched.folder = self._new_folder()
        file = fetched.folder / str(len(fetched.urls))
        try:
            async with asyncio.timeout(self._limits.total_s):
                told = await self._patiently(url, file)
        except TimeoutError as error:
            raise InputError(f"{place.path}: cannot fetch {_shown(url)}: it took too long") from error
        except _UNREACHABLE as error:
            why = str(error) or type(error).__name__
            raise InputError(f"{place.path}: cannot fetch {_shown(url)}: {why}") from error
        served = await self._shelf.put_up(file, _harmless(told or unquote(urlsplit(url).path).rpartition("/")[2]))
        fetched.urls.append(served)
        place.holder[place.key] = served

    async def _patiently(self, url: str, file: Path) -> str:
        """Download; again where it is the server that cannot be reached: links break, and it may be starting."""
        end, pause_s = time.monotonic() + self._limits.patience_s, _FIRST_PAUSE_S
        while True:
            try:
                return await self._download(url, file)
            except _BROKEN:
                if not self._server.is_own(url) or time.monotonic() + pause_s > end:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _download(self, url: str, file: Path) -> str:
        """Save what is behind the URL; return the name that was told of it, if any."""
        is_sent_on = False
        for _ in range(_HOPS + 1):
            async with AsyncExitStack() as stack:
                response = await stack.enter_async_context(self._get(url, is_sent_on))
                if response.status in _REDIRECTS:
                    # Requests for its files the server sends on to its storage, which may be a neighbour of it.
                    is_sent_on = self._server.is_own(url) and _FILE_PATH.search(urlsplit(url).path) is not None
                    url = _target(url, response)
                    continue
                if response.status != 200:
                    refusal = _Busy if response.status in _OVERLOADED else _Refusal
                    raise refusal(f"HTTP {response.status}")
                await self._save(response, file)
                return _told_name(_header(response, b"content-disposition").decode("latin-1"))
        raise _Refusal(f"more than {_HOPS} redirects")

    def _get(self, url: str, is_sent_on: bool) -> Any:
        try:
            parsed = httpx2.URL(url)
        except (httpx2.InvalidURL, UnicodeError) as error:
            raise _Refusal("not a URL") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise _Refusal("not an http(s) URL")
        if parsed.userinfo:
            raise _Refusal("a URL with a user name is not supported")
        trusted = self._allow_private or is_sent_on or self._server.is_own(str(parsed))
        target = httpcore2.URL(scheme=parsed.raw_scheme, host=parsed.raw_host, port=parsed.port, target=parsed.raw_path)
        # No authorization, not even to the server itself: the URL was chosen by whoever made the prediction.
        headers = [(b"Host", parsed.netloc), *_HEADERS]
        pool = self._anywhere if trusted else self._public
        return pool.stream("GET", target, headers=headers, extensions=_TIMEOUTS)

    async def _save(self, response: httpcore2.Response, file: Path) -> None:
        limit = self._limits.bytes
        announced = _header(response, b"content-length")
        if announced.isdigit() and int(announced) > limit:
            raise _Refusal(f"it has more than {limit} bytes")
        size = 0
        with file.open("wb") as out:
            async for chunk in response.aiter_stream():
                size += len(chunk)
                if size > limit:
                    raise _Refusal(f"it has more than {limit} bytes")
                out.write(chunk)


class _Refusal(Exception):
    """This URL gives no file."""


class _Busy(_Refusal):
    """This URL gives no file now."""


_BROKEN = (_Busy, httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException)
_UNREACHABLE = (_Refusal, Forbidden, *_BROKEN)


def _target(url: str, response: httpcore2.Response) -> str:
    location = _header(response, b"location")
    if not location:
        raise _Refusal(f"HTTP {response.status} without a location")
    return urljoin(url, location.decode("latin-1"))


def _header(response: httpcore2.Response, name: bytes) -> bytes:
    return next((value for key, value in response.headers if key.lower() == name), b"")


def _told_name(disposition: str) -> str:
    """Return the file name of a `Content-Disposition`."""
    found = next((found for form in _TOLD if (found := form.search(disposition))), None)
    return "" if found is None else unquote(found[1]).rpartition("/")[2]


def _harmless(name: str) -> str:
    """Return a harmless name for the file; models go by its extension."""
    return _NAME.sub("_", name).lstrip(".")[-100:] or "file"


def _shown(url: str) -> str:
    """Return the URL without its query, which may be a signature."""
    return url.partition("?")[0][:200]
