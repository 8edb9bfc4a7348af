"""Predictions that run on a worker of this node: their live data, ahead of what is committed.

Positions are absolute: `items` counts output items, `log` counts UTF-8 bytes. What lies before the committed marks is
in the store as chunks; the rest is written by the next checkpoints, or by the unit that ends the attempt. No agent is
trusted with the limits on sizes: what passes them is cut off here, and everything later is dropped.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple, Protocol

import msgspec
from msgspec import Raw

from cogflare.domain.phases import Status
from cogflare.engine.sizes import (
    SIZES,
    Sizes,
    character_before,
    cut_log,
    is_cut_log,
    is_cut_output,
    is_text,
    output_mark,
    too_large,
    too_many,
)
from cogflare.engine.views import PredictionView
from cogflare.protocol.codec import ProtocolError
from cogflare.protocol.messages import AttemptKey
from cogflare.store.base import Database, Statement
from cogflare.store.predictions import PART_BYTES, Checkpoint, Chunk, Claimed, PredictionRow, checkpoint

UNIT_BYTES = 4 << 20  # of live data in one unit, since units of other callers wait for it
_METRICS = 100
_METRIC_NAME = 100  # characters
_METRIC_BYTES = 1_000


class Hook(NamedTuple):
    """The webhook of a prediction: its URL, its filter as stored, and the origin of the URLs in what it gets."""

    url: str
    events: str | None
    origin: str


def hook_of(about: Claimed | PredictionRow) -> Hook | None:
    """Return the webhook of a prediction, if it has one."""
    return None if about.webhook is None else Hook(about.webhook, about.webhook_events, about.webhook_origin or "")


class Holder(Protocol):
    """The link that an attempt runs over."""

    worker: str
    epoch: int

    def cancel(self, key: AttemptKey) -> None:
        """Tell the worker that the attempt is no longer wanted; its slot stays taken until the worker frees it."""
        ...


@dataclass(slots=True, eq=False)
class Live:
    """One attempt while this node holds its link. `base` is the stored prediction, once somebody asked for it.

    `assigned_at` and `begun_at` are of this node's monotonic clock, because the run limit counts from them.
    `overflow` is the error of an attempt whose output is too large and cannot be cut: it ends with that.
    """

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
    run_limit_s: float | None = None
    assigned_at: float = 0.0
    begun_at: float | None = None
    sizes: Sizes = SIZES
    overflow: str | None = None
    hook: Hook | None = None
    _item_bytes: int = 0
    _is_log_cut: bool = False
    _is_output_cut: bool = False

    @property
    def key(self) -> AttemptKey:
        """The attempt's name on the link."""
        return self.prediction, self.attempt

    @property
    def size(self) -> int:
        """Bytes of the output and the log so far."""
        return self._item_bytes + len(self.log)

    def restore(self, items: list[bytes], log: bytearray) -> None:
        """Take what is committed of the attempt, as it was cut off then, if it was."""
        self.items, self.log = items, log
        self.committed_items, self.committed_log = len(self.items), len(self.log)
        self._item_bytes = sum(map(len, items))
        self._is_log_cut, self._is_output_cut = is_cut_log(self.log), is_cut_output(items)

    def add_items(self, index: int, items: list[Raw]) -> None:
        """Take output items that begin at `index`, skipping known ones; raises `ProtocolError` on a gap."""
        if self._is_output_cut or self.overflow:
            return
        known = len(self.items) - index
        if known < 0:
            raise ProtocolError(f"output of {self.prediction} jumps from item {len(self.items)} to {index}")
        for item in items[known:]:
            data = bytes(item)
            size = self._item_bytes + len(data)
            if size > self.sizes.output_bytes or len(self.items) >= self.sizes.items:
                self._cut_output(data)
                return
            self._item_bytes = size
            self.items.append(data)

    def _cut_output(self, beyond: bytes) -> None:
        """End the output with a mark where its readers expect text; anything else is no use without its rest."""
        count = len(self.items)
        if is_text((*self.items, beyond)):
            self._is_output_cut = True
            self.items.append(output_mark(count, self.sizes))
        else:
            is_long = count >= self.sizes.items
            self.overflow = too_many(self.sizes.items) if is_long else too_large(self.sizes.output_bytes)

    def add_log(self, offset: int, text: str) -> None:
        """Take log text that begins at byte `offset`, skipping what is known; raises `ProtocolError` on a gap."""
        if self._is_log_cut:
            return
        known = len(self.log) - offset
        if known < 0:
            raise ProtocolError(f"the log of {self.prediction} jumps from byte {len(self.log)} to {offset}")
        # A NUL cannot be stored as text everywhere; a blank keeps the positions.
        data = text.encode(errors="replace").replace(b"\0", b" ")[known:]
        if len(self.log) + len(data) > self.sizes.log_bytes and data:
            self._is_log_cut = True
            cut_log(self.log, data, self.sizes.log_bytes)
        else:
            self.log += data

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
        """Return all that is not committed yet, as chunks."""
        return [chunk for _, chunk in (*self._item_chunks(), *self._log_chunks())]

    def portion(self, room: int) -> "Portion":
        """Return what a checkpoint commits next: about `room` bytes, and how far the data goes with them."""
        marks = {"output": self.committed_items, "log": self.committed_log}
        chunks: list[Chunk] = []
        for end, chunk in chain(self._item_chunks(), self._log_chunks()):
            if room <= 0:
                break
            chunks.append(chunk)
            room -= len(chunk.data)
            marks[chunk.kind] = end
        items, log = marks["output"] or None, marks["log"]
        point = Checkpoint(self.prediction, self.attempt, self.started_at or 0, items, log, self.holder.epoch)
        return Portion(self, point, chunks)

    def committed(self, point: Checkpoint) -> None:
        """Note that a checkpoint is durable."""
        self.committed_items = max(self.committed_items, point.output_items or 0)
        self.committed_log = max(self.committed_log, point.log_bytes)
        self.committed_start = True

    def _item_chunks(self) -> Iterator[tuple[int, Chunk]]:
        """Cut the items that are not committed into chunks; each comes with the position of its end."""
        first = self.committed_items
        size = 0
        for index in range(first, len(self.items)):
            size += len(self.items[index]) + 1
            if size > PART_BYTES and index > first:
                yield index, self._items_chunk(first, index)
                first, size = index, len(self.items[index])
        if first < len(self.items):
            yield len(self.items), self._items_chunk(first, len(self.items))

    def _items_chunk(self, first: int, end: int) -> Chunk:
        data = b",".join(self.items[first:end]).decode()
        return Chunk(self.prediction, self.attempt, "output", first, data)

    def _log_chunks(self) -> Iterator[tuple[int, Chunk]]:
        """Cut the log that is not committed into chunks, never inside a character; each comes with its end."""
        position = self.committed_log
        while position < len(self.log):
            end = character_before(self.log, position + PART_BYTES)
            data = self.log[position:end].decode(errors="replace")
            yield end, Chunk(self.prediction, self.attempt, "log", position, data)
            position = end


