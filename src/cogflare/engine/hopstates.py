"""Whether the providers of a route can be used for a prediction now, and what a run there is going to cost."""

from collections.abc import Mapping
from typing import Final

import msgspec

from cogflare.domain.clock import Clock
from cogflare.domain.money import estimate
from cogflare.domain.policy import Hop
from cogflare.domain.routing import HopState
from cogflare.engine.budgets import Budgets
from cogflare.engine.providers import Provider, Providers
from cogflare.engine.routes import Rule
from cogflare.providers.base import Denied, ProviderError, Refused
from cogflare.store import inquiries
from cogflare.store.base import Database

MAX_SERVERS: Final = 4
"""How many servers a prediction may have come through that is sent on to another."""
_KEPT_S: Final = 5.0
_KEPT: Final = 1_000
_PAST_US: Final = 7 * 86_400 * 1_000_000
_US: Final = 1_000_000


class Job(msgspec.Struct, frozen=True):
    """What is to run, as far as it matters to providers; `refused` are the ids of those that did not take it."""

    account: str
    token: str
    model: str
    hops: int = 0
    refused: frozenset[str] = frozenset()


class Costs(msgspec.Struct, frozen=True):
    """What the dearest of a model's last runs at a provider came to; None: not known. The cost is in micros."""

    run_s: float | None = None
    cost: int | None = None


class HopStates:
    """Says of each provider of a route whether it can be used, and why not."""

    def __init__(self, db: Database, clock: Clock, providers: Providers, budgets: Budgets) -> None:
        self._db = db
        self._clock = clock
        self._providers = providers
        self._budgets = budgets
        self._costs: dict[tuple[str, str, str], tuple[float, Costs]] = {}

    async def of(self, job: Job, rule: Rule, taken: Mapping[str, int]) -> dict[str, HopState]:
        """Return the state of each provider of a rule; `taken` is how many runs each has, by its id."""
        known = await self._providers.all(job.account)
        return {
            hop.name: await self._state(job, rule, hop, known.get(hop.name), taken) for hop in rule.policy.providers
        }

    async def estimate(self, job: Job, hop: Hop, provider: Provider) -> int | None:
        """Return what a run may cost, in micros; None where nobody can tell yet.

        Runs of which many go on at once pass a budget by the sum of what they were estimated too low, so the dearest of
        the last ones counts, and a first one goes alone.
        """
        by_run = estimate(hop.prices, provider.prices, None)
        if by_run is not None:
            return by_run
        past = await self._past(job, provider)
        by_time = estimate(hop.prices, provider.prices, past.run_s)
        return past.cost if by_time is None else by_time

    async def _state(
        self,
        job: Job,
        rule: Rule,
        hop: Hop,
        provider: Provider | None,
        taken: Mapping[str, int],
    ) -> HopState:
        now = self._clock.wall()
        if job.hops >= MAX_SERVERS:
            return HopState("hops", f"it has come through {job.hops} servers already, and goes to no further one", True)
        if provider is None:
            return HopState("no_provider", f"this account has no provider {hop.name}", True)
        if provider.id in job.refused:
            return HopState("provider_refused", "it has refused this prediction", True)
        paused = provider.pause(now)
        if paused is not None:
            return HopState("provider_paused", paused)
        running, most = taken.get(provider.id, 0), provider.settings.max_concurrent
        if running >= most:
            return HopState("your_limit", f"{running} run there, and max_concurrent is {most}")
        cost = await self.estimate(job, hop, provider)
        route = rule.route_of(hop)
        spent = await self._budgets.exhausted(job.account, job.token, job.model, route, hop, cost, now)
        if spent is None:
            return HopState()
        return HopState("your_limit" if spent.is_passing else "budget_exhausted", spent.text)

    async def _past(self, job: Job, provider: Provider) -> Costs:
        key = job.account, provider.id, job.model
        kept = self._costs.get(key)
        if kept is not None and kept[0] > self._clock.monotonic():
            return kept[1]
        run_us, cost = await inquiries.dearest(self._db, *key, self._clock.wall() - _PAST_US)
        past = Costs(run_us / _US if run_us else None, cost or None)
        if len(self._costs) >= _KEPT:
            self._costs.clear()
        # What is not known is asked again with the next look: the first run's end lets others go.
        if past.run_s is not None or past.cost is not None:
            self._costs[key] = (self._clock.monotonic() + _KEPT_S, past)
        return past


def unmet(error: ProviderError, version: str | None) -> HopState:
    """Return the state of a provider that does not say what it would run; `version` is the one that is wanted."""
    if isinstance(error, Refused):
        if version is None:
            return HopState("provider_refused", str(error), True)
        return HopState("version_not_offered", f"version {version[:12]} is not offered there: {error}", True)
    if isinstance(error, Denied):
        return HopState("provider_paused", str(error))
    return HopState("provider_paused", f"it does not answer: {error}")
