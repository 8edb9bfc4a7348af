"""Route policies: what is read, how it is written again, and where the fault of a nonsense is."""

import json
import re
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogflare.domain import conditions
from cogflare.domain.policy import (
    MAX_HOPS,
    MAX_LINE,
    OPTIONS,
    PRESETS,
    WORKERS_ONLY,
    BadPolicy,
    Hop,
    Policy,
    is_provider_name,
    parse,
    parse_line,
    render,
)

VERSION = "0f" * 32
EVERY_OPTION = {
    "when": "wait > 30s or no_workers",
    "budget_per_day": 5,
    "budget_per_month": 50.25,
    "over_budget": "refuse",
    "price_per_s": 0.000725,
    "price_per_run": 0.01,
    "model": "stability-ai/sdxl",
    "version": VERSION,
    "endpoint": "abc123def",
    "shape": "cog",
}


def test_a_policy_is_read() -> None:
    policy = parse(["workers", {"replicate": EVERY_OPTION}, "other-one"])
    when = conditions.parse("wait > 30s or no_workers")
    assert policy == Policy(
        (
            Hop("workers"),
            Hop(
                "replicate",
                when,
                budget_per_day=5_000_000,
                budget_per_month=50_250_000,
                over_budget="refuse",
                price_per_s=0.000725,
                price_per_run=0.01,
                model="stability-ai/sdxl",
                version=VERSION,
                endpoint="abc123def",
                shape="cog",
            ),
            Hop("other-one"),
        )
    )
    assert policy.uses_workers
    assert [hop.name for hop in policy.providers] == ["replicate", "other-one"]
    assert policy.hop("replicate") is policy.providers[0]
    assert policy.hop("nobody") is None
    assert policy.providers[0].budgets == {"day": 5_000_000, "month": 50_250_000}
    assert set(EVERY_OPTION) == set(OPTIONS) == set(Hop.__struct_fields__) - {"name"}


def test_presets_and_names_stand_alone() -> None:
    assert parse("workers") == WORKERS_ONLY
    assert parse("classic") == parse(["workers", {"replicate": {"when": "no_workers or queued > workers"}}])
    assert parse("replicate") == parse(["replicate"]) == Policy((Hop("replicate"),))
    assert not parse("replicate").uses_workers
    assert [is_provider_name(name) for name in ("replicate", "r2-d2", *PRESETS, "Replicate", "")] == [
        *(True, True),
        *(False for _ in PRESETS),
        *(False, False),
    ]


@pytest.mark.parametrize(
    "line",
    [
        '["workers", {"replicate": {"when": "wait > 30s", "budget_per_day": 5}}]',
        '["workers", {replicate = {when = "wait > 30s", budget_per_day = 5}}]',
        "  ['workers', {replicate = {when = 'wait > 30s', budget_per_day = 5.0}}]  # a comment",
        '["workers", {"replicate" = {"when" = "wait > 30s", "budget_per_day" = 5.0}}]\n',
    ],
)
def test_one_line_of_json_or_toml(line: str) -> None:
    assert render(parse_line(line)) == ["workers", {"replicate": {"when": "wait > 30s", "budget_per_day": 5}}]


@pytest.mark.parametrize("line", ["classic", '"classic"', " 'classic' "])
def test_a_preset_in_one_line(line: str) -> None:
    assert parse_line(line) == parse("classic")


