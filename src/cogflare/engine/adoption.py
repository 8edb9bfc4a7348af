"""What links of a node stand on, and how a new link takes over what its worker still holds.

A worker that comes back goes on where it was: what it lists and what is still current is taken into memory again, with
what is committed of it, and the worker is told from where to repeat. What it was given and does not list is lost.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from cogflare.domain.clock import Clock
from cogflare.domain.phases import Phase
from cogflare.engine.catalog import Catalog
from cogflare.engine.dispatcher import Dispatcher
from cogflare.engine.health import Health
from cogflare.engine.live import Holder, Live, hook_of
from cogflare.engine.losses import Losses
from cogflare.engine.predictions import Predictions
from cogflare.engine.requirements import Matching
from cogflare.engine.sizes import SIZES, Sizes
from cogflare.protocol.messages import AttemptKey, Held, Resume
from cogflare.store import fleet
from cogflare.store import predictions as store
from cogflare.store.base import Database
from cogflare.store.fleet import HeldAttempt
from cogflare.store.predictions import Chunk, PredictionRow

Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]
_HELLOS = 256


class LinkTimes(msgspec.Struct, frozen=True):
    """Durations of the worker link, in seconds."""

    heartbeat_s: float = 5.0
    silence_s: float = 15.0
    close_grace_s: float = 15.0
    lease_s: float = 60.0


class Port(Protocol):
    """The socket of a link."""

    def send(self, frames: Sequence[str]) -> None:
        """Send text frames in order, without waiting."""
        ...

    def close(self, code: int, reason: str) -> None:
        """Close the socket after what was sent."""
        ...

    def room(self) -> int:
        """Return how many bytes of inputs may be sent now."""
        ...


@dataclass(frozen=True)
class Ground:
    """What all links of a node share.

    `started` is called when an attempt has begun. `links` has the newest link of each worker by its id; `departed` has
    the workers whose grace runs, as (epoch, monotonic end). `greeting` lets so many hellos be worked on at a time.
    """

    db: Database
    clock: Clock
    catalog: Catalog
    dispatcher: Dispatcher
    predictions: Predictions
    losses: Losses
    health: Health
    matching: Matching
    times: LinkTimes
    node: str
    server: str
    spawn: Spawn
    started: Callable[[], None]
    links: dict[str, Any] = field(default_factory=dict)
    departed: dict[str, tuple[int, float]] = field(default_factory=dict)
    sizes: Sizes = SIZES
    greeting: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_HELLOS))


async def adopt(ground: Ground, link: Holder, adopted: Sequence[HeldAttempt], listed: Sequence[Held]) -> None:
    """Take the attempts that go on over this link into memory; stops when a newer link has taken its place.

    Of what the worker has `listed` as ended the finish is on its way, and no run limit counts any more.
    """
    over = {(item.prediction, item.attempt) for item in listed if item.ended}
    chunks = await store.chunks(ground.db, [(item.prediction, item.attempt) for item in adopted]) if adopted else []
    for item in adopted:
        row = await store.get(ground.db, item.prediction)
        if ground.links.get(link.worker) is not link:
            return
        if row is not None and row.attempt == item.attempt and row.phase != Phase.ENDED:
            own = [chunk for chunk in chunks if chunk.prediction == row.id]
            live = ground.predictions.lives[row.id] = _revive(ground, link, row, item, own)
            ground.predictions.feeds.changed(row.id)
            if live.key in over:
                live.run_limit_s = None


def _revive(ground: Ground, link: Holder, row: PredictionRow, item: HeldAttempt, chunks: Sequence[Chunk]) -> Live:
    """Return the live state of an attempt as far as it is committed."""
    live = Live(row.id, row.attempt, row.account, row.version, row.created_at, link, started_at=item.started_at)
    live.run_limit_s, live.assigned_at = row.run_limit_s, ground.clock.monotonic()
    live.sizes, live.hook = ground.sizes, hook_of(row)
    live.restore(*committed(chunks, item.output_items, item.log_bytes))
    live.committed_start = item.started_at is not None
    earlier = ground.predictions.lives.get(row.id)
    if live.started_at is None and earlier is not None and earlier.key == live.key:
        live.started_at = earlier.started_at
    return live


def committed(chunks: Sequence[Chunk], output_items: int, log_bytes: int) -> tuple[list[bytes], bytearray]:
    """Return the items and the log of an attempt as far as they are committed; later pieces do not count."""
    items, log = list[bytes](), bytearray()
    for chunk in chunks:
        if chunk.kind == "output" and chunk.position < output_items:
            items += [bytes(raw) for raw in msgspec.json.decode(f"[{chunk.data}]", type=list[msgspec.Raw])]
        elif chunk.kind == "log" and chunk.position < log_bytes:
            log += chunk.data.encode()
    return items, log


def resumes_of(
    ground: Ground, link: Holder, held: Sequence[AttemptKey], adopted: Sequence[HeldAttempt]
) -> list[Resume]:
    """Return a word on each attempt that the worker lists: go on after these positions, or drop it."""
    wanted = {(item.prediction, item.attempt) for item in adopted}
    resumes = []
    for key in held:
        live = ground.predictions.lives.get(key[0]) if key in wanted else None
        if live is not None and live.key == key and live.holder is link:
            resumes.append(Resume(*key, wanted=True, outputs=len(live.items), log_bytes=len(live.log)))
        else:
            resumes.append(Resume(*key, wanted=False))
    return resumes


async def free_unlisted(ground: Ground, link: Holder, held: set[AttemptKey], left: Mapping[AttemptKey, Live]) -> None:
    """Take back what the worker was given and does not list: it never got it, or it died since.

    `left` is what the attempts of the link before this one had shown.
    """
    for key, renewals in (await fleet.live_of(ground.db, link.worker, link.epoch)).items():
        live = ground.predictions.lives.get(key[0])
        if key not in held and (live is None or live.key != key):
            reason = f"worker {link.worker} came back without it"
            await ground.losses.rescue(
                key, reason, live=left.get(key), slot_free=True, is_innocent=True, renewals=renewals
            )
