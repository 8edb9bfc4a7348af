"""A run at a provider as the live data of its attempt: everything only grows, whatever the provider shows next.

What a provider shows may lag behind what it has shown before, and is ignored then. A run that began anew there shows
other items than before: they are not mixed, the output is taken whole when it ends.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Raw

from cogflare.domain.clock import Clock
from cogflare.engine.live import Live, bounded_metrics
from cogflare.engine.sizes import is_cut_output
from cogflare.protocol.messages import MAX_ITEMS, Finish
from cogflare.providers.base import Sight

_MAX_LOGS: Final = 4  # of runs that began anew: each is appended to the one before

_items = msgspec.json.Decoder(list[Raw])


class Mirror:
    """Shows what a provider shows, in the live data of an attempt; items that are restored may name our files."""

    def __init__(self, live: Live, clock: Clock, run_limit_s: float | None) -> None:
        self.live = live
        self._clock = clock
        self._run_limit_s = run_limit_s
        self._restored = len(live.items)
        self._originals: dict[int, bytes] = {}
        self._log_from = 0
        self._logs = 1
        if live.started_at is not None:
            self._count_from((clock.wall() - live.started_at) / 1_000_000)

    def show(self, sight: Sight) -> bool:
        """Take the start, the log and the metrics; says whether anything is new."""
        live = self.live
        before = live.started_at, len(live.log), live.metrics
        if live.started_at is None and sight.started:
            ago_s = max(0.0, sight.run_s or 0.0)
            live.started_at = max(live.created_at, self._clock.wall() - int(ago_s * 1_000_000))
            self._count_from(ago_s)
        if live.started_at is not None and sight.logs:
            self._log(sight.logs)
        if sight.metrics:
            live.metrics = bounded_metrics(live.metrics, sight.metrics)
        return before != (live.started_at, len(live.log), live.metrics)

    def news(self, sight: Sight) -> list[bytes]:
        """Return the items of an output that goes on and that are not shown yet, as the provider has them."""
        items = items_of(sight.output)
        known = len(self.live.items)
        if items is None or len(items) <= known or not self._agrees(items):
            return []
        return items[known:]

    def add(self, originals: Sequence[bytes], shown: Sequence[bytes]) -> None:
        """Show the next items: `originals` are theirs, `shown` those with our files in their place."""
        first = len(self.live.items)
        for index, (original, item) in enumerate(zip(originals, shown, strict=True), first):
            if original != item:
                self._originals[index] = original
        self.live.add_items(first, [Raw(item) for item in shown])

    def is_iterator(self, sight: Sight) -> bool:
        """Say whether the whole output is what has been shown item by item, and more of the same."""
        items = items_of(sight.output)
        if sight.output is None or items is None:
            # What was shown stays, also where the provider shows nothing of it in the end.
            return sight.output is None
        return bool(self.live.items) and len(items) >= self._shown_of_theirs() and self._agrees(items)

    def finish(self, sight: Sight, output: Raw | None, files: int) -> Finish:
        """Return what ends the attempt: with an `output`, that is all of it; else what has been shown is."""
        live = self.live
        about = Finish(
            *live.key,
            "succeeded" if sight.state == "succeeded" else "failed",
            error=sight.error,
            metrics=sight.metrics,
            files=files,
            run_ms=None if sight.run_s is None else sight.run_s * 1000,
        )
        if output is not None:
            return msgspec.structs.replace(about, output=output)
        return msgspec.structs.replace(about, items=len(live.items) or None)

    def _count_from(self, ago_s: float) -> None:
        """Let the run limit count, from so long ago."""
        self.live.begun_at = self._clock.monotonic() - max(0.0, ago_s)
        self.live.run_limit_s = self._run_limit_s

    def _log(self, text: str) -> None:
        log = self.live.log
        known, theirs = bytes(log[self._log_from :]), text.encode(errors="replace").replace(b"\0", b" ")
        if known.startswith(theirs):
            return
        if not theirs.startswith(known):
            if self._logs >= _MAX_LOGS:
                return
            self._logs += 1
            self._log_from = len(log)
        self.live.add_log(self._log_from, text)

    def _shown_of_theirs(self) -> int:
        """Return how many of the shown items are the provider's, without the mark of a cut."""
        return len(self.live.items) - is_cut_output(self.live.items)

    def _agrees(self, items: Sequence[bytes]) -> bool:
        """Say whether these items begin with those that were shown."""
        count = self._shown_of_theirs()
        if len(items) < count:
            return False
        for index in range(count):
            shown = self._originals.get(index, self.live.items[index])
            if shown != items[index] and (index >= self._restored or index in self._originals):
                return False
        return True


def items_of(output: Raw | None) -> list[bytes] | None:
    """Return the items of an output that is a list; None for any other, and where they may be too many to be told."""
    data = b"" if output is None else bytes(output).strip()
    if not data.startswith(b"[") or data.count(b",") > MAX_ITEMS:
        return None
    return [bytes(item) for item in _items.decode(data)]


def forward(known: Sight | None, seen: Sight) -> Sight:
    """Return what is seen now, but never less than was seen before: what lags is not believed."""
    if known is None:
        return seen
    if known.state == "running" and seen.state == "waiting":
        return known
    return msgspec.structs.replace(seen, started=True) if known.started and not seen.started else seen


def without_data(sight: Sight) -> Sight:
    """Return what is remembered of a run between two looks: not what may be large, of which the mirror has its own."""
    return msgspec.structs.replace(sight, output=None, logs="", metrics={})
