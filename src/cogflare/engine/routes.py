"""Route policies of accounts: where predictions of a model may run, and what a request wishes beyond that.

An account's routes are remembered for a few seconds, so that a create asks the store for none of them.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from cogflare.domain.clock import Clock
from cogflare.domain.errors import BadRoute
from cogflare.domain.policy import BadPolicy, Hop, Policy, parse, parse_line, render
from cogflare.engine.providers import Providers
from cogflare.store import routes as store
from cogflare.store.base import Database, Hint
from cogflare.store.providers import CHANNEL_ROUTES
from cogflare.store.routes import RouteRow

CACHE_S: Final = 5.0
OF_ACCOUNT: Final = ""
"""What stands for the model in the route of all models that have none of their own."""
_CACHE_SIZE: Final = 4_096
_NAMES: Final = ("model", "version", "endpoint", "shape")


class Rule(msgspec.Struct, frozen=True):
    """The policy that a prediction follows, and the route that a provider's budget is part of ("": the account's)."""

    policy: Policy
    route: str
    borrowed: frozenset[str] = frozenset()
    """Providers that only the account's own route has."""

    def route_of(self, hop: Hop) -> str:
        """Return the model in whose route the hop's budgets are counted."""
        return OF_ACCOUNT if hop.name in self.borrowed else self.route


class Routes:
    """Finds and sets the policies of accounts."""

    def __init__(self, db: Database, clock: Clock, providers: Providers) -> None:
        self._db = db
        self._clock = clock
        self._providers = providers
        self._accounts: dict[str, tuple[float, dict[str, Policy]]] = {}
        self._wishes: dict[str, Policy] = {}
        db.listen(self._heard)

    async def policy(self, account: str, model: str) -> Policy | None:
        """Return the policy of a model: its own, else the account's, else None."""
        known = await self._known(account)
        return known.get(model) or known.get(OF_ACCOUNT)

    async def effective(self, account: str, model: str, wish: str | None) -> Policy | None:
        """Return the policy that a prediction with this wish (JSON text) follows; raises `BadRoute`."""
        rule = await self.rule(account, model, wish)
        return None if rule is None else rule.policy

    async def rule(self, account: str, model: str, wish: str | None) -> Rule | None:
        """Return what a prediction with this wish follows; None where nothing is said, which means workers only.

        A wish chooses the places, their order and conditions. What the account has set for a provider holds all the
        same: its budgets and prices at any rate, and the names of models where the wish has none, or the route a price.
        Raises `BadRoute`.
        """
        known = await self._known(account)
        route = model if model in known else OF_ACCOUNT
        own = known.get(route)
        if wish is None:
            return None if own is None else Rule(own, route)
        wished = self._parsed(wish)
        hops, borrowed = [], set()
        for hop in wished.hops:
            said = _hop(own, hop.name)
            if said is None and (said := _hop(known.get(OF_ACCOUNT), hop.name)) is not None:
                borrowed.add(hop.name)
            hops.append(hop if hop.is_workers else _merged(hop, said))
        return Rule(Policy(tuple(hops)), route, frozenset(borrowed))

    async def check(self, account: str, policy: Policy) -> None:
        """Raise `BadRoute` for the first place of a wish that the account does not have."""
        names = await self._providers.all(account) if policy.providers else {}
        for index, hop in enumerate(policy.hops):
            if not hop.is_workers and hop.name not in names:
                raise BadRoute(f"[{index}]", _unknown(hop.name, names))

    async def has_providers(self, account: str) -> bool:
        """Say whether any route of the account leads to a provider."""
        return any(policy.providers for policy in (await self._known(account)).values())

    async def routed(self, account: str) -> list[str]:
        """Return the models that have a route of their own which leads to a provider."""
        return [model for model, policy in (await self._known(account)).items() if model and policy.providers]

    async def put(self, account: str, model: str, value: object) -> Policy:
        """Set the route of a model ("": of the account); it counts for what waits too.

        `value` is decoded JSON, or one line as a person writes it. Raises `BadPolicy`, for providers too that the
        account does not have.
        """
        policy = parse_line(value) if isinstance(value, str) else parse(value)
        names = await self._providers.all(account)
        for index, hop in enumerate(policy.hops):
            place = f"[{index}]" if len(policy.hops) > 1 or isinstance(value, list) else "policy"
            if not hop.is_workers and hop.name not in names:
                raise BadPolicy(place, _unknown(hop.name, names))
            if not hop.is_workers and names[hop.name].row.kind == "runpod" and hop.endpoint is None:
                raise BadPolicy(place, f'{hop.name} needs an endpoint: {{"{hop.name}": {{"endpoint": "its id"}}}}')
        text = msgspec.json.encode(render(policy)).decode()
        await store.put(self._db, account, model, text, self._clock.wall(), bool(policy.providers))
        self._accounts.pop(account, None)
        return policy

    async def remove(self, account: str, model: str) -> bool:
        """Remove the route of a model ("": of the account); False if there was none."""
        removed = await store.remove(self._db, account, model)
        self._accounts.pop(account, None)
        return removed

    async def list(self, account: str) -> list[RouteRow]:
        """Return the routes of an account."""
        return await store.list_of(self._db, account)

    async def _known(self, account: str) -> dict[str, Policy]:
        cached = self._accounts.get(account)
        now = self._clock.monotonic()
        if cached is not None and cached[0] > now:
            return cached[1]
        found = {row.model: parse(msgspec.json.decode(row.policy)) for row in await store.list_of(self._db, account)}
        if len(self._accounts) >= _CACHE_SIZE:
            self._accounts.clear()
        self._accounts[account] = (now + CACHE_S, found)
        return found

    def _parsed(self, wish: str) -> Policy:
        known = self._wishes.get(wish)
        if known is None:
            try:
                known = parse(msgspec.json.decode(wish))
            except BadPolicy as error:
                raise BadRoute(error.place, error.text) from None
            except ValueError as error:
                raise BadRoute("", f"no JSON: {error}") from None
            if len(self._wishes) >= _CACHE_SIZE:
                self._wishes.clear()
            self._wishes[wish] = known
        return known

    def _heard(self, hint: Hint) -> None:
        if hint.channel == CHANNEL_ROUTES:
            self._accounts.pop(hint.payload, None)


