"""Decisions of routes: which way, in which words."""

from typing import Any, Final

import msgspec
import pytest

from cogflare.domain.policy import parse
from cogflare.domain.routing import Decision, Figures, HopState, decide, shown_s

NIGHT: Final = 23.5
OVERFLOW: Final = ["workers", {"replicate": {"when": "wait > 30s or no_workers"}}]


def figures(
    queued: int = 1,
    workers: int = 2,
    slots: int | None = None,
    free: int = 0,
    waited_s: float = 0.0,
    expected_s: float | None = None,
    hour: float = 12.0,
    weekday: int = 3,
) -> Figures:
    """A moment with two workers of one slot, all busy, unless said otherwise."""
    return Figures(waited_s, expected_s, queued, workers, workers if slots is None else slots, free, hour, weekday)


SPENT: Final = HopState("budget_exhausted", "5.00 of $5.00 of today are spent")
PAUSED: Final = HopState("provider_paused", "paused until somebody changes its key")
REFUSED: Final = HopState("provider_refused", "it has no such model", is_permanent=True)
FULL: Final = HopState("your_limit", "20 of 20 runs are under way")

CASES: Final[list[tuple[str, Any, Figures, dict[str, HopState], str | None, str, str]]] = [
    ("a free worker", OVERFLOW, figures(free=1), {}, "workers", "worker_free", "a worker of your own is free"),
    (
        "a free worker, though the condition holds",
        OVERFLOW,
        figures(free=1, waited_s=99),
        {},
        "workers",
        "worker_free",
        "",
    ),
    ("free, but not for this one", OVERFLOW, figures(2, free=1), {}, "workers", "all_busy", "2 wait for 2 workers"),
    ("busy", OVERFLOW, figures(4), {}, "workers", "all_busy", "4 wait for 2 workers; replicate takes it when"),
    ("one", "workers", figures(1, 1), {}, "workers", "all_busy", "1 waits for 1 worker"),
    ("waited", OVERFLOW, figures(waited_s=41), {}, "replicate", "overflow", "it has waited 41 s (wait > 30s or"),
    ("nobody", OVERFLOW, figures(workers=0), {}, "replicate", "overflow", "no worker of yours has the model (wait"),
    ("nobody, workers only", "workers", figures(workers=0), {}, "workers", "no_worker_has_model", "no worker of yours"),
    ("classic, short queue", "classic", figures(2), {}, "workers", "all_busy", "2 wait for 2 workers"),
    ("classic, long queue", "classic", figures(3), {}, "replicate", "overflow", "3 wait for 2 workers"),
    ("classic, nobody", "classic", figures(workers=0), {}, "replicate", "overflow", "no worker of yours has the model"),
    ("classic, free", "classic", figures(3, free=3), {}, "workers", "worker_free", "(3 of 2 slots)"),
    ("provider only", "replicate", figures(free=2), {}, "replicate", "provider", "the route sends it to replicate"),
    ("provider first", ["replicate", "workers"], figures(free=2), {}, "replicate", "provider", "the route sends it"),
    ("provider next", ["workers", "replicate"], figures(4), {}, "replicate", "provider", "4 wait for 2 workers"),
    ("first spent", ["a", "b"], figures(), {"a": SPENT}, "b", "provider", "the route sends it to b"),
    (
        "spent",
        OVERFLOW,
        figures(waited_s=41),
        {"replicate": SPENT},
        "workers",
        "budget_exhausted",
        "replicate: 5.00 of",
    ),
    (
        "spent, not asked for",
        OVERFLOW,
        figures(),
        {"replicate": SPENT},
        "workers",
        "all_busy",
        "but it has waited 0.0 s",
    ),
    ("spent, no workers", "replicate", figures(), {"replicate": SPENT}, None, "budget_exhausted", "replicate: 5.00 of"),
    ("paused", "replicate", figures(), {"replicate": PAUSED}, None, "provider_paused", "replicate: paused until"),
    ("full", "replicate", figures(), {"replicate": FULL}, None, "your_limit", "20 of 20 runs"),
    ("refused", "replicate", figures(), {"replicate": REFUSED}, None, "impossible", "it has no such model"),
    (
        "refused, workers",
        OVERFLOW,
        figures(workers=0),
        {"replicate": REFUSED},
        "workers",
        "provider_refused",
        "no such",
    ),
    ("refused and spent", ["a", "b"], figures(), {"a": REFUSED, "b": SPENT}, None, "provider_refused", "a: it has no"),
    ("refused all", ["a", "b"], figures(), {"a": REFUSED, "b": REFUSED}, None, "impossible", "b: it has no such model"),
    ("by night", [{"a": {"when": "hour in 22..6"}}], figures(hour=NIGHT), {}, "a", "overflow", "it is 23:30 UTC"),
    ("by day", [{"a": {"when": "hour in 22..6"}}], figures(), {}, None, "not_yet", "but it is 12:00 UTC"),
    (
        "by day, refused",
        ["b", {"a": {"when": "hour in 22..6"}}],
        figures(),
        {"b": REFUSED},
        None,
        "provider_refused",
        "",
    ),
    ("on Saturday", [{"a": {"when": "weekday == 6"}}], figures(weekday=6), {}, "a", "overflow", "it is Saturday"),
    (
        "expected",
        [{"a": {"when": "expected_wait > 1m"}}],
        figures(expected_s=300),
        {},
        "a",
        "overflow",
        "a wait of 5 min",
    ),
    ("not known", [{"a": {"when": "expected_wait > 1m"}}], figures(), {}, None, "not_yet", "is not known yet"),
    ("free slots", [{"a": {"when": "free < 2"}}], figures(slots=4, free=1), {}, "a", "overflow", "1 of 4 slots free"),
    ("no slots", [{"a": {"when": "free < 2"}}], figures(workers=0), {}, "a", "overflow", "no worker of yours"),
]


