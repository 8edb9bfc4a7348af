"""An engine on a real store, with workers that speak the real protocol but need no socket and no model."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from msgspec import UNSET, Raw

from cogflare.blobs.base import BlobStore
from cogflare.domain.clock import Clock
from cogflare.domain.ids import new_id
from cogflare.engine.accounts import Accounts
from cogflare.engine.adoption import Ground, LinkTimes
from cogflare.engine.backoff import Backoff, Releases
from cogflare.engine.catalog import NO_BOUNDS, Bounds, Catalog
from cogflare.engine.dispatcher import Dispatcher
from cogflare.engine.downloads import Downloads
from cogflare.engine.health import Health
from cogflare.engine.inputs import Inputs
from cogflare.engine.leases import Leases
from cogflare.engine.limits import Limits
from cogflare.engine.link import Link
from cogflare.engine.links import Fleet
from cogflare.engine.losses import Losses
from cogflare.engine.predictions import Order, Predictions
from cogflare.engine.repeats import Repeats
from cogflare.engine.requirements import Matching
from cogflare.engine.router import Router
from cogflare.engine.secrets import Secrets
from cogflare.engine.service import Checkpoints, Tasks
from cogflare.engine.sizes import SIZES, Sizes
from cogflare.engine.stops import Stops
from cogflare.engine.streams import Streams
from cogflare.engine.uploads import Uploads
from cogflare.engine.views import PredictionView
from cogflare.engine.waiters import Waiters
from cogflare.protocol.agent_end import AgentEnd
from cogflare.protocol.codec import server_frames
from cogflare.protocol.messages import PONG, Answer, Assign, Cancel, Finish, Offer, ServerMessage
from cogflare.store.base import Database
from cogflare.store.catalog import Caller
from cogflare.vault import Vault

VERSION = "a" * 64
SECRET_KEY = "the key of servers in tests, no secret"
_decoder = server_frames()
NO_PAUSE = Backoff(0.0, 60.0)
TIMES = LinkTimes(heartbeat_s=0.2, silence_s=1.0, close_grace_s=0.2, lease_s=0.8)


class SystemClock:
    """The clock of this machine."""

    def wall(self) -> int:
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        return time.monotonic()


class MovableClock(SystemClock):
    """A clock whose times can be moved, each on its own."""

    def __init__(self) -> None:
        self.wall_ahead_s = 0.0
        self.ahead_s = 0.0

    def wall(self) -> int:
        return super().wall() + int(self.wall_ahead_s * 1_000_000)

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_s


class Rig:
    """One node's engine."""

    def __init__(
        self,
        db: Database,
        node: str = "node",
        times: LinkTimes = TIMES,
        *,
        clock: Clock | None = None,
        backoff: Backoff = NO_PAUSE,
        quarantine_after: int = 5,
        quarantine_s: float = 10.0,
        bounds: Bounds = NO_BOUNDS,
        max_queued: int | None = None,
        sizes: Sizes = SIZES,
        blobs: BlobStore | None = None,
        max_upload_bytes: int = 100 << 20,
        max_inline_bytes: int = 256 << 10,
        router: "Callable[[Rig], Router] | None" = None,
    ) -> None:
        self.db = db
        self.clock = clock or SystemClock()
        self.tasks = Tasks()
        self.accounts = Accounts(db, self.clock)
        self.catalog = Catalog(db, self.clock, bounds)
        self.dispatcher = Dispatcher(db, self.clock, self.tasks.spawn)
        stops = Stops(db, self.clock)
        self.health = Health(db, self.clock, self.tasks.spawn, quarantine_after, quarantine_s)
        self.matching = Matching(db, self.tasks.spawn)
        self.losses = Losses(db, self.clock, stops, self.health, 3, backoff)
        self.releases = Releases(db, self.clock, backoff)
        waiters = Waiters()
        self.vault = Vault(SECRET_KEY, Path())
        self.secrets = Secrets(db, self.clock, self.vault)
        self.inputs = None
        if blobs is not None:
            self.uploads = Uploads(db, blobs, self.clock, max_upload_bytes)
            downloads = Downloads(db, self.clock, self.uploads, self.secrets)
            self.inputs = Inputs(db, blobs, self.clock, self.uploads, downloads, max_inline_bytes)
        common = db, self.clock, self.catalog, self.dispatcher, waiters, stops, self.losses, max_queued, self.inputs
        self.predictions = Predictions(*common, router=None if router is None else router(self))
        self.repeats = Repeats(db, self.clock, self.predictions)
        self.streams = Streams(db, stops.feeds, self.tasks.spawn)
        self.limits = Limits(db, self.clock, stops, self.losses)
        self.checkpoints = Checkpoints(db, self.predictions, self.tasks.spawn)
        self.ground = Ground(
            db,
            self.clock,
            self.catalog,
            self.dispatcher,
            self.predictions,
            self.losses,
            self.health,
            self.matching,
            times,
            node,
            "test",
            self.tasks.spawn,
            self.checkpoints.started,
            sizes=sizes,
        )
        self.fleet = Fleet(self.ground, self.accounts)
        self.leases = Leases(db, self.clock, self.fleet, self.losses, times)

    async def caller(self, name: str, kind: str = "api") -> Caller:
        """Return the caller of a new token of an account (made if new)."""
        created = await self.accounts.create(name, kind, "test")
        assert created is not None
        caller = await self.accounts.caller(created.secret)
        assert caller is not None
        return caller

    async def worker(self, account: str = "ada", slots: int = 1, schema: bytes | None = None) -> "RigWorker":
        """Connect a new worker of the account that offers ada/noop."""
        worker = RigWorker(self, await self.caller(account, "worker"), slots, schema)
        await worker.connect()
        return worker

    async def create(self, caller: Caller, model: str = "ada/noop", hold_s: float | None = None) -> PredictionView:
        """Create a prediction with an empty input."""
        return await self.predictions.create(caller, Order(b"{}", {}, model), hold_s)

    async def settle(self) -> None:
        """Wait until nothing happens in the background any more."""
        await self.tasks.settle(10)
        await asyncio.sleep(0)


