"""Replicate, and every server that speaks its API.

There is no key against doing a thing twice. But a run has its mark in the URL of its webhook, which is shown to the
owner of the prediction, so the list of predictions tells whether there is one.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Annotated, Final, TypeVar
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import msgspec
from msgspec import Meta, Raw

from cogflare.domain.clock import Clock
from cogflare.net.base import OutgoingError
from cogflare.net.client import SMALL, NoEvents, Reply, Site
from cogflare.providers.base import (
    Denied,
    Described,
    File,
    Gone,
    ProviderError,
    Refused,
    Report,
    Sight,
    Submission,
    Terms,
    Unanswered,
)
from cogflare.providers.calls import REPLICATE, Calls, Kind, Rates
from cogflare.providers.models import NAME, Models
from cogflare.providers.sights import Unreadable, read, read_page, sight

_BACK_US: Final = 10 * 60 * 1_000_000  # by which the clocks of two servers may differ
_MAX_PAGES: Final = 200
_MAX_LOOKS: Final = 200
_LOOKS_AT_ONCE: Final = 20
_FIRST_PAUSE_S: Final = 1.0
_LAST_PAUSE_S: Final = 30.0
_NOWHERE: Final = "https://cogflare.invalid/v1/hooks/{mark}"
_OUTPUT_PATH: Final = re.compile(r"/f/[0-9a-z]{40}/[^/]+", re.ASCII)

T = TypeVar("T")


class _Account(msgspec.Struct, frozen=True):
    username: Annotated[str, Meta(max_length=200)]


class _Health(msgspec.Struct, frozen=True):
    status: str
    version: str


class Replicate:
    """Runs of one key at a server of Replicate's API (the `Executor` seam)."""

    is_repeatable = False
    needs_version = True
    rates: Rates = REPLICATE

    def __init__(self, site: Site, clock: Clock) -> None:
        self._site = site
        self._calls = Calls(site, clock, self.rates)
        self._models = Models(self._calls.found, clock, site.base, needs_version=self.needs_version)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._site.base}>"

    # --- what there is ------------------------------------------------------------------------------------------------

    async def check(self, endpoint: str = "") -> Report:
        """Ask whose the key is, and what kind of server takes it."""
        try:
            reply = await self._calls.good("GET", "/account", most=SMALL)
            account = self._calls.decoded(reply, _Account).username
        except ProviderError as error:
            return Report(False, str(error), is_denied=isinstance(error, Denied))
        is_cogflare = await self._is_cogflare()
        return self._judged(Report(True, f"{self._site.host} takes the key, as {account}", account, is_cogflare))

    def _judged(self, report: Report) -> Report:
        """Say what a report means for this kind of provider."""
        if not report.is_cogflare:
            return report
        text = f"{report.text}; it is a Cogflare, and does without webhooks as a provider of that kind"
        return msgspec.structs.replace(report, text=text)

    async def _is_cogflare(self) -> bool:
        try:
            reply = await self._calls.anonymous("/health")
            return reply.is_good and self._calls.decoded(reply, _Health).status == "ok"
        except (OutgoingError, ProviderError):
            return False

    async def describe(self, model: str, version: str | None, terms: Terms) -> Described:
        """Return a model with its schema, and the terms of a run of it."""
        return await self._models.describe(model, version, terms)

    # --- runs ---------------------------------------------------------------------------------------------------------

    async def submit(self, order: Submission) -> Sight:
        """Make a run whose webhook has the mark."""
        hook = {"webhook": order.callback or _NOWHERE.format(mark=order.mark), "webhook_events_filter": ["completed"]}
        body = {"input": Raw(order.input), **hook}
        path = f"/models/{model_of(order)}/predictions"
        if order.terms.version is not None:
            path, body["version"] = "/predictions", order.terms.version
        reply = await self._calls.call("POST", path, msgspec.json.encode(body), hops_of(order), kind="create")
        if not reply.is_good:
            raise self._calls.failure(reply)
        return sight(self._readable(read, reply))

    async def find(self, mark: str, since: int) -> Sight | None:
        """Walk back through the list of predictions, to some time before `since`."""
        query, unmarked = "", []
        for _ in range(_MAX_PAGES):
            page = self._readable(read_page, await self._calls.good("GET", f"/predictions{query}"))
            recent = [listed for listed in page.results if (listed.created_us or since) >= since - _BACK_US]
            for listed in recent:
                if listed.has(mark):
                    return sight(self._readable(read, await self._calls.good("GET", path_of(listed.id))))
            unmarked += [listed.id for listed in recent if listed.webhook is None]
            if len(unmarked) > _MAX_LOOKS:
                raise self._too_many()
            query = _query(page.next)
            if not query or len(recent) < len(page.results):
                return await self._look_through(unmarked, mark)
        raise self._too_many()

    async def _look_through(self, ids: list[str], mark: str) -> Sight | None:
        """Look at predictions one by one: a list may leave their webhooks out."""
        for begin in range(0, len(ids), _LOOKS_AT_ONCE):
            calls = (self._calls.found(path_of(id)) for id in ids[begin : begin + _LOOKS_AT_ONCE])
            for reply in await asyncio.gather(*calls):
                if reply.is_good and (shown := self._readable(read, reply)).has(mark):
                    return sight(shown)
        return None

    def _too_many(self) -> Unanswered:
        return Unanswered(f"{self._site.host} has too many predictions to look through for one")

    async def poll(self, remote_id: str, terms: Terms) -> Sight:
        """Return a run as it is."""
        shown = self._readable(read, await self._known("GET", path_of(remote_id)))
        if shown.data_removed and shown.state == "succeeded":
            raise Gone(f"{self._site.host} has removed what the run made")
        return sight(shown)

    async def cancel(self, remote_id: str, terms: Terms) -> None:
        """Ask that the run ends."""
        await self._known("POST", f"{path_of(remote_id)}/cancel", "cancel")

    async def _known(self, method: str, path: str, kind: Kind = "other") -> Reply:
        reply = await self._calls.call(method, path, kind=kind)
        if reply.status in (404, 410):
            raise Gone(f"{self._site.host} does not know the run (any more)")
        if not reply.is_good:
            raise self._calls.failure(reply)
        return reply

    def _readable(self, reader: Callable[[bytes], T], reply: Reply) -> T:
        try:
            return reader(reply.body)
        except Unreadable:
            raise Unanswered(f"{self._site.host} answers with something else than predictions") from None

    async def changes(self, sight: Sight, terms: Terms) -> AsyncGenerator[None, None]:
        """Yield at each event of the run's stream; come back to it when it breaks, until it says that it is done."""
        url, last_id, pause_s = self._stream(sight), "", _FIRST_PAUSE_S
        while url is not None:
            try:
                async with aclosing(self._site.events(url, last_id)) as events:
                    async for event in events:
                        last_id, pause_s = event.id, _FIRST_PAUSE_S
                        yield None
                        if event.kind == "done":
                            return
            except NoEvents:
                return
            except OutgoingError:
                pass
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LAST_PAUSE_S)

    def _stream(self, sight: Sight) -> str | None:
        return sight.stream

    # --- files --------------------------------------------------------------------------------------------------------

    async def upload(self, name: str, content_type: str, size: int, body: AsyncIterator[bytes]) -> str:
        """Hand over a file; its URL stands for it."""
        return await self._calls.upload(name, content_type, size, body)

    def is_file(self, text: str) -> bool:
        """Say whether it is a URL of Replicate's storage, of a Cogflare's outputs, or else of this server."""
        if not text.startswith(("http://", "https://")) or len(text) > 4_096 or not text.isprintable() or " " in text:
            return False
        try:
            parts = urlsplit(text)
        except ValueError:
            return False
        host = parts.hostname or ""
        if host == "replicate.delivery" or host.endswith(".replicate.delivery"):
            return True
        if _OUTPUT_PATH.fullmatch(parts.path):
            return True
        return self._calls.has_file(text)

    async def fetch(self, url: str) -> File:
        """Open a file of an output."""
        return await self._calls.fetch(url)

    async def aclose(self) -> None:
        """Do nothing: the connections are those of all providers."""


def path_of(remote_id: str) -> str:
    """Return where a prediction is."""
    return f"/predictions/{quote(remote_id, safe='')}"


def model_of(order: Submission) -> str:
    """Return the name of the model that an order is for; raises `Refused` for what is none."""
    if NAME.fullmatch(order.terms.model) is None:
        raise Refused(f"{order.terms.model[:200]!r} is not the name of a model: owner/name")
    return order.terms.model


def hops_of(order: Submission) -> dict[str, str]:
    """Return the header that counts the servers before the one that takes the order."""
    return {"Cogflare-Hops": str(order.hops)} if order.hops > 0 else {}


def _query(following: str | None) -> str:
    """Return the query of the URL of the next page: the key goes to its own server only, whatever that says it is."""
    _, _, query = (following or "").partition("#")[0].partition("?")
    pairs = parse_qsl(query)
    return f"?{urlencode(pairs)}" if pairs else ""