class Portion(NamedTuple):
    """What one unit commits of an attempt, and how far it goes with that."""

    live: Live
    point: Checkpoint
    chunks: list[Chunk]

    @property
    def is_rest(self) -> bool:
        """Whether nothing is left for the next unit."""
        live, point = self.live, self.point
        return (point.output_items or 0) >= len(live.items) and point.log_bytes >= len(live.log)


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


def gather(lives: Iterable[Live], room: int = UNIT_BYTES) -> list[Portion]:
    """Return what one unit commits of these attempts: all that is new, or what there is room for, but every start."""
    portions = []
    for live in lives:
        if live.started_at is not None and live.is_dirty() and (room > 0 or not live.committed_start):
            portion = live.portion(room)
            portions.append(portion)
            room -= sum(len(chunk.data) for chunk in portion.chunks)
    return portions


def save(portions: Sequence[Portion]) -> list[Statement]:
    """Return the statements that commit these portions."""
    points = [portion.point for portion in portions]
    return checkpoint(points, [chunk for portion in portions for chunk in portion.chunks]) if points else []


async def commit(db: Database, portions: Sequence[Portion]) -> list[Portion]:
    """Write portions and return those that the store took: what an older link has to say changes nothing."""
    rows = await db.write(*save(portions))
    keys = {(prediction, attempt) for prediction, attempt in rows[1]}
    taken = [portion for portion in portions if portion.live.key in keys]
    for live, point, _ in taken:
        live.committed(point)
    return taken


async def commit_all(db: Database, lives: Iterable[Live]) -> None:
    """Write all live data of these attempts, in as many units as it takes."""
    left = list(lives)
    while portions := gather(left):
        served = {portion.live for portion in portions}
        partly = [portion.live for portion in await commit(db, portions) if not portion.is_rest]
        left = [*(live for live in left if live not in served), *partly]
