"""How the bytes of an output file reach the server, or the store that it names.

    whole          one request: small files, and stores that take a file at once
    bit by bit     large files to the server itself: what came before a break is kept, and asked for before going on
    in parts       large files to a store: each part is sent until it is answered

The digest of the whole is said at the end, so that a file is what was made or is sent again. There is no time limit on
a file: a slow link only has to keep moving.
"""

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Final

import httpx2
import msgspec

from cogflare.agent.courier import OFFSET, Courier, Misplaced, Ticket, TransferError
from cogflare.agent.depot import Notes, Order, Resumable

WHOLE_BYTES: Final = 8 * 1024 * 1024
"""Files up to this size go in one request."""
_BIT: Final = 16 * 1024 * 1024  # what is in a request when a proxy on the way, which may hold it back, goes down
_CHUNK: Final = 256 * 1024
_IN_MEMORY: Final = 4 * 1024 * 1024  # bytes of a file that stay in memory; more goes to a temporary file
_ROUNDS: Final = 3  # a file that still does not arrive as it is will not
_JSON: Final = {"Content-Type": "application/json"}


@dataclass(slots=True)
class Content:
    """The bytes of a file, to be read as often as they are sent."""

    file: IO[bytes]
    size: int
    sha256: str

    async def chunks(self, start: int = 0, size: int | None = None) -> AsyncIterator[bytes]:
        """Read from `start` on, `size` bytes or all."""
        self.file.seek(start)
        left = self.size - start if size is None else size
        while left and (chunk := self.file.read(min(_CHUNK, left))):
            left -= len(chunk)
            yield chunk


@asynccontextmanager
async def content_of(body: AsyncIterator[bytes] | Path) -> AsyncIterator[Content]:
    """Have the content of a file at hand, with its digest; what streams is kept meanwhile, a path is read in place."""
    if isinstance(body, Path):
        with body.open("rb") as file:
            found = await asyncio.to_thread(hashlib.file_digest, file, "sha256")
            yield Content(file, file.tell(), found.hexdigest())
        return
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as spool:
        digest, size = hashlib.sha256(), 0
        async for chunk in body:
            spool.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        yield Content(spool, size, digest.hexdigest())


class Upload:
    """One file on its way: `order` says where to, and how far it has come."""

    def __init__(self, courier: Courier, ticket: Ticket, order: Order, content: Content, notes: Notes | None) -> None:
        self._courier = courier
        self._ticket = ticket
        self._order = order
        self._content = content
        self._notes = notes

    async def send(self) -> None:
        """Send what is missing, and have the server check it; raises `TransferError`."""
        answer, target = self._order.answer, self._order.answer.upload
        for _ in range(_ROUNDS):
            if target.parts:
                await self._in_parts()
                complete = answer.complete
            elif answer.resume is not None and self._content.size > WHOLE_BYTES:
                await self._courier.again(self._ticket, self._bit_by_bit)
                complete = answer.resume.complete
            else:
                await self._courier.again(self._ticket, self._whole)
                complete = answer.complete
            try:
                if complete is not None:
                    await self._complete(complete)
            except Misplaced as error:
                fault = error
                self._order.tags.clear()
            else:
                return
        raise TransferError(f"{self._order.filename} did not arrive as it is: {fault}")

    async def _whole(self) -> httpx2.Response:
        """Send all of it; the given headers are part of what a store signed, so there are no others of ours."""
        target = self._order.answer.upload
        return await self._put(target.method, target.url, target.headers, 0, self._content.size)

    async def _in_parts(self) -> None:
        target, content = self._order.answer.upload, self._content
        for number in range(len(self._order.tags), len(target.parts)):
            start = number * target.part_bytes
            size = min(target.part_bytes, content.size - start)
            part = partial(self._put, "PUT", target.parts[number], {}, start, size)
            answer = await self._courier.again(self._ticket, part)
            tag = answer.headers.get("etag")
            if tag is None:
                raise TransferError("the store of files does not tell the tags of parts")
            self._order.tags.append(tag)
            if self._notes is not None:
                self._notes.sent(self._order, tag)

    async def _bit_by_bit(self) -> httpx2.Response:
        """Ask where the file goes on, and send from there to its end; ends early with an answer that is not good."""
        url = self._courier.server.resolve(self._resumable.url)
        answer = await self._courier.request("HEAD", url, None, {})
        while answer.status_code < 300:
            offset = int(answer.headers.get(OFFSET, "0"))
            if offset >= self._content.size:
                return answer
            size = min(_BIT, self._content.size - offset)
            answer = await self._put("PATCH", url, {OFFSET: str(offset)}, offset, size)
            if answer.status_code == 409 and OFFSET in answer.headers:
                # A request that was thought lost has come through after all.
                answer = await self._courier.request("HEAD", url, None, {})
        return answer

    @property
    def _resumable(self) -> Resumable:
        assert self._order.answer.resume is not None
        return self._order.answer.resume

    async def _put(self, method: str, url: str, headers: dict[str, str], start: int, size: int) -> httpx2.Response:
        length = {**headers, "Content-Length": str(size)}
        chunks = self._content.chunks(start, size)
        return await self._courier.request(method, self._courier.server.resolve(url), chunks, length)

    async def _complete(self, url: str) -> None:
        proof: dict[str, object] = {"size": self._content.size, "sha256": self._content.sha256}
        if self._order.answer.upload.parts:
            proof |= {"upload": self._order.answer.upload.upload, "parts": self._order.tags}
        body, where = msgspec.json.encode(proof), self._courier.server.resolve(url)
        await self._courier.again(self._ticket, lambda: self._courier.request("POST", where, body, _JSON))
