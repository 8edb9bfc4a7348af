"""Calls of the interfaces of providers, at addresses that tenants chose: judged, bounded, the key at home only.

A `Site` is one origin with the key that was given for it. The key goes to that origin only, wherever redirects and the
URLs of files lead; where the site echoes it, it is blotted out before anybody reads the answer.
"""

import asyncio
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from typing import Final, Self
from urllib.parse import urljoin

import httpcore2
import httpx2
import msgspec

from cogflare import __version__
from cogflare.net.addresses import PUBLIC, Reach, inside
from cogflare.net.base import OutgoingError
from cogflare.net.events import ServerEvent, ServerEvents
from cogflare.net.forms import Form
from cogflare.net.guard import Forbidden, GuardedNetwork
from cogflare.net.resolver import Resolve
from cogflare.net.sockets import Sockets
from cogflare.net.words import parsed, reason_of, retry_after_s, unconnected

BLOT: Final = "[key]"
SMALL: Final = 1 << 20  # bytes of an answer
LARGE: Final = 32 << 20
_LARGE_AT_ONCE: Final = 2
_MAX_STREAMS: Final = 100
_MAX_IDLE: Final = 64
_IDLE_S: Final = 15.0
_CONNECT_S: Final = 10.0
_SILENCE_S: Final = 60.0  # within a file or a stream of events
_HOPS: Final = 5
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_SHORTEST_BLOT: Final = 6  # a shorter key would blot out what is none
_KEY: Final = re.compile(r"[!-~]{1,4096}", re.ASCII)
_ID: Final = re.compile(r"[!-~]{1,200}", re.ASCII)
_ALWAYS: Final = {"User-Agent": f"cogflare/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"}

Content = bytes | AsyncIterator[bytes]


class Unsent(OutgoingError):
    """Nothing was sent, because there was no connection."""


class OutOfReach(Unsent):
    """The address is one that connections may not go to."""


class TooLarge(OutgoingError):
    """The answer is larger than is taken."""


