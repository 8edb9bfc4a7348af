"""The only composition root: from settings to a running server node."""

import time
from dataclasses import dataclass
from pathlib import Path

from starlette.routing import Route

from cogflare import __version__
from cogflare.api import admin, catalog, files, predictions, work
from cogflare.api.context import Api
from cogflare.api.gateway import Gateway
from cogflare.api.origin import TrustedProxies, check_public_url
from cogflare.api.routing import Application, table
from cogflare.blobs.local import LocalBlobStore
from cogflare.domain.clock import Clock
from cogflare.engine.accounts import Accounts
from cogflare.engine.adoption import Ground, LinkTimes
from cogflare.engine.backoff import Backoff, Releases
from cogflare.engine.catalog import Bounds, Catalog
from cogflare.engine.dispatcher import Dispatcher
from cogflare.engine.files import Files
from cogflare.engine.health import Health
from cogflare.engine.leases import Leases
from cogflare.engine.limits import Limits
from cogflare.engine.links import Fleet
from cogflare.engine.losses import Losses
from cogflare.engine.predictions import Predictions
from cogflare.engine.pruning import Terms
from cogflare.engine.repeats import Repeats
from cogflare.engine.retention import Retention
from cogflare.engine.service import Checkpoints, Engine, Tasks
from cogflare.engine.sizes import Sizes
from cogflare.engine.stops import Stops
from cogflare.engine.storage import Storage
from cogflare.engine.waiters import Waiters
from cogflare.settings import Settings, SettingsError
from cogflare.store.base import Database
from cogflare.store.open import open_database


class SystemClock:
    """The clock of this machine."""

    def wall(self) -> int:
        """Return microseconds since 1970, UTC."""
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        """Return seconds of a clock that never jumps."""
        return time.monotonic()


@dataclass(frozen=True)
class Runtime:
    """A server node: its application, and what has to be started and stopped around it."""

    settings: Settings
    db: Database
    engine: Engine
    accounts: Accounts
    clock: Clock
    app: Application

    async def start(self) -> None:
        """Bring the schema up to date, repair what the last run left, and start the periodic roles."""
        await self.db.migrate()
        await self.engine.start(self.clock.wall())

    async def stop(self) -> None:
        """Stop the engine within the configured limit, and close the store. Twice is harmless."""
        await self.engine.stop(self.settings.stop_s)
        await self.db.aclose()


def _bounds(settings: Settings) -> Bounds:
    """Return what holds for models whose owners have set nothing else."""
    return Bounds(settings.run_limit_s or None, settings.start_limit_s or None, settings.max_queued_model)


def _open(settings: Settings, clock: Clock) -> tuple[Storage, LocalBlobStore]:
    """Return the database and the blobs, and make the data folder."""
    data = Path(settings.data)
    try:
        # What clients send and get is nobody else's business on this machine.
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        return Storage(open_database(settings.database()), clock), LocalBlobStore(data / "files")
    except (ValueError, OSError) as error:
        raise SettingsError(str(error)) from error


def _reached(settings: Settings) -> tuple[str | None, TrustedProxies]:
    """Return the public URL and the proxies that count."""
    try:
        public_url = check_public_url(settings.public_url) if settings.public_url else None
    except ValueError as error:
        raise SettingsError(str(error)) from error
    try:
        return public_url, TrustedProxies(settings.trusted_proxies)
    except ValueError as error:
        raise SettingsError(f"the setting trusted_proxies: {error}") from error


def _routes(api: Api, settings: Settings) -> list[Route]:
    return [
        *predictions.routes(api),
        *files.routes(api),
        *work.routes(api, settings.max_result_bytes),
        *catalog.routes(api),
        *admin.routes(api),
    ]


def build(settings: Settings, clock: Clock | None = None) -> Runtime:
    """Put a node together; nothing is connected yet. Raises `SettingsError` for what cannot be used."""
    clock = clock or SystemClock()
    public_url, trusted = _reached(settings)
    db, blobs = _open(settings, clock)
    tasks, waiters = Tasks(), Waiters()
    times = LinkTimes(settings.heartbeat_s, settings.silence_s, settings.close_grace_s, settings.lease_s)
    accounts, models = Accounts(db, clock), Catalog(db, clock, _bounds(settings))
    dispatcher = Dispatcher(db, clock, tasks.spawn)
    stops = Stops(db, clock)
    health = Health(db, clock, tasks.spawn, settings.quarantine_after, settings.quarantine_s)
    backoff = Backoff(settings.retry_first_s, settings.retry_cap_s)
    losses = Losses(db, clock, stops, health, settings.max_strikes, backoff)
    jobs = Predictions(db, clock, models, dispatcher, waiters, stops, losses, settings.max_queued)
    repeats = Repeats(db, clock, jobs)
    node = settings.node_name()
    checkpoints = Checkpoints(db, jobs, tasks.spawn)
    ground = Ground(
        db, clock, models, dispatcher, jobs, losses, health, times, node, __version__, tasks.spawn, checkpoints.started,
        sizes=Sizes(settings.max_log_bytes, settings.max_output_bytes, settings.max_result_bytes),
    )  # fmt: skip
    fleet = Fleet(ground, accounts)
    leases = Leases(db, clock, fleet, losses, times, db.has_refused)
    store = Files(db, blobs, clock, settings.max_file_bytes)
    terms = Terms(settings.data_kept_s(), settings.retain_records_s)
    ticks = {
        "dispatcher": dispatcher.tick,
        "leases": leases.tick,
        "storage": db.tick,
        "retention": Retention(db, blobs, clock, terms).tick,
        "checkpoints": checkpoints.tick,
        "releases": Releases(db, clock, backoff).tick,
        "health": health.tick,
        "limits": Limits(db, clock, stops, losses).tick,
        "repeats": repeats.tick,
    }
    # A SQLite file has one server, whatever that was called in its last run.
    own = None if settings.database().startswith("sqlite:") else node
    engine = Engine(db, own, fleet, jobs, waiters, tasks, ticks)
    api = Api(jobs, models, accounts, fleet, store, db, clock, public_url, trusted, settings.max_body, repeats)
    app = Application(api, table(_routes(api, settings)), Gateway(fleet))
    return Runtime(settings, db, engine, accounts, clock, app)
