"""Calls of a server of Replicate's API: in turn, with what goes wrong as a `ProviderError`, and its files."""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, Literal, TypeVar
from urllib.parse import unquote, urlsplit

import msgspec

from cogflare.domain.clock import Clock
from cogflare.net.base import OutgoingError
from cogflare.net.client import LARGE, SMALL, Download, OutOfReach, Reply, Site, Unsent
from cogflare.providers.answers import failure, pause_s
from cogflare.providers.base import Busy, Denied, File, Gone, ProviderError, Refused, Unanswered
from cogflare.providers.pace import Pace

Kind = Literal["create", "cancel", "other"]
Rates = Mapping[Kind, tuple[int, int]]
"""How many calls of a kind are made in a minute, and how many of them at once."""

REPLICATE: Final[Rates] = {"create": (600, 10), "cancel": (600, 50), "other": (2_400, 50)}
"""Replicate's own: 600 creates a minute, and 3,000 other calls. Cancels do not stand in line behind looks."""
_UPLOAD_S: Final = 600.0
_TOLD_UTF8: Final = re.compile(r"""filename\*=utf-8''([^;\s]+)""", re.IGNORECASE)
_TOLD: Final = re.compile(r'filename="?([^";]+)', re.IGNORECASE)
_FOLDER: Final = re.compile(r"[0-9A-Za-z_~-][0-9A-Za-z._~-]*", re.ASCII)
_FILE: Final = re.compile(r"(?:[0-9A-Za-z._~-]|%(?!2[ef]|5c)[0-9a-f]{2})+\.[0-9a-z]{1,8}", re.ASCII | re.IGNORECASE)
_INTERFACE: Final = frozenset(
    {"predictions", "models", "deployments", "trainings", "collections", "webhooks", "providers", "routes", "streams"}
)

T = TypeVar("T")


class Uploaded(msgspec.Struct, frozen=True):
    """What is said of a file that was uploaded."""

    urls: dict[str, str]


