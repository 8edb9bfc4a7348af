"""Route policies: where the predictions of an account or a model may run, in the order in which that is tried.

    policy := preset | provider | [hop, …]
    hop    := "workers" | provider | {provider: {option: value, …}}

A policy that makes no sense is refused with the place of the fault and what is allowed there.
"""

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import msgspec

from cogflare.domain import conditions, money
from cogflare.domain.conditions import BadCondition, Condition
from cogflare.domain.ids import is_version

WORKERS: Final = "workers"
MAX_HOPS: Final = 20
MAX_LINE: Final = 20_000  # characters

PRESETS: Final[dict[str, object]] = {
    WORKERS: [WORKERS],
    "classic": [WORKERS, {"replicate": {"when": "no_workers or queued > workers"}}],
}

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?", re.ASCII)
_WORD: Final = re.compile(r"[\w.-]{1,100}")
_MODEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}/[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_ENDPOINT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", re.ASCII)
_TOML_PLACE: Final = re.compile(r" \(at (?:line \d+, column (\d+)|end of document)\)\Z", re.ASCII)
_TOML_KEY: Final = "policy = "


class BadPolicy(ValueError):
    """The policy makes no sense; `place` says where (`[1].replicate.when, character 7`), `text` what is allowed."""

    def __init__(self, place: str, text: str) -> None:
        super().__init__(f"{place}: {text}")
        self.place = place
        self.text = text


class Hop(msgspec.Struct, frozen=True):
    """One place to run: the account's workers, or one of its providers.

    `when` None: always. Budgets are in micros, prices in dollars. What the provider calls the model may be said too.
    """

    name: str
    when: Condition | None = None
    budget_per_day: int | None = None
    budget_per_month: int | None = None
    over_budget: Literal["wait", "refuse"] = "wait"
    price_per_s: float | None = None
    price_per_run: float | None = None
    model: str | None = None
    version: str | None = None
    endpoint: str | None = None
    shape: Literal["plain", "cog"] | None = None

    @property
    def is_workers(self) -> bool:
        """Whether this is the account's own workers."""
        return self.name == WORKERS

    @property
    def prices(self) -> money.Prices:
        """What a run costs, as far as the hop says it."""
        return money.Prices(self.price_per_s, self.price_per_run)

    @property
    def budgets(self) -> dict[money.Period, int]:
        """What the hop may spend, by period."""
        named: dict[money.Period, int | None] = {"day": self.budget_per_day, "month": self.budget_per_month}
        return {period: amount for period, amount in named.items() if amount is not None}


class Policy(msgspec.Struct, frozen=True):
    """The hops in the order in which they are tried; each name stands once."""

    hops: tuple[Hop, ...]

    @property
    def uses_workers(self) -> bool:
        """Whether the account's own workers may run it."""
        return any(hop.is_workers for hop in self.hops)

    @property
    def providers(self) -> tuple[Hop, ...]:
        """The hops that are providers."""
        return tuple(hop for hop in self.hops if not hop.is_workers)

    def hop(self, name: str) -> Hop | None:
        """Return the hop of this name."""
        return next((hop for hop in self.hops if hop.name == name), None)


WORKERS_ONLY: Final = Policy((Hop(WORKERS),))


def is_provider_name(text: str) -> bool:
    """Say whether a provider may have this name: lower-case, and no word that policies have a meaning for."""
    return _NAME.fullmatch(text) is not None and text not in PRESETS


def parse(value: object) -> Policy:
    """Read a policy as decoded from JSON; raise `BadPolicy`."""
    if isinstance(value, str):
        return parse(PRESETS[value]) if value in PRESETS else Policy((Hop(_name(value, "policy")),))
    if not isinstance(value, list):
        raise BadPolicy("policy", f"a list of hops, a preset ({', '.join(PRESETS)}) or a provider's name goes here")
    if not value:
        raise BadPolicy("policy", 'an empty list: nothing could run anywhere; write ["workers"] for your own workers')
    if len(value) > MAX_HOPS:
        raise BadPolicy(f"[{MAX_HOPS}]", f"a policy has at most {MAX_HOPS} hops, this one {len(value)}")
    hops: dict[str, Hop] = {}
    for index, item in enumerate(value):
        hop = _hop(item, f"[{index}]")
        if hop.name in hops:
            raise BadPolicy(f"[{index}]", f"{hop.name} stands twice; each place stands once")
        hops[hop.name] = hop
    return Policy(tuple(hops.values()))


def parse_line(text: str) -> Policy:
    """Read a policy as a person writes it: one value of JSON or TOML, or a bare name; raise `BadPolicy`."""
    line = text.strip()
    if len(line) > MAX_LINE:
        raise BadPolicy("policy", f"a policy has at most {MAX_LINE} characters, this one {len(line)}")
    if not line:
        raise BadPolicy("policy", "it is empty; a list of hops, a preset or a provider's name goes here")
    if _WORD.fullmatch(line):
        return parse(line)
    try:
        return parse(_decoded(line))
    except RecursionError:
        raise BadPolicy("policy", "lists and tables go too deep") from None


def _decoded(line: str) -> object:
    try:
        return json.loads(line, object_pairs_hook=_table)
    except json.JSONDecodeError as error:
        advice = "; names stand in quotes" if line[error.pos : error.pos + 1].isalpha() else ""
        as_json = BadPolicy(f"character {error.pos + 1}", f"no JSON: {error.msg}{advice}")
    except BadPolicy:
        raise
    except ValueError:
        raise BadPolicy("policy", "a number with too many digits") from None
    try:
        table = tomllib.loads(_TOML_KEY + line)
    except tomllib.TOMLDecodeError as error:
        if re.search(r'"\s*:', line) or not re.search("=", line):
            raise as_json from None
        found = _TOML_PLACE.search(str(error))
        character = int(found[1]) - len(_TOML_KEY) if found and found[1] else len(line) + 1
        raise BadPolicy(f"character {character}", f"no TOML: {_TOML_PLACE.sub('', str(error))}") from None
    except ValueError:
        raise BadPolicy("policy", "a number with too many digits") from None
    if len(table) > 1:
        raise BadPolicy("policy", "more than one value")
    return table["policy"]


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadPolicy("policy", f"{json.dumps(twice)} stands twice in one table")
    return table


def render(policy: Policy) -> list[object]:
    """Return a policy as plain JSON; `parse` reads the same policy from it."""
    return [_rendered(hop) for hop in policy.hops]


def _rendered(hop: Hop) -> object:
    options: dict[str, object] = {}
    for option in OPTIONS:
        value = getattr(hop, option)
        if value is None or (option == "over_budget" and value == "wait"):
            continue
        if isinstance(value, Condition):
            value = value.text
        elif option in ("budget_per_day", "budget_per_month"):
            value = money.dollars(value)
        options[option] = int(value) if isinstance(value, float) and value.is_integer() else value
    return {hop.name: options} if options else hop.name


def _name(text: object, place: str) -> str:
    if not isinstance(text, str) or not _NAME.fullmatch(text):
        given = f"{text[:80]!r} is no name of a provider" if isinstance(text, str) else "a name goes here"
        raise BadPolicy(place, f"{given}: lower-case letters, digits, - and _, at most 63")
    return text


def _hop(item: object, place: str) -> Hop:
    name: object
    options: object
    if isinstance(item, str):
        name, options = item, {}
    elif not isinstance(item, dict):
        raise BadPolicy(place, 'a hop is "workers", a provider\'s name, or {"name": {options}}')
    elif len(item) != 1:
        raise BadPolicy(place, f"a hop names one place, this one {len(item)}: each goes in a table of its own")
    else:
        [(name, options)] = item.items()
    name = _name(name, place)
    if name in PRESETS and name != WORKERS:
        raise BadPolicy(place, f'{name} is a preset and stands alone, as "{name}"')
    if not isinstance(options, dict):
        raise BadPolicy(f"{place}.{name}", f"a table of options goes here, of {', '.join(OPTIONS)}")
    if name == WORKERS and options:
        raise BadPolicy(f"{place}.{name}", "workers have no options: a free one may always take what it can run")
    return _with_options(name, options, f"{place}.{name}")


def _with_options(name: str, options: Mapping[object, object], place: str) -> Hop:
    read: dict[str, Any] = {}
    for option, value in options.items():
        if not isinstance(option, str) or option not in OPTIONS:
            raise BadPolicy(f"{place}.{_shown(option)}", f"unknown option; there are {', '.join(OPTIONS)}")
        read[option] = OPTIONS[option](value, f"{place}.{option}")
    hop = Hop(name, **read)
    if hop.budget_per_day and hop.budget_per_month and hop.budget_per_day > hop.budget_per_month:
        raise BadPolicy(f"{place}.budget_per_day", "more than budget_per_month: a day cannot spend more than its month")
    return hop


def _shown(option: object) -> str:
    """Return the beginning of an option's name as text that can be sent: JSON may name one with half a character."""
    return str(option)[:80].encode(errors="replace").decode()


def _when(value: object, place: str) -> Condition:
    if not isinstance(value, str):
        raise BadPolicy(place, 'a condition goes here, as "wait > 30s or no_workers"')
    try:
        return conditions.parse(value)
    except BadCondition as error:
        raise BadPolicy(f"{place}, character {error.character}", error.text) from None


def _amount(value: object, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadPolicy(place, "an amount of dollars goes here, as 5 or 0.25")
    if not 0 <= value <= money.MAX_DOLLARS:  # nor is what is no number at all
        raise BadPolicy(place, f"an amount of dollars from 0 to {money.MAX_DOLLARS:.0f} goes here")
    return float(value)


def _budget(value: object, place: str) -> int:
    amount = money.micros(_amount(value, place))
    if amount == 0:
        raise BadPolicy(place, "a budget is more than 0; leave out a provider that may spend nothing")
    return amount


def _one_of(*words: str) -> Callable[[object, str], str]:
    def read(value: object, place: str) -> str:
        if not isinstance(value, str) or value not in words:
            raise BadPolicy(place, " or ".join(json.dumps(word) for word in words) + " goes here")
        return value

    return read


def _text(is_good: Callable[[str], object], wanted: str) -> Callable[[object, str], str]:
    def read(value: object, place: str) -> str:
        if not isinstance(value, str) or not is_good(value):
            raise BadPolicy(place, f"{wanted} goes here")
        return value

    return read


OPTIONS: Final[dict[str, Callable[[object, str], object]]] = {
    "when": _when,
    "budget_per_day": _budget,
    "budget_per_month": _budget,
    "over_budget": _one_of("wait", "refuse"),
    "price_per_s": _amount,
    "price_per_run": _amount,
    "model": _text(_MODEL.fullmatch, "the provider's name of the model, as owner/name,"),
    "version": _text(is_version, "the provider's version of the model, 64 hex digits,"),
    "endpoint": _text(_ENDPOINT.fullmatch, "the id of an endpoint, letters and digits,"),
    "shape": _one_of("plain", "cog"),
}
