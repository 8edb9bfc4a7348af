"""Calls of S3's HTTP interface, signed here: those of uploads in parts, and what finds out whether a bucket works."""

import asyncio
import contextlib
import hashlib
import os
import random
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

import httpx2
import msgspec

from cogflare.blobs.base import BlobError, BlobMismatch, BlobMissing, BlobUnavailable, Label
from cogflare.blobs.bucket import Bucket, Refusal, element, refused
from cogflare.blobs.disk import run
from cogflare.blobs.sigv4 import presign, query_string, sign
from cogflare.domain.clock import Clock

_TIMEOUT: Final = httpx2.Timeout(60.0, connect=5.0)
_CHUNK: Final = 256 << 10
_PAUSES_S: Final = (0.2, 1.0, 3.0)
_LINK_STEP_S: Final = 900


class PartialUpload(msgspec.Struct, frozen=True):
    """An upload in parts that is not complete; `began_s` is a time of the wall clock."""

    object: str
    upload: str
    began_s: float


class Slice(msgspec.Struct, frozen=True):
    """A range of a file, to be sent."""

    file: Path
    begin: int
    size: int

    def sha256(self) -> str:
        """Return the digest in hex; in a thread."""
        digest = hashlib.sha256()
        with self.file.open("rb", buffering=0) as file:
            for begin, size in self._pieces():
                file.seek(begin)
                digest.update(file.read(size))
        return digest.hexdigest()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Iterate over the bytes."""
        with await run(self.file.open, "rb") as file:
            for begin, size in self._pieces():
                yield await run(os.pread, file.fileno(), size, begin)

    def _pieces(self) -> Iterator[tuple[int, int]]:
        end = self.begin + self.size
        for begin in range(self.begin, end, _CHUNK):
            yield begin, min(_CHUNK, end - begin)


class S3Calls:
    """Signed calls to one bucket; every one is tried a few times."""

    def __init__(self, bucket: Bucket, clock: Clock) -> None:
        self._bucket = bucket
        self._clock = clock
        self._client: httpx2.AsyncClient | None = None
        self._stale: list[httpx2.AsyncClient | None] = []

    async def aclose(self) -> None:
        """Close the connections."""
        clients, self._client, self._stale = [self._client, *self._stale], None, []
        for client in clients:
            if client is not None:
                await client.aclose()

    async def call(
        self,
        method: str,
        object: str,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | Slice = b"",
    ) -> httpx2.Response:
        """Send a request about an object (empty: the bucket itself); raises a `BlobError` for any refusal."""
        url = self._bucket.url_of(object) if object else f"{self._bucket.url}/"
        digest = hashlib.sha256(body).hexdigest() if isinstance(body, bytes) else await run(body.sha256)

        def request() -> tuple[str, dict[str, str]]:
            # Signed anew for each try: a signature is valid for minutes.
            signed = sign(self._bucket.signing, method, url, query or {}, headers or {}, digest, self.now_s())
            return f"{url}?{query_string(query)}" if query else url, signed

        for pause_s in (*_PAUSES_S, None):
            answer = await self._send(method, *request(), body, is_last=pause_s is None)
            if answer is not None:
                return answer
            await asyncio.sleep(random.uniform((pause_s or 0) / 2, pause_s or 0))  # noqa: S311 - no secret
        raise AssertionError("the last try has raised")

    async def begin(self, object: str, label: Label) -> str:
        """Begin an upload in parts; returns its id."""
        answer = await self.call("POST", object, {"uploads": ""}, headers_of(label))
        return element(answer.text, "UploadId")

    async def put_part(self, object: str, upload: str, number: int, body: Slice) -> str:
        """Send a part; returns its tag."""
        answer = await self.call("PUT", object, {"partNumber": str(number), "uploadId": upload}, body=body)
        return str(answer.headers.get("etag", ""))

    async def complete(self, object: str, upload: str, tags: Sequence[str]) -> None:
        """Join the parts; raises `BlobMismatch` where they are not what the store has."""
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(tag)}</ETag></Part>"
            for number, tag in enumerate(tags, 1)
        )
        body = f'<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{parts}'
        answer = await self.call(
            "POST", object, {"uploadId": upload}, body=f"{body}</CompleteMultipartUpload>".encode()
        )
        # The service answers before it is done, and may find out afterwards that it cannot be.
        if "<Error>" in answer.text:
            raise refused(self._bucket, Refusal.read(500, answer.text))

    async def size(self, object: str) -> int:
        """Return the size of an object; raises `BlobMissing`."""
        return int((await self.call("HEAD", object)).headers.get("content-length", 0))

    async def abort(self, object: str, upload: str) -> None:
        """Give an upload up; harmless where it is gone."""
        with contextlib.suppress(BlobMismatch, BlobMissing):
            await self.call("DELETE", object, {"uploadId": upload})

    async def uploads(self) -> list[PartialUpload]:
        """Return uploads in parts under our prefix that are not complete, up to a thousand."""
        answer = await self.call("GET", "", {"uploads": "", "prefix": self._bucket.prefix})
        found = []
        for block in re.findall(r"<Upload>(.*?)</Upload>", answer.text, re.DOTALL):
            began = datetime.fromisoformat(element(block, "Initiated"))
            found.append(PartialUpload(element(block, "Key"), element(block, "UploadId"), began.timestamp()))
        return found

    def link(self, method: str, object: str, query: Mapping[str, str], headers: Mapping[str, str], valid_s: int) -> str:
        """Return a signed URL. For some minutes it is the same one, so that caches know it again."""
        at_s = self.now_s() // _LINK_STEP_S * _LINK_STEP_S
        url = self._bucket.url_of(object)
        return presign(self._bucket.signing, method, url, query, headers, valid_s + _LINK_STEP_S, at_s)

    def now_s(self) -> float:
        """Return the time, in seconds since 1970."""
        return self._clock.wall() / 1e6

    async def _send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | Slice, *, is_last: bool
    ) -> httpx2.Response | None:
        """Send a request once; None where it should be tried again."""
        if self._client is None:
            self._client = httpx2.AsyncClient(timeout=_TIMEOUT, follow_redirects=False)
        size, content = (len(body), body) if isinstance(body, bytes) else (body.size, body.chunks())
        sent = {**headers, "content-length": str(size)}
        try:
            answer = await self._client.request(method, url, content=content or None, headers=sent)
        except (httpx2.HTTPError, AttributeError) as error:
            if isinstance(error, AttributeError):
                # So the sockets below tell of a kept connection that has just gone; this pool could do so again.
                self._stale.append(self._client)
                self._client = None
            if is_last:
                raise self._unreachable(error) from None
            return None
        if answer.status_code < 300:
            return answer
        if (answer.status_code >= 500 or answer.status_code == 429) and answer.status_code != 501 and not is_last:
            return None
        region = answer.headers.get("x-amz-bucket-region", "")
        raise refused(self._bucket, Refusal.read(answer.status_code, answer.text, region))

    def _unreachable(self, error: Exception) -> BlobError:
        # Only the kind of error: its text may have the URL, and so a signature.
        said = str(error.__cause__ or error) if isinstance(error, httpx2.ConnectError) else ""
        why = said or type(error).__name__
        what = f"the storage at {self._bucket.where()} does not answer ({why}): check s3_endpoint and the network"
        return BlobUnavailable(what)


def headers_of(label: Label) -> dict[str, str]:
    """Return the headers under which an object keeps its label."""
    headers = {"content-type": label.content_type, "content-disposition": label.content_disposition}
    return {name: value for name, value in headers.items() if value}