class Calls:
    """The interface of one server, below `/v1` whether or not its address ends there."""

    def __init__(self, site: Site, clock: Clock, rates: Rates = REPLICATE) -> None:
        self._site = site
        self._root = "" if urlsplit(site.base).path.endswith("/v1") else "/v1"
        self._paces = {kind: Pace(site.host, clock, *rate) for kind, rate in rates.items()}

    async def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        kind: Kind = "other",
        most: int = LARGE,
    ) -> Reply:
        """Send a request and return the answer whatever it is but 429; raises `Busy`, `Unanswered` and `Denied`."""
        at = self._root + path
        return await self.taken(
            self._paces[kind],
            lambda: self._site.call(method, at, body, headers, most=most),
            is_create=kind == "create",
        )

    async def good(self, method: str, path: str, *, most: int = LARGE) -> Reply:
        """Send a request that has to succeed; raises a `ProviderError`."""
        reply = await self.call(method, path, most=most)
        if not reply.is_good:
            raise self.failure(reply)
        return reply

    async def found(self, path: str) -> Reply:
        """Read what may not be there: a 404 is an answer; raises a `ProviderError` for every other refusal."""
        reply = await self.call("GET", path)
        if not reply.is_good and reply.status != 404:
            raise self.failure(reply)
        return reply

    async def anonymous(self, path: str) -> Reply:
        """Read what is open to all; raises `OutgoingError`."""
        return await self._site.call("GET", self._root + path, is_anonymous=True, most=SMALL)

    def decoded(self, reply: Reply, kind: type[T]) -> T:
        """Read an answer; raises `Unanswered` for what is not of that kind."""
        try:
            return msgspec.json.decode(reply.body, type=kind)
        except (ValueError, RecursionError):
            raise Unanswered(f"{self._site.host} answers with something else than its interface says") from None

    def failure(self, reply: Reply) -> ProviderError:
        """Return what an answer that is no success means."""
        return failure(self._site.host, reply)

    def unheard(self, error: OutgoingError, *, is_create: bool = False) -> ProviderError:
        """Return what it means that there was no answer; of a create it counts whether it was sent at all."""
        said = self._site.clean(str(error))
        if isinstance(error, OutOfReach):
            return Denied(said)
        return Busy(said) if is_create and isinstance(error, Unsent) else Unanswered(said)

    async def upload(self, name: str, content_type: str, size: int, body: AsyncIterator[bytes]) -> str:
        """Upload a file and return its URL; raises a `ProviderError`."""
        path = f"{self._root}/files"
        reply = await self.taken(
            self._paces["other"],
            lambda: self._site.send_form(path, name, content_type, size, body, timeout_s=_UPLOAD_S),
        )
        if not reply.is_good:
            raise self.failure(reply)
        url = self.decoded(reply, Uploaded).urls.get("get")
        if url is None:
            raise Unanswered(f"{self._site.host} does not say where the file is")
        return url

    def has_file(self, url: str) -> bool:
        """Say whether a URL is one of a file at this server, and none of its interface.

        Models choose what they output, and whoever may run one chooses what it says: nothing that the key alone can
        read is read for them.
        """
        try:
            *folders, name = urlsplit(url).path.split("/")[1:]
        except ValueError:
            return False
        is_plain = all(_FOLDER.fullmatch(folder) and folder.lower() not in _INTERFACE for folder in folders)
        return is_plain and _FILE.fullmatch(name) is not None and self._site.is_own(url)

    async def fetch(self, url: str) -> File:
        """Open a file of any origin; the key goes along where it is a file of the server itself."""
        with_key = self.has_file(url)
        if self._site.is_own(url):
            await self._paces["other"].turn()
        try:
            download = await self._site.open(url, with_key=with_key)
        except OutOfReach as error:
            raise Refused(self._site.clean(str(error))) from None
        except OutgoingError as error:
            raise self.unheard(error) from None
        if download.status == 200:
            told, size = download.headers.get("content-disposition", ""), download.headers.get("content-length", "")
            kind = download.headers.get("content-type", "application/octet-stream")
            name = _told_name(told) or unquote(urlsplit(url).path.rstrip("/").rpartition("/")[2]) or "file"
            return File(name, kind, int(size) if size.isdecimal() else None, Body(download, self.unheard))
        await download.aclose()
        host = urlsplit(download.url).hostname or self._site.host
        if download.status in (404, 410) or (download.status in (401, 403) and not with_key):
            raise Gone(f"the file is not there (any more): {host} answers HTTP {download.status}")
        reply = Reply(download.status, dict(download.headers), b"")
        raise failure(host, reply)

    async def taken(self, pace: Pace, send: Callable[[], Awaitable[Reply]], *, is_create: bool = False) -> Reply:
        """Send in turn and return the answer whatever it is but 429; raises `Busy`, `Unanswered` and `Denied`."""
        await pace.turn()
        try:
            reply = await send()
        except OutgoingError as error:
            raise self.unheard(error, is_create=is_create) from None
        if reply.status == 429:
            busy = self.failure(reply)
            raise Busy(str(busy), pace.close(pause_s(reply)))
        pace.opened()
        return reply


class Body(AsyncGenerator[bytes, None]):
    """The bytes of a file; to be closed unless they are read to the end, also where reading has not begun."""

    def __init__(self, download: Download, unheard: Callable[[OutgoingError], ProviderError]) -> None:
        self._download = download
        self._unheard = unheard

    async def asend(self, value: None) -> bytes:
        """Return the next piece; raises a `ProviderError`."""
        try:
            return await anext(self._download)
        except OutgoingError as error:
            raise self._unheard(error) from None

    async def athrow(self, *error: Any) -> bytes:
        """Close the connection; raises the error."""
        await self._download.aclose()
        return await super().athrow(*error)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._download.aclose()


def _told_name(disposition: str) -> str:
    """Return the file name of a `Content-Disposition`."""
    found = _TOLD_UTF8.search(disposition) or _TOLD.search(disposition)
    return "" if found is None else unquote(found[1]).rpartition("/")[2]
