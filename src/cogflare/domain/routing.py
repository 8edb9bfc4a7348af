"""Which way a waiting prediction goes, by its policy and the figures of the moment; the same figures, the same way.

Hops are tried in their order. Workers are taken where one of their slots is free for this prediction's place in the
queue; a provider where its condition holds and nothing blocks it. What finds no way waits for workers, if its policy
has them.
"""

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from cogflare.domain.conditions import Values
from cogflare.domain.policy import WORKERS, Hop, Policy

BlockCode = Literal[
    "budget_exhausted",
    "your_limit",
    "provider_paused",
    "provider_refused",
    "version_not_offered",
    "no_provider",
    "hops",
]
Code = Literal[
    "worker_free",  # one of your own takes it at once
    "overflow",  # the condition of a provider holds
    "provider",  # a provider without a condition
    "all_busy",  # it waits for workers
    "no_worker_has_model",  # it waits for workers that are not there
    "not_yet",  # no workers in the policy, and no condition holds
    "impossible",  # nothing can run it, and that does not change by waiting
    BlockCode,
]

_DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_OF_FLEET: Final = frozenset({"queued", "queue_per_worker", "workers", "slots", "no_workers"})


class Figures(msgspec.Struct, frozen=True):
    """What a decision is made on. Waits in seconds; `expected_s` is the whole wait, what has passed included.

    `queued` is its place in the queue of your own workers (1: next); `hour` (with its fraction) and `weekday` (Monday
    is 1) are UTC.
    """

    waited_s: float
    expected_s: float | None
    queued: int
    workers: int
    slots: int
    free: int
    hour: float
    weekday: int

    @property
    def values(self) -> Values:
        """What the names in conditions stand for."""
        return {
            "wait": self.waited_s,
            "expected_wait": self.expected_s,
            "queued": self.queued,
            "queue_per_worker": self.queued / self.workers if self.workers else float("inf"),
            "workers": self.workers,
            "slots": self.slots,
            "free": self.free,
            "hour": self.hour,
            "weekday": self.weekday,
            "no_workers": self.workers == 0,
            "busy": self.workers > 0 and self.free == 0,
        }

    @property
    def has_free_slot(self) -> bool:
        """Whether a slot of your own is free for it, after those before it."""
        return self.free >= max(self.queued, 1)


class HopState(msgspec.Struct, frozen=True):
    """Whether a provider can be used, for this prediction and now; `code` None: yes. Permanent: no wait changes it."""

    code: BlockCode | None = None
    text: str = ""
    is_permanent: bool = False


class Decision(msgspec.Struct, frozen=True):
    """Where a prediction goes, why, and the figures of that moment.

    `hop`: "workers" (a slot is free, or it waits for one), a provider's name, or None: there is no way now.
    `blocked` says what is in the way of providers whose condition holds. `is_refused`: one of them has spent its
    budget, and the policy refuses rather than waits.
    """

    hop: str | None
    code: Code
    text: str
    figures: Figures
    blocked: dict[str, str] = {}
    is_refused: bool = False


_USABLE: Final = HopState()


def decide(policy: Policy, figures: Figures, states: Mapping[str, HopState]) -> Decision:
    """Return which way a prediction goes; a provider that is not in `states` can be used."""
    blocked: dict[str, HopState] = {}
    unmet: list[str] = []
    values = figures.values
    for hop in policy.hops:
        if hop.is_workers:
            if figures.has_free_slot:
                return Decision(WORKERS, "worker_free", _free(figures), figures, _texts(blocked))
            continue
        if hop.when is not None and not hop.when.holds(values):
            unmet.append(f"{hop.name} takes it when {hop.when.text}, but {_reasons(hop, figures)}")
            continue
        state = states.get(hop.name, _USABLE)
        if state.code is None:
            code: Code = "provider" if hop.when is None else "overflow"
            return Decision(hop.name, code, _taken(policy, hop, figures), figures, _texts(blocked))
        blocked[hop.name] = state
    return _none_left(policy, figures, blocked, unmet)


def _none_left(policy: Policy, figures: Figures, blocked: dict[str, HopState], unmet: list[str]) -> Decision:
    """Return what becomes of a prediction that no hop takes now."""
    texts = [f"{name}: {state.text}" for name, state in blocked.items()] + unmet
    first = next((state.code for state in blocked.values() if state.code is not None), None)
    is_refused = any(
        state.code == "budget_exhausted" and hop.over_budget == "refuse"
        for hop in policy.providers
        if (state := blocked.get(hop.name)) is not None
    )
    code: Code
    if policy.uses_workers:
        code = first or ("all_busy" if figures.workers else "no_worker_has_model")
        texts.insert(0, _fleet(figures))
    elif not unmet and all(state.is_permanent for state in blocked.values()):
        code = "impossible"
    else:
        code = first or "not_yet"
    hop = WORKERS if policy.uses_workers else None
    return Decision(hop, code, "; ".join(texts), figures, _texts(blocked), is_refused)


def _texts(blocked: Mapping[str, HopState]) -> dict[str, str]:
    return {name: state.text for name, state in blocked.items()}


def _taken(policy: Policy, hop: Hop, figures: Figures) -> str:
    if hop.when is not None:
        return f"{_reasons(hop, figures)} ({hop.when.text})"
    is_first = policy.hops[0] is hop
    return f"the route sends it to {hop.name}" if is_first or not policy.uses_workers else _fleet(figures)


def _reasons(hop: Hop, figures: Figures) -> str:
    """Say in words and figures what makes the condition of a hop true, or false."""
    names = hop.when.deciding(figures.values) if hop.when is not None else []
    return ", ".join(dict.fromkeys(_in_words(name, figures) for name in names))


def _in_words(name: str, figures: Figures) -> str:
    if name in _OF_FLEET:
        return _fleet(figures)
    match name:
        case "wait":
            return f"it has waited {shown_s(figures.waited_s)}"
        case "expected_wait":
            if figures.expected_s is None:
                return "how long it will wait is not known yet"
            return f"a wait of {shown_s(figures.expected_s)} is expected"
        case "hour":
            minutes = int(figures.hour * 60)
            return f"it is {minutes // 60 % 24:02}:{minutes % 60:02} UTC"
        case "weekday":
            return f"it is {_DAYS[(figures.weekday - 1) % 7]}"
    if figures.workers == 0:
        return _fleet(figures)
    return f"{figures.free} of {_counted(figures.slots, 'slot')} free"


def _fleet(figures: Figures) -> str:
    """Say how many wait for how many workers."""
    if figures.workers == 0:
        return "no worker of yours has the model"
    waits = "1 waits" if figures.queued == 1 else f"{figures.queued} wait"
    return f"{waits} for {_counted(figures.workers, 'worker')}"


def _free(figures: Figures) -> str:
    return f"a worker of your own is free ({figures.free} of {_counted(figures.slots, 'slot')})"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def shown_s(seconds: float) -> str:
    """Return a duration for people: 0.3 s, 41 s, 2 min, 1.5 h."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
