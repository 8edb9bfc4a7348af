"""Which waiting predictions go to a provider: looked at when they come, and twice a second for as long as they wait.

    create ──poke──▶ look: candidates of one account and model ──decide──▶ claim, one unit ──▶ errand
                      ▲                                          └───────▶ its workers' queues, or it waits on
                      └── tick, from the store: pokes may be lost

Nothing is read while no account has a provider. A look takes a bounded number of candidates, in the order in which they
came, and one that moves nothing is followed by a rest. What is claimed here competes with claims of workers: whoever
is first in the store wins.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import msgspec
import structlog

from cogflare.domain.clock import Clock
from cogflare.domain.errors import BadRoute, OverBudget
from cogflare.domain.ids import is_route_queue, new_id, new_key, of_route_queue, route_queue
from cogflare.domain.policy import WORKERS, WORKERS_ONLY, Hop, Policy
from cogflare.domain.routing import Decision, Figures, HopState, decide
from cogflare.engine.budgets import Budgets
from cogflare.engine.catalog import Target
from cogflare.engine.discovery import Discovery
from cogflare.engine.dispatcher import CHANNEL_QUEUE, Dispatcher
from cogflare.engine.figures import FleetFigures, Group, Key
from cogflare.engine.hopstates import MAX_SERVERS, HopStates, Job, unmet
from cogflare.engine.providers import Provider, Providers
from cogflare.engine.routes import OF_ACCOUNT, Routes, Rule
from cogflare.providers.base import Described, ProviderError
from cogflare.store import errands, routing
from cogflare.store import predictions as predictions_store
from cogflare.store import providers as providers_store
from cogflare.store.base import Conflict, Database, Hint, Statement, StoreError
from cogflare.store.catalog import Caller
from cogflare.store.errands import ErrandRow, NewErrand
from cogflare.store.predictions import PredictionRow
from cogflare.store.providers import CHANNEL_ROUTES
from cogflare.store.routing import Candidate

TICK_S: Final = 0.5
PAGE: Final = 100
_PAGES: Final = 4  # of one look
_CLAIMS: Final = 16  # of one look at a time
_REST: Final = 4.0  # how much longer than a look that moves nothing the rest after it is
_ASK_AGAIN_S: Final = 30.0  # whether there are providers, where other nodes may make them

_NOTHING_SAID: Final = Rule(WORKERS_ONLY, OF_ACCOUNT)
_json: Final = msgspec.json.Encoder()

log = structlog.get_logger()

Spawn = Callable[[Coroutine[Any, Any, None]], object]


class Plan(msgspec.Struct, frozen=True):
    """What a create writes of the way that a prediction takes: whether a provider may run it, and where it waits."""

    routed: bool
    queues: tuple[str, ...]


class _Wanted(msgspec.Struct, frozen=True):
    """A prediction that is not written yet, as far as it says who may run it."""

    account: str
    catalog: str
    model: str
    version: str
    pinned: bool


@dataclass
class _Look:
    """One look at what waits: how many runs each provider has, and how many of a flow were found to stay in a queue.

    `states` has those of providers, for all that it is the same for, until something goes to one of them.
    """

    taken: dict[str, int]
    after: str = ""
    states: dict[tuple[Job, str | None, Key], dict[str, HopState]] = field(default_factory=dict)
    stay: dict[str, int] = field(default_factory=dict)
    claims: list[Callable[[], Coroutine[Any, Any, bool]]] = field(default_factory=list)
    moved: int = 0


class _Choice(msgspec.Struct, frozen=True):
    """A provider that takes a prediction, as what, and why."""

    decision: Decision
    hop: Hop
    provider: Provider
    described: Described


class Router:
    """Sends predictions to providers, as the routes of their accounts say. `start` drives what was sent."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        node: str,
        routes: Routes,
        providers: Providers,
        figures: FleetFigures,
        budgets: Budgets,
        discovery: Discovery,
        dispatcher: Dispatcher,
        spawn: Spawn,
        start: Callable[[ErrandRow], object],
    ) -> None:
        self._db = db
        self._clock = clock
        self._node = node
        self._routes = routes
        self._providers = providers
        self._figures = figures
        self._budgets = budgets
        self._discovery = discovery
        self._dispatcher = dispatcher
        self._spawn = spawn
        self._start = start
        self.states = HopStates(db, clock, providers, budgets)
        self._has_providers: bool | None = None
        self._asked_at = 0.0
        self._running: set[tuple[str, str]] = set()
        self._due: set[tuple[str, str]] = set()
        self._cursors: dict[tuple[str, str], str] = {}
        db.listen(self._heard)

    # --- creates ---------------------------------------------------------------------------------------------------

    async def target(self, account: str, model: str | None, version: str | None, wish: str | None) -> Target:
        """Return what a create runs, be it known only to a provider; raises `BadRoute` and what `Discovery` raises."""
        if wish is not None:
            wished = await self._routes.effective(account, model or OF_ACCOUNT, wish)
            await self._routes.check(account, wished or WORKERS_ONLY)
        return await self._discovery.target(account, model, version, wish)

    async def plan(self, caller: Caller, target: Target, wish: str | None, hops: int) -> Plan:
        """Return the way that a new prediction takes; raises `BadRoute` and `OverBudget`."""
        model = f"{target.owner}/{target.name}"
        rule = await self._routes.rule(caller.account, model, wish)
        if rule is None or not rule.policy.providers:
            return Plan(False, target.queues)
        policy = rule.policy
        if hops >= MAX_SERVERS and not policy.uses_workers:
            raise BadRoute("", f"it has come through {hops} servers already, and may go to no further one")
        held = (route_queue(caller.account, target.owner, target.name),)
        is_strict = any(hop.over_budget == "refuse" for hop in policy.providers)
        if not is_strict and (policy.hops[0].is_workers or not policy.uses_workers):
            return Plan(True, target.queues if policy.uses_workers else held)
        wanted = _Wanted(caller.account, target.catalog, model, target.version, target.pinned)
        group = await self._figures.of(wanted)
        figures = self._seen(group, _last(group, caller.account, 0), self._clock.wall())
        job = Job(caller.account, caller.token, model, hops)
        taken = await errands.open_counts(self._db, caller.account)
        if is_strict:
            # Of a moment ago is not good enough for a no.
            self._budgets.forget(caller.account)
        decision = decide(policy, figures, await self.states.of(job, rule, taken))
        if decision.is_refused:
            raise OverBudget(_refused(policy, decision))
        # Where the route puts a provider before workers, a free one of them must not be faster.
        is_ahead = not policy.uses_workers or (decision.hop != WORKERS and policy.hops[0].name != WORKERS)
        return Plan(True, held if is_ahead else target.queues)

    def poke(self, account: str, model: str) -> None:
        """Look at what waits of a model at once, or after the look that goes on."""
        key = (account, model)
        self._due.add(key)
        if key not in self._running and not self._dispatcher.is_stopped:
            self._running.add(key)
            self._spawn(self._run(key))

    # --- others ----------------------------------------------------------------------------------------------------

    async def tick(self) -> float:
        """Look at all that waits and may go to a provider; returns the seconds until the next time."""
        if not self._dispatcher.is_stopped and await self._is_needed():
            for account, model in await routing.waiting(self._db):
                self.poke(account, model)
        return TICK_S

    async def weigh(self, row: PredictionRow) -> Decision | None:
        """Return which way a queued prediction would go now; None where its route has no provider. Asks no provider."""
        rule = await self._rule(row.account, row.model, row.route)
        if not rule.policy.providers:
            return None
        group = await self._figures.of(row)
        place = await self._place_of(row, group)
        figures = self._seen(group, place, row.created_at)
        states = await self.states.of(await self._job(row), rule, await errands.open_counts(self._db, row.account))
        version = row.version if row.pinned else None
        for hop in rule.policy.providers:
            provider = await self._providers.find(row.account, hop.name)
            refusal = None if provider is None else self._discovery.refusal(provider, hop, row.model, version)
            if refusal is not None and states[hop.name].code is None:
                states[hop.name] = unmet(refusal, version)
        return decide(rule.policy, figures, states)

    async def has_other(self, errand: ErrandRow) -> bool:
        """Say whether anybody else may run what a provider has refused: workers that are there, or another provider."""
        row = await predictions_store.get(self._db, errand.prediction)
        if row is None:
            return False
        rule = await self._rule(row.account, row.model, row.route)
        if rule.policy.uses_workers:
            group = await self._figures.of(row)
            if group.serving or group.quarantined or group.away or group.starting:
                return True
        job = await self._job(row)
        job = msgspec.structs.replace(job, refused=job.refused | {errand.provider})
        states = await self.states.of(job, rule, {})
        return any(not state.is_permanent for state in states.values())

    # --- a look ----------------------------------------------------------------------------------------------------

    async def _is_needed(self) -> bool:
        """Say whether any account has a provider; the store is asked when that may have changed."""
        now = self._clock.monotonic()
        is_old = self._db.is_shared and not self._has_providers and now - self._asked_at >= _ASK_AGAIN_S
        if self._has_providers is None or is_old:
            self._has_providers = await providers_store.exist(self._db)
            self._asked_at = now
        return self._has_providers

    async def _run(self, key: tuple[str, str]) -> None:
        try:
            while key in self._due and not self._dispatcher.is_stopped:
                self._due.discard(key)
                begun = self._clock.monotonic()
                if not await self._look(*key):
                    await asyncio.sleep(min(_REST * (self._clock.monotonic() - begun), TICK_S))
        except StoreError as error:
            log.warning("the store refused a look at a route; trying again with the next", error=str(error))
        finally:
            self._running.discard(key)

    async def _look(self, account: str, model: str) -> bool:
        """Move what can be moved; returns whether anything was."""
        key = (account, model)
        look, further = _Look(dict(await errands.open_counts(self._db, account))), self._cursors.pop(key, "")
        for number in range(_PAGES):
            page = await routing.candidates(self._db, account, model, look.after, PAGE)
            # Ids of one millisecond are in no order.
            for one in sorted(page, key=lambda one: one.created_at):
                await self._consider(look, one)
            await self._claim(look)
            if len(page) < PAGE:
                break
            look.after = page[-1].id
            if number == 0 and not look.moved and further > look.after:
                # What came first was asked first, and stays; so on with what the last look did not come to.
                look.after = further
                look.stay.clear()
            await asyncio.sleep(0)
        else:
            # There is more, for which the next look goes on from here.
            self._cursors[key] = max(look.after, further)
            if look.moved:
                self._due.add(key)
        return look.moved > 0

    async def _consider(self, look: _Look, one: Candidate) -> None:
        """Decide where a candidate goes, and note the unit that takes it there."""
        if one.queue is None:
            return
        rule = await self._rule(one.account, one.model, one.route)
        group = await self._figures.of(one)
        figures = self._seen(group, await self._place(look, one, group), one.created_at)
        job = await self._job(one)
        same = job, one.route, group.key
        states = look.states.get(same)
        if states is None:
            states = look.states[same] = await self.states.of(job, rule, look.taken)
        choice = await self._choose(one, rule.policy, figures, dict(states))
        if isinstance(choice, _Choice):
            provider = choice.provider
            look.taken[provider.id] = look.taken.get(provider.id, 0) + 1
            look.states.clear()
            estimate = await self.states.estimate(job, choice.hop, provider)
            look.claims.append(partial(self._send, one, rule, choice, estimate))
        else:
            look.stay[one.queue] = look.stay.get(one.queue, 0) + 1
            if choice.hop == WORKERS and is_route_queue(one.queue):
                look.claims.append(partial(self._hand_over, one, group.queues))
        if len(look.claims) >= _CLAIMS:
            await self._claim(look)

    async def _choose(
        self, one: Candidate, policy: Policy, figures: Figures, states: dict[str, HopState]
    ) -> _Choice | Decision:
        """Return the provider that takes it, or what else was decided."""
        while True:
            decision = decide(policy, figures, states)
            hop = None if decision.hop in (None, WORKERS) else policy.hop(decision.hop or "")
            provider = None if hop is None else await self._providers.find(one.account, hop.name)
            if hop is None or provider is None:
                return decision
            version = one.version if one.pinned else None
            try:
                described = await self._discovery.describe(provider, hop, one.model, version)
            except ProviderError as error:
                states[hop.name] = unmet(error, version)
                continue
            return _Choice(decision, hop, provider, described)

    async def _job(self, one: Candidate | PredictionRow) -> Job:
        refused = await errands.refused_by(self._db, one.id) if one.attempt else ()
        return Job(one.account, one.token, one.model, one.hops, frozenset(refused))

    async def _place_of(self, row: PredictionRow, group: Group) -> int:
        """Return the place of one that waits, wherever it does."""
        found = await self._figures.ahead(group, row.id)
        if found is not None:
            return group.place(found[0], row.flow, found[1])
        owner, _, name = row.model.partition("/")
        held = await routing.ahead(self._db, row.id, route_queue(row.account, owner, name))
        return _last(group, row.flow, held or 0)

    async def _place(self, look: _Look, one: Candidate, group: Group) -> int:
        """Return the place of a candidate among all that wait for its workers."""
        assert one.queue is not None
        stay = look.stay.get(one.queue)
        if is_route_queue(one.queue):
            return _last(group, one.flow, stay or 0)
        if stay is None:
            found = await self._figures.ahead(group, one.id)
            stay = look.stay[one.queue] = 0 if found is None else found[1]
        return group.place(one.queue, one.flow, stay)

    def _seen(self, group: Group, place: int, created_at: int) -> Figures:
        """Return the figures of a place; what this node itself knows of free slots is newer than they are."""
        now = self._clock.wall()
        figures = self._figures.figures(group, place, max(now - created_at, 0) / 1e6, now)
        if self._dispatcher.has_idle(group.queues):
            seen = {name: max(getattr(figures, name), 1) for name in ("workers", "slots", "free")}
            return msgspec.structs.replace(figures, **seen)
        return figures if self._db.is_shared else msgspec.structs.replace(figures, free=0)

    async def _rule(self, account: str, model: str, wish: str | None) -> Rule:
        try:
            return await self._routes.rule(account, model, wish) or _NOTHING_SAID
        except BadRoute as error:
            log.warning("a stored wish cannot be read; workers only", account=account, model=model, error=str(error))
            return _NOTHING_SAID

    # --- units -----------------------------------------------------------------------------------------------------

    async def _claim(self, look: _Look) -> None:
        claims, look.claims = look.claims, []
        for outcome in await asyncio.gather(*(claim() for claim in claims), return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
            look.moved += outcome

    async def _send(self, one: Candidate, rule: Rule, choice: _Choice, estimate: int | None) -> bool:
        """Claim a prediction for a provider and begin its errand; False where it, or the provider, is taken."""
        now, provider, hop = self._clock.wall(), choice.provider, choice.hop
        budgeted = one.account, one.token, one.model, rule.route_of(hop), hop, estimate, now
        new = NewErrand(
            one.id,
            one.attempt,
            one.account,
            one.token,
            one.model,
            provider.id,
            provider.name,
            f"provider:{provider.id}",
            self._node,
            new_id(now),
            new_key(),
            _json.encode(choice.described.terms).decode(),
            _decided(choice),
            await self._shown_version(one, choice.described),
            now,
            provider.settings.max_concurrent,
        )
        unit = errands.claim(new, await self._budgets.reservations(*budgeted))
        landed = Statement("errand_by_mark", {"mark": new.mark})
        try:
            await asyncio.shield(self._db.write(*unit, landed=landed))
        except Conflict:
            # It has moved on, or the provider is full, or a budget has just been spent: the next look tells.
            return False
        finally:
            self._budgets.forget(one.account)
        sent = await errands.get(self._db, one.id, one.attempt + 1)
        about = {"prediction": one.id, "attempt": one.attempt + 1, "provider": provider.name}
        log.info("prediction goes to a provider", **about, why=choice.decision.text)
        if sent is not None:
            self._start(sent)
        return True

    async def _shown_version(self, one: Candidate, described: Described) -> str | None:
        """Return the version that an unpinned prediction is shown with from now on; None: as before."""
        if one.pinned or one.catalog != one.account:
            return None
        return await self._discovery.version_of(one.account, one.model, described)

    async def _hand_over(self, one: Candidate, queues: tuple[str, ...]) -> bool:
        """Let workers have what was kept for a provider."""
        try:
            unit = routing.hand_over(one.id, one.attempt, queues)
            await self._db.write(*unit, hints=[Hint(CHANNEL_QUEUE, queue) for queue in queues])
        except Conflict:
            return False
        return True

    def _heard(self, hint: Hint) -> None:
        if hint.channel == CHANNEL_ROUTES:
            self._has_providers = None
        elif hint.channel == CHANNEL_QUEUE and is_route_queue(hint.payload) and not self._db.is_shared:
            # Came back from a provider. Of several nodes each would run for it, so there the next tick has to do.
            self.poke(*of_route_queue(hint.payload))


def _decided(choice: _Choice) -> str:
    """Return the decision as it is kept, with the prices that hold for this run whatever is set later."""
    hop, provider = choice.hop.prices, choice.provider.prices
    prices = hop if hop.are_known else provider
    return _json.encode({**msgspec.structs.asdict(choice.decision), "prices": prices}).decode()


def _last(group: Group, flow: str, more: int) -> int:
    """Return the place of what comes after all of its flow that wait for workers, and `more`."""
    own = [line.waiting for line in group.lines if line.flow == flow and line.queue in group.queues]
    return group.place(group.queues[0], flow, max(own, default=0) + more)


def _refused(policy: Policy, decision: Decision) -> str:
    """Say which budget is spent, and what else there would have been."""
    spent = [
        f"{hop.name}: {decision.blocked[hop.name]}"
        for hop in policy.providers
        if hop.over_budget == "refuse" and hop.name in decision.blocked
    ]
    return f"Nothing can run this prediction within your budget. {'; '.join(spent) or decision.text}"
