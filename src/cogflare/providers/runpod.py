"""RunPod's serverless endpoints: queues of jobs in front of workers that come and go.

A job has a name of its own only once it is made, and nothing lists the jobs of an endpoint: where the answer to `/run`
is lost, nobody can tell whether there is one.
"""

import base64
import hashlib
import math
import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, quote, urlsplit

import msgspec
from msgspec import Raw

from cogflare.domain.clock import Clock
from cogflare.net.client import LARGE, SMALL, Reply, Site
from cogflare.providers.answers import failure
from cogflare.providers.base import (
    Busy,
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
from cogflare.providers.calls import Calls
from cogflare.providers.endpoints import LOOK_S, PATIENCE_S, Endpoint, Health
from cogflare.providers.jobs import Job, Run, read
from cogflare.providers.sights import Unreadable

_MAX_BODY: Final = 10_000_000
_MAX_FILE: Final = 7_000_000  # a third more as text
_LEAST_RUN_MS, _LEAST_TTL_MS, _MOST_MS = 5_000, 10_000, 7 * 86_400_000
_STREAM_S: Final = 5.0
_MAX_RUNS: Final = 10_000
_KEPT_ENDS: Final = 256
_KEPT_BYTES: Final = 64 << 20
_MAX_ENDPOINTS: Final = 1_000
_MAX_STREAMS: Final = 1_000
_ENDPOINT: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,99}", re.ASCII)
_MEDIA_TYPE: Final = re.compile(r"[0-9A-Za-z.+_-]{1,80}/[0-9A-Za-z.+_-]{1,80}", re.ASCII)
_SIGNATURES: Final = ({"x-amz-signature"}, {"x-goog-signature"}, {"signature", "expires"}, {"sig", "se"})
_NO_LIST: Final = "RunPod does not list the jobs of an endpoint, so nobody can tell whether this one was made"