class Reply(msgspec.Struct, frozen=True):
    """An answer of whatever status; names of headers in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes
    retry_after_s: float | None = None

    @property
    def is_good(self) -> bool:
        """Whether it did what was asked."""
        return 200 <= self.status < 300


class Client:
    """The connections to all sites, within `reach`. Nothing of the environment applies, no proxy above all."""

    def __init__(
        self, reach: Reach = PUBLIC, *, verify: ssl.SSLContext | None = None, resolve: Resolve | None = None
    ) -> None:
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=verify or httpx2.create_ssl_context(),
            max_connections=None,
            max_keepalive_connections=_MAX_IDLE,
            keepalive_expiry=_IDLE_S,
            network_backend=GuardedNetwork(Sockets(), reach, resolve),
        )

    def site(self, base_url: str, key: str) -> "Site":
        """Return the site at an address; raises `ValueError` for what is no address or no key."""
        return Site(self, base_url, key)

    @asynccontextmanager
    async def exchange(
        self, method: str, url: str, headers: Mapping[str, str], content: Content = b"", *, silence_s: float
    ) -> AsyncIterator[httpcore2.Response]:
        """Send a request and give the answer, its body unread; raises `OutgoingError`, also for what is done in it."""
        target, host = parsed(url)
        sent = {"Host": host, **_ALWAYS, **headers}
        if isinstance(content, bytes) and (content or method not in ("GET", "HEAD")):
            sent["Content-Length"] = str(len(content))
        lines = [(name.encode(), value.encode()) for name, value in sent.items()]
        limits = {"connect": min(_CONNECT_S, silence_s), "read": silence_s, "write": silence_s}
        with in_words(host):
            async with self._pool.stream(
                method, target, headers=lines, content=content, extensions={"timeout": limits}
            ) as response:
                yield response

    async def aclose(self) -> None:
        """Close the connections."""
        await self._pool.aclose()


class Site:
    """One origin and its key. `base` is the address without a slash at its end."""

    def __init__(self, client: Client, base_url: str, key: str) -> None:
        try:
            parsed(base_url)
        except OutgoingError as error:
            raise ValueError(str(error)) from None
        if _KEY.fullmatch(key) is None:
            raise ValueError("the key has to be printable characters of ASCII, without blanks")
        if "?" in base_url or "#" in base_url:
            raise ValueError("the address must end before any ? or #")
        self.base = base_url.rstrip("/")
        self._client = client
        self._origin = _origin(base_url)
        self._authority = {"Authorization": f"Bearer {key}"}
        self._key = key if len(key) >= _SHORTEST_BLOT else ""
        # What one site answers must not take the memory of all.
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)
        self._streams = 0

    def __repr__(self) -> str:
        return f"<Site {self.base}>"

    @property
    def host(self) -> str:
        """The host, with its port if the address names one."""
        return parsed(self.base)[1]

    def is_own(self, url: str) -> bool:
        """Say whether a URL is of this origin: scheme, host and port."""
        try:
            return _origin(url) == self._origin
        except OutgoingError:
            return False

    def clean(self, text: str) -> str:
        """Return the text without the key."""
        return text.replace(self._key, BLOT) if self._key else text

    async def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float = 30.0,
        is_anonymous: bool = False,
        most: int = LARGE,
    ) -> Reply:
        """Send a request with a JSON body, or none, to a path below the base; raises `OutgoingError`.

        A good answer may have `most` bytes, any other one is small.
        """
        sent = {**({} if is_anonymous else self._authority), "Accept": "application/json", **(headers or {})}
        if body is not None:
            sent["Content-Type"] = "application/json"
        return await self._reply(method, path, sent, body or b"", timeout_s, most)

    async def send_form(
        self, path: str, name: str, content_type: str, size: int, body: AsyncIterator[bytes], *, timeout_s: float
    ) -> Reply:
        """Send a file as the part `content` of a form; raises `OutgoingError`, and what reading the body raises."""
        form = Form(name, content_type, size, body)
        headers = {"Content-Type": form.content_type, "Content-Length": str(form.size)}
        return await self._reply("POST", path, {**self._authority, **headers}, aiter(form), timeout_s, SMALL)

    async def open(self, url: str, *, with_key: bool = False) -> "Download":
        """Open what is behind a URL of any origin, wherever it is sent on to; raises `OutgoingError`.

        The key goes along, if it shall, to the URL itself where that is of this origin. It is not shown to what that
        sends on to: who names a URL may not choose what is read with the key.
        """
        for hop in range(_HOPS + 1):
            stack = AsyncExitStack()
            headers = self._authority if with_key and hop == 0 and self.is_own(url) else {}
            response = await stack.enter_async_context(self._client.exchange("GET", url, headers, silence_s=_SILENCE_S))
            told = _headers(response)
            if response.status not in _REDIRECTS or "location" not in told:
                return Download(url, response, {name: self.clean(value) for name, value in told.items()}, stack)
            await stack.aclose()
            try:
                url = urljoin(url, told["location"])
            except ValueError:
                raise OutgoingError(f"{parsed(url)[1]} sends on to what is no address") from None
        raise OutgoingError(f"{parsed(url)[1]} sends on more than {_HOPS} times")

    async def events(self, url: str, last_id: str = "") -> AsyncGenerator[ServerEvent, None]:
        """Yield the events of a stream at a URL of any origin, as long as it lasts; raises `OutgoingError`.

        So many streams at a time, and no more: whoever has none looks by itself.
        """
        if self._streams >= _MAX_STREAMS:
            raise NoEvents(f"{self.host} has more than {_MAX_STREAMS} streams open")
        self._streams += 1
        try:
            async with aclosing(self._events(url, last_id)) as events:
                async for event in events:
                    yield event
        finally:
            self._streams -= 1

    async def _events(self, url: str, last_id: str) -> AsyncGenerator[ServerEvent, None]:
        headers = {**(self._authority if self.is_own(url) else {}), "Accept": "text/event-stream"}
        if _ID.fullmatch(last_id):
            headers["Last-Event-ID"] = last_id
        async with self._client.exchange("GET", url, headers, silence_s=_SILENCE_S) as response:
            kind = _headers(response).get("content-type", "")
            if response.status != 200 or not kind.startswith("text/event-stream"):
                raise NoEvents(f"{parsed(url)[1]} has no stream there (HTTP {response.status})")
            events = ServerEvents()
            async for chunk in response.aiter_stream():
                for event in events.feed(chunk):
                    yield event

    async def _reply(
        self, method: str, path: str, headers: Mapping[str, str], content: Content, timeout_s: float, most: int
    ) -> Reply:
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._client.exchange(method, self.base + path, headers, content, silence_s=timeout_s) as response,
            ):
                return self._taken(response, await self._whole(response, most))
        except TimeoutError as error:
            raise OutgoingError(f"{self.host} did not answer within {timeout_s:g} s") from error

    async def _whole(self, response: httpcore2.Response, most: int) -> bytes:
        """Read an answer, but not too many large ones at a time."""
        limit = most if 200 <= response.status < 300 else SMALL
        body = bytearray()
        async with AsyncExitStack() as turn:
            async for chunk in response.aiter_stream():
                if len(body) <= SMALL < len(body) + len(chunk) <= limit:
                    await turn.enter_async_context(self._large)
                body += chunk
                if len(body) > limit:
                    raise TooLarge(f"{self.host} answers with more than {limit >> 20} MiB")
            return bytes(body)

    def _taken(self, response: httpcore2.Response, body: bytes) -> Reply:
        headers = {name: self.clean(value) for name, value in _headers(response).items()}
        if self._key:
            body = body.replace(self._key.encode(), BLOT.encode())
        pause_s = retry_after_s({name.encode(): value for name, value in headers.items()})
        return Reply(response.status, headers, body, pause_s)


class NoEvents(OutgoingError):
    """There is no stream of events (any more)."""


class Download:
    """An answer whose body is read piece by piece; to be closed, unless it was read to its end. `url`: where it is."""

    def __init__(
        self, url: str, response: httpcore2.Response, headers: Mapping[str, str], stack: AsyncExitStack
    ) -> None:
        self.url = url
        self.status = response.status
        self.headers = headers
        self._host = parsed(url)[1]
        self._pieces = aiter(response.aiter_stream())
        self._stack = stack

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Return the next piece; raises `OutgoingError` where the connection breaks."""
        try:
            with in_words(self._host):
                return bytes(await anext(self._pieces))
        except BaseException:
            # At its end too.
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Close the connection, however much of the body was read."""
        await self._stack.aclose()


@contextmanager
def in_words(host: str) -> Iterator[None]:
    """Raise what goes wrong on the network as an `OutgoingError`."""
    try:
        yield
    except Forbidden as error:
        raise OutOfReach(inside(host)) from error
    except httpcore2.ConnectTimeout as error:
        raise Unsent(f"no connection to {host}: it does not answer") from error
    except httpcore2.ConnectError as error:
        raise Unsent(unconnected(host, error)) from error
    except httpcore2.TimeoutException as error:
        raise OutgoingError(f"{host} does not answer") from error
    except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
        raise OutgoingError(f"{host} broke the connection off: {reason_of(error)}") from error


def _origin(url: str) -> tuple[bytes, bytes, int]:
    target, _ = parsed(url)
    return target.scheme, target.host.lower(), target.port or (443 if target.scheme == b"https" else 80)


def _headers(response: httpcore2.Response) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
