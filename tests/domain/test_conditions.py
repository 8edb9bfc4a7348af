"""Conditions of routes: what they mean, alone and in pairs, and what is no condition."""

import itertools
import math
import operator
import random
from collections.abc import Callable
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogflare.domain.conditions import MAX_CHARS, MAX_DEPTH, NAMES, BadCondition, Condition, parse
from cogflare.domain.routing import Figures

Meaning = Callable[[Figures], bool]

MEANINGS: Final[dict[str, Meaning]] = {
    "wait > 30s": lambda f: f.waited_s > 30,
    "wait >= 0.5m": lambda f: f.waited_s >= 30,
    "5m < wait": lambda f: f.waited_s > 300,
    "expected_wait > 1h": lambda f: f.expected_s is not None and f.expected_s > 3600,
    "expected_wait <= 29": lambda f: f.expected_s is not None and f.expected_s <= 29,
    "29s > expected_wait": lambda f: f.expected_s is not None and f.expected_s < 29,
    "expected_wait > wait": lambda f: f.expected_s is not None and f.expected_s > f.waited_s,
    "queued > 4": lambda f: f.queued > 4,
    "queued == 1": lambda f: f.queued == 1,
    "queued > workers": lambda f: f.queued > f.workers,
    "queue_per_worker > 2": lambda f: f.workers == 0 or f.queued / f.workers > 2,
    "queue_per_worker <= 0.5": lambda f: f.workers > 0 and f.queued / f.workers <= 0.5,
    "workers < 3": lambda f: f.workers < 3,
    "workers != 2": lambda f: f.workers != 2,
    "slots >= 4": lambda f: f.slots >= 4,
    "free == 0": lambda f: f.free == 0,
    "free < queued": lambda f: f.free < f.queued,
    "hour >= 22.5": lambda f: f.hour >= 22.5,
    "hour in 22..6": lambda f: f.hour >= 22 or f.hour < 6,
    "hour in 8..18": lambda f: 8 <= f.hour < 18,
    "weekday == 6": lambda f: f.weekday == 6,
    "weekday in 1..5": lambda f: f.weekday <= 5,
    "weekday in 6..1": lambda f: f.weekday in (6, 7, 1),
    "no_workers": lambda f: f.workers == 0,
    "busy": lambda f: f.workers > 0 and f.free == 0,
    "not busy": lambda f: f.workers == 0 or f.free > 0,
    "not (hour in 0..24)": lambda f: False,
    "not expected_wait > 30s": lambda f: f.expected_s is None or f.expected_s <= 30,
}
FLEETS: Final = ((0, 0, 0), (1, 4, 1), (2, 2, 0), (2, 4, 1), (3, 6, 6))


def grid() -> list[Figures]:
    """Figures at both sides of every limit above, a fair share of all their combinations."""
    waits, expected = (0.0, 30.0, 30.1, 301.0), (None, 0.5, 29.0, 31.0, 4000.0)
    hours, days = (0.0, 5.99, 6.0, 12.0, 18.0, 22.0, 23.5), (1, 2, 5, 6, 7)
    every = list(itertools.product(waits, expected, (1, 2, 5), FLEETS, hours, days))
    chosen = random.Random(7).sample(every, 150)
    return [Figures(wait, soon, queued, *fleet, hour, day) for wait, soon, queued, fleet, hour, day in chosen]


GRID: Final = grid()
VALUES: Final = [figures.values for figures in GRID]


@pytest.mark.parametrize("text", MEANINGS)
def test_each_condition_alone(text: str) -> None:
    condition, meaning = parse(text), MEANINGS[text]
    outcomes = {meaning(figures) for figures in GRID}
    assert outcomes == ({False} if text == "not (hour in 0..24)" else {True, False})
    for figures in GRID:
        assert condition.holds(figures.values) is meaning(figures), figures


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(MEANINGS, 2)))
def test_conditions_in_pairs(first: str, second: str) -> None:
    one, two = MEANINGS[first], MEANINGS[second]
    texts: dict[str, Callable[[bool, bool], bool]] = {
        f"{first} and {second}": operator.and_,
        f"{first} or {second}": operator.or_,
        f"not ({first} or {second})": lambda a, b: not (a or b),
        f"{first} and not ({second})": lambda a, b: a and not b,
    }
    for text, table in texts.items():
        condition = parse(text)
        for figures, values in zip(GRID, VALUES, strict=True):
            assert condition.holds(values) is table(one(figures), two(figures)), (text, figures)


def test_every_name_has_a_meaning_here() -> None:
    assert all(any(name in text for text in MEANINGS) for name in NAMES)
    assert set(GRID[0].values) == set(NAMES)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("busy or no_workers and free > 1", "busy or (no_workers and free > 1)"),
        ("not busy and no_workers", "(not busy) and no_workers"),
        ("not not busy", "busy"),
        ("(((busy)))", "busy"),
        ("wait>30s", "wait > 30"),
        ("wait > 1500ms", "wait > 1.5s"),
        ("wait > 1d", "wait > 24h"),
        ("hour in 24..6", "hour in 0..6"),
    ],
)
def test_what_is_written_in_several_ways(text: str, same: str) -> None:
    for figures in GRID:
        assert parse(text).holds(figures.values) is parse(same).holds(figures.values)