def _hop(policy: Policy | None, name: str) -> Hop | None:
    return None if policy is None else policy.hop(name)


def _merged(wished: Hop, known: Hop | None) -> Hop:
    """Return a wished hop with what the account has set for its provider (`known`), which may only be narrowed."""
    if known is None:
        # A price of one's own would make any budget last.
        return msgspec.structs.replace(wished, price_per_s=None, price_per_run=None)
    if known.prices.are_known and any(getattr(wished, name) not in (None, getattr(known, name)) for name in _NAMES):
        # Something dearer would be counted at the price of what the route runs there.
        raise BadRoute("", f"the route has a price for what it runs at {known.name}, and a wish names nothing else")
    named = {name: getattr(wished, name) or getattr(known, name) for name in _NAMES}
    is_strict = "refuse" in (wished.over_budget, known.over_budget)
    return msgspec.structs.replace(
        wished,
        budget_per_day=_least(wished.budget_per_day, known.budget_per_day),
        budget_per_month=_least(wished.budget_per_month, known.budget_per_month),
        over_budget="refuse" if is_strict else "wait",
        price_per_s=known.price_per_s,
        price_per_run=known.price_per_run,
        **named,
    )


def _least(*amounts: int | None) -> int | None:
    return min((amount for amount in amounts if amount is not None), default=None)


def _unknown(name: str, names: Iterable[str]) -> str:
    have = ", ".join(sorted(names)) or "none yet"
    return f"there is no provider {name}; this account has {have}"
