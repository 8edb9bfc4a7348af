"""Predictions that run on a worker of this node: their live data, ahead of what is committed.

Positions are absolute: `items` counts output items, `log` counts UTF-8 bytes. What lies before the committed marks is
in the store as chunks; the rest is written by the next checkpoint, or by the unit that ends the attempt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
from msgspec import Raw

from cogflare.domain.phases import Status
from cogflare.engine.views import PredictionView
from cogflare.protocol.codec import ProtocolError
from cogflare.protocol.messages import AttemptKey
from cogflare.store.base import Statement
from cogflare.store.predictions import PART_BYTES, Checkpoint, Chunk, checkpoint, cut

_METRICS = 100
_METRIC_NAME = 100  # characters
_METRIC_BYTES = 1_000


class Holder(Protocol):
    """The link that an attempt runs over."""

    worker: str
    epoch: int

    def cancel(self, key: AttemptKey) -> None:
        """Tell the worker that the attempt is no longer wanted; its slot stays taken until the worker frees it."""
        ...


@dataclass(slots=True, eq=False)
class Live:
    """One attempt while this node holds its link. `base` is the stored prediction, once somebody asked for it."""

    prediction: str
    attempt: int
    account: str
    version: str
    created_at: int
    holder: "Holder"
    base: PredictionView | None = None
    started_at: int | None = None
    items: list[bytes] = field(default_factory=list)
    log: bytearray = field(default_factory=bytearray)
    metrics: dict[str, Raw] = field(default_factory=dict)
    committed_items: int = 0
    committed_log: int = 0
    committed_start: bool = False
    ending: bool = False

    @property
    def key(self) -> AttemptKey:
        """The attempt's name on the link."""
        return self.prediction, self.attempt

    def add_items(self, index: int, items: list[Raw]) -> None:
        """Take output items that begin at `index`, skipping known ones; raises `ProtocolError` on a gap."""
        known = len(self.items) - index
        if known < 0:
            raise ProtocolError(f"output of {self.prediction} jumps from item {len(self.items)} to {index}")
        self.items += [bytes(item) for item in items[known:]]

    def add_log(self, offset: int, text: str) -> None:
        """Take log text that begins at byte `offset`, skipping what is known; raises `ProtocolError` on a gap."""
        known = len(self.log) - offset
        if known < 0:
            raise ProtocolError(f"the log of {self.prediction} jumps from byte {len(self.log)} to {offset}")
        # A NUL cannot be stored as text everywhere; a blank keeps the positions.
        self.log += text.encode(errors="replace").replace(b"\0", b" ")[known:]

    def logs(self) -> str:
        """Return the log so far."""
        return self.log.decode(errors="replace")

    def is_dirty(self) -> bool:
        """Say whether a checkpoint has something to write."""
        return (
            len(self.items) > self.committed_items
            or len(self.log) > self.committed_log
            or (self.started_at is not None and not self.committed_start)
        )

    def uncommitted(self) -> list[Chunk]:
        """Return what is not committed yet, as chunks."""
        return [*self._item_chunks(), *self._log_chunks()]

    def checkpoint(self) -> Checkpoint:
        """Return how far the data goes; to be committed with `uncommitted()`."""
        items = len(self.items) or None
        return Checkpoint(self.prediction, self.attempt, self.started_at or 0, items, len(self.log), self.holder.epoch)

    def committed(self, point: Checkpoint) -> None:
        """Note that a checkpoint is durable."""
        self.committed_items = max(self.committed_items, point.output_items or 0)
        self.committed_log = max(self.committed_log, point.log_bytes)
        self.committed_start = True

    def _item_chunks(self) -> list[Chunk]:
        chunks: list[Chunk] = []
        first = self.committed_items
        size = 0
        for index in range(first, len(self.items)):
            size += len(self.items[index]) + 1
            if size > PART_BYTES and index > first:
                chunks.append(self._items_chunk(first, index))
                first, size = index, len(self.items[index])
        if first < len(self.items):
            chunks.append(self._items_chunk(first, len(self.items)))
        return chunks

    def _items_chunk(self, first: int, end: int) -> Chunk:
        data = b",".join(self.items[first:end]).decode()
        return Chunk(self.prediction, self.attempt, "output", first, data)

    def _log_chunks(self) -> list[Chunk]:
        chunks: list[Chunk] = []
        position = self.committed_log
        if position == len(self.log):
            return chunks
        for part in cut(self.log[position:].decode(errors="replace")):
            chunks.append(Chunk(self.prediction, self.attempt, "log", position, part))
            position += len(part.encode())
        return chunks


def bounded_metrics(known: dict[str, Raw], news: dict[str, Raw]) -> dict[str, Raw]:
    """Return the metrics with the news among them, as far as they stay few and small; each is a copy of its own."""
    merged = dict(known)
    for name, value in news.items():
        fits = len(name) <= _METRIC_NAME and len(memoryview(value)) <= _METRIC_BYTES
        if fits and (name in merged or len(merged) < _METRICS):
            merged[name] = value.copy()
    return merged


def view_live(base: PredictionView, live: Live) -> PredictionView:
    """Show a prediction that runs on this node: newer than what is stored.

    Its start is shown once it is committed, and nothing of the run before that: a status never moves back, not even
    when this node is killed the moment after.
    """
    if not live.committed_start:
        return msgspec.structs.replace(base, version=live.version, attempt=live.attempt)
    output = b"[" + b",".join(live.items) + b"]" if live.items else None
    started = base.started_at or live.started_at
    return msgspec.structs.replace(
        base,
        version=live.version,
        status=Status.PROCESSING,
        attempt=live.attempt,
        started_at=started,
        output=output,
        logs=live.logs(),
        metrics=msgspec.json.encode(live.metrics).decode() if live.metrics else None,
    )


def save(lives: Sequence[Live]) -> list[Statement]:
    """Return the statements that commit the live data of these attempts."""
    dirty = [live for live in lives if live.is_dirty() and live.started_at is not None]
    if not dirty:
        return []
    return checkpoint([live.checkpoint() for live in dirty], [c for live in dirty for c in live.uncommitted()])