@pytest.mark.parametrize(
    ("text", "figures", "names"),
    [
        ("wait > 30s or no_workers", Figures(0, None, 1, 0, 0, 0, 0, 1), ["no_workers"]),
        ("wait > 30s or no_workers", Figures(31, None, 1, 0, 0, 0, 0, 1), ["wait", "no_workers"]),
        ("wait > 30s or no_workers", Figures(0, None, 1, 1, 1, 0, 0, 1), ["wait", "no_workers"]),
        ("wait > 30s and busy", Figures(31, None, 1, 1, 1, 0, 0, 1), ["wait", "busy"]),
        ("wait > 30s and busy", Figures(31, None, 1, 1, 1, 1, 0, 1), ["busy"]),
        ("not (queued > workers or hour in 1..2)", Figures(0, None, 3, 2, 2, 0, 5, 1), ["queued", "workers"]),
    ],
)
def test_which_names_decide(text: str, figures: Figures, names: list[str]) -> None:
    assert parse(text).deciding(figures.values) == names


@pytest.mark.parametrize(
    ("text", "character", "word"),
    [
        ("", 1, "empty"),
        ("   ", 1, "empty"),
        ("wait", 5, "comparison"),
        ("wait >", 7, "a number or a name"),
        ("> 30s", 1, "a condition"),
        ("wait > 30x", 10, "unit"),
        ("wait > 30 s", 11, "and, or"),
        ("wait > -3", 8, "below 0"),
        ("wait = 3", 6, "=="),
        ("wait > 3 && busy", 10, "write and"),
        ("wait > 3 || busy", 10, "write or"),
        ("!busy", 1, "write not"),
        ("waits > 3", 1, "unknown name 'waits'"),
        ("wait > thirty", 8, "unknown name 'thirty'"),
        ("Wait > 3", 1, "unknown name 'Wait'"),
        ("wait > nan", 8, "unknown name 'nan'"),
        ("wait > 1e999", 9, "unit"),
        (f"wait > {'9' * 400}", 8, "numbers go up"),
        ("1 < 2", 1, "one side must be a name"),
        ("busy > 3", 6, "true or false"),
        ("3 < busy", 5, "true or false"),
        ("busy == no_workers", 6, "true or false"),
        ("wait == wait", 1, "itself"),
        ("wait > queued", 8, "a time"),
        ("queued > 30s", 10, "is a time"),
        ("hour > 25", 8, "0 to 24"),
        ("hour in 22..25", 13, "0 to 24"),
        ("hour in 5..5", 9, "empty"),
        ("hour in 24..0", 9, "empty"),
        ("hour in 22", 11, ".."),
        ("hour in 22..", 13, "a number"),
        ("hour in night", 9, "a number"),
        ("weekday in 0..5", 12, "Monday"),
        ("weekday == 8", 12, "Monday"),
        ("queued in 1..5", 1, "hour and weekday"),
        ("5 in 1..5", 1, "hour and weekday"),
        ("1 < wait < 5", 10, "join two with and"),
        ("(busy", 6, ")"),
        ("busy)", 5, "the end"),
        ("()", 2, "a condition"),
        ("busy busy", 6, "and, or"),
        ("busy and", 9, "a condition"),
        ("and busy", 1, "a condition"),
        ("not", 4, "a condition"),
        ("busy or or busy", 9, "a condition"),
        ("wait > 3; busy", 9, "';' has no meaning"),
        ("wait > 3 # busy", 10, "no meaning"),
        ("wäit > 3", 2, "no meaning"),
        ("__import__('os')", 12, "no meaning"),
        ("busy" + " or busy" * 100, MAX_CHARS + 1, str(MAX_CHARS)),
        ("not " * (MAX_DEPTH + 1) + "busy", 4 * MAX_DEPTH + 1, "deep"),
        ("(" * (MAX_DEPTH + 1) + "busy" + ")" * (MAX_DEPTH + 1), MAX_DEPTH + 1, "deep"),
    ],
)
def test_nonsense_is_refused_with_its_place(text: str, character: int, word: str) -> None:
    with pytest.raises(BadCondition) as refused:
        parse(text)
    assert refused.value.character == character, refused.value
    assert word in refused.value.text


def test_the_deepest_and_the_longest_are_read() -> None:
    assert isinstance(parse("(" * MAX_DEPTH + "busy" + ")" * MAX_DEPTH), Condition)
    assert isinstance(parse("busy".ljust(MAX_CHARS)), Condition)


@given(st.text(st.sampled_from("waitbusyhournot() <>=.!0123456789sm\t\n;&and-é"), max_size=60) | st.text(max_size=30))
def test_any_text_is_read_or_refused_with_a_place_in_it(text: str) -> None:
    try:
        condition = parse(text)
    except BadCondition as error:
        character = error.character
    else:
        character = 1
        assert parse(condition.text) == condition
        assert isinstance(condition.holds(GRID[0].values), bool)
    assert 1 <= character <= len(text) + 1


def test_without_workers_the_queue_of_each_is_endless() -> None:
    assert Figures(0, None, 1, 0, 0, 0, 0, 1).values["queue_per_worker"] == math.inf