@dataclass
class RigWorker:
    """A worker whose model is the test itself: assignments queue up, and methods answer them."""

    rig: Rig
    caller: Caller
    slots: int
    schema: bytes | None = None
    assigned: "asyncio.Queue[Assign]" = field(default_factory=asyncio.Queue)
    heard: list[ServerMessage] = field(default_factory=list)
    closed: tuple[int, str] | None = None

    def __post_init__(self) -> None:
        schema = UNSET if self.schema is None else Raw(self.schema)
        offer = Offer("ada", "noop", VERSION, self.slots, schema, "0.16.0")
        identity = new_id(self.rig.clock.wall())
        self.end = AgentEnd(identity, identity, "rig", [offer], {})
        self.link: Link | None = None
        self.answers: dict[tuple[str, int], asyncio.Future[str]] = {}
        self.canceled: set[tuple[str, int]] = set()

    async def connect(self, rig: Rig | None = None) -> None:
        """Open a link to a node, as after a (re)connect."""
        self.link = (rig or self.rig).fleet.open(self.caller, self)
        self.closed = None
        for frame in self.end.connected():
            await self.link.receive(frame)
        await self.pump()

    async def disconnect(self) -> None:
        """Lose the socket, without a goodbye."""
        assert self.link is not None
        link, self.link = self.link, None
        self.end.disconnected()
        await link.closed()

    def send(self, frames: Sequence[str]) -> None:
        """Take what the server sends (this object is the link's port)."""
        for frame in frames:
            for message in [] if frame == PONG else _decoder.decode(frame):
                if isinstance(message, Answer):
                    answer = self.answers.get((message.prediction, message.attempt))
                    if answer is not None and not answer.done():
                        answer.set_result(message.verdict)
            for message in self.end.receive(frame, self.rig.clock.monotonic()):
                self.heard.append(message)
                if isinstance(message, Assign):
                    self.assigned.put_nowait(message)
                elif isinstance(message, Cancel):
                    self.canceled.add((message.prediction, message.attempt))

    def close(self, code: int, reason: str) -> None:
        """Note that the server closed the socket."""
        self.closed = (code, reason)

    def room(self) -> int:
        """Have room for any input."""
        return 1_000_000

    async def pump(self) -> None:
        """Send what is queued to the server."""
        if self.link is not None:
            for frame in self.end.take_frames():
                await self.link.receive(frame)

    async def heartbeat(self) -> None:
        """Renew what is held."""
        assert self.link is not None
        await self.link.receive(self.end.heartbeat())
        await self.rig.settle()

    async def next(self) -> Assign:
        """Return the next assignment."""
        return await asyncio.wait_for(self.assigned.get(), 5)

    async def start(self, work: Assign) -> tuple[str, int]:
        """Begin to run an assignment."""
        key = (work.prediction, work.attempt)
        self.end.started(key, self.rig.clock.monotonic(), self.rig.clock.monotonic())
        await self.pump()
        return key

    async def finish(self, key: tuple[str, int], output: bytes | None = b'"done"', **fields: object) -> str:
        """End an attempt and return the server's verdict; without `output`, what was shown so far is all of it."""
        self.answers[key] = asyncio.get_running_loop().create_future()
        status = fields.pop("status", "succeeded")
        finish = Finish(*key, status, output=UNSET if output is None else Raw(output), slot_free=True, **fields)  # type: ignore[arg-type]
        self.end.finish(finish, self.rig.clock.monotonic())
        await self.pump()
        if key not in self.end.kept and not self.answers[key].done():
            return "unwanted"
        return await asyncio.wait_for(self.answers[key], 5)
