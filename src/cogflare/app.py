"""The only composition root: from settings to a running server node."""

import time
from dataclasses import dataclass
from pathlib import Path

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
from cogflare.engine.catalog import Catalog
from cogflare.engine.dispatcher import Dispatcher
from cogflare.engine.files import Files
from cogflare.engine.leases import Leases
from cogflare.engine.links import Fleet
from cogflare.engine.losses import Losses
from cogflare.engine.predictions import Predictions
from cogflare.engine.service import Checkpoints, Engine, Tasks
from cogflare.engine.stops import Stops
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


def build(settings: Settings, clock: Clock | None = None) -> Runtime:
    """Put a node together; nothing is connected yet. Raises `SettingsError` for what cannot be used."""
    data = Path(settings.data)
    try:
        data.mkdir(parents=True, exist_ok=True)
        db = open_database(settings.database())
        public_url = check_public_url(settings.public_url) if settings.public_url else None
    except (ValueError, OSError) as error:
        raise SettingsError(str(error)) from error
    try:
        trusted = TrustedProxies(settings.trusted_proxies)
    except ValueError as error:
        raise SettingsError(f"the setting trusted_proxies: {error}") from error
    clock, tasks, waiters = clock or SystemClock(), Tasks(), Waiters()
    times = LinkTimes(settings.heartbeat_s, settings.silence_s, settings.close_grace_s, settings.lease_s)
    accounts = Accounts(db, clock)
    models = Catalog(db, clock)
    dispatcher = Dispatcher(db, clock, tasks.spawn)
    stops = Stops(db, clock)
    losses = Losses(db, clock, stops, settings.max_strikes)
    jobs = Predictions(db, clock, models, dispatcher, waiters, stops, losses)
    node = settings.node_name()
    checkpoints = Checkpoints(db, jobs, tasks.spawn)
    ground = Ground(
        db, clock, models, dispatcher, jobs, losses, times, node, __version__, tasks.spawn, checkpoints.started
    )
    fleet = Fleet(ground, accounts)
    leases = Leases(db, clock, fleet, losses, times)
    store = Files(db, LocalBlobStore(data / "files"), clock, settings.max_file_bytes)
    ticks = {"dispatcher": dispatcher.tick, "leases": leases.tick, "checkpoints": checkpoints.tick}
    engine = Engine(db, node, fleet, jobs, waiters, tasks, ticks)
    api = Api(jobs, models, accounts, fleet, store, db, clock, public_url, trusted, settings.max_body)
    routes = [
        *predictions.routes(api),
        *files.routes(api),
        *work.routes(api, settings.max_result_bytes),
        *catalog.routes(api),
        *admin.routes(api),
    ]
    return Runtime(settings, db, engine, accounts, clock, Application(api, table(routes), Gateway(fleet)))
