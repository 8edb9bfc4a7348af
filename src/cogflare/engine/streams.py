"""Streams of predictions: who may read one, and what is read from the store for those that do not run on this node.

What runs here is shown as its worker says it, before it is committed: a position says how far a reader is, and after a
crash the worker repeats what was lost, so that a reader ahead of the store waits and gets nothing twice.
"""

import asyncio
from collections.abc import Callable, Coroutine
from hmac import compare_digest
from typing import Any

import msgspec

from cogflare.domain.errors import NotFound
from cogflare.domain.ids import ID_LENGTH, is_id
from cogflare.domain.phases import Phase
from cogflare.engine.feeds import End, Feed, Feeds, Place, Reader, split
from cogflare.engine.stops import CHANNEL_ENDED
from cogflare.engine.views import load_parts, view
from cogflare.store import predictions as store
from cogflare.store import streams
from cogflare.store.base import Database, Hint
from cogflare.store.predictions import PredictionRow

LOOK_S = 0.5
LOOK_ALONE_S = 5.0  # where no other node writes: all that happens is heard of
_FEEDS = 500  # whose state is read at once

Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]


class Streams:
    """Opens streams, and fills the feeds of predictions that run elsewhere, wait or have ended."""

    def __init__(self, db: Database, feeds: Feeds, spawn: Spawn) -> None:
        self._db = db
        self._feeds = feeds
        self._spawn = spawn
        self.is_stopping = False
        feeds.look = self._look
        db.listen(self._heard)

    @property
    def readers(self) -> int:
        """How many streams are open on this node."""
        return self._feeds.readers

    async def open(self, token: str, place: Place | None, *, with_logs: bool) -> Reader:
        """Return a reader that begins after `place`, or at the beginning; give it up with `leave`.

        Raises `NotFound` for a token that opens nothing, or nothing any more.
        """
        prediction, key = token[:ID_LENGTH], token[ID_LENGTH:]
        row = await store.get(self._db, prediction) if is_id(prediction) else None
        known = b"" if row is None else row.stream_key.encode()
        if not compare_digest(key.encode(), known) or row is None or row.data_removed:
            raise NotFound
        reader = self._feeds.join(prediction, row.stream_key, place, with_logs=with_logs)
        if self.is_stopping:
            reader.close()
        return reader

    def leave(self, reader: Reader) -> None:
        """Give up a reader."""
        self._feeds.leave(reader)

    def stop(self) -> None:
        """End all streams, without an end that their readers could take for that of the prediction."""
        self.is_stopping = True
        self._feeds.close_all()

    async def tick(self) -> float:
        """Look for what has changed in the store; returns the seconds until the next look."""
        feeds = self._feeds.elsewhere()
        for start in range(0, len(feeds), _FEEDS):
            asked = {feed.prediction: feed for feed in feeds[start : start + _FEEDS]}
            states = await streams.states(self._db, list(asked))
            for prediction, feed in asked.items():
                if states.get(prediction) != feed.seen:
                    self._look(feed)
        return LOOK_S if self._db.is_shared else LOOK_ALONE_S

    def _heard(self, hint: Hint) -> None:
        if hint.channel == CHANNEL_ENDED:
            self._feeds.changed(hint.payload)

    def _look(self, feed: Feed) -> None:
        feed.look_again = True
        if not feed.is_looking and not self.is_stopping:
            feed.is_looking = True
            self._spawn(self._read(feed))

    async def _read(self, feed: Feed) -> None:
        try:
            while feed.look_again and feed.readers:
                feed.look_again = False
                await self._fill(feed)
        finally:
            feed.is_looking = False

    async def _fill(self, feed: Feed) -> None:
        """Show what is stored, unless it has begun to run here meanwhile."""
        row = await store.get(self._db, feed.prediction)
        if row is None or row.data_removed:
            self._feeds.close(feed)
            return
        items, log, end = await self._stored(feed, row)
        if self._feeds.follow(feed):
            return
        feed.seen = streams.state_of(row)
        feed.show(row.attempt, items, log, end)
        self._feeds.wake(feed)

    async def _stored(self, feed: Feed, row: PredictionRow) -> tuple[list[bytes], bytes, End | None]:
        """Return what the store has of a prediction: items, log, and how it ended."""
        if row.phase == Phase.ENDED:
            # The input is not shown, so that it need not be read.
            shown = view(row, await load_parts(self._db, [msgspec.structs.replace(row, input="")]))
            return split(shown.output), shown.logs.encode(), End(row.status, row.error)
        if row.phase in (Phase.QUEUED, Phase.PARKED):
            # What a lost attempt had shown is not shown any more; if its worker comes back with it, it goes on.
            return [], b"", None
        is_same = row.attempt == feed.attempt
        items, log = (list(feed.items), bytearray(feed.log)) if is_same else ([], bytearray())
        if (row.output_items or 0) > len(items) or row.log_bytes > len(log):
            await self._append(row, items, log)
        return items, bytes(log), None

    async def _append(self, row: PredictionRow, items: list[bytes], log: bytearray) -> None:
        """Append what is committed of a running attempt and not known yet."""
        for chunk in await streams.chunks(self._db, row.id, row.attempt, len(items), len(log)):
            if chunk.kind == "output" and chunk.position <= len(items):
                items += split(f"[{chunk.data}]".encode())[len(items) - chunk.position :]
            elif chunk.kind == "log" and chunk.position <= len(log):
                log += chunk.data.encode()[len(log) - chunk.position :]
