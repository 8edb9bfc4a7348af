"""The only composition root: from settings to a running server node."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog
from starlette.routing import Route

from cogflare import __version__
from cogflare.api import (
    admin,
    catalog,
    explain,
    files,
    join,
    legacyfiles,
    money,
    predictions,
    sse,
    tokenimport,
    uploads,
    webhooks,
    work,
)
from cogflare.api import providers as provider_api
from cogflare.api import routes as route_api
from cogflare.api.context import Api
from cogflare.api.gateway import Gateway
from cogflare.api.legacygateway import LegacyGateway
from cogflare.api.origin import TrustedProxies, check_public_url
from cogflare.api.routing import Application, table
from cogflare.api.wire import Links
from cogflare.blobs.base import BlobError, BlobRefused, BlobStore
from cogflare.blobs.bucket import S3Options
from cogflare.blobs.open import open_blobs
from cogflare.domain.clock import Clock
from cogflare.engine.accounts import Accounts
from cogflare.engine.adoption import Ground, LinkTimes
from cogflare.engine.announcements import Announcements
from cogflare.engine.backoff import Backoff, Releases
from cogflare.engine.budgets import Budgets
from cogflare.engine.catalog import Bounds, Catalog
from cogflare.engine.costs import Ledger
from cogflare.engine.deliveries import Deliveries
from cogflare.engine.deliverylog import DeliveryLog
from cogflare.engine.discovery import Discovery
from cogflare.engine.dispatcher import Dispatcher
from cogflare.engine.downloads import Downloads
from cogflare.engine.errands import Errands
from cogflare.engine.explain import Explanations
from cogflare.engine.figures import FleetFigures
from cogflare.engine.files import Files
from cogflare.engine.forecasts import Forecasts
from cogflare.engine.health import Health
from cogflare.engine.hosts import Hosts
from cogflare.engine.imports import Imports
from cogflare.engine.inputs import Inputs
from cogflare.engine.learning import Learning
from cogflare.engine.leases import Leases
from cogflare.engine.legacyfiles import LegacyFiles
from cogflare.engine.legacyruns import Surroundings
from cogflare.engine.limits import Limits
from cogflare.engine.links import Fleet
from cogflare.engine.losses import Losses
from cogflare.engine.means import Means
from cogflare.engine.predictions import Predictions
from cogflare.engine.providers import Providers
from cogflare.engine.pruning import Terms
from cogflare.engine.receipts import Receipts
from cogflare.engine.repeats import Repeats
from cogflare.engine.requirements import Matching
from cogflare.engine.retention import Retention
from cogflare.engine.router import Router
from cogflare.engine.routes import Routes
from cogflare.engine.secrets import Secrets, Signer
from cogflare.engine.service import Checkpoints, Engine, Tasks, Tick
from cogflare.engine.sizes import Sizes
from cogflare.engine.stops import Stops
from cogflare.engine.storage import Storage
from cogflare.engine.streams import Streams
from cogflare.engine.tokenimport import TokenImport
from cogflare.engine.uploads import Uploads
from cogflare.engine.views import PredictionView
from cogflare.engine.waiters import Waiters
from cogflare.engine.webhooks import Courier, Render
from cogflare.engine.webhooks import Terms as WebhookTerms
from cogflare.net.addresses import Reach
from cogflare.net.client import Client
from cogflare.net.outgoing import Outgoing
from cogflare.providers.open import Executors
from cogflare.settings import Settings, SettingsError
from cogflare.store.base import Database
from cogflare.store.errands import ErrandRow
from cogflare.store.open import open_database
from cogflare.vault import Vault, VaultError

log = structlog.get_logger()

_CHECK_S = 10.0


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
    vault: Vault
    secrets: Secrets
    outgoing: Outgoing
    blobs: BlobStore
    elsewhere: "Elsewhere"

    async def start(self) -> None:
        """Bring the schema up to date, repair what the last run left, and start the periodic roles."""
        await self.db.migrate()
        try:
            await self.vault.unlock(self.db)
        except VaultError as error:
            raise SettingsError(str(error)) from error
        await self._check_storage()
        await self.engine.start(self.clock.wall())

    async def stop(self) -> None:
        """Stop the engine within the configured limit, and close the store. Twice is harmless."""
        await self.engine.stop(self.settings.stop_s)
        await self.elsewhere.learning.stop()
        await self.elsewhere.aclose()
        await self.outgoing.aclose()
        await self.blobs.aclose()
        await self.db.aclose()

    async def _check_storage(self) -> None:
        """See to it that files can be stored; a storage that is only away for now keeps nobody from starting."""
        try:
            async with asyncio.timeout(_CHECK_S):
                await self.blobs.check()
        except BlobRefused as error:
            raise SettingsError(str(error)) from error
        except (BlobError, TimeoutError) as error:
            log.error("files cannot be stored now; the rest works", error=str(error) or "the storage does not answer")


class _Role(Protocol):
    """What does something now and then."""

    async def tick(self) -> float:
        """Do what is due; return the seconds until the next time."""
        ...


def _ticks(*roles: _Role) -> dict[str, Tick]:
    """Return what the engine calls now and then, named after its classes."""
    return {type(role).__name__.lower(): role.tick for role in roles}


def _bounds(settings: Settings) -> Bounds:
    """Return what holds for models whose owners have set nothing else."""
    return Bounds(settings.run_limit_s or None, settings.start_limit_s or None, settings.max_queued_model)


def open_storage(settings: Settings, clock: Clock) -> BlobStore:
    """Return the store of files; raises `SettingsError` for what cannot be one."""
    options = S3Options(
        access_key_id=settings.s3_access_key_id or "",
        secret_access_key=settings.s3_secret_access_key or "",
        endpoint=settings.s3_endpoint,
        region=settings.s3_region,
        public_url=settings.s3_public_url,
        direct_uploads=settings.s3_direct_uploads,
        direct_downloads=settings.s3_direct_downloads,
    )
    try:
        return open_blobs(Path(settings.data), settings.storage, options, clock)
    except ValueError as error:
        raise SettingsError(str(error)) from error


def _open(settings: Settings, clock: Clock) -> tuple[Storage, BlobStore]:
    """Return the database and the blobs, and make the data folder."""
    data = Path(settings.data)
    try:
        # What clients send and get is nobody else's business on this machine.
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        return Storage(open_database(settings.database()), clock), open_storage(settings, clock)
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


def _sealed(settings: Settings) -> tuple[Vault, Reach]:
    """Return the vault, and where requests to addresses of clients may go."""
    try:
        vault = Vault(settings.secret_key, Path(settings.data))
    except VaultError as error:
        raise SettingsError(str(error)) from error
    try:
        return vault, Reach.of(settings.outgoing_networks)
    except ValueError as error:
        raise SettingsError(f"the setting outgoing_networks: {error}") from error


def _inputs(db: Database, blobs: BlobStore, clock: Clock, secrets: Secrets, settings: Settings) -> Inputs:
    """Return what takes care of the files of clients."""
    kept = Uploads(db, blobs, clock, settings.max_upload_bytes, settings.upload_kept_s)
    return Inputs(db, blobs, clock, kept, Downloads(db, clock, kept, secrets), settings.max_inline_bytes)


@dataclass(frozen=True)
class Elsewhere:
    """What decides whether predictions run somewhere else, and what that may cost."""

    db: Database
    clock: Clock
    client: Client
    providers: Providers
    routes: Routes
    budgets: Budgets
    figures: FleetFigures
    router: Router
    learning: Learning
    tokens: TokenImport

    def web(self, api: Api, errands: Errands) -> list[Route]:
        """Return the routes of the API for it."""
        receipts = Receipts(self.db, self.clock, api.predictions)
        return [
            *provider_api.routes(api, self.providers),
            *route_api.routes(api, self.routes),
            *money.routes(api, self.budgets, Ledger(self.db, self.routes, self.providers)),
            *explain.routes(receipts, errands),
            *tokenimport.routes(self.tokens),
        ]

    def explanations(self, api: Api, errands: Errands) -> Explanations:
        """Return what says why predictions wait."""
        forecasts = Forecasts(self.db, self.clock, self.figures)
        return Explanations(self.db, self.clock, api.predictions, self.figures, forecasts, self.router, errands)

    async def aclose(self) -> None:
        """Close the connections to providers."""
        await self.providers.aclose()
        await self.client.aclose()


def _elsewhere(
    settings: Settings, db: Database, clock: Clock, vault: Vault, reach: Reach, models: Catalog,
    dispatcher: Dispatcher, tasks: Tasks, start: Callable[[ErrandRow], None],
) -> Elsewhere:  # fmt: skip
    """Return what routes predictions; `start` drives what was sent to a provider."""
    client = Client(reach)
    providers = Providers(db, clock, vault, Executors(client, clock).open)
    policies, budgets, figures = Routes(db, clock, providers), Budgets(db, clock), FleetFigures(db, clock)
    discovery = Discovery(clock, models, policies, providers)
    node, spawn = settings.node_name(), tasks.spawn
    router = Router(db, clock, node, policies, providers, figures, budgets, discovery, dispatcher, spawn, start)
    tokens = TokenImport(db, clock, vault, providers)
    return Elsewhere(db, clock, client, providers, policies, budgets, figures, router, Learning(db, clock), tokens)


def _errands(
    settings: Settings, elsewhere: Elsewhere, ground: Ground, files: Files, inputs: Inputs, blobs: BlobStore
) -> Errands:
    """Return what drives the runs at providers."""
    means = Means(
        ground.db, ground.clock, ground.node, elsewhere.providers, elsewhere.routes, ground.predictions, ground.losses,
        Imports(files, inputs, blobs, settings.max_inline_bytes), ground.spawn, ground.started, ground.sizes,
        _callback(settings.public_url), elsewhere.router.has_other,
    )  # fmt: skip
    return Errands(means, ground.dispatcher, settings.lease_s)


def _callback(public_url: str | None) -> Callable[[str], str | None]:
    """Return where a provider reaches us, by the mark of a run: at a public address with TLS, or not at all."""
    if public_url is None or not public_url.startswith("https://"):
        return lambda mark: None
    return lambda mark: f"{public_url.rstrip('/')}/v1/hooks/{mark}"


def _routes(api: Api, settings: Settings, streams: Streams, inputs: Inputs, explanations: Explanations) -> list[Route]:
    return [
        *predictions.routes(api, explanations),
        *sse.routes(api, streams),
        *files.routes(api),
        *uploads.routes(api, inputs.uploads, inputs.downloads),
        *work.routes(api, settings.max_result_bytes),
        *catalog.routes(api),
        *admin.routes(api),
        *join.routes(api),
    ]


def _render(settings: Settings, db: Database) -> Render:
    """Return what writes predictions for webhooks."""
    origin_here = settings.public_url or f"http://{settings.host}:{settings.port}"

    async def render(view: PredictionView, origin: str | None) -> bytes:
        return await predictions.show(db, view, Links(origin or origin_here), "webhook")

    return render


def _outbox(
    settings: Settings, db: Database, clock: Clock, outgoing: Outgoing, secrets: Secrets, jobs: Predictions
) -> tuple[Deliveries, Announcements, DeliveryLog]:
    """Return what delivers messages to webhooks, what tells them of predictions that go on, and the log of both."""
    hosts, signer, render = Hosts(clock), Signer(secrets), _render(settings, db)
    courier = Courier(db, clock, outgoing, signer, hosts)
    terms = WebhookTerms(settings.webhook_timeout_s, settings.webhook_give_up_s)
    same = db, clock, courier, hosts, render, terms, Tasks()
    deliveries = Deliveries(*same)
    log = DeliveryLog(db, clock, jobs, signer, render, terms)
    return deliveries, Announcements(*same, jobs.lives, deliveries.look_at), log


def _recovery(
    settings: Settings, db: Database, clock: Clock, stops: Stops, tasks: Tasks
) -> tuple[Health, Backoff, Losses]:
    """Return what takes lost attempts back, and what sets aside the workers that lose them."""
    health = Health(db, clock, tasks.spawn, settings.quarantine_after, settings.quarantine_s)
    backoff = Backoff(settings.retry_first_s, settings.retry_cap_s)
    return health, backoff, Losses(db, clock, stops, health, settings.max_strikes, backoff)


def _sizes(settings: Settings) -> Sizes:
    return Sizes(settings.max_log_bytes, settings.max_output_bytes, settings.max_result_bytes)


def _application(api: Api, web: list[Route], ground: Ground, blobs: BlobStore, settings: Settings) -> Application:
    """Return the application of these routes, with what workers of 2022 speak to."""
    old = LegacyFiles(
        api.db, blobs, api.clock, api.files,
        max_files=settings.max_files_per_attempt, max_inline=settings.max_inline_bytes,
    )  # fmt: skip
    around = Surroundings(ground, api.files, old)
    router = table([*web, *legacyfiles.routes(api, old)])
    return Application(api, router, Gateway(api.fleet), LegacyGateway(api, around))


def build(settings: Settings, clock: Clock | None = None) -> Runtime:
    """Put a node together; nothing is connected yet. Raises `SettingsError` for what cannot be used."""
    clock = clock or SystemClock()
    public_url, trusted = _reached(settings)
    vault, reach = _sealed(settings)
    db, blobs = _open(settings, clock)
    secrets, outgoing = Secrets(db, clock, vault), Outgoing(reach, settings.webhook_timeout_s)
    tasks, waiters = Tasks(), Waiters()
    times = LinkTimes(settings.heartbeat_s, settings.silence_s, settings.close_grace_s, settings.lease_s)
    accounts, models = Accounts(db, clock), Catalog(db, clock, _bounds(settings))
    dispatcher = Dispatcher(db, clock, tasks.spawn)
    stops = Stops(db, clock)
    health, backoff, losses = _recovery(settings, db, clock, stops, tasks)
    inputs = _inputs(db, blobs, clock, secrets, settings)
    elsewhere = _elsewhere(settings, db, clock, vault, reach, models, dispatcher, tasks, lambda row: errands.start(row))
    more = settings.max_queued, inputs, elsewhere.learning.finished, elsewhere.router
    jobs = Predictions(db, clock, models, dispatcher, waiters, stops, losses, *more)
    repeats = Repeats(db, clock, jobs)
    outbox, announcements, log = _outbox(settings, db, clock, outgoing, secrets, jobs)
    node, sizes = settings.node_name(), _sizes(settings)
    checkpoints = Checkpoints(db, jobs, tasks.spawn, announcements.committed)
    streams = Streams(db, stops.feeds, tasks.spawn)
    matching = Matching(db, tasks.spawn)
    shared = db, clock, models, dispatcher, jobs, losses, health, matching, times, node, __version__, tasks.spawn
    ground = Ground(*shared, checkpoints.started, sizes=sizes)
    fleet = Fleet(ground, accounts)
    leases = Leases(db, clock, fleet, losses, times, db.has_refused)
    store = Files(db, blobs, clock, settings.max_file_bytes, settings.max_files_per_attempt)
    errands = _errands(settings, elsewhere, ground, store, inputs, blobs)
    retention = Retention(db, blobs, clock, Terms(settings.data_kept_s(), settings.retain_records_s))
    times_up = Releases(db, clock, backoff), Limits(db, clock, stops, losses)
    ticks = _ticks(dispatcher, leases, db, retention, checkpoints, streams, *times_up, health, matching, repeats)
    ticks |= _ticks(outbox, announcements, elsewhere.router, errands, elsewhere.learning)
    # A SQLite file has one server, whatever that was called in its last run.
    own = None if settings.database().startswith("sqlite:") else node
    engine = Engine(db, own, fleet, jobs, waiters, tasks, ticks, streams, outbox, errands)
    api = Api(jobs, models, accounts, fleet, store, db, clock, public_url, trusted, settings.max_body, repeats, reach)
    web = _routes(api, settings, streams, inputs, elsewhere.explanations(api, errands))
    web += [*webhooks.routes(api, secrets, log), *elsewhere.web(api, errands)]
    app = _application(api, web, ground, blobs, settings)
    return Runtime(settings, db, engine, accounts, clock, app, vault, secrets, outgoing, blobs, elsewhere)