NONSENSE: list[tuple[Any, str, str]] = [
    (None, "policy", "a list of hops"),
    (5, "policy", "a list of hops"),
    (True, "policy", "a list of hops"),
    ({"replicate": {}}, "policy", "a list of hops"),
    ([], "policy", "nothing could run"),
    ("", "policy", "no name"),
    ("Replicate", "policy", "no name"),
    ("https://api.replicate.com", "policy", "no name"),
    ("a" * 64, "policy", "at most 63"),
    ([None], "[0]", "a hop is"),
    ([["workers"]], "[0]", "a hop is"),
    (["workers", 3], "[1]", "a hop is"),
    (["workers", {}], "[1]", "one place, this one 0"),
    (["workers", {"a": {}, "b": {}}], "[1]", "one place, this one 2"),
    (["workers", "workers"], "[1]", "twice"),
    (["replicate", "workers", {"replicate": {"when": "busy"}}], "[2]", "twice"),
    (["workers", "classic"], "[1]", "preset"),
    ([{"classic": {}}], "[0]", "preset"),
    (["no good"], "[0]", "no name"),
    ([{"-a": {}}], "[0]", "no name"),
    ([{1: {}}], "[0]", "a name goes here"),
    ([f"p{number}" for number in range(MAX_HOPS + 1)], f"[{MAX_HOPS}]", "at most 20 hops"),
    ([{"replicate": None}], "[0].replicate", "a table of options"),
    ([{"replicate": "wait > 3"}], "[0].replicate", "a table of options"),
    ([{"workers": {"when": "busy"}}], "[0].workers", "no options"),
    ([{"a": {"wen": "busy"}}], "[0].a.wen", "there are when, budget_per_day"),
    ([{"a": {3: "busy"}}], "[0].a.3", "unknown option"),
    ([{"a": {"name": "b"}}], "[0].a.name", "unknown option"),
    ([{"a": {"when": 3}}], "[0].a.when", "a condition goes here"),
    ([{"a": {"when": None}}], "[0].a.when", "a condition goes here"),
    ([{"a": {"when": ""}}], "[0].a.when, character 1", "empty"),
    (["b", {"a": {"when": "wait > 30x"}}], "[1].a.when, character 10", "there are ms, s, m, h, d"),
    ([{"a": {"when": "queue > 3"}}], "[0].a.when, character 1", "unknown name 'queue'"),
    ([{"a": {"when": "x" * 501}}], "[0].a.when, character 501", "at most 500"),
    ([{"a": {"budget_per_day": "5"}}], "[0].a.budget_per_day", "an amount of dollars"),
    ([{"a": {"budget_per_day": True}}], "[0].a.budget_per_day", "an amount of dollars"),
    ([{"a": {"budget_per_day": None}}], "[0].a.budget_per_day", "an amount of dollars"),
    ([{"a": {"budget_per_day": 0}}], "[0].a.budget_per_day", "more than 0"),
    ([{"a": {"budget_per_day": 1e-9}}], "[0].a.budget_per_day", "more than 0"),
    ([{"a": {"budget_per_day": -1}}], "[0].a.budget_per_day", "from 0 to"),
    ([{"a": {"budget_per_day": float("nan")}}], "[0].a.budget_per_day", "from 0 to"),
    ([{"a": {"budget_per_month": float("inf")}}], "[0].a.budget_per_month", "from 0 to"),
    ([{"a": {"budget_per_month": 10**400}}], "[0].a.budget_per_month", "from 0 to"),
    ([{"a": {"budget_per_month": 2e9}}], "[0].a.budget_per_month", "from 0 to"),
    ([{"a": {"budget_per_day": 9, "budget_per_month": 5}}], "[0].a.budget_per_day", "more than budget_per_month"),
    ([{"a": {"over_budget": "stop"}}], "[0].a.over_budget", '"wait" or "refuse"'),
    ([{"a": {"over_budget": 1}}], "[0].a.over_budget", '"wait" or "refuse"'),
    ([{"a": {"price_per_s": -0.1}}], "[0].a.price_per_s", "from 0 to"),
    ([{"a": {"price_per_run": "free"}}], "[0].a.price_per_run", "an amount of dollars"),
    ([{"a": {"model": "sdxl"}}], "[0].a.model", "owner/name"),
    ([{"a": {"model": "../../etc/passwd"}}], "[0].a.model", "owner/name"),
    ([{"a": {"version": "latest"}}], "[0].a.version", "64 hex digits"),
    ([{"a": {"version": VERSION.upper()}}], "[0].a.version", "64 hex digits"),
    ([{"a": {"endpoint": "../x"}}], "[0].a.endpoint", "endpoint"),
    ([{"a": {"shape": "COG"}}], "[0].a.shape", '"plain" or "cog"'),
]