class RunPod:
    """Jobs of one key at RunPod (the `Executor` seam)."""

    is_repeatable = False

    def __init__(self, site: Site, clock: Clock) -> None:
        self._site = site
        self._clock = clock
        self._calls = Calls(site, clock)
        self._endpoints: dict[str, Endpoint] = {}
        self._runs: dict[str, Run] = {}
        self._ends: deque[str] = deque()

    def __repr__(self) -> str:
        return f"<RunPod {self._site.base}>"

    # --- what there is ------------------------------------------------------------------------------------------------

    async def check(self, endpoint: str = "") -> Report:
        """Ask for the workers of an endpoint; without one there is nobody to ask."""
        if not endpoint:
            return Report(True, f"{self._site.host} can be asked about the key once a route names an endpoint")
        try:
            health = await self._health(endpoint)
        except ProviderError as error:
            return Report(False, str(error), is_denied=isinstance(error, Denied))
        return Report(not health.is_stuck, health.words(endpoint), workers=health.able)

    async def describe(self, model: str, version: str | None, terms: Terms) -> Described:
        """Return a model for an endpoint, which says nothing of its inputs and has one version."""
        await self._health(terms.endpoint)
        owner, _, name = model.partition("/")
        id = hashlib.sha256(f"runpod:{terms.endpoint}".encode()).hexdigest()
        own = Terms(terms.model or model, None, terms.endpoint, terms.shape)
        return Described(owner, name, id, None, "", own)

    async def _health(self, endpoint: str) -> Health:
        reply = await self._call("read", endpoint, "GET", "/health", most=SMALL)
        if reply.status == 404:
            raise Refused(f"{self._site.host} has no endpoint {endpoint} for this key")
        health = self._calls.decoded(self._good(reply), Health)
        self._endpoint(endpoint).seen(health)
        return health

    # --- runs ---------------------------------------------------------------------------------------------------------

    async def submit(self, order: Submission) -> Sight:
        """Make a job, at an endpoint that has workers."""
        endpoint, body = order.terms.endpoint, msgspec.json.encode(_request(order))
        if len(body) > _MAX_BODY:
            raise Refused(
                f"the input has {len(body) / 1e6:.1f} MB with the files in it, and RunPod takes "
                f"{_MAX_BODY // 1_000_000} MB: give large files as URLs that the endpoint can read"
            )
        empty_s = await self._empty_s(endpoint)
        if empty_s is not None:
            text = Health().words(endpoint)
            raise Busy(text, max(LOOK_S, PATIENCE_S - empty_s)) if empty_s < PATIENCE_S else Refused(text)
        reply = await self._call("run", endpoint, "POST", "/run", body)
        if reply.status == 404:
            raise Refused(f"{self._site.host} has no endpoint {endpoint} for this key")
        job = self._read(self._good(reply))
        return self._run(job.id, order.terms, is_whole=True).sight(job)

    async def find(self, mark: str, since: int) -> Sight | None:
        """Raise `Unanswered`."""
        raise Unanswered(_NO_LIST)

    async def poll(self, remote_id: str, terms: Terms) -> Sight:
        """Return a run as it is; one that waits where there are no workers any more is ended there."""
        job = self._read(await self._known(remote_id, terms, "GET", "status"))
        endpoint, run = self._endpoint(terms.endpoint), self._run(remote_id, terms)
        if terms.shape == "plain":
            await self._listen(job, run, endpoint, terms)
        if job.is_over:
            self._note_end(remote_id, job, run, endpoint)
        elif job.state == "waiting":
            empty_s = await self._empty_s(terms.endpoint)
            if empty_s is not None and empty_s >= PATIENCE_S:
                return await self._given_up(remote_id, terms, run)
        return run.sight(job)

    async def cancel(self, remote_id: str, terms: Terms) -> None:
        """Ask that the job ends."""
        await self._known(remote_id, terms, "POST", "cancel")

    async def changes(self, sight: Sight, terms: Terms) -> AsyncGenerator[None, None]:
        """Yield nothing: RunPod tells of the end only, by the webhook."""
        hints: tuple[None, ...] = ()
        for hint in hints:
            yield hint

    async def _listen(self, job: Job, run: Run, endpoint: Endpoint, terms: Terms) -> None:
        """Ask for what the handler has yielded, where there may be something."""
        if job.state == "running" and run.is_whole and not endpoint.is_plain:
            with suppress(ProviderError):
                await self._hear(job, run, terms, _STREAM_S)
        elif job.is_over and not job.has_output:
            for _ in range(_MAX_STREAMS):
                if not await self._hear(job, run, terms) or not run.is_whole:
                    break

    async def _hear(self, job: Job, run: Run, terms: Terms, limit_s: float = 30.0) -> bool:
        """Ask for the parts that nobody was told; returns whether there were some."""
        # They are told once: those of an answer that does not arrive are lost.
        was_whole, run.is_whole = run.is_whole, False
        try:
            told = self._read(await self._known(job.id, terms, "GET", "stream", limit_s))
        except (Busy, Denied, Gone, Refused):
            run.is_whole = was_whole
            raise
        run.is_whole = was_whole
        run.add(told)
        return bool(told.stream)

    def _note_end(self, remote_id: str, job: Job, run: Run, endpoint: Endpoint) -> None:
        """Learn whether the handler yields, and forget the parts of runs that ended long ago."""
        if run.yields:
            endpoint.is_plain = False
        elif job.has_output and not bytes(job.output).startswith(b"["):
            endpoint.is_plain = True
        if job.has_output:
            run.forget()
        if remote_id not in self._ends:
            self._ends.append(remote_id)
        while len(self._ends) > _KEPT_ENDS or (len(self._ends) > 1 and self._kept_bytes() > _KEPT_BYTES):
            self._runs.pop(self._ends.popleft(), None)

    def _kept_bytes(self) -> int:
        """Return how much is kept of runs that have ended."""
        return sum(self._runs[id].size for id in self._ends if id in self._runs)

    async def _given_up(self, remote_id: str, terms: Terms, run: Run) -> Sight:
        """End a job that nobody would run; says so where that ends it."""
        await self.cancel(remote_id, terms)
        seen = run.sight(self._read(await self._known(remote_id, terms, "GET", "status")))
        return msgspec.structs.replace(seen, error=Health().words(terms.endpoint)) if seen.state == "canceled" else seen

    async def _empty_s(self, endpoint: str) -> float | None:
        """Return for how long an endpoint has had no workers, None where it has some, or does not say."""
        if self._endpoint(endpoint).wants_look():
            with suppress(Busy, Unanswered):
                await self._health(endpoint)
        return self._endpoint(endpoint).empty_s

    # --- files --------------------------------------------------------------------------------------------------------

    async def upload(self, name: str, content_type: str, size: int, body: AsyncIterator[bytes]) -> str:
        """Return the file as a data URL: there is nowhere to put it."""
        content = bytearray()
        if size <= _MAX_FILE:
            async for piece in body:
                content += piece
        if max(size, len(content)) > _MAX_FILE:
            raise Refused(
                f"the file {name} has {max(size, len(content)) / 1e6:.1f} MB, and RunPod keeps no files: give it as a "
                f"URL that the endpoint can read, or as a file of at most {_MAX_FILE // 1_000_000} MB"
            )
        kind = content_type if _MEDIA_TYPE.fullmatch(content_type) else "application/octet-stream"
        return f"data:{kind};base64,{base64.b64encode(content).decode()}"

    def is_file(self, text: str) -> bool:
        """Say whether it is a signed URL of some bucket, which handlers make for their files: it expires."""
        if not text.startswith(("http://", "https://")) or len(text) > 4_096 or not text.isprintable() or " " in text:
            return False
        try:
            names = {name.lower() for name, _ in parse_qsl(urlsplit(text).query)}
        except ValueError:
            return False
        return any(signature <= names for signature in _SIGNATURES) and not self._site.is_own(text)

    async def fetch(self, url: str) -> File:
        """Open a file of an output, without the key."""
        if self._site.is_own(url):
            raise Gone(f"{self._site.host} has no files")
        return await self._calls.fetch(url)

    async def aclose(self) -> None:
        """Do nothing: the connections are those of all providers."""

    # --- calls --------------------------------------------------------------------------------------------------------

    async def _known(
        self,
        remote_id: str,
        terms: Terms,
        method: str,
        what: Literal["status", "stream", "cancel"],
        limit_s: float = 30.0,
    ) -> Reply:
        """Call about a job that is there; raises `Gone`."""
        kind, path = ("cancel" if what == "cancel" else "read"), f"/{what}/{quote(remote_id, safe='')}"
        reply = await self._call(kind, terms.endpoint, method, path, limit_s=limit_s)
        if reply.status in (404, 410):
            raise Gone(f"{self._site.host} does not know the job (any more)")
        return self._good(reply)

    async def _call(
        self,
        kind: str,
        endpoint: str,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        limit_s: float = 30.0,
        most: int = LARGE,
    ) -> Reply:
        if _ENDPOINT.fullmatch(endpoint) is None:
            raise Refused(f"{endpoint[:80]!r} is not the id of an endpoint of RunPod: the route has to name one")
        pace, at = self._endpoint(endpoint).paces[kind], f"/{endpoint}{path}"
        return await self._calls.taken(
            pace, lambda: self._site.call(method, at, body, timeout_s=limit_s, most=most), is_create=kind == "run"
        )

    def _good(self, reply: Reply) -> Reply:
        if not reply.is_good:
            raise failure(self._site.host, reply)
        return reply

    def _read(self, reply: Reply) -> Job:
        try:
            return read(reply.body)
        except Unreadable:
            raise Unanswered(f"{self._site.host} answers with something else than jobs") from None

    def _endpoint(self, id: str) -> Endpoint:
        if id not in self._endpoints:
            if len(self._endpoints) >= _MAX_ENDPOINTS:
                del self._endpoints[next(iter(self._endpoints))]
            self._endpoints[id] = Endpoint(self._site.host, self._clock)
        return self._endpoints[id]

    def _run(self, remote_id: str, terms: Terms, *, is_whole: bool = False) -> Run:
        if remote_id not in self._runs:
            if len(self._runs) >= _MAX_RUNS:
                del self._runs[next(iter(self._runs))]
            self._runs[remote_id] = Run(terms.shape, is_whole=is_whole)
        return self._runs[remote_id]


def _request(order: Submission) -> dict[str, Any]:
    """Return what is sent to make a job."""
    input: Any = Raw(order.input)
    request: dict[str, Any] = {"input": {"input": input} if order.terms.shape == "cog" else input}
    if order.callback is not None:
        request["webhook"] = order.callback
    policy: dict[str, int] = {}
    if order.run_limit_s is not None:
        policy["executionTimeout"] = _milliseconds(order.run_limit_s, _LEAST_RUN_MS)
        if order.start_limit_s is not None:
            # It counts from the submit and ends a job that runs, too: so it covers both.
            policy["ttl"] = _milliseconds(order.start_limit_s + order.run_limit_s, _LEAST_TTL_MS)
    if policy:
        request["policy"] = policy
    return request


def _milliseconds(seconds: float, least: int) -> int:
    return min(max(math.ceil(seconds * 1000), least), _MOST_MS)
