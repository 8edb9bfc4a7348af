"""A node that can be asked why: an engine with workers of several models, versions and GPUs, and what explains it."""

from msgspec import UNSET

from cogflare.domain.ids import new_id
from cogflare.domain.policy import Policy
from cogflare.domain.routing import Decision, HopState, decide
from cogflare.engine.explain import Explanation, Explanations
from cogflare.engine.figures import FleetFigures, Group
from cogflare.engine.forecasts import Forecasts
from cogflare.engine.learning import Learning
from cogflare.engine.predictions import Order
from cogflare.engine.receipts import Receipts
from cogflare.engine.views import PredictionView
from cogflare.protocol.agent_end import AgentEnd
from cogflare.protocol.messages import AttemptKey, Offer
from cogflare.store import errands, fleet, providers, usage
from cogflare.store.base import Database
from cogflare.store.catalog import Caller
from cogflare.store.errands import ErrandRow, NewErrand
from cogflare.store.predictions import Checkpoint, PredictionRow, checkpoint
from cogflare.store.providers import ProviderRow
from engine.rig import VERSION, MovableClock, Rig, RigWorker

NOW = 1_700_000_000_000_000


class Route:
    """A route as the router would weigh it: a policy, and what stands in the way of its providers."""

    def __init__(self, figures: FleetFigures, forecasts: Forecasts, clock: MovableClock) -> None:
        self._figures = figures
        self._forecasts = forecasts
        self._clock = clock
        self.policy: Policy | None = None
        self.states: dict[str, HopState] = {}

    async def weigh(self, row: PredictionRow) -> Decision | None:
        if self.policy is None:
            return None
        group, now = await self._figures.of(row), self._clock.wall()
        place = await self._forecasts.place(group, row) or 1
        figures = self._figures.figures(group, place, (now - row.created_at) / 1e6, now)
        return decide(self.policy, figures, self.states)


class Asked(Rig):
    """One node."""

    def __init__(self, db: Database, clock: MovableClock | None = None) -> None:
        self.moved = clock or MovableClock()
        super().__init__(db, clock=self.moved)
        self.learning = Learning(db, self.clock)
        self.predictions._learned = self.learning.finished
        self.figures = FleetFigures(db, self.clock)
        self.forecasts = Forecasts(db, self.clock, self.figures)
        self.route = Route(self.figures, self.forecasts, self.moved)
        self.explanations = Explanations(db, self.clock, self.predictions, self.figures, self.forecasts, self.route)
        self.receipts = Receipts(db, self.clock, self.predictions)

    def pass_by(self, seconds: float) -> None:
        """Let time pass at once."""
        self.moved.wall_ahead_s += seconds
        self.moved.ahead_s += seconds

    async def offer(
        self,
        model: str = "ada/noop",
        *,
        account: str = "ada",
        version: str = VERSION,
        slots: int = 1,
        gpu: str = "",
        name: str = "rig",
    ) -> RigWorker:
        """Connect a worker of an account that offers a model in a version."""
        worker = RigWorker(self, await self.caller(account, "worker"), slots)
        owner, _, short = model.partition("/")
        offered = Offer(owner, short, version, slots, UNSET, "0.16.0")
        identity = new_id(self.clock.wall())
        worker.end = AgentEnd(identity, identity, name, [offered], {"gpu": gpu} if gpu else {})
        await worker.connect()
        return worker

    async def leave(self, worker: RigWorker) -> None:
        """Let a worker be gone for good."""
        if worker.link is not None:
            await worker.disconnect()
        await self.db.write(fleet.close_link(worker.end.worker, 1, "offline", self.clock.wall()))

    async def learn(self, *samples: float, model: str = "ada/noop", catalog: str, gpu: str = "") -> None:
        """Let run times be known."""
        await usage.add(self.db, [], [(catalog, model, VERSION, gpu, samples)], self.clock.wall())

    async def pinned(self, caller: Caller, version: str) -> PredictionView:
        """Create a prediction of one version."""
        return await self.predictions.create(caller, Order(b"{}", {}, "ada/noop", version))

    async def why(self, caller: Caller, prediction: str) -> Explanation:
        """Ask why, half a second later, so that nothing is answered from before."""
        self.pass_by(0.6)
        return await self.explanations.explain(caller.account, prediction)

    async def group(self, caller: Caller, prediction: str) -> Group:
        """Return the figures of a prediction's group."""
        self.pass_by(0.6)
        return await self.figures.of(await self.predictions.row(caller.account, prediction))

    async def begin(self, worker: RigWorker) -> AttemptKey:
        """Let a worker start what it gets next, and commit the start."""
        key = await worker.start(await worker.next())
        await self.checkpoints.tick()
        return key

    async def provider(self, caller: Caller, name: str = "replicate") -> str:
        """Add a provider and return its id."""
        now = self.clock.wall()
        row = ProviderRow(new_id(now), caller.account, name, "replicate", "x", "x", "r8_", "{}", None, None, now, now)
        return (await providers.put(self.db, row)).id

    async def send(self, caller: Caller, prediction: str, provider: str, decision: str = "{}") -> ErrandRow:
        """Give a queued prediction to a provider, as the router does."""
        row = await self.predictions.row(caller.account, prediction)
        now = self.clock.wall()
        new = NewErrand(
            row.id, row.attempt, row.account, row.token, row.model, provider, "replicate", f"provider:{provider}",
            "node", new_id(now), new_id(now), "{}", decision, VERSION, now, 10,
        )  # fmt: skip
        await self.db.write(*errands.claim(new, []))
        found = await errands.get(self.db, row.id, row.attempt + 1)
        assert found is not None
        return found

    async def lose_and_send(self, caller: Caller, errand: ErrandRow, provider: str) -> ErrandRow:
        """Take a prediction back from a provider and send it there again."""
        await self.losses.rescue(errand.key, "it went away", slot_free=False, is_innocent=True)
        return await self.send(caller, errand.prediction, provider)

    async def started(self, key: AttemptKey, at: int) -> None:
        """Commit that an attempt has started at a provider."""
        await self.db.write(*checkpoint([Checkpoint(*key, at, None, 0, 1)], []))