@pytest.mark.parametrize(("value", "place", "word"), NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense_is_refused_with_its_place(value: object, place: str, word: str) -> None:
    with pytest.raises(BadPolicy) as refused:
        parse(value)
    assert refused.value.place == place, refused.value
    assert word in refused.value.text
    assert str(refused.value) == f"{place}: {refused.value.text}"


@pytest.mark.parametrize(
    ("line", "place", "word"),
    [
        ("", "policy", "it is empty"),
        ("Classic", "policy", "lower-case letters"),
        ("[workers]", "character 2", "no JSON"),
        ('["workers"', "character 11", "no JSON"),
        ('["workers", {"a": {"when": busy}}]', "character 28", "no JSON"),
        ('["workers", {a = {when = "busy}}]', "character 34", "no TOML"),
        ('["workers", {a = {when = busy}}]', "character 26", "no TOML"),
        ('["workers", {a = {when = "wait >> 3"}}]', "[1].a.when, character 7", "a number or a name"),
        ("[{a = {budget_per_day = nan}}]", "[0].a.budget_per_day", "from 0 to"),
        ("[{a = {budget_per_day = 2026-01-31}}]", "[0].a.budget_per_day", "an amount"),
        ('[{"a": {"budget_per_day": Infinity}}]', "[0].a.budget_per_day", "from 0 to"),
        ('[{"a": {"when": "busy", "when": "no_workers"}}]', "policy", '"when" stands twice'),
        ("9" * 5_000, "policy", "too many digits"),
        ("[{a = {budget_per_day = " + "9" * 5_000 + "}}]", "policy", "too many digits"),
        ("[" * 5_000, "policy", "too deep"),
        ("{a = " * 3_000, "policy", "too deep"),
        ("x" * (MAX_LINE + 1), "policy", "at most 20000 characters"),
        ('["workers"]\nother = 3', "policy", "more than one value"),
    ],
)
def test_a_line_that_is_no_policy_is_refused(line: str, place: str, word: str) -> None:
    with pytest.raises(BadPolicy) as refused:
        parse_line(line)
    assert refused.value.place == place, refused.value
    assert word in refused.value.text


NAMES = st.from_regex(r"[a-z0-9]([a-z0-9_-]{0,20}[a-z0-9])?", fullmatch=True).filter(is_provider_name)
NUMBERS = st.integers(0, 1000).map(str) | st.decimals(0, 1000, places=3).map(lambda value: f"{value:f}")
ATOMS = st.one_of(
    st.builds("{} {} {}".format, st.sampled_from(["queued", "free"]), st.sampled_from(["<", ">=", "!="]), NUMBERS),
    st.builds("wait > {}{}".format, NUMBERS, st.sampled_from(["", "s", "ms", "m"])),
    st.builds("hour in {}..{}".format, st.integers(0, 11), st.integers(12, 24)),
    st.sampled_from(["no_workers", "busy", "queued > workers", "expected_wait>wait"]),
)
CONDITIONS = st.recursive(
    ATOMS,
    lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from(["and", "or", " and  not"]), inner),
    max_leaves=6,
)
DOLLARS = st.integers(1, 10**9).map(lambda micros: micros / 1_000_000)
HOPS = st.fixed_dictionaries(
    {},
    optional={
        "when": CONDITIONS,
        "budget_per_day": DOLLARS,
        "over_budget": st.sampled_from(["wait", "refuse"]),
        "price_per_s": st.floats(0, 1),
        "price_per_run": st.floats(0, 1) | st.integers(0, 5),
        "model": st.just("owner/name"),
        "version": st.just(VERSION),
        "endpoint": st.just("abc"),
        "shape": st.sampled_from(["plain", "cog"]),
    },
)
POLICIES = st.dictionaries(NAMES, HOPS, min_size=1, max_size=4).map(lambda hops: [{name: hops[name]} for name in hops])


@given(POLICIES, st.booleans())
def test_what_is_written_is_read_again(value: list[object], with_workers: bool) -> None:
    policy = parse([*(["workers"] if with_workers else []), *value])
    plain = render(policy)
    assert parse(plain) == policy
    assert parse_line(json.dumps(plain)) == policy
    assert render(parse(plain)) == plain


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
KEYS = st.sampled_from(["workers", "a", *OPTIONS]) | st.text(max_size=5)


@given(st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=12))
def test_any_value_is_read_or_refused(value: object) -> None:
    try:
        policy = parse(value)
    except BadPolicy:
        return
    assert parse(render(policy)) == policy


@given(st.text(max_size=60) | st.text(st.sampled_from("[]{}\"=:,. 'workersaw>"), max_size=60))
def test_any_line_is_read_or_refused(line: str) -> None:
    try:
        policy = parse_line(line)
    except BadPolicy:
        return
    assert parse_line(json.dumps(render(policy))) == policy


DOCS: Final = (Path(__file__).parents[2] / "docs/reference/routes.md").read_text()


@pytest.mark.parametrize("line", re.findall(r"^    ([\[a-z].*)$", DOCS.split("## Conditions")[0], re.MULTILINE))
def test_the_routes_of_the_reference_are_read(line: str) -> None:
    parse_line(line)


@pytest.mark.parametrize("line", re.findall(r"^\| `(\[.*?\])` \|", DOCS.split("## Examples")[1], re.MULTILINE))
def test_the_examples_of_the_reference_are_read(line: str) -> None:
    parse(json.loads(line))


@pytest.mark.parametrize(
    ("line", "place", "text"),
    re.findall(r"^\| `(.*?)` \| `(.*?)` \| (.*) \|$", DOCS.split("## What is refused")[1], re.MULTILINE),
)
def test_the_refusals_of_the_reference_are_as_it_says(line: str, place: str, text: str) -> None:
    with pytest.raises(BadPolicy) as refused:
        parse_line(line)
    assert refused.value.place == place
    assert refused.value.text.startswith(text.removesuffix(", …"))


def test_the_reference_has_every_option_name_and_preset() -> None:
    first = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", DOCS, re.MULTILINE))))
    assert set(OPTIONS) | set(conditions.NAMES) | set(PRESETS) <= first
    for preset, value in PRESETS.items():
        assert f"| `{preset}` | `{json.dumps(value)}` |" in DOCS
    for unit in conditions.UNITS:
        assert re.search(rf"`\d+{unit}`", DOCS)