@pytest.mark.parametrize(
    ("policy", "moment", "states", "hop", "code", "words"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_which_way(
    policy: Any, moment: Figures, states: dict[str, HopState], hop: str | None, code: str, words: str
) -> None:
    decision = decide(parse(policy), moment, states)
    assert decision.hop == hop
    assert decision.code == code
    assert words in decision.text
    assert decision.figures == moment


ALONE: Final[dict[str, tuple[Figures, Figures]]] = {
    "wait > 30s": (figures(waited_s=31), figures(waited_s=30)),
    "expected_wait > 30s": (figures(expected_s=31), figures(expected_s=30)),
    "expected_wait < 30s": (figures(expected_s=29), figures(expected_s=None)),
    "queued >= 3": (figures(3), figures(2)),
    "queue_per_worker > 1": (figures(3), figures(2)),
    "workers < 2": (figures(workers=1), figures(workers=2)),
    "slots <= 2": (figures(slots=2), figures(slots=3)),
    "free == 0": (figures(3, free=0), figures(3, free=1)),
    "hour in 22..6": (figures(hour=NIGHT), figures(hour=6.0)),
    "weekday in 6..7": (figures(weekday=7), figures(weekday=1)),
    "no_workers": (figures(workers=0), figures(workers=1)),
    "busy": (figures(3, free=0), figures(3, free=2)),
}


@pytest.mark.parametrize("text", ALONE)
def test_each_condition_sends_it_away_or_lets_it_wait(text: str) -> None:
    policy = parse(["workers", {"replicate": {"when": text}}])
    met, unmet = ALONE[text]
    assert decide(policy, met, {}).hop == "replicate"
    assert decide(policy, unmet, {}).hop == "workers"
    assert text in decide(policy, met, {}).text
    assert text in decide(policy, unmet, {}).text


@pytest.mark.parametrize("second", ALONE)
@pytest.mark.parametrize("first", ALONE)
def test_conditions_of_two_providers(first: str, second: str) -> None:
    policy = parse(["workers", {"a": {"when": first}}, {"b": {"when": second}}])
    one, two = policy.providers
    assert one.when is not None
    assert two.when is not None
    for moment in (moment for pair in (ALONE[first], ALONE[second]) for moment in pair):
        wanted = "a" if one.when.holds(moment.values) else "b" if two.when.holds(moment.values) else "workers"
        assert decide(policy, moment, {}).hop == wanted
        left = decide(policy, moment, {"a": SPENT, "b": PAUSED})
        assert left.hop == "workers"
        assert list(left.blocked) == [hop.name for hop in (one, two) if hop.when and hop.when.holds(moment.values)]


def test_a_spent_budget_is_refused_where_the_policy_says_so() -> None:
    policy = parse(["workers", {"a": {"when": "wait > 30s", "over_budget": "refuse"}}, {"b": {"budget_per_day": 1}}])
    late = figures(waited_s=31)
    assert decide(policy, late, {"a": SPENT, "b": SPENT}).is_refused
    assert not decide(policy, late, {"a": PAUSED, "b": SPENT}).is_refused
    assert not decide(policy, figures(), {"a": SPENT, "b": SPENT}).is_refused
    assert not decide(policy, late, {"a": SPENT}).is_refused
    assert not decide(policy, figures(waited_s=31, free=1), {"a": SPENT, "b": SPENT}).is_refused


def test_what_stands_in_the_way_is_told_of_every_provider() -> None:
    decision = decide(parse(["a", "b", "c"]), figures(), {"a": SPENT, "b": PAUSED})
    assert decision.hop == "c"
    assert decision.blocked == {"a": SPENT.text, "b": PAUSED.text}


def test_a_decision_is_kept_as_json() -> None:
    decision = decide(parse(OVERFLOW), figures(waited_s=41, workers=0), {})
    assert msgspec.json.decode(msgspec.json.encode(decision), type=Decision) == decision


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.26, "0.3 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7199, "120 min"),
        (9000, "2.5 h"),
    ],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert shown_s(seconds) == text
